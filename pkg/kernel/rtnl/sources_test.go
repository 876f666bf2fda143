package rtnl_test

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/segment"
)

// TestSources reads elements of sets of links, few of them one by one and many
// with their table, and finds neither what isn't there nor what only looks like it.
func TestSources(t *testing.T) {
	h := inNamespace(t)
	in := func(set, link, prefix string, mac kernel.MAC) kernel.Source {
		s := kernel.Source{Table: segment.Table, Set: set, Link: link, MAC: mac}
		if prefix != "" {
			s.Prefix = netip.MustParsePrefix(prefix)
		}
		return s
	}
	want := segment.PlanTable()
	want.Put(
		in("senders4", "weft0", "192.168.7.9/32", kernel.MAC{}), in("senders4", "weft1", "192.168.7.9/32", kernel.MAC{}),
		in("senders6", "weft0", "fd00:7::9/128", kernel.MAC{}), in("networks4", "weft0", "10.0.0.0/8", kernel.MAC{}),
		in("networks6", "weft0", "fe80::/64", kernel.MAC{}), in("stations", "weft0", "", kernel.MAC{2, 0, 0, 0, 0, 9}),
		in("learning", "weft0", "", kernel.MAC{}), in("apart", "vx-weft1001", "", kernel.MAC{2, 0, 0, 0, 0, 9}),
	)
	apply(t, h, want)
	have, err := h.ReadKeys(kernel.NewState(
		in("senders4", "weft0", "192.168.7.8/32", kernel.MAC{}), in("senders4", "weft2", "192.168.7.9/32", kernel.MAC{}),
		in("networks4", "weft0", "10.1.0.0/16", kernel.MAC{}), in("learning", "weft1", "", kernel.MAC{}),
		in("nosuch", "weft0", "", kernel.MAC{}), kernel.Source{Table: "bridge nosuch", Set: "learning", Link: "weft0"},
	).Keys())
	must(t, err)
	if len(have) > 0 {
		t.Errorf("nobody put these there:\n%s", have)
	}
	for i := range 100 {
		want.Put(in("senders4", "weft0", fmt.Sprintf("192.168.8.%d/32", i), kernel.MAC{}))
	}
	apply(t, h, want)
}

// TestElementsGoneMeanwhile: of elements that are to go, and one that is to come,
// somebody else has deleted some.
func TestElementsGoneMeanwhile(t *testing.T) {
	h := inNamespace(t)
	source := func(link string, last byte) kernel.Source {
		return kernel.Source{Table: segment.Table, Set: "senders4", Link: link, Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, 7, last}), 32)}
	}
	before, after := segment.PlanTable(), segment.PlanTable()
	before.Put(source("weft0", 1), source("weft0", 2), source("weft1", 3))
	after.Put(source("weft2", 4))
	apply(t, h, before)
	ops := kernel.Diff(after, before, nil)
	meanwhile := segment.PlanTable()
	meanwhile.Put(source("weft1", 3))
	apply(t, h, meanwhile)
	for _, failed := range h.Apply(ops) {
		t.Errorf("apply: %v", failed)
	}
	settled(t, h, after)
}
