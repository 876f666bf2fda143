package rtnl_test

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The probe says what the kernel does, and leaves no link behind.
func TestHasWireGuard(t *testing.T) {
	h := inNamespace(t)
	before := linkNames(t)
	can := true
	for range 2 {
		has, err := h.HasWireGuard()
		must(t, err)
		can = has
	}
	if diff := cmp.Diff(before, linkNames(t)); diff != "" {
		t.Errorf("links (-before +after):\n%s", diff)
	}
	err := netlink.LinkAdd(&netlink.Wireguard{LinkAttrs: netlink.LinkAttrs{Name: "wg0"}})
	if err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		t.Fatal(err)
	}
	if can != (err == nil) {
		t.Errorf("HasWireGuard is %v, and making a device gives: %v", can, err)
	}
	t.Logf("this kernel has WireGuard: %v", can)
}

func linkNames(t *testing.T) []string {
	t.Helper()
	links, err := netlink.LinkList()
	must(t, err)
	var names []string
	for _, l := range links {
		names = append(names, l.Attrs().Name)
	}
	return names
}
