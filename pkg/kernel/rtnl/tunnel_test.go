package rtnl_test

import (
	"errors"
	"net"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/kernel/rtnl"
)

// TestKernelHasTunnels: the kernel tells which tunnels it can make, and nothing
// is left of the question; it refuses those that it can't. test/vm/segment has
// what is made where it can.
func TestKernelHasTunnels(t *testing.T) {
	h := inNamespace(t)
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "probe"
	local, remote := underlay4.Addr, netip.MustParseAddr("172.30.0.12")
	for kind, link := range map[kernel.TunnelKind]netlink.Link{
		kernel.Geneve:    &netlink.Geneve{LinkAttrs: attrs, ID: 1, Remote: remote.AsSlice()},
		kernel.GRETAP:    &netlink.Gretap{LinkAttrs: attrs, Local: local.AsSlice(), Remote: remote.AsSlice()},
		kernel.IP6GRETAP: &netlink.Gretap{LinkAttrs: attrs, Local: net.ParseIP("fd30::11"), Remote: net.ParseIP("fd30::12")},
		"tin-can":        nil,
	} {
		can := false
		if link != nil {
			if err := netlink.LinkAdd(link); err == nil {
				can = true
				must(t, netlink.LinkDel(link))
			} else if !errors.Is(err, unix.EOPNOTSUPP) {
				t.Fatal(err)
			}
		}
		before, err := h.Read(rtnl.Names{Links: []string{"*"}})
		must(t, err)
		if has, failed := h.HasTunnel(kind); failed != nil || has != can {
			t.Errorf("%s: %v, %v; it can be made: %v", kind, has, failed, can)
		}
		if !can {
			tunnel := kernel.Tunnel{Name: "t-weft0", Kind: kind, VNI: 4096, Local: local, Remote: remote, MAC: kernel.MAC{2, 1}, MTU: 1400}
			failed := h.Apply([]kernel.Op{{Verb: kernel.Add, Want: tunnel}})
			if len(failed) != 1 || !errors.Is(failed[0], unix.EOPNOTSUPP) {
				t.Errorf("%s made: %v", kind, failed)
			}
		}
		after, err := h.Read(rtnl.Names{Links: []string{"*"}})
		must(t, err)
		for _, op := range kernel.Diff(before, after, nil) {
			if op.Key().Kind == kernel.KindLink { // links get addresses meanwhile
				t.Errorf("%s has left %v", kind, op)
			}
		}
	}
}
