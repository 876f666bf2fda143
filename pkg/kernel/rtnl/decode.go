package rtnl

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/rtmsg"
)

// link is what Weft looks at in a network interface.
type link struct {
	index, mtu, master int
	name, kind         string
	up                 bool
	mac                kernel.MAC
	vxlan              vxlanData
	tunnel             tunnelData
	bridge             bridgeData
	markedSources      bool // whether a source is valid is looked up with the packet's mark
	isPort             bool // of a bridge
	port               portData
	vlans              kernel.VLANs // of the port; no message about links has them
	filtered           bool         // by the bridge that it is a port of; neither
}

type vxlanData struct {
	vni     uint32
	port    uint16
	local   netip.Addr
	group   netip.Addr // multicast
	lower   int        // index of the lower device
	learns  bool
	foreign string // a setting that Weft never makes
}

// decodeLink reads an RTM_NEWLINK or RTM_DELLINK message.
func decodeLink(b []byte) (link, bool) {
	if len(b) < unix.SizeofIfInfomsg {
		return link{}, false
	}
	l := link{
		index: int(int32(binary.NativeEndian.Uint32(b[4:]))),
		up:    binary.NativeEndian.Uint32(b[8:])&unix.IFF_UP != 0,
	}
	for typ, v := range rtmsg.Attrs(b[unix.SizeofIfInfomsg:]) {
		switch typ {
		case unix.IFLA_IFNAME:
			l.name = rtmsg.String(v)
		case unix.IFLA_MTU:
			l.mtu = int(u32(v))
		case unix.IFLA_MASTER:
			l.master = int(u32(v))
		case unix.IFLA_ADDRESS:
			copy(l.mac[:], v)
		case unix.IFLA_AF_SPEC:
			l.markedSources = srcValidMark(v)
		case unix.IFLA_LINKINFO:
			for typ, v := range rtmsg.Attrs(v) {
				switch typ {
				case unix.IFLA_INFO_KIND:
					l.kind = rtmsg.String(v)
				case unix.IFLA_INFO_DATA:
					switch l.kind {
					case "vxlan":
						l.vxlan = decodeVXLAN(v)
					case "bridge":
						l.bridge = decodeBridge(v)
					}
					if l.isTunnel() {
						l.tunnel = decodeTunnel(l.kind, v)
					}
				case unix.IFLA_INFO_SLAVE_KIND:
					l.isPort = rtmsg.String(v) == "bridge"
				case unix.IFLA_INFO_SLAVE_DATA:
					if l.isPort {
						l.port = decodePort(v)
					}
				}
			}
		}
	}
	return l, l.name != ""
}

func decodeVXLAN(b []byte) vxlanData {
	var d vxlanData
	for typ, v := range rtmsg.Attrs(b) {
		switch typ {
		case unix.IFLA_VXLAN_ID:
			d.vni = u32(v)
		case unix.IFLA_VXLAN_LOCAL, unix.IFLA_VXLAN_LOCAL6:
			if a := rtmsg.AddrOf(v); !a.IsUnspecified() {
				d.local = a
			}
		case unix.IFLA_VXLAN_PORT:
			if len(v) >= 2 {
				d.port = binary.BigEndian.Uint16(v)
			}
		case unix.IFLA_VXLAN_LINK:
			d.lower = int(u32(v))
		case unix.IFLA_VXLAN_GROUP, unix.IFLA_VXLAN_GROUP6:
			switch a := rtmsg.AddrOf(v); {
			case a.IsMulticast():
				d.group = a
			case !a.IsUnspecified():
				d.foreign = "with remote " + a.String()
			}
		case unix.IFLA_VXLAN_LEARNING:
			d.learns = len(v) > 0 && v[0] != 0
		case unix.IFLA_VXLAN_PROXY:
			d.flag(v, "proxy")
		case unix.IFLA_VXLAN_RSC:
			d.flag(v, "rsc")
		case unix.IFLA_VXLAN_L2MISS:
			d.flag(v, "l2miss")
		case unix.IFLA_VXLAN_L3MISS:
			d.flag(v, "l3miss")
		case unix.IFLA_VXLAN_COLLECT_METADATA:
			d.flag(v, "external")
		case unix.IFLA_VXLAN_GBP:
			d.foreign = "gbp"
		case unix.IFLA_VXLAN_UDP_CSUM:
			if len(v) > 0 && v[0] == 0 {
				d.foreign = "noudpcsum"
			}
		}
	}
	if d.lower != 0 && !d.group.IsValid() {
		d.foreign = "with a lower device"
	}
	return d
}

func (d *vxlanData) flag(v []byte, name string) {
	if len(v) > 0 && v[0] != 0 {
		d.foreign = name
	}
}

// object is the link as a kernel.Object; nameOf names the link that it is a
// port of.
func (l link) object(nameOf func(index int) string) kernel.Object {
	switch {
	case l.kind == "bridge":
		return l.bridgeObject()
	case l.isTunnel():
		return l.tunnelObject(nameOf)
	case l.kind != "vxlan":
		return kernel.ForeignLink{Name: l.name, Detail: fmt.Sprintf("type %q", l.kind)}
	case l.vxlan.foreign != "":
		return kernel.ForeignLink{Name: l.name, Detail: "type vxlan, " + l.vxlan.foreign}
	}
	v := kernel.VXLAN{
		Name: l.name, VNI: l.vxlan.vni, Port: l.vxlan.port, Local: l.vxlan.local, MAC: l.mac, MTU: l.mtu,
		Learning: l.vxlan.learns, Group: l.vxlan.group, VLANs: l.vlans,
	}
	if l.vxlan.lower != 0 {
		v.Via = nameOf(l.vxlan.lower)
	}
	if l.master != 0 {
		v.Bridge = nameOf(l.master)
		v.Moving = l.isPort && !l.port.suppress
	}
	switch {
	case !l.up:
		v.Detail = "down"
	default:
		v.Detail = l.unlike(v.Learning)
	}
	return v
}

// decodeAddr reads an RTM_NEWADDR or RTM_DELADDR message.
func decodeAddr(b []byte, linkName string) (kernel.Addr, int, bool) {
	if len(b) < unix.SizeofIfAddrmsg {
		return kernel.Addr{}, 0, false
	}
	bits, index := int(b[1]), int(binary.NativeEndian.Uint32(b[4:]))
	var ip netip.Addr
	for typ, v := range rtmsg.Attrs(b[unix.SizeofIfAddrmsg:]) {
		// IPv4 has both where the peer's address differs; the local is ours.
		if typ == unix.IFA_LOCAL || (typ == unix.IFA_ADDRESS && !ip.IsValid()) {
			ip = rtmsg.AddrOf(v)
		}
	}
	return kernel.Addr{Link: linkName, Prefix: netip.PrefixFrom(ip, bits)}, index, ip.IsValid()
}

// decodeNeigh reads an RTM_NEWNEIGH or RTM_DELNEIGH message: a kernel.Neigh
// or, for the bridge family, a kernel.FDB; nil for entries that the kernel
// makes itself (multicast, the default FDB entry).
func decodeNeigh(b []byte, linkName string) (o kernel.Object, index int) {
	if len(b) < unix.SizeofNdMsg {
		return nil, 0
	}
	index = int(int32(binary.NativeEndian.Uint32(b[4:])))
	state, flags := binary.NativeEndian.Uint16(b[8:]), b[10]
	var dst netip.Addr
	var mac kernel.MAC
	var port, vlan uint16
	extra := ""
	for typ, v := range rtmsg.Attrs(b[unix.SizeofNdMsg:]) {
		switch typ {
		case unix.NDA_DST:
			dst = rtmsg.AddrOf(v)
		case unix.NDA_LLADDR:
			copy(mac[:], v)
		case unix.NDA_PORT:
			port = binary.BigEndian.Uint16(v)
		case unix.NDA_VLAN:
			vlan = binary.NativeEndian.Uint16(v)
		case unix.NDA_VNI:
			extra = fmt.Sprintf("vni %d", u32(v))
		case unix.NDA_IFINDEX:
			extra = fmt.Sprintf("via link %d", u32(v))
		}
	}
	if b[0] == unix.AF_BRIDGE {
		if flags&unix.NTF_SELF == 0 {
			if state&unix.NUD_PERMANENT != 0 {
				return nil, index // the bridge's own, or the port's
			}
			station := kernel.Station{Link: linkName, MAC: mac, VLAN: vlan}
			if state&unix.NUD_NOARP == 0 {
				station.Detail = neighState(state)
			}
			return station, index
		}
		if !dst.IsValid() {
			return nil, index // of a bridge's port that tells its own address
		}
		if state&unix.NUD_PERMANENT == 0 {
			extra = neighState(state)
		}
		if mac == (kernel.MAC{}) && (extra == "" || dst.IsMulticast()) {
			return kernel.Flood{Link: linkName, VTEP: dst, Port: port}, index
		}
		return kernel.FDB{Link: linkName, MAC: mac, VTEP: dst, Port: port, Detail: extra}, index
	}
	if state&unix.NUD_NOARP != 0 || flags&unix.NTF_PROXY != 0 || !dst.IsValid() {
		return nil, index
	}
	n := kernel.Neigh{Link: linkName, IP: dst, MAC: mac}
	if state&unix.NUD_PERMANENT == 0 {
		n.Detail = neighState(state)
	}
	return n, index
}

func neighState(state uint16) string {
	for bit, name := range map[uint16]string{
		unix.NUD_INCOMPLETE: "incomplete", unix.NUD_REACHABLE: "reachable", unix.NUD_STALE: "stale",
		unix.NUD_DELAY: "delay", unix.NUD_PROBE: "probe", unix.NUD_FAILED: "failed", unix.NUD_NOARP: "noarp",
	} {
		if state&bit != 0 {
			return name
		}
	}
	return fmt.Sprintf("state %#x", state)
}

// decodeRoute reads an RTM_NEWROUTE or RTM_DELROUTE message of one of our
// tables: a kernel.Route on the link that nameOf knows the index of, or a
// kernel.Unreachable; nil for none of concern.
func decodeRoute(b []byte, nameOf func(r kernel.Route, index int) (string, bool)) kernel.Object {
	r, index, typ, ok := decodeRtmsg(b)
	switch {
	case !ok:
		return nil
	case typ == unix.RTN_UNREACHABLE && r.Detail == "":
		return kernel.Unreachable{Dst: r.Dst, Table: r.Table}
	case typ != unix.RTN_UNICAST && r.Detail == "":
		r.Detail = fmt.Sprintf("type %d", typ)
	}
	if r.Link, ok = nameOf(r, index); !ok {
		return nil
	}
	return r
}

// decodeRtmsg reads a route; the name of its link is for the caller to fill in.
func decodeRtmsg(b []byte) (r kernel.Route, index int, typ uint8, ok bool) {
	if len(b) < unix.SizeofRtMsg {
		return kernel.Route{}, 0, 0, false
	}
	bits, table, proto := int(b[1]), uint32(b[4]), b[5]
	typ = b[7]
	dst := netip.IPv4Unspecified()
	if b[0] == unix.AF_INET6 {
		dst = netip.IPv6Unspecified()
	}
	for t, v := range rtmsg.Attrs(b[unix.SizeofRtMsg:]) {
		switch t {
		case unix.RTA_DST:
			dst = rtmsg.AddrOf(v)
		case unix.RTA_GATEWAY:
			r.Via = rtmsg.AddrOf(v)
		case unix.RTA_PREFSRC:
			r.Src = rtmsg.AddrOf(v)
		case unix.RTA_OIF:
			index = int(u32(v))
		case unix.RTA_TABLE:
			table = u32(v)
		case unix.RTA_PRIORITY:
			r.Metric = u32(v)
		case unix.RTA_MULTIPATH:
			r.Detail = "multipath"
		}
	}
	if b[0] == unix.AF_INET6 && r.Metric == 1024 { // IP6_RT_PRIO_USER: the default
		r.Metric = 0
	}
	if proto != kernel.RouteProtocol {
		r.Detail = fmt.Sprintf("proto %d", proto)
	}
	r.Dst = netip.PrefixFrom(dst, bits)
	ours := b[0] == unix.AF_INET || b[0] == unix.AF_INET6
	switch {
	case table == unix.RT_TABLE_MAIN:
	case table == kernel.RouteTable, kernel.OfGateway(table):
		r.Table = table
	default:
		ours = false
	}
	// What the kernel makes for an address goes with the address.
	return r, index, typ, ours && proto != unix.RTPROT_KERNEL
}

func u32(v []byte) uint32 {
	if len(v) < 4 {
		return 0
	}
	return binary.NativeEndian.Uint32(v)
}
