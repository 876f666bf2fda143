package rtnl

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/rtmsg"
)

// portData is what Weft looks at in a bridge's port.
type portData struct {
	learning, flood, suppress, isolated, locked bool
	noRouter                                    bool // multicast goes to it only where asked for
}

func decodePort(b []byte) (p portData) {
	flags := map[uint16]*bool{
		unix.IFLA_BRPORT_LEARNING: &p.learning, unix.IFLA_BRPORT_UNICAST_FLOOD: &p.flood,
		unix.IFLA_BRPORT_NEIGH_SUPPRESS: &p.suppress, unix.IFLA_BRPORT_ISOLATED: &p.isolated,
		unix.IFLA_BRPORT_LOCKED: &p.locked,
	}
	for typ, v := range rtmsg.Attrs(b) {
		if flag := flags[typ]; flag != nil && len(v) > 0 {
			*flag = v[0] != 0
		}
		if typ == unix.IFLA_BRPORT_MULTICAST_ROUTER && len(v) > 0 {
			p.noRouter = v[0] != multicastRouter
		}
	}
	return p
}

// multicastRouter is MDB_RTR_TYPE_PERM: all multicast frames go to the port.
const multicastRouter = 2

// bridgeData is what Weft looks at in a bridge.
type bridgeData struct {
	stp, snooping, querier bool
	filtering              bool   // of VLANs
	defaultVLAN            uint16 // of a port that joins
}

func decodeBridge(b []byte) (d bridgeData) {
	for typ, v := range rtmsg.Attrs(b) {
		switch typ {
		case unix.IFLA_BR_STP_STATE:
			d.stp = u32(v) != 0
		case unix.IFLA_BR_MCAST_SNOOPING:
			d.snooping = len(v) > 0 && v[0] != 0
		case unix.IFLA_BR_MCAST_QUERIER:
			d.querier = len(v) > 0 && v[0] != 0
		case unix.IFLA_BR_VLAN_FILTERING:
			d.filtering = len(v) > 0 && v[0] != 0
		case unix.IFLA_BR_VLAN_DEFAULT_PVID:
			if len(v) >= 2 {
				d.defaultVLAN = binary.NativeEndian.Uint16(v)
			}
		}
	}
	return d
}

// bridge is a link of kind bridge as an object.
func (l link) bridgeObject() kernel.Bridge {
	b := kernel.Bridge{Name: l.name, MAC: l.mac, MTU: l.mtu, Snooping: l.bridge.snooping, Routed: l.markedSources, VLANs: l.bridge.filtering}
	switch {
	case !l.up:
		b.Detail = "down"
	case l.bridge.stp:
		b.Detail = "stp"
	case l.bridge.querier != l.bridge.snooping:
		b.Detail = "mcast_querier"
	case l.bridge.filtering && l.bridge.defaultVLAN != 0:
		b.Detail = "vlan_default_pvid"
	}
	return b
}

// podPort is the bridge's port that a pod's link is.
func (l link) podPort(bridge string) kernel.BridgePort {
	p := kernel.BridgePort{Link: l.name, Bridge: bridge, Isolated: l.port.isolated, Learning: l.port.learning, VLANs: l.vlans}
	var unlike []string
	for _, flag := range []struct {
		name string
		bad  bool
	}{
		{"flood", l.port.flood != p.Learning},
		{"locked", l.port.locked == p.Learning},
		{"neigh_suppress", l.port.suppress},
	} {
		if flag.bad {
			unlike = append(unlike, flag.name)
		}
	}
	p.Detail = strings.Join(unlike, ", ")
	return p
}

// applyBridge makes a bridge or changes one in place.
func (h *Handle) applyBridge(op kernel.Op, want kernel.Bridge) error {
	body := rtmsg.Link(0, 0, 0)
	if op.Verb == kernel.Replace {
		l, err := h.link(want.Name)
		if err != nil {
			return err
		}
		body = rtmsg.Link(l.index, 0, 0)
	} else {
		body = rtmsg.AttrString(body, unix.IFLA_IFNAME, want.Name)
	}
	have, _ := op.Have.(kernel.Bridge)
	if op.Verb != kernel.Replace {
		have = kernel.Bridge{}
	}
	if have.MAC != want.MAC {
		body = rtmsg.Attr(body, unix.IFLA_ADDRESS, want.MAC[:]) // flushes the neighbours even if it is the same
	}
	body = rtmsg.AttrUint32(body, unix.IFLA_MTU, uint32(want.MTU))
	data := rtmsg.AttrUint32(nil, unix.IFLA_BR_STP_STATE, 0)
	snooping := rtmsg.Flag(0, want.Snooping).Value
	data = rtmsg.Attr(data, unix.IFLA_BR_MCAST_SNOOPING, []byte{snooping})
	data = rtmsg.Attr(data, unix.IFLA_BR_MCAST_QUERIER, []byte{snooping})
	data = vlanFiltering(data, have.VLANs, want.VLANs)
	info := rtmsg.AttrString(nil, unix.IFLA_INFO_KIND, "bridge")
	info = rtmsg.Attr(info, unix.IFLA_INFO_DATA|unix.NLA_F_NESTED, data)
	body = rtmsg.Attr(body, unix.IFLA_LINKINFO|unix.NLA_F_NESTED, info)
	r := rtmsg.Request{Type: unix.RTM_NEWLINK, Body: body}
	if op.Verb != kernel.Replace {
		r.Flags = unix.NLM_F_CREATE | unix.NLM_F_EXCL
	}
	if err := h.all(r); err != nil {
		return fmt.Errorf("bridge: %w", err)
	}
	l, err := h.link(want.Name)
	if err != nil {
		return err
	}
	if l.markedSources != want.Routed {
		if err := h.all(markedSources(l.index, want.Routed)); err != nil {
			return fmt.Errorf("src_valid_mark: %w", err)
		}
	}
	return h.up(l.index)
}

// An interface's IPv4 settings in its messages: attributes of linux/if_link.h
// and linux/ip.h. They are told as an array, and set one by one.
const (
	inetConf  = 1  // IFLA_INET_CONF
	srcVmark  = 24 // IPV4_DEVCONF_SRC_VMARK
	sizeofU32 = 4
)

// srcValidMark reads the setting out of IFLA_AF_SPEC.
func srcValidMark(b []byte) bool {
	for family, v := range rtmsg.Attrs(b) {
		if family != unix.AF_INET {
			continue
		}
		for typ, v := range rtmsg.Attrs(v) {
			if at := (srcVmark - 1) * sizeofU32; typ == inetConf && len(v) >= at+sizeofU32 {
				return u32(v[at:]) != 0
			}
		}
	}
	return false
}

// markedSources is a request that changes the setting.
func markedSources(index int, on bool) rtmsg.Request {
	conf := rtmsg.AttrUint32(nil, srcVmark, uint32(rtmsg.Flag(0, on).Value))
	inet := rtmsg.Attr(nil, inetConf|unix.NLA_F_NESTED, conf)
	spec := rtmsg.Attr(nil, unix.AF_INET|unix.NLA_F_NESTED, inet)
	return rtmsg.Request{Type: unix.RTM_SETLINK, Body: rtmsg.Attr(rtmsg.Link(index, 0, 0), unix.IFLA_AF_SPEC|unix.NLA_F_NESTED, spec)}
}

// intoBridge makes a tunnel's device a port of its bridge.
func (h *Handle) intoBridge(want tunnelDevice, index int) error {
	if want.bridge == "" {
		return nil
	}
	b, err := h.link(want.bridge)
	if err != nil {
		return err
	}
	// Frames that nobody answers go nowhere until the flags are set: a device
	// that is still down forwards none.
	requests := []rtmsg.Request{
		{Type: unix.RTM_SETLINK, Body: rtmsg.AttrUint32(rtmsg.Link(index, 0, 0), unix.IFLA_MASTER, uint32(b.index))},
		rtmsg.BridgePort(index, rtmsg.Flag(unix.IFLA_BRPORT_LEARNING, want.learning),
			rtmsg.Flag(unix.IFLA_BRPORT_NEIGH_SUPPRESS, !want.moving),
			rtmsg.PortFlag{Type: unix.IFLA_BRPORT_MULTICAST_ROUTER, Value: multicastRouter}),
	}
	return h.all(append(requests, portVLANs(index, want.vlans)...)...)
}

// applyPort makes a pod's link a port of its bridge, with its flags. A pod's
// link that isn't to be one keeps its place: the plugin removes it.
func (h *Handle) applyPort(op kernel.Op) error {
	want, ok := op.Want.(kernel.BridgePort)
	if !ok {
		return nil
	}
	l, err := h.link(want.Link)
	if err != nil {
		return err
	}
	b, err := h.link(want.Bridge)
	if err != nil {
		return err
	}
	var requests []rtmsg.Request
	if l.master != b.index {
		requests = append(requests, rtmsg.Request{Type: unix.RTM_SETLINK, Body: rtmsg.AttrUint32(rtmsg.Link(l.index, 0, 0), unix.IFLA_MASTER, uint32(b.index))})
	}
	requests = append(requests, rtmsg.BridgePort(l.index, rtmsg.PodPort(want.Isolated, want.Learning)...))
	return h.all(append(requests, portVLANs(l.index, want.VLANs)...)...)
}

// floodRequest adds an entry to a device's list for head-end replication, or
// takes it out.
func floodRequest(f kernel.Flood, index int, del bool) rtmsg.Request {
	r := fdbRequest(kernel.FDB{Link: f.Link, VTEP: f.VTEP, Port: f.Port}, index, false)
	if del {
		return rtmsg.Request{Type: unix.RTM_DELNEIGH, Body: r.Body}
	}
	r.Flags = unix.NLM_F_CREATE | unix.NLM_F_APPEND
	return r
}

// linkAt is the link with an index, zero where it is gone.
func (h *Handle) linkAt(index int) link {
	if index == 0 {
		return link{}
	}
	b, err := h.conn.Get(rtmsg.Request{Type: unix.RTM_GETLINK, Body: rtmsg.Link(index, 0, 0)})
	if err != nil {
		return link{}
	}
	l, _ := decodeLink(b)
	return l
}

// nameOf is the name of a link, empty where it is gone.
func (h *Handle) nameOf(index int) string { return h.linkAt(index).name }

// readPort reads the port that a pod's link is, if it is one.
func (h *Handle) readPort(s kernel.State, l link) error {
	if l.kind != "veth" || !l.isPort {
		return nil
	}
	bridge := h.linkAt(l.master)
	if err := h.readVLANs(&l, bridge); err != nil {
		return err
	}
	s.Put(l.podPort(bridge.name))
	return nil
}

// readStation reads an entry of the FDB of the bridge that the link is a port
// of.
func (h *Handle) readStation(s kernel.State, l link, k kernel.Key) error {
	if !l.isPort || k.VLAN != 0 && !h.linkAt(l.master).bridge.filtering {
		return nil
	}
	body := rtmsg.Neigh(unix.AF_BRIDGE, l.index, 0, unix.NTF_MASTER)
	b, err := h.conn.Get(rtmsg.Request{Type: unix.RTM_GETNEIGH, Body: rtmsg.InVLAN(rtmsg.Attr(body, unix.NDA_LLADDR, k.MAC[:]), k.VLAN)})
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", k, err)
	}
	if o, index := decodeNeigh(b, l.name); o != nil && index == l.index {
		s.Put(o)
	}
	return nil
}
