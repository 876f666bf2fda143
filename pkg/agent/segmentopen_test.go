package agent

import (
	"errors"
	"net/netip"
	"reflect"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/weft-cni/weft/api/v1alpha1"
	"github.com/weft-cni/weft/pkg/control"
	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/netconf"
	"github.com/weft-cni/weft/pkg/overlay"
	"github.com/weft-cni/weft/pkg/segment"
)

// TestPublishedTunnels: what is published is read as it was, and nothing is
// published of what is the default.
func TestPublishedTunnels(t *testing.T) {
	vteps := []netip.Addr{netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("192.0.2.8")}
	for _, want := range []netconf.Tunnels{
		{},
		{Port: 4790},
		{Encrypt: true},
		{VTEPs: vteps},
		{Discovery: netconf.DiscoverStatic, VTEPs: vteps},
		{Discovery: netconf.DiscoverMulticast, Group: netip.MustParseAddr("239.1.1.1")},
		{Encapsulation: netconf.EncapNVGRE},
		{Encapsulation: netconf.EncapGeneve, Discovery: netconf.DiscoverStatic, VTEPs: vteps, Port: 6082},
	} {
		isDefault := reflect.DeepEqual(want, netconf.Tunnels{})
		if want.Discovery == "" {
			want.Discovery = netconf.DiscoverKubernetes
		}
		p := publishedTunnels(want)
		got, err := tunnelsOf(&v1alpha1.SegmentMember{Spec: v1alpha1.SegmentMemberSpec{Tunnels: p}})
		if err != nil || !reflect.DeepEqual(got, want) || (p == nil) != isDefault {
			t.Errorf("%+v was published as %+v and read as %+v, %v", want, p, got, err)
		}
	}
}

// TestKernelWithoutTunnels: a node can't be in a segment whose encapsulation its
// kernel doesn't have, and says so by the words of the configuration.
func TestKernelWithoutTunnels(t *testing.T) {
	fake := newFakeKernel()
	s := &segments{kernel: fake}
	four, six := overlay.Underlay{Addr: netip.MustParseAddr("192.0.2.1")}, overlay.Underlay{Addr: netip.MustParseAddr("fd30::1")}
	geneve, nvgre := netconf.Tunnels{Encapsulation: netconf.EncapGeneve}, netconf.Tunnels{Encapsulation: netconf.EncapNVGRE}
	listed := nvgre
	listed.Discovery, listed.VTEPs = netconf.DiscoverStatic, []netip.Addr{netip.MustParseAddr("fd30::2")}
	for _, has := range []bool{true, false} {
		fake.noTunnels = !has
		for _, c := range []struct {
			name     string
			underlay []overlay.Underlay
			tunnels  netconf.Tunnels
			err      string // of a kernel without
		}{
			{"vxlan", []overlay.Underlay{four}, netconf.Tunnels{}, ""},
			{"geneve", []overlay.Underlay{four, six}, geneve, `encapsulation is "geneve"; accepted on this node: "vxlan": its kernel has no devices of type geneve`},
			{"nvgre", []overlay.Underlay{four, six}, nvgre, `encapsulation is "nvgre"; accepted on this node: "vxlan": its kernel has no devices of type gretap`},
			{"nvgre over IPv6", []overlay.Underlay{six, four}, nvgre, `encapsulation is "nvgre"; accepted on this node: "vxlan": its kernel has no devices of type ip6gretap`},
			{"nvgre to a list", []overlay.Underlay{four, six}, listed, `encapsulation is "nvgre"; accepted on this node: "vxlan": its kernel has no devices of type ip6gretap`},
		} {
			err := s.makes(overlay.Self{Name: "n1", Underlay: c.underlay}, c.tunnels)
			want := c.err
			if want != "" {
				want = control.ErrRefused.Error() + ": " + want
			}
			switch {
			case has || c.err == "":
				if err != nil {
					t.Errorf("%s, has it %v: %v", c.name, has, err)
				}
			case err == nil || err.Error() != want || !errors.Is(err, control.ErrRefused):
				t.Errorf("%s: %v, not %s", c.name, err, want)
			}
		}
	}
	fake.noTunnels, fake.broken = false, errors.New("broken")
	if err := s.makes(overlay.Self{Underlay: []overlay.Underlay{four}}, geneve); !errors.Is(err, control.ErrNotYet) || !errors.Is(err, fake.broken) {
		t.Errorf("of a kernel that can't be asked: %v", err)
	}
}

// TestSharesPort: a UDP port is of one encapsulation on a node.
func TestSharesPort(t *testing.T) {
	self := overlay.Self{Name: "n1", Underlay: []overlay.Underlay{{Addr: netip.MustParseAddr("192.0.2.1")}}}
	geneve, nvgre := netconf.Tunnels{Encapsulation: netconf.EncapGeneve}, netconf.Tunnels{Encapsulation: netconf.EncapNVGRE}
	with := func(t netconf.Tunnels, port uint16) netconf.Tunnels {
		t.Port = port
		return t
	}
	for _, c := range []struct {
		has, asked netconf.Tunnels
		err        string
	}{
		{nvgre, geneve, ""},
		{geneve, nvgre, ""},
		{geneve, geneve, ""},
		{geneve, with(geneve, 6082), ""},
		{geneve, netconf.Tunnels{}, ""},
		{nvgre, with(geneve, 4789), "port is 4789; accepted with encapsulation geneve: another, since the cluster network has it for vxlan on this node"},
		{with(netconf.Tunnels{}, 6081), geneve, "port is 6081; accepted with encapsulation geneve: another, since segment 7 has it for vxlan on this node"},
		{geneve, with(netconf.Tunnels{}, 6081), "port is 6081; accepted with encapsulation vxlan: another, since segment 7 has it for geneve on this node"},
	} {
		active := &segments{config: overlay.Config{Port: 4789}}
		active.state.active = map[uint32]activeSegment{7: {tunnels: c.has}}
		justAsked := &segments{config: overlay.Config{Port: 4789}}
		justAsked.state.opened = map[uint32]opened{7: {segment: netconf.Segment{Tunnels: c.has}}}
		for _, s := range []*segments{active, justAsked} {
			err := s.sharesPort(self, netconf.Segment{VNI: 8, Tunnels: c.asked})
			switch {
			case c.err == "":
				if err != nil {
					t.Error(err)
				}
			case err == nil || err.Error() != control.ErrRefused.Error()+": "+c.err:
				t.Errorf("%v, not %s", err, c.err)
			}
		}
	}
}

// TestKernelWithoutVLANs: a segment with VLANs is refused where they can't be
// kept apart, and no other.
func TestKernelWithoutVLANs(t *testing.T) {
	fake := newFakeKernel()
	s := &segments{kernel: fake}
	with := netconf.Tunnels{VLANs: true}
	if err := s.filters(with); err != nil {
		t.Error(err)
	}
	fake.noVLANs = true
	want := control.ErrRefused.Error() + ": no vlan or trunk is accepted on this node: its kernel has no VLAN filtering of bridges"
	if err := s.filters(with); err == nil || err.Error() != want || !errors.Is(err, control.ErrRefused) {
		t.Errorf("%v, not %s", err, want)
	}
	if err := s.filters(netconf.Tunnels{}); err != nil {
		t.Error(err)
	}
	fake.broken = errors.New("broken")
	if err := s.filters(with); !errors.Is(err, control.ErrNotYet) || !errors.Is(err, fake.broken) {
		t.Errorf("of a kernel that can't be asked: %v", err)
	}
}

// TestPublishedVLANs: what a member tells of VLANs comes back.
func TestPublishedVLANs(t *testing.T) {
	on := activeSegment{tunnels: netconf.Tunnels{Discovery: netconf.DiscoverKubernetes, VLANs: true}, stations: []segment.Endpoint{
		{MAC: kernel.MAC{2, 1}, VLAN: 4094}, {MAC: kernel.MAC{2, 2}},
	}}
	got, err := parseMember(memberOf(1001, Node{Name: "n1"}, on))
	if err != nil || got.Tunnels.Agree(on.tunnels, "") != nil || !got.Tunnels.VLANs {
		t.Errorf("%+v, %v", got, err)
	}
	if d := cmp.Diff(on.stations, got.Endpoints); d != "" {
		t.Error(d)
	}
}
