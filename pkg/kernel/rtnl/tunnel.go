package rtnl

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/rtmsg"
)

// Attributes of GRE devices, and values of theirs (linux/if_tunnel.h).
const (
	greInputFlags      = 2
	greOutputFlags     = 3
	greInputKey        = 4
	greOutputKey       = 5
	greLocal           = 6
	greRemote          = 7
	greTTL             = 8
	greTOS             = 9
	grePMTUDiscovery   = 10
	greFlags           = 13
	greEncapType       = 14
	greCollectMetadata = 18
	greIgnoreDF        = 19

	greKey               = 0x2000 // GRE_KEY, of the flags
	greNoEncapLimit      = 1      // IP6_TNL_F_IGN_ENCAP_LIMIT, of greFlags
	greUserFlags         = 0xffff // those of greFlags that userspace sets
	greOuterTTL     byte = 64     // a fixed one: else it is the inner packet's
)

// tunnelData is what Weft looks at in a tunnel to one VTEP.
type tunnelData struct {
	vni           uint32
	port          uint16
	local, remote netip.Addr
	foreign       string // a setting that Weft never makes
}

// isTunnel reports whether l is of a kind of kernel.Tunnel.
func (l link) isTunnel() bool {
	switch kernel.TunnelKind(l.kind) {
	case kernel.Geneve, kernel.GRETAP, kernel.IP6GRETAP:
		return true
	}
	return false
}

func decodeTunnel(kind string, b []byte) tunnelData {
	if kernel.TunnelKind(kind) == kernel.Geneve {
		return decodeGeneve(b)
	}
	return decodeGRE(kind, b)
}

func decodeGeneve(b []byte) (d tunnelData) {
	for typ, v := range rtmsg.Attrs(b) {
		set := len(v) > 0 && v[0] != 0
		switch typ {
		case unix.IFLA_GENEVE_ID:
			d.vni = u32(v)
		case unix.IFLA_GENEVE_REMOTE, unix.IFLA_GENEVE_REMOTE6:
			d.remote = rtmsg.AddrOf(v)
		case unix.IFLA_GENEVE_PORT:
			d.port = u16be(v)
		case unix.IFLA_GENEVE_COLLECT_METADATA, unix.IFLA_GENEVE_INNER_PROTO_INHERIT: // by being there
			d.foreign = "external"
		case unix.IFLA_GENEVE_TTL, unix.IFLA_GENEVE_TTL_INHERIT:
			d.foreignIf(set, "ttl")
		case unix.IFLA_GENEVE_TOS:
			d.foreignIf(set, "tos")
		case unix.IFLA_GENEVE_DF:
			d.foreignIf(set, "df")
		case unix.IFLA_GENEVE_UDP_CSUM:
			d.foreignIf(!set, "noudpcsum")
		case unix.IFLA_GENEVE_UDP_ZERO_CSUM6_TX:
			d.foreignIf(set, "udp6zerocsumtx")
		}
	}
	return d
}

func decodeGRE(kind string, b []byte) (d tunnelData) {
	var keys [2]uint32
	for typ, v := range rtmsg.Attrs(b) {
		set := len(v) > 0 && v[0] != 0
		switch typ {
		case greInputFlags, greOutputFlags:
			d.foreignIf(u16be(v) != greKey, "without a key alone")
		case greInputKey, greOutputKey:
			if len(v) >= 4 {
				keys[typ-greInputKey] = binary.BigEndian.Uint32(v)
			}
		case greLocal:
			d.local = rtmsg.AddrOf(v)
		case greRemote:
			d.remote = rtmsg.AddrOf(v)
		case greTTL:
			d.foreignIf(len(v) == 0 || v[0] != greOuterTTL, "ttl")
		case greTOS:
			d.foreignIf(set, "tos")
		case grePMTUDiscovery:
			d.foreignIf(set, "pmtudisc")
		case greIgnoreDF:
			d.foreignIf(!set, "noignore-df")
		case greFlags:
			d.foreignIf(kernel.TunnelKind(kind) == kernel.IP6GRETAP && u32(v)&greUserFlags != greNoEncapLimit, "flags")
		case greEncapType:
			d.foreignIf(len(v) >= 2 && binary.NativeEndian.Uint16(v) != 0, "encap")
		case greCollectMetadata: // by being there
			d.foreign = "external"
		}
	}
	d.foreignIf(keys[0] != keys[1], "keys that differ")
	d.foreignIf(keys[0]&0xff != 0, "a FlowID")
	d.vni = keys[0] >> 8
	return d
}

func (d *tunnelData) foreignIf(is bool, what string) {
	if is {
		d.foreign = what
	}
}

func u16be(v []byte) uint16 {
	if len(v) < 2 {
		return 0
	}
	return binary.BigEndian.Uint16(v)
}

// tunnelObject is a link of a kind of tunnel as an object; nameOf names the link
// that it is a port of.
func (l link) tunnelObject(nameOf func(index int) string) kernel.Object {
	d := l.tunnel
	if d.foreign != "" {
		return kernel.ForeignLink{Name: l.name, Detail: fmt.Sprintf("type %s, %s", l.kind, d.foreign)}
	}
	t := kernel.Tunnel{
		Name: l.name, Kind: kernel.TunnelKind(l.kind), VNI: d.vni, Local: d.local, Remote: d.remote, Port: d.port,
		MAC: l.mac, MTU: l.mtu, Learning: l.port.learning, VLANs: l.vlans,
	}
	if l.master != 0 {
		t.Bridge = nameOf(l.master)
		t.Moving = l.isPort && !l.port.suppress
	}
	switch {
	case !l.up:
		t.Detail = "down"
	default:
		t.Detail = l.unlike(t.Learning)
	}
	return t
}

// unlike says what of a tunnel's device as a bridge's port isn't as Weft makes
// it, and can be changed.
func (l link) unlike(learning bool) string {
	switch {
	case l.master != 0 && !l.isPort:
		return "not of a bridge"
	case l.isPort && l.port.learning != learning:
		return "the port's learning"
	case l.isPort && l.port.noRouter:
		return "mcast_router"
	}
	if on, err := gro(l.name); err == nil && on {
		return "gro"
	}
	return ""
}

// tunnelCreate makes the device, down.
func tunnelCreate(t kernel.Tunnel) rtmsg.Request {
	body := rtmsg.Link(0, 0, 0)
	body = rtmsg.AttrString(body, unix.IFLA_IFNAME, t.Name)
	body = rtmsg.Attr(body, unix.IFLA_ADDRESS, t.MAC[:]) // see vxlanCreate
	body = rtmsg.AttrUint32(body, unix.IFLA_MTU, uint32(t.MTU))
	data := greData(t)
	if t.Kind == kernel.Geneve {
		data = geneveData(t)
	}
	return rtmsg.Request{Type: unix.RTM_NEWLINK, Flags: unix.NLM_F_CREATE | unix.NLM_F_EXCL, Body: linkInfo(body, string(t.Kind), data)}
}

func geneveData(t kernel.Tunnel) []byte {
	data := rtmsg.AttrUint32(nil, unix.IFLA_GENEVE_ID, t.VNI)
	remote := uint16(unix.IFLA_GENEVE_REMOTE6)
	if t.Remote.Is4() {
		remote = unix.IFLA_GENEVE_REMOTE
	}
	data = rtmsg.AttrAddr(data, remote, t.Remote)
	data = rtmsg.Attr(data, unix.IFLA_GENEVE_PORT, binary.BigEndian.AppendUint16(nil, t.Port))
	return rtmsg.Attr(data, unix.IFLA_GENEVE_UDP_CSUM, []byte{1}) // see disableGRO
}

func greData(t kernel.Tunnel) []byte {
	var data []byte
	for _, flags := range []uint16{greInputFlags, greOutputFlags} {
		data = rtmsg.Attr(data, flags, binary.BigEndian.AppendUint16(nil, greKey))
	}
	for _, key := range []uint16{greInputKey, greOutputKey} {
		data = rtmsg.Attr(data, key, binary.BigEndian.AppendUint32(nil, t.VNI<<8))
	}
	data = rtmsg.AttrAddr(data, greLocal, t.Local)
	data = rtmsg.AttrAddr(data, greRemote, t.Remote)
	data = rtmsg.Attr(data, greTTL, []byte{greOuterTTL})
	if t.Kind == kernel.IP6GRETAP {
		return rtmsg.AttrUint32(data, greFlags, greNoEncapLimit)
	}
	data = rtmsg.Attr(data, grePMTUDiscovery, []byte{0})
	return rtmsg.Attr(data, greIgnoreDF, []byte{1})
}

// createTunnel makes a device.
func (h *Handle) createTunnel(t kernel.Tunnel) error {
	return h.create(tunnelCreate(t), t.MAC, func(l link) bool {
		return l.kind == string(t.Kind) && l.tunnel.vni == t.VNI && l.tunnel.remote == t.Remote && l.tunnel.port == t.Port
	})
}

// HasTunnel reports whether the kernel can make tunnels of a kind, which loads
// the module where there is one. It asks for one with an Ethernet address that
// no device can have: who knows the kind refuses that, so nothing is ever made.
func (h *Handle) HasTunnel(kind kernel.TunnelKind) (bool, error) {
	body := rtmsg.Attr(rtmsg.Link(0, 0, 0), unix.IFLA_ADDRESS, make([]byte, len(kernel.MAC{})))
	err := h.all(rtmsg.Request{
		Type: unix.RTM_NEWLINK, Flags: unix.NLM_F_CREATE | unix.NLM_F_EXCL, Body: linkInfo(body, string(kind), nil),
	})
	switch {
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return true, nil
	case errors.Is(err, unix.EOPNOTSUPP):
		return false, nil
	}
	return false, fmt.Errorf("probe for %s: unexpected answer: %w", kind, err)
}
