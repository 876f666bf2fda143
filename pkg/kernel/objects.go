package kernel

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
)

// MAC is an Ethernet address; unlike net.HardwareAddr it is comparable.
type MAC [6]byte

// ParseMAC reads the colon-separated form of an EUI-48 address.
func ParseMAC(s string) (MAC, error) {
	hw, err := net.ParseMAC(s)
	if err != nil || len(hw) != len(MAC{}) {
		return MAC{}, fmt.Errorf("%q is not an Ethernet address (six hexadecimal bytes: 02:00:5e:10:00:01)", s)
	}
	return MAC(hw), nil
}

// String is the lower-case colon-separated form.
func (m MAC) String() string { return net.HardwareAddr(m[:]).String() }

// HardwareAddr is m as the standard library's type.
func (m MAC) HardwareAddr() net.HardwareAddr { return net.HardwareAddr(m[:]) }

// IsUnicast reports whether m can be a station's address: not multicast, not
// zero.
func (m MAC) IsUnicast() bool { return m != MAC{} && m[0]&1 == 0 }

// MarshalText implements encoding.TextMarshaler.
func (m MAC) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (m *MAC) UnmarshalText(b []byte) (err error) {
	*m, err = ParseMAC(string(b))
	return err
}

// VXLAN is a VXLAN device (RFC 7348), up. But for one with a Group it has no
// lower device: the routing table picks the way out, so the device survives
// the removal of a NIC. One that is no port of a bridge filters reverse paths
// loosely (rp_filter 2), so that a peer may be reached by another way than its
// packets come by, while encryption is turned on or off.
type VXLAN struct {
	Name  string
	VNI   uint32
	Port  uint16     // UDP destination port
	Local netip.Addr // outer source address; its family is the tunnel's
	MAC   MAC
	MTU   int // bytes, of the inner packet
	// Group is a multicast group that frames to many go to, by the link Via;
	// invalid for none.
	Group netip.Addr
	Via   string
	// Bridge is the bridge that the device is a port of, empty for none. As a
	// port it answers ARP and ND for neighbours that the bridge knows (bridge(8):
	// neigh_suppress on), and multicast frames go to it always.
	Bridge string
	// Learning has the device learn which VTEP a station is behind, and the
	// bridge that it is behind the device.
	Learning bool
	// Moving lets gratuitous ARP and unsolicited neighbour advertisements into
	// the tunnel, by which others hear that an address has moved; nothing is
	// answered for neighbours then (neigh_suppress off).
	Moving bool
	// VLANs are those of the port.
	VLANs VLANs
	// Detail is what was read and differs from this form but can be put right
	// in place ("down"); empty on what is wanted.
	Detail string
}

// Key implements Object.
func (v VXLAN) Key() Key { return Key{Kind: KindLink, Name: v.Name} }

func (v VXLAN) String() string {
	master, learning, group := "", "nolearning", ""
	if v.Learning {
		learning = "learning"
	}
	if v.Group.IsValid() {
		group = fmt.Sprintf(" group %s dev %s", v.Group, v.Via)
	}
	if v.Bridge != "" {
		master = " master " + v.Bridge + " neigh_suppress on"
	}
	if v.Moving {
		master = " master " + v.Bridge + " neigh_suppress off"
	}
	return fmt.Sprintf("link %s type vxlan id %d local %s%s dstport %d %s address %s mtu %d%s%s up%s",
		v.Name, v.VNI, v.Local, group, v.Port, learning, v.MAC, v.MTU, master, v.VLANs.suffix(), detail(v.Detail))
}

// Incompatible says why the device have can't be changed into v and has to be
// made anew; it is empty where it can be changed in place.
func (v VXLAN) Incompatible(have Object) string {
	h, ok := have.(VXLAN)
	switch {
	case !ok:
		return "not a VXLAN device of this form"
	case h.VNI != v.VNI:
		return fmt.Sprintf("VNI %d, not %d", h.VNI, v.VNI)
	case h.Port != v.Port:
		return fmt.Sprintf("UDP port %d, not %d", h.Port, v.Port)
	case !h.Local.IsValid() || h.Local.Is4() != v.Local.Is4():
		return fmt.Sprintf("outer address %s, not of the family of %s", h.Local, v.Local)
	case h.Group != v.Group || h.Via != v.Via:
		return fmt.Sprintf("group %q by %q, not %q by %q", h.Group, h.Via, v.Group, v.Via)
	case v.Group.IsValid() && h.Local != v.Local: // the kernel takes no change of it here
		return fmt.Sprintf("outer address %s, not %s", h.Local, v.Local)
	}
	return ""
}

// ForeignLink is a link that carries one of our names and is not what we
// make: another kind, or a VXLAN device with settings we never use. It only
// ever appears in states that were read.
type ForeignLink struct {
	Name   string
	Detail string // its type and what is wrong with it
}

// Key implements Object.
func (f ForeignLink) Key() Key { return Key{Kind: KindLink, Name: f.Name} }

func (f ForeignLink) String() string { return fmt.Sprintf("link %s (%s)", f.Name, f.Detail) }

// Addr is an address on a link.
type Addr struct {
	Link   string
	Prefix netip.Prefix
}

// Key implements Object. The address without its length: the kernel takes one
// of each.
func (a Addr) Key() Key { return Key{Kind: KindAddr, Name: a.Link, Dst: a.Prefix} }

func (a Addr) String() string { return fmt.Sprintf("addr %s dev %s", a.Prefix, a.Link) }

// FDB is a permanent forwarding entry of a VXLAN device: frames to MAC leave
// in a tunnel to VTEP.
type FDB struct {
	Link string
	MAC  MAC
	VTEP netip.Addr
	Port uint16 // UDP; 0: the device's own
	// Detail is what else the kernel holds for this MAC and we never make
	// (another VNI, state); empty on what is wanted.
	Detail string
}

// Key implements Object.
func (f FDB) Key() Key { return Key{Kind: KindFDB, Name: f.Link, MAC: f.MAC} }

func (f FDB) String() string {
	port := ""
	if f.Port != 0 {
		port = fmt.Sprintf(" port %d", f.Port)
	}
	return fmt.Sprintf("fdb %s dev %s dst %s%s self permanent%s", f.MAC, f.Link, f.VTEP, port, detail(f.Detail))
}

// Neigh is a permanent neighbour entry (ARP or ND).
type Neigh struct {
	Link   string
	IP     netip.Addr
	MAC    MAC
	Detail string // a state other than permanent, as read
}

// Key implements Object.
func (n Neigh) Key() Key {
	return Key{Kind: KindNeigh, Name: n.Link, Dst: netip.PrefixFrom(n.IP, n.IP.BitLen())}
}

func (n Neigh) String() string {
	return fmt.Sprintf("neigh %s dev %s lladdr %s permanent%s", n.IP, n.Link, n.MAC, detail(n.Detail))
}

// RouteProtocol is the rtm_protocol of every route of ours. Numbers above
// RTPROT_STATIC (4) are userspace's to choose; 87 is in none of iproute2's
// tables.
const RouteProtocol = 87

// RouteTable is the one table beside the main one that has routes of ours.
const RouteTable = 87

// Gateways is the beginning of the numbers of segments' gateways, 24 bits: each
// has such a number for its routing table and for the mark of its packets. Marks
// of others mostly are smaller, or a bit or two.
const Gateways = 87 << 24

// OfGateway reports whether a table or a mark is that of a segment's gateway.
func OfGateway(number uint32) bool { return number>>24 == Gateways>>24 }

// Route is a route of protocol RouteProtocol.
type Route struct {
	Link   string
	Table  uint32 // 0: the main table
	Dst    netip.Prefix
	Via    netip.Addr // next hop, onlink; invalid for a route with link scope
	Src    netip.Addr // preferred source; may be invalid
	Metric uint32     // 0: the family's default; others only appear as strangers
	Detail string     // protocol, type or flags that we never use, as read
}

// Key implements Object.
func (r Route) Key() Key {
	return Key{Kind: KindRoute, Name: r.Link, Dst: r.Dst, Metric: r.Metric, FIB: r.Table}
}

func (r Route) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "route %s", r.Dst)
	if r.Via.IsValid() {
		fmt.Fprintf(&b, " via %s onlink", r.Via)
	}
	fmt.Fprintf(&b, " dev %s", r.Link)
	if r.Src.IsValid() {
		fmt.Fprintf(&b, " src %s", r.Src)
	}
	b.WriteString(" proto weft")
	if r.Metric != 0 {
		fmt.Fprintf(&b, " metric %d", r.Metric)
	}
	b.WriteString(inTable(r.Table) + detail(r.Detail))
	return b.String()
}

func inTable(number uint32) string {
	if number == 0 {
		return ""
	}
	return fmt.Sprintf(" table %d", number)
}

// Unreachable is a route of type unreachable: packets there are refused with
// an ICMP error. It is on no link, and takes the place of a Route to the same
// destination, as that takes its.
type Unreachable struct {
	Dst   netip.Prefix
	Table uint32 // 0: the main table
}

// Key implements Object.
func (u Unreachable) Key() Key { return Key{Kind: KindRoute, Dst: u.Dst, FIB: u.Table} }

func (u Unreachable) String() string {
	return fmt.Sprintf("route unreachable %s proto weft%s", u.Dst, inTable(u.Table))
}

// Rule is a rule of the routing policy database, protocol RouteProtocol: what
// comes from a range looks its route up in a table first.
type Rule struct {
	Priority uint32
	From     netip.Prefix
	Mark     uint32 // of the packets that it is for, whole; 0: any
	Table    uint32
	Detail   string // selectors and actions that we never use, as read
}

// Key implements Object.
func (r Rule) Key() Key { return Key{Kind: KindRule, Dst: r.From, Metric: r.Priority, FIB: r.Mark} }

func (r Rule) String() string {
	mark := ""
	if r.Mark != 0 {
		mark = fmt.Sprintf(" fwmark %#x", r.Mark)
	}
	return fmt.Sprintf("rule %d: from %s%s lookup %d proto weft%s", r.Priority, r.From, mark, r.Table, detail(r.Detail))
}

// Sysctl is a kernel setting, by its path below /proc/sys with slashes
// (link names hold dots).
type Sysctl struct{ Name, Value string }

// Key implements Object.
func (s Sysctl) Key() Key { return Key{Kind: KindSysctl, Name: s.Name} }

func (s Sysctl) String() string { return fmt.Sprintf("sysctl %s = %s", s.Name, s.Value) }

// Rules is our nftables table: its sets, chains and rules as nft(8) text in
// one canonical form, less the sets' elements, which are objects of their
// own. Package rtnl compiles the statements that overlay uses and prints what
// it reads in the same form.
//
// Table is its family and name: "inet weft".
type Rules struct{ Table, Text string }

// Key implements Object.
func (r Rules) Key() Key { return Key{Kind: KindRules, Name: r.Table} }

func (r Rules) String() string {
	return fmt.Sprintf("table %s {\n%s}", r.Table, indent(r.Text))
}

// Element is a prefix in a set of our nftables table.
type Element struct {
	Table, Set string // Table as in Rules
	Prefix     netip.Prefix
}

// Key implements Object.
func (e Element) Key() Key {
	return Key{Kind: KindElement, Name: e.Table + " " + e.Set, Dst: e.Prefix}
}

func (e Element) String() string {
	return fmt.Sprintf("element %s %s { %s }", e.Table, e.Set, e.Prefix)
}

func detail(s string) string {
	if s == "" {
		return ""
	}
	return " (" + s + ")"
}

func indent(s string) string {
	var b strings.Builder
	for line := range strings.Lines(s) {
		b.WriteString("\t" + line)
	}
	return b.String()
}

// MACFromHash makes a stable, locally administered unicast address of the
// first six bytes of a digest.
func MACFromHash(sum []byte) MAC {
	var m MAC
	copy(m[:], sum)
	m[0] = m[0]&^1 | 2
	return m
}
