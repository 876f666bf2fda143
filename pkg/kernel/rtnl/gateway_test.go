package rtnl_test

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/kernel/rtnl"
	"github.com/weft-cni/weft/pkg/netconf"
	"github.com/weft-cni/weft/pkg/segment"
)

// TestGateways: segments whose gateway the node is are read as they were
// planned, are none of the cluster network's, and leave nothing.
func TestGateways(t *testing.T) {
	h := inNamespace(t)
	node := self(underlay4)
	ranges := []netconf.Range{
		{Subnet: netip.MustParsePrefix("192.168.7.0/24"), Gateway: netip.MustParseAddr("192.168.7.1")},
		{Subnet: netip.MustParsePrefix("fd00:7::/64"), Gateway: netip.MustParseAddr("fd00:7::1")},
	}
	want := segment.PlanTable()
	var all []segment.Gateway
	for _, vni := range []uint32{1001, 1002} {
		planned, err := segment.Plan(config(), node, segment.Segment{VNI: vni, Gateway: vni == 1001})
		must(t, err)
		want.Merge(planned)
		all = append(all, segment.Gateway{VNI: vni, Ranges: ranges})
	}
	names := rtnl.Names(segment.Names)
	reach := func(want kernel.State) {
		t.Helper()
		have, err := h.Read(names)
		must(t, err)
		for _, failed := range h.Apply(kernel.Diff(want, have, nil)) {
			t.Errorf("apply: %v", failed)
		}
		have, err = h.Read(names)
		must(t, err)
		if d := cmp.Diff(want.String(), have.String()); d != "" {
			t.Fatalf("kernel differs from plan (-want +have):\n%s", d)
		}
		one, err := h.ReadKeys(want.Keys())
		must(t, err)
		if d := cmp.Diff(want.String(), one.String()); d != "" {
			t.Errorf("read by keys it differs (-want +have):\n%s", d)
		}
	}
	for _, gateways := range [][]segment.Gateway{all[:1], all, all[1:], nil} {
		now := kernel.State{}
		now.Merge(want)
		now.Merge(segment.PlanGateways(node, gateways))
		reach(now)
	}
	// The cluster network reads and leaves alone what is a segment's.
	withGateways := kernel.State{}
	withGateways.Merge(want)
	withGateways.Merge(segment.PlanGateways(node, all))
	reach(withGateways)
	apply(t, h, plan(t, config(), node))
	reach(withGateways)
	reach(kernel.State{})
}
