package rtnl_test

import (
	"errors"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/kernel/rtnl"
)

// TestKernelHasVLANFiltering: the kernel tells whether its bridges can filter
// VLANs, and nothing is left of the question; a bridge on one that can't shows.
// test/vm/segment has what they do where they can.
func TestKernelHasVLANFiltering(t *testing.T) {
	h := inNamespace(t)
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "probe"
	on := true
	err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs, VlanFiltering: &on})
	can := err == nil
	if !can && !errors.Is(err, unix.EOPNOTSUPP) {
		t.Fatal(err)
	}
	before, err := h.Read(rtnl.Names{Links: []string{"*"}})
	must(t, err)
	if has, failed := h.HasVLANFiltering(); failed != nil || has != can {
		t.Errorf("%v, %v; it filters: %v", has, failed, can)
	}
	after, err := h.Read(rtnl.Names{Links: []string{"*"}})
	must(t, err)
	for k := range after { // addresses come by themselves
		if before[k] == nil && k.Kind == kernel.KindLink {
			t.Errorf("%s is left", k)
		}
	}

	want := kernel.Bridge{Name: "br-weft1", MAC: kernel.MAC{2, 1}, MTU: 1446, VLANs: true}
	failed := h.Apply([]kernel.Op{{Verb: kernel.Add, Want: want}})
	if len(failed) > 0 == can || !can && !errors.Is(failed[0], unix.EOPNOTSUPP) {
		t.Errorf("%v", failed)
	}
	have, err := h.ReadKeys(kernel.Keys{want.Key(): {}})
	must(t, err)
	if b, there := have[want.Key()]; there != can || can && b != want {
		t.Errorf("%v, not %s", b, want)
	}
}
