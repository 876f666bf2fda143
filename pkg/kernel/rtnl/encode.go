package rtnl

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/kernel"
)

// Flags of a request that makes an object or changes it in place.
const put = unix.NLM_F_CREATE | unix.NLM_F_REPLACE

// encode makes the request that puts (or, with del, removes) an object on the
// link with this index.
func encode(o kernel.Object, index int, del bool) (request, error) {
	switch o := o.(type) {
	case kernel.Addr:
		return addrRequest(o, index, del), nil
	case kernel.Neigh:
		body := ndmsg(family(o.IP), index, unix.NUD_PERMANENT, 0)
		body = attrAddr(body, unix.NDA_DST, o.IP)
		if del {
			return request{typ: unix.RTM_DELNEIGH, body: body}, nil
		}
		return request{typ: unix.RTM_NEWNEIGH, flags: put, body: attr(body, unix.NDA_LLADDR, o.MAC[:])}, nil
	case kernel.FDB:
		return fdbRequest(o, index, del), nil
	case kernel.Route:
		return routeRequest(o, index, del), nil
	}
	return request{}, fmt.Errorf("%T is not an object on a link", o)
}

func addrRequest(a kernel.Addr, index int, del bool) request {
	ip := a.Prefix.Addr()
	// struct ifaddrmsg: family, prefix length, flags, scope, index
	body := binary.NativeEndian.AppendUint32(
		[]byte{family(ip), uint8(a.Prefix.Bits()), 0, unix.RT_SCOPE_UNIVERSE}, uint32(index))
	body = attrAddr(body, unix.IFA_LOCAL, ip)
	if del {
		return request{typ: unix.RTM_DELADDR, body: body}
	}
	body = attrAddr(body, unix.IFA_ADDRESS, ip)
	if ip.Is6() {
		body = attr32(body, unix.IFA_FLAGS, unix.IFA_F_NODAD) // nobody else on this link can have it
	}
	return request{typ: unix.RTM_NEWADDR, flags: put, body: body}
}

func fdbRequest(f kernel.FDB, index int, del bool) request {
	body := ndmsg(unix.AF_BRIDGE, index, unix.NUD_PERMANENT, unix.NTF_SELF)
	body = attr(body, unix.NDA_LLADDR, f.MAC[:])
	if del {
		return request{typ: unix.RTM_DELNEIGH, body: body}
	}
	body = attrAddr(body, unix.NDA_DST, f.VTEP)
	if f.Port != 0 {
		body = attr(body, unix.NDA_PORT, binary.BigEndian.AppendUint16(nil, f.Port))
	}
	return request{typ: unix.RTM_NEWNEIGH, flags: put, body: body}
}

func routeRequest(r kernel.Route, index int, del bool) request {
	dst := r.Dst.Addr()
	scope, flags := uint8(unix.RT_SCOPE_LINK), uint32(0)
	if r.Via.IsValid() {
		scope, flags = unix.RT_SCOPE_UNIVERSE, unix.RTNH_F_ONLINK
	}
	proto := uint8(kernel.RouteProtocol)
	if del {
		// Whatever stands there is to go: a stranger's protocol and scope
		// needn't be ours (RT_SCOPE_NOWHERE matches any).
		scope, proto, flags = unix.RT_SCOPE_NOWHERE, unix.RTPROT_UNSPEC, 0
	}
	body := rtmsg(family(dst), r.Dst.Bits(), proto, scope, flags)
	body = attrAddr(body, unix.RTA_DST, dst)
	body = attr32(body, unix.RTA_OIF, uint32(index))
	if r.Metric != 0 {
		body = attr32(body, unix.RTA_PRIORITY, r.Metric)
	}
	if del {
		return request{typ: unix.RTM_DELROUTE, body: body}
	}
	if r.Via.IsValid() {
		body = attrAddr(body, unix.RTA_GATEWAY, r.Via)
	}
	if r.Src.IsValid() {
		body = attrAddr(body, unix.RTA_PREFSRC, r.Src)
	}
	return request{typ: unix.RTM_NEWROUTE, flags: put, body: body}
}

// rtmsg is struct rtmsg for a unicast route of the main table.
func rtmsg(family uint8, bits int, proto, scope uint8, flags uint32) []byte {
	return binary.NativeEndian.AppendUint32(
		[]byte{family, uint8(bits), 0, 0, unix.RT_TABLE_MAIN, proto, scope, unix.RTN_UNICAST}, flags)
}

// ndmsg is struct ndmsg.
func ndmsg(family uint8, index int, state uint16, flags uint8) []byte {
	b := binary.NativeEndian.AppendUint32([]byte{family, 0, 0, 0}, uint32(index))
	b = binary.NativeEndian.AppendUint16(b, state)
	return append(b, flags, 0)
}

// ifinfomsg is struct ifinfomsg; change is the mask of flags to set.
func ifinfomsg(index int, flags, change uint32) []byte {
	b := binary.NativeEndian.AppendUint32(make([]byte, 4), uint32(index))
	b = binary.NativeEndian.AppendUint32(b, flags)
	return binary.NativeEndian.AppendUint32(b, change)
}

// in6AddrGenModeNone is IN6_ADDR_GEN_MODE_NONE: no link-local address, so no
// duplicate address detection and no router solicitations on the link.
const in6AddrGenModeNone = 1

// vxlanCreate makes the device, down.
func vxlanCreate(v kernel.VXLAN) request {
	body := ifinfomsg(0, 0, 0)
	body = attrString(body, unix.IFLA_IFNAME, v.Name)
	// An address that userspace sets is not one that systemd's
	// MACAddressPolicy=persistent replaces (NET_ADDR_SET).
	body = attr(body, unix.IFLA_ADDRESS, v.MAC[:])
	body = attr32(body, unix.IFLA_MTU, uint32(v.MTU))
	data := attr32(nil, unix.IFLA_VXLAN_ID, v.VNI)
	data = vxlanLocal(data, v)
	data = attr(data, unix.IFLA_VXLAN_PORT, binary.BigEndian.AppendUint16(nil, v.Port))
	data = attr(data, unix.IFLA_VXLAN_LEARNING, []byte{0})
	data = attr(data, unix.IFLA_VXLAN_UDP_CSUM, []byte{1}) // see disableGRO
	return request{typ: unix.RTM_NEWLINK, flags: unix.NLM_F_CREATE | unix.NLM_F_EXCL, body: linkInfo(body, data)}
}

// vxlanChange leads from have to want on the device with this index. Only
// what differs is sent: the driver takes nothing beside an outer address, and
// a MAC flushes the neighbours even if it is the same.
func vxlanChange(have, want kernel.VXLAN, index int) []request {
	var requests []request
	if have.Local != want.Local {
		requests = append(requests, request{typ: unix.RTM_NEWLINK, body: linkInfo(ifinfomsg(index, 0, 0), vxlanLocal(nil, want))})
	}
	body := attr32(ifinfomsg(index, 0, 0), unix.IFLA_MASTER, 0) // out of any bridge
	if have.MAC != want.MAC {
		body = attr(body, unix.IFLA_ADDRESS, want.MAC[:])
	}
	if have.MTU != want.MTU {
		body = attr32(body, unix.IFLA_MTU, uint32(want.MTU))
	}
	return append(requests, request{typ: unix.RTM_SETLINK, body: body})
}

func vxlanLocal(data []byte, v kernel.VXLAN) []byte {
	if v.Local.Is4() {
		return attrAddr(data, unix.IFLA_VXLAN_LOCAL, v.Local)
	}
	return attrAddr(data, unix.IFLA_VXLAN_LOCAL6, v.Local)
}

func linkInfo(body, data []byte) []byte {
	info := attrString(nil, unix.IFLA_INFO_KIND, "vxlan")
	info = attr(info, unix.IFLA_INFO_DATA|unix.NLA_F_NESTED, data)
	return attr(body, unix.IFLA_LINKINFO|unix.NLA_F_NESTED, info)
}

// linkUp sets the link up, without an IPv6 link-local address.
func linkUp(index int) []request {
	inet6 := attr(nil, unix.IFLA_INET6_ADDR_GEN_MODE, []byte{in6AddrGenModeNone})
	spec := attr(nil, unix.AF_INET6|unix.NLA_F_NESTED, inet6)
	return []request{
		{typ: unix.RTM_SETLINK, body: attr(ifinfomsg(index, 0, 0), unix.IFLA_AF_SPEC|unix.NLA_F_NESTED, spec)},
		{typ: unix.RTM_SETLINK, body: ifinfomsg(index, unix.IFF_UP, unix.IFF_UP)},
	}
}

func linkDelete(index int) request {
	return request{typ: unix.RTM_DELLINK, body: ifinfomsg(index, 0, 0)}
}

// binaryIndex appends an interface index to the head of an ifaddrmsg.
func binaryIndex(head []byte, index int) []byte {
	return binary.NativeEndian.AppendUint32(head, uint32(index))
}
