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
	return overlay.MTU(u), nil
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

// planTunnel gives a segment's bridge and VXLAN device, and where frames to many
// go beside the members that objects tell of.
func planTunnel(c overlay.Config, self overlay.Self, in Segment) (kernel.State, kernel.VXLAN, error) {
	vni, t := in.VNI, in.Tunnels
	u, err := underlay(self, t)
	if err != nil {
		return nil, kernel.VXLAN{}, err
	}
	tunnel := kernel.VXLAN{
		Name: Tunnel(vni), VNI: vni, Port: portOf(c, self, t), Local: u.Addr,
		MAC: MAC(self.Name, vni), MTU: overlay.MTU(u), Bridge: Bridge(vni), Learning: t.Open(), Moving: t.Open(),
	}
	bridge := kernel.Bridge{Name: tunnel.Bridge, MAC: tunnel.MAC, MTU: tunnel.MTU, Snooping: in.Snooping, Routed: in.Gateway}
	if in.Gateway {
		bridge.MAC = netconf.GatewayMAC
	}
	s := kernel.NewState(bridge)
	if t.Group.IsValid() {
		tunnel.Group, tunnel.Via = t.Group, u.Link
		s.Put(kernel.Flood{Link: tunnel.Name, VTEP: t.Group})
	}
	for _, vtep := range t.VTEPs {
		if vtep != u.Addr {
			s.Put(kernel.Flood{Link: tunnel.Name, VTEP: vtep})
		}
	}
	return s, tunnel, nil
}

// portOf is the UDP port of a segment's VXLAN device. Encrypted ones share theirs
// with no others: what comes to it from outside of WireGuard is dropped.
func portOf(c overlay.Config, self overlay.Self, t netconf.Tunnels) uint16 {
	switch {
	case t.Encrypt:
		return self.InnerPort
	case t.Port != 0:
		return t.Port
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
