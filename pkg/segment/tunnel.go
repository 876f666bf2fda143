package segment

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/netconf"
	"github.com/weft-cni/weft/pkg/overlay"
)

// ErrUnderlay says that a node has no underlay address for such tunnels.
var ErrUnderlay = errors.New("no underlay of that family")

// ErrNoKey says that a node has no WireGuard key.
var ErrNoKey = errors.New("no WireGuard key, and nothing is sent in clear")

// MTU is the largest packet, in bytes, of a segment's pods. The error is
// ErrUnderlay or ErrNoKey.
func MTU(self overlay.Self, t netconf.Tunnels) (int, error) {
	u, err := underlay(self, t)
	if err != nil {
		return 0, err
	}
	return mtuOver(u, t), nil
}

// mtuOver is overlay.MTU for any encapsulation: NVGRE takes 42 bytes over IPv4
// (inner Ethernet 14, GRE with a key 8, IP 20) and 62 over IPv6 (IP 40), Geneve
// as many as VXLAN. A VLAN's tag takes 4.
func mtuOver(u overlay.Underlay, t netconf.Tunnels) int {
	mtu := u.MTU - 62
	switch {
	case t.Encap() != netconf.EncapNVGRE:
		mtu = overlay.MTU(u)
	case u.Addr.Is4():
		mtu = u.MTU - 42
	}
	if t.VLANs {
		mtu -= 4
	}
	return mtu
}

// underlay is the node's end of a segment's tunnels. Peers that are found by
// their VTEPs have tunnels of the cluster network's family.
func underlay(self overlay.Self, t netconf.Tunnels) (overlay.Underlay, error) {
	if t.Encrypt && !self.Inner.Addr.IsValid() {
		return overlay.Underlay{}, fmt.Errorf("encrypt: node %s has %w", self.Name, ErrNoKey)
	}
	if t.Encrypt {
		return self.Inner, nil
	}
	key, outer := "group", t.Group
	if len(t.VTEPs) > 0 {
		key, outer = "vteps", t.VTEPs[0]
	}
	all := self.Underlay
	if t.ByObjects() {
		all = all[:1]
	}
	for _, u := range all {
		if !outer.IsValid() || u.Addr.Is4() == outer.Is4() {
			return u, nil
		}
	}
	return overlay.Underlay{}, fmt.Errorf("%s: %s: %w; the tunnels of node %s begin at %s", key, outer, ErrUnderlay, self.Name, addrsOf(all))
}

func addrsOf(all []overlay.Underlay) (addrs []netip.Addr) {
	for _, u := range all {
		addrs = append(addrs, u.Addr)
	}
	return addrs
}

// tunnels are how a segment's frames leave a node.
type tunnels interface {
	// reach has frames to many go to a VTEP. port is its UDP port, 0 for the
	// devices' own.
	reach(s kernel.State, vtep netip.Addr, port uint16)
	// station adds that one is behind a VTEP, and gives the bridge's port for it.
	station(s kernel.State, e Endpoint, vtep netip.Addr, port uint16) (link string)
	// put adds the devices, with the bridge's ports that they are.
	put(s kernel.State, learning, moving bool)
}

// planBridge gives a segment's bridge, and its tunnels with where frames to many
// go beside the members that objects tell of.
func planBridge(c overlay.Config, self overlay.Self, in Segment) (kernel.State, tunnels, error) {
	t := in.Tunnels
	u, err := underlay(self, t)
	if err != nil {
		return nil, nil, err
	}
	bridge := kernel.Bridge{
		Name: Bridge(in.VNI), MAC: MAC(self.Name, in.VNI), MTU: mtuOver(u, t), Snooping: in.Snooping, Routed: in.Gateway, VLANs: t.VLANs,
	}
	tunnel := kernel.Tunnel{
		Kind: kindOver(u, t.Encap()), VNI: in.VNI, Local: u.Addr, Port: UDPPort(c, self, t), MAC: bridge.MAC, MTU: bridge.MTU, Bridge: bridge.Name,
	}
	if t.VLANs {
		tunnel.VLANs.Tagged = kernel.AllVLANs
	}
	if in.Gateway {
		bridge.MAC = netconf.GatewayMAC
	}
	s := kernel.NewState(bridge)
	to := tunnelsLike(tunnel, t.Group, u.Link)
	if t.Group.IsValid() {
		to.reach(s, t.Group, 0)
	}
	for _, vtep := range t.VTEPs {
		if vtep != u.Addr {
			to.reach(s, vtep, 0)
		}
	}
	return s, to, nil
}

// tunnelsLike gives tunnels of which one would be t; those without a kind are
// VXLAN. via is the link to a multicast group.
func tunnelsLike(t kernel.Tunnel, group netip.Addr, via string) tunnels {
	switch t.Kind {
	case kernel.GRETAP, kernel.IP6GRETAP:
	case kernel.Geneve:
		t.Local = netip.Addr{}
	default:
		v := kernel.VXLAN{Name: Tunnel(t.VNI), VNI: t.VNI, Port: t.Port, Local: t.Local, MAC: t.MAC, MTU: t.MTU, Bridge: t.Bridge, VLANs: t.VLANs}
		if group.IsValid() {
			v.Group, v.Via = group, via
		}
		return vxlan{v}
	}
	return &peerTunnels{common: t, to: map[netip.Addr]string{}, taken: map[uint32]bool{}}
}

// vxlan is one device for all VTEPs.
type vxlan struct{ kernel.VXLAN }

func (v vxlan) reach(s kernel.State, vtep netip.Addr, port uint16) {
	s.Put(kernel.Flood{Link: v.Name, VTEP: vtep, Port: port})
}

func (v vxlan) station(s kernel.State, e Endpoint, vtep netip.Addr, port uint16) string {
	s.Put(kernel.FDB{Link: v.Name, MAC: e.MAC, VTEP: vtep, Port: port})
	s.Merge(e.behind(v.Name, v.VLANs))
	return v.Name
}

// behind is that a station is behind a tunnel. Where frames have tags and it has
// no VLAN without, it is learned in each.
func (e Endpoint) behind(link string, in kernel.VLANs) kernel.State {
	if in == (kernel.VLANs{}) {
		return kernel.NewState(kernel.Station{Link: link, MAC: e.MAC})
	}
	if e.VLAN == 0 {
		return kernel.State{}
	}
	return kernel.NewState(kernel.Station{Link: link, MAC: e.MAC, VLAN: e.VLAN})
}

func (v vxlan) put(s kernel.State, learning, moving bool) {
	v.Learning, v.Moving = learning, moving
	s.Put(v.VXLAN)
}

// UDPPort is that of a segment's tunnels, 0 for GRE. Encrypted ones share
// theirs with no others: what comes to it from outside of WireGuard is dropped.
func UDPPort(c overlay.Config, self overlay.Self, t netconf.Tunnels) uint16 {
	switch {
	case t.Encrypt:
		return self.InnerPort
	case t.Port != 0:
		return t.Port
	case t.Encap() == netconf.EncapGeneve:
		return netconf.GenevePort
	case t.Encap() == netconf.EncapNVGRE:
		return 0
	}
	return c.Port
}

// vtep is where a member's stations are reached; port is 0 for the device's own.
func (m Member) vtep(c overlay.Config, self overlay.Self, t netconf.Tunnels) (addr netip.Addr, port uint16, err error) {
	if err = t.Agree(m.Tunnels, "on node "+m.Peer.Name); err != nil {
		return addr, 0, err
	}
	if t.Encrypt {
		return m.inner(self)
	}
	addr, err = overlay.Outer(self, m.Peer)
	if t.Port == 0 && m.Peer.Port != c.Port {
		port = m.Peer.Port
	}
	return addr, port, err
}

// inner is vtep for an encrypted segment.
func (m Member) inner(self overlay.Self) (addr netip.Addr, port uint16, err error) {
	if m.Peer.Encryption == nil {
		return addr, 0, fmt.Errorf("peer %s has %w", m.Peer.Name, ErrNoKey)
	}
	if port = overlay.InnerPort(m.Peer.Encryption.Port); port == self.InnerPort {
		port = 0
	}
	return overlay.InnerAddr(m.Peer.Name), port, nil
}
