package rtnl

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/kernel"
)

// link is what Weft looks at in a network interface.
type link struct {
	index, mtu, master int
	name, kind         string
	up                 bool
	mac                kernel.MAC
	vxlan              vxlanData
}

type vxlanData struct {
	vni     uint32
	port    uint16
	local   netip.Addr
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
	for typ, v := range attrs(b[unix.SizeofIfInfomsg:]) {
		switch typ {
		case unix.IFLA_IFNAME:
			l.name = cString(v)
		case unix.IFLA_MTU:
			l.mtu = int(u32(v))
		case unix.IFLA_MASTER:
			l.master = int(u32(v))
		case unix.IFLA_ADDRESS:
			copy(l.mac[:], v)
		case unix.IFLA_LINKINFO:
			for typ, v := range attrs(v) {
				switch typ {
				case unix.IFLA_INFO_KIND:
					l.kind = cString(v)
				case unix.IFLA_INFO_DATA:
					if l.kind == "vxlan" {
						l.vxlan = decodeVXLAN(v)
					}
				}
			}
		}
	}
	return l, l.name != ""
}

func decodeVXLAN(b []byte) vxlanData {
	var d vxlanData
	for typ, v := range attrs(b) {
		switch typ {
		case unix.IFLA_VXLAN_ID:
			d.vni = u32(v)
		case unix.IFLA_VXLAN_LOCAL, unix.IFLA_VXLAN_LOCAL6:
			if a := addrOf(v); !a.IsUnspecified() {
				d.local = a
			}
		case unix.IFLA_VXLAN_PORT:
			if len(v) >= 2 {
				d.port = binary.BigEndian.Uint16(v)
			}
		case unix.IFLA_VXLAN_LINK:
			if u32(v) != 0 {
				d.foreign = "with a lower device"
			}
		case unix.IFLA_VXLAN_GROUP, unix.IFLA_VXLAN_GROUP6:
			if a := addrOf(v); !a.IsUnspecified() {
				d.foreign = "with remote " + a.String()
			}
		case unix.IFLA_VXLAN_LEARNING:
			d.flag(v, "learning")
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
	return d
}

func (d *vxlanData) flag(v []byte, name string) {
	if len(v) > 0 && v[0] != 0 {
		d.foreign = name
	}
}

// object is the link as a kernel.Object.
func (l link) object() kernel.Object {
	switch {
	case l.kind != "vxlan":
		return kernel.ForeignLink{Name: l.name, Detail: fmt.Sprintf("type %q", l.kind)}
	case l.vxlan.foreign != "":
		return kernel.ForeignLink{Name: l.name, Detail: "type vxlan, " + l.vxlan.foreign}
	}
	v := kernel.VXLAN{Name: l.name, VNI: l.vxlan.vni, Port: l.vxlan.port, Local: l.vxlan.local, MAC: l.mac, MTU: l.mtu}
	switch {
	case !l.up:
		v.Detail = "down"
	case l.master != 0:
		v.Detail = fmt.Sprintf("enslaved to link %d", l.master)
	default:
		if on, err := gro(l.name); err == nil && on {
			v.Detail = "gro"
		}
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
	for typ, v := range attrs(b[unix.SizeofIfAddrmsg:]) {
		// IPv4 has both where the peer's address differs; the local is ours.
		if typ == unix.IFA_LOCAL || (typ == unix.IFA_ADDRESS && !ip.IsValid()) {
			ip = addrOf(v)
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
	var port uint16
	extra := ""
	for typ, v := range attrs(b[unix.SizeofNdMsg:]) {
		switch typ {
		case unix.NDA_DST:
			dst = addrOf(v)
		case unix.NDA_LLADDR:
			copy(mac[:], v)
		case unix.NDA_PORT:
			port = binary.BigEndian.Uint16(v)
		case unix.NDA_VNI:
			extra = fmt.Sprintf("vni %d", u32(v))
		case unix.NDA_IFINDEX:
			extra = fmt.Sprintf("via link %d", u32(v))
		}
	}
	if b[0] == unix.AF_BRIDGE {
		if flags&unix.NTF_SELF == 0 {
			return nil, index // of the bridge that the link is enslaved to
		}
		if state&unix.NUD_PERMANENT == 0 {
			extra = neighState(state)
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

// decodeRoute reads an RTM_NEWROUTE or RTM_DELROUTE message of the main
// table; the name of its link is for the caller to fill in.
func decodeRoute(b []byte) (r kernel.Route, index int, ok bool) {
	if len(b) < unix.SizeofRtMsg {
		return kernel.Route{}, 0, false
	}
	bits, table, proto, typ := int(b[1]), uint32(b[4]), b[5], b[7]
	dst := netip.IPv4Unspecified()
	if b[0] == unix.AF_INET6 {
		dst = netip.IPv6Unspecified()
	}
	for t, v := range attrs(b[unix.SizeofRtMsg:]) {
		switch t {
		case unix.RTA_DST:
			dst = addrOf(v)
		case unix.RTA_GATEWAY:
			r.Via = addrOf(v)
		case unix.RTA_PREFSRC:
			r.Src = addrOf(v)
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
	switch {
	case proto != kernel.RouteProtocol:
		r.Detail = fmt.Sprintf("proto %d", proto)
	case typ != unix.RTN_UNICAST:
		r.Detail = fmt.Sprintf("type %d", typ)
	}
	r.Dst = netip.PrefixFrom(dst, bits)
	ours := b[0] == unix.AF_INET || b[0] == unix.AF_INET6
	// What the kernel makes for an address goes with the address.
	return r, index, ours && table == unix.RT_TABLE_MAIN && proto != unix.RTPROT_KERNEL
}

func u32(v []byte) uint32 {
	if len(v) < 4 {
		return 0
	}
	return binary.NativeEndian.Uint32(v)
}
