package agent

import (
	"context"
	"fmt"
	"net/netip"
	"strconv"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/weft-cni/weft/api/v1alpha1"
	"github.com/weft-cni/weft/pkg/control"
	"github.com/weft-cni/weft/pkg/netconf"
	"github.com/weft-cni/weft/pkg/overlay"
	"github.com/weft-cni/weft/pkg/segment"
)

// open has a segment wanted for a while, unless this node can't take part in
// such a one, or it is there already with other tunnels.
func (s *segments) open(ctx context.Context, asked netconf.Segment) error {
	s.mu.Lock()
	self := s.state.self
	_, isActive := s.state.active[asked.VNI]
	s.mu.Unlock()
	if self == nil {
		return fmt.Errorf("%w: %w", control.ErrNotYet, errNotReady)
	}
	if asked.Tunnels.Encrypt && !isActive {
		release, err := s.seal(ctx)
		if err != nil {
			return err
		}
		defer release()
		if self = s.itself(); self == nil {
			return fmt.Errorf("%w: %w", control.ErrNotYet, errNotReady)
		}
	}
	if _, err := segment.MTU(*self, asked.Tunnels); err != nil {
		return fmt.Errorf("%w: %w", control.ErrRefused, err)
	}
	if err := s.makes(*self, asked.Tunnels); err != nil {
		return err
	}
	if err := s.filters(asked.Tunnels); err != nil {
		return err
	}
	if !isActive { // members that are there hear of another that joins, and it of them
		if err := s.agree(ctx, asked); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, has := range s.here(asked.VNI) {
		if err := asked.Tunnels.Agree(has, "on this node"); err != nil {
			return fmt.Errorf("%w: %w", control.ErrRefused, err)
		}
	}
	if err := s.sharesPort(*self, asked); err != nil {
		return err
	}
	s.state.opened[asked.VNI] = opened{segment: asked, until: time.Now().Add(openTime)}
	s.state.touch(asked.VNI, true)
	time.AfterFunc(openTime+firstRetry, func() { poke(s.wake) }) // nothing else may tell that its time is over
	return nil
}

// makes is an error where this node's kernel has no devices for such tunnels.
func (s *segments) makes(self overlay.Self, t netconf.Tunnels) error {
	kind, err := segment.LinkKind(self, t)
	if err != nil {
		return fmt.Errorf("%w: %w", control.ErrRefused, err)
	}
	if kind == "" {
		return nil
	}
	has, err := s.kernel.HasTunnel(kind)
	switch {
	case err != nil:
		return fmt.Errorf("%w: encapsulation: %w", control.ErrNotYet, err)
	case !has:
		return fmt.Errorf("%w: encapsulation is %q; accepted on this node: %q: its kernel has no devices of type %s",
			control.ErrRefused, t.Encap(), netconf.EncapVXLAN, kind)
	}
	return nil
}

// sharesPort is an error where a segment asks for a UDP port that another
// encapsulation has on this node: a port has one kind of listener. The caller
// holds s.mu.
func (s *segments) sharesPort(self overlay.Self, asked netconf.Segment) error {
	port := segment.UDPPort(s.config, self, asked.Tunnels)
	check := func(t netconf.Tunnels, whose string) error {
		if t.Encap() == asked.Tunnels.Encap() || port == 0 || segment.UDPPort(s.config, self, t) != port {
			return nil
		}
		return fmt.Errorf("%w: port is %d; accepted with encapsulation %s: another, since %s has it for %s on this node",
			control.ErrRefused, port, asked.Tunnels.Encap(), whose, t.Encap())
	}
	if err := check(netconf.Tunnels{}, "the cluster network"); err != nil {
		return err
	}
	for vni, on := range s.state.active {
		if err := check(on.tunnels, fmt.Sprintf("segment %d", vni)); err != nil {
			return err
		}
	}
	for vni, o := range s.state.opened {
		if err := check(o.segment.Tunnels, fmt.Sprintf("segment %d", vni)); err != nil {
			return err
		}
	}
	return nil
}

// filters is an error where a segment has VLANs and this node's kernel can't keep
// them apart.
func (s *segments) filters(t netconf.Tunnels) error {
	if !t.VLANs {
		return nil
	}
	has, err := s.kernel.HasVLANFiltering()
	switch {
	case err != nil:
		return fmt.Errorf("%w: vlan: %w", control.ErrNotYet, err)
	case !has:
		return fmt.Errorf("%w: no vlan or trunk is accepted on this node: its kernel has no VLAN filtering of bridges", control.ErrRefused)
	}
	return nil
}

// itself is what this node is, nil until it is in order.
func (s *segments) itself() *overlay.Self {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state.self
}

// here lists how this node has a segment. The caller holds s.mu.
func (s *segments) here(vni uint32) (all []netconf.Tunnels) {
	if on, ok := s.state.active[vni]; ok {
		all = append(all, on.tunnels)
	}
	if o, ok := s.state.opened[vni]; ok {
		all = append(all, o.segment.Tunnels)
	}
	return all
}

// agree asks the API whether other nodes have a segment with other tunnels.
func (s *segments) agree(ctx context.Context, asked netconf.Segment) error {
	selector := labels.Set{v1alpha1.VNILabel: strconv.FormatUint(uint64(asked.VNI), 10)}.String()
	all, err := s.members.List(ctx, metav1.ListOptions{LabelSelector: selector})
	if err != nil {
		return fmt.Errorf("%w: list members: %w", control.ErrNotYet, err)
	}
	for i := range all.Items {
		m := &all.Items[i]
		if m.Spec.Node == s.node {
			continue // of pods that have gone
		}
		has, err := tunnelsOf(m)
		if err == nil {
			err = asked.Tunnels.Agree(has, "on node "+m.Spec.Node)
		}
		if err != nil {
			return fmt.Errorf("%w: %w", control.ErrRefused, err)
		}
	}
	return nil
}

// publishedTunnels is t for a SegmentMember.
func publishedTunnels(t netconf.Tunnels) *v1alpha1.SegmentTunnels {
	p := &v1alpha1.SegmentTunnels{Discovery: string(t.Discovery), Encapsulation: string(t.Encapsulation), Port: int32(t.Port), Encrypt: t.Encrypt, VLANs: t.VLANs}
	for _, a := range t.VTEPs {
		p.VTEPs = append(p.VTEPs, a.String())
	}
	if t.Group.IsValid() {
		p.Group = t.Group.String()
	}
	if t.Agree(netconf.Tunnels{Discovery: netconf.DiscoverKubernetes}, "") == nil {
		return nil
	}
	return p
}

// tunnelsOf is the opposite of publishedTunnels.
func tunnelsOf(m *v1alpha1.SegmentMember) (netconf.Tunnels, error) {
	t := netconf.Tunnels{Discovery: netconf.DiscoverKubernetes}
	p := m.Spec.Tunnels
	if p == nil {
		return t, nil
	}
	t.Discovery, t.Port, t.Encrypt = netconf.Discovery(p.Discovery), uint16(p.Port), p.Encrypt
	t.Encapsulation, t.VLANs = netconf.Encapsulation(p.Encapsulation), p.VLANs
	for _, word := range p.VTEPs {
		a, err := netip.ParseAddr(word)
		if err != nil {
			return t, fmt.Errorf("member %s: vteps: %w", m.Name, err)
		}
		t.VTEPs = append(t.VTEPs, a)
	}
	if p.Group != "" {
		var err error
		if t.Group, err = netip.ParseAddr(p.Group); err != nil {
			return t, fmt.Errorf("member %s: group: %w", m.Name, err)
		}
	}
	return t, nil
}
