package rtnl

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/rtmsg"
)

// Flags of a request that makes an object or changes it in place.
const put = unix.NLM_F_CREATE | unix.NLM_F_REPLACE

// encode makes the request that puts (or, with del, removes) an object on the
// link with this index.
func encode(o kernel.Object, index int, del bool) (rtmsg.Request, error) {
	switch o := o.(type) {
	case kernel.Addr:
		return addrRequest(o, index, del), nil
	case kernel.Neigh:
		body := rtmsg.Neigh(rtmsg.Family(o.IP), index, unix.NUD_PERMANENT, 0)
		body = rtmsg.AttrAddr(body, unix.NDA_DST, o.IP)
		if del {
			return rtmsg.Request{Type: unix.RTM_DELNEIGH, Body: body}, nil
		}
		return rtmsg.Request{Type: unix.RTM_NEWNEIGH, Flags: put, Body: rtmsg.Attr(body, unix.NDA_LLADDR, o.MAC[:])}, nil
	case kernel.FDB:
		return fdbRequest(o, index, del), nil
	case kernel.Flood:
		return floodRequest(o, index, del), nil
	case kernel.Station:
		return rtmsg.Station(index, o.MAC, o.VLAN, del), nil
	case kernel.Route:
		return routeRequest(o, index, del), nil
	}
	return rtmsg.Request{}, fmt.Errorf("%T is not an object on a link", o)
}

func addrRequest(a kernel.Addr, index int, del bool) rtmsg.Request {
	ip := a.Prefix.Addr()
	body := rtmsg.Addr(rtmsg.Family(ip), a.Prefix.Bits(), index)
	body = rtmsg.AttrAddr(body, unix.IFA_LOCAL, ip)
	if del {
		return rtmsg.Request{Type: unix.RTM_DELADDR, Body: body}
	}
	body = rtmsg.AttrAddr(body, unix.IFA_ADDRESS, ip)
	if ip.Is6() {
		body = rtmsg.AttrUint32(body, unix.IFA_FLAGS, unix.IFA_F_NODAD) // nobody else on this link can have it
	}
	return rtmsg.Request{Type: unix.RTM_NEWADDR, Flags: put, Body: body}
}

func fdbRequest(f kernel.FDB, index int, del bool) rtmsg.Request {
	body := rtmsg.Neigh(unix.AF_BRIDGE, index, unix.NUD_PERMANENT, unix.NTF_SELF)
	body = rtmsg.Attr(body, unix.NDA_LLADDR, f.MAC[:])
	if del {
		return rtmsg.Request{Type: unix.RTM_DELNEIGH, Body: body}
	}
	body = rtmsg.AttrAddr(body, unix.NDA_DST, f.VTEP)
	if f.Port != 0 {
		body = rtmsg.Attr(body, unix.NDA_PORT, binary.BigEndian.AppendUint16(nil, f.Port))
	}
	return rtmsg.Request{Type: unix.RTM_NEWNEIGH, Flags: put, Body: body}
}

func routeRequest(r kernel.Route, index int, del bool) rtmsg.Request {
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
	body := rtmsg.Route(rtmsg.Family(dst), r.Dst.Bits(), proto, scope, flags)
	body = rtmsg.AttrAddr(rtmsg.IntoTable(body, r.Table), unix.RTA_DST, dst)
	body = rtmsg.AttrUint32(body, unix.RTA_OIF, uint32(index))
	if r.Metric != 0 {
		body = rtmsg.AttrUint32(body, unix.RTA_PRIORITY, r.Metric)
	}
	if del {
		return rtmsg.Request{Type: unix.RTM_DELROUTE, Body: body}
	}
	if r.Via.IsValid() {
		body = rtmsg.AttrAddr(body, unix.RTA_GATEWAY, r.Via)
	}
	if r.Src.IsValid() {
		body = rtmsg.AttrAddr(body, unix.RTA_PREFSRC, r.Src)
	}
	return rtmsg.Request{Type: unix.RTM_NEWROUTE, Flags: put, Body: body}
}

// loopback is the index of the loopback interface in every namespace.
const loopback = 1

func unreachableRequest(u kernel.Unreachable, del bool) rtmsg.Request {
	dst := u.Dst.Addr()
	body := rtmsg.Route(rtmsg.Family(dst), u.Dst.Bits(), kernel.RouteProtocol, unix.RT_SCOPE_UNIVERSE, 0)
	body[7] = unix.RTN_UNREACHABLE
	body = rtmsg.AttrAddr(rtmsg.IntoTable(body, u.Table), unix.RTA_DST, dst)
	if !del {
		return rtmsg.Request{Type: unix.RTM_NEWROUTE, Flags: put, Body: body}
	}
	if dst.Is6() {
		// IPv6 deletes whatever leads to the destination, unless by another
		// interface: its unreachable routes are on loopback.
		body = rtmsg.AttrUint32(body, unix.RTA_OIF, loopback)
	}
	return rtmsg.Request{Type: unix.RTM_DELROUTE, Body: body}
}

// vxlanCreate makes the device, down; via is the index of its lower device, 0
// for none.
func vxlanCreate(v kernel.VXLAN, via int) rtmsg.Request {
	body := rtmsg.Link(0, 0, 0)
	body = rtmsg.AttrString(body, unix.IFLA_IFNAME, v.Name)
	// An address that userspace sets is not one that systemd's
	// MACAddressPolicy=persistent replaces (NET_ADDR_SET).
	body = rtmsg.Attr(body, unix.IFLA_ADDRESS, v.MAC[:])
	body = rtmsg.AttrUint32(body, unix.IFLA_MTU, uint32(v.MTU))
	data := rtmsg.AttrUint32(nil, unix.IFLA_VXLAN_ID, v.VNI)
	data = vxlanLocal(data, v)
	data = rtmsg.Attr(data, unix.IFLA_VXLAN_PORT, binary.BigEndian.AppendUint16(nil, v.Port))
	data = vxlanLearning(data, v)
	if v.Group.IsValid() {
		group := uint16(unix.IFLA_VXLAN_GROUP6)
		if v.Group.Is4() {
			group = unix.IFLA_VXLAN_GROUP
		}
		data = rtmsg.AttrAddr(data, group, v.Group)
		data = rtmsg.AttrUint32(data, unix.IFLA_VXLAN_LINK, uint32(via))
	}
	data = rtmsg.Attr(data, unix.IFLA_VXLAN_UDP_CSUM, []byte{1}) // see disableGRO
	return rtmsg.Request{Type: unix.RTM_NEWLINK, Flags: unix.NLM_F_CREATE | unix.NLM_F_EXCL, Body: linkInfo(body, "vxlan", data)}
}

// vxlanChange leads from have to want on the device with this index. Only
// what differs is sent: the driver takes nothing beside an outer address, and
// a MAC flushes the neighbours even if it is the same.
func vxlanChange(have, want kernel.VXLAN, index int) []rtmsg.Request {
	var requests []rtmsg.Request
	if have.Local != want.Local {
		requests = append(requests, rtmsg.Request{Type: unix.RTM_NEWLINK, Body: linkInfo(rtmsg.Link(index, 0, 0), "vxlan", vxlanLocal(nil, want))})
	}
	if have.Learning != want.Learning {
		requests = append(requests, rtmsg.Request{Type: unix.RTM_NEWLINK, Body: linkInfo(rtmsg.Link(index, 0, 0), "vxlan", vxlanLearning(nil, want))})
	}
	return append(requests, tunnelDeviceChange(tunnelDeviceOf(have), tunnelDeviceOf(want), index))
}

// tunnelDevice is what tunnels of all kinds have, and can change.
type tunnelDevice struct {
	bridge           string
	mac              kernel.MAC
	mtu              int
	learning, moving bool
	vlans            kernel.VLANs
}

func tunnelDeviceOf(o kernel.Object) tunnelDevice {
	switch o := o.(type) {
	case kernel.VXLAN:
		return tunnelDevice{bridge: o.Bridge, mac: o.MAC, mtu: o.MTU, learning: o.Learning, moving: o.Moving, vlans: o.VLANs}
	case kernel.Tunnel:
		return tunnelDevice{bridge: o.Bridge, mac: o.MAC, mtu: o.MTU, learning: o.Learning, moving: o.Moving, vlans: o.VLANs}
	}
	return tunnelDevice{}
}

func tunnelDeviceChange(have, want tunnelDevice, index int) rtmsg.Request {
	body := rtmsg.Link(index, 0, 0)
	if have.bridge != want.bridge {
		body = rtmsg.AttrUint32(body, unix.IFLA_MASTER, 0) // out of any bridge
	}
	if have.mac != want.mac {
		body = rtmsg.Attr(body, unix.IFLA_ADDRESS, want.mac[:])
	}
	if have.mtu != want.mtu {
		body = rtmsg.AttrUint32(body, unix.IFLA_MTU, uint32(want.mtu))
	}
	return rtmsg.Request{Type: unix.RTM_SETLINK, Body: body}
}

func vxlanLocal(data []byte, v kernel.VXLAN) []byte {
	if v.Local.Is4() {
		return rtmsg.AttrAddr(data, unix.IFLA_VXLAN_LOCAL, v.Local)
	}
	return rtmsg.AttrAddr(data, unix.IFLA_VXLAN_LOCAL6, v.Local)
}

func vxlanLearning(data []byte, v kernel.VXLAN) []byte {
	return rtmsg.Attr(data, unix.IFLA_VXLAN_LEARNING, []byte{rtmsg.Flag(0, v.Learning).Value})
}

// linkInfo adds a link's kind and, unless it is nil, what only that kind has.
func linkInfo(body []byte, kind string, data []byte) []byte {
	info := rtmsg.AttrString(nil, unix.IFLA_INFO_KIND, kind)
	if data != nil {
		info = rtmsg.Attr(info, unix.IFLA_INFO_DATA|unix.NLA_F_NESTED, data)
	}
	return rtmsg.Attr(body, unix.IFLA_LINKINFO|unix.NLA_F_NESTED, info)
}

// linkUp sets the link up, without an IPv6 link-local address.
func linkUp(index int) []rtmsg.Request {
	return []rtmsg.Request{
		{Type: unix.RTM_SETLINK, Body: rtmsg.NoLinkLocal(rtmsg.Link(index, 0, 0))},
		{Type: unix.RTM_SETLINK, Body: rtmsg.Link(index, unix.IFF_UP, unix.IFF_UP)},
	}
}

func linkDelete(index int) rtmsg.Request {
	return rtmsg.Request{Type: unix.RTM_DELLINK, Body: rtmsg.Link(index, 0, 0)}
}
