package attach_test

import (
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/weft-cni/weft/test/testns"
)

// What others do to a node or a pod.

func link(t *testing.T, ns *testns.NS, name string) netlink.Link {
	t.Helper()
	l, err := ns.Handle.LinkByName(name)
	must(t, err)
	return l
}

// addDummy makes a bridge: a link of some kind or other.
func addDummy(t *testing.T, ns *testns.NS, name string) {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	must(t, ns.Handle.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}))
	must(t, ns.Handle.LinkSetUp(link(t, ns, name)))
}

func addRoute(t *testing.T, ns *testns.NS, name, dst string) {
	t.Helper()
	to, err := netlink.ParseIPNet(dst)
	must(t, err)
	must(t, ns.Handle.RouteAdd(&netlink.Route{LinkIndex: link(t, ns, name).Attrs().Index, Dst: to, Scope: netlink.SCOPE_LINK}))
}

// addForeignAddr gives a pod's interface another address, and makes it the one
// that the pod sends from if first is set.
func addForeignAddr(t *testing.T, ns *testns.NS, name, addr string, first bool) {
	t.Helper()
	a, err := netlink.ParseAddr(addr)
	must(t, err)
	must(t, ns.Handle.AddrAdd(link(t, ns, name), a))
	if !first {
		return
	}
	routes, err := ns.Handle.RouteList(link(t, ns, name), netlink.FAMILY_V4)
	must(t, err)
	for _, r := range routes {
		if r.Gw != nil {
			r.Src = a.IP
			must(t, ns.Handle.RouteReplace(&r))
		}
	}
}
