package veth_test

import (
	"errors"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/netconf"
	"github.com/weft-cni/weft/pkg/overlay"
	"github.com/weft-cni/weft/pkg/podns"
	"github.com/weft-cni/weft/pkg/veth"
	"github.com/weft-cni/weft/test/testns"
)

func addrs(list ...string) []netip.Addr {
	var as []netip.Addr
	for _, s := range list {
		as = append(as, netip.MustParseAddr(s))
	}
	return as
}

// pair is the pair of a pod's eth0 with all defaults.
func pair(containerID string, ips ...string) veth.Pair {
	return pairOf(containerID, "eth0", ips...)
}

func pairOf(containerID, ifName string, ips ...string) veth.Pair {
	return veth.Pair{
		HostLink:     veth.HostLink(containerID, ifName),
		PodLink:      ifName,
		Alias:        veth.Alias("weft", "default", containerID, ifName),
		MAC:          veth.DefaultMAC(containerID, ifName),
		MTU:          1450,
		Addrs:        addrs(ips...),
		DefaultRoute: true,
	}
}

// openNode opens the namespace that the test is in.
func openNode(t *testing.T) *veth.Node {
	t.Helper()
	n, err := veth.Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.Close)
	return n
}

func openNetns(t *testing.T, ns *testns.NS) *podns.NS {
	t.Helper()
	n, err := podns.Open(ns.Path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.Close)
	return n
}

func create(t *testing.T, pod *testns.NS, p veth.Pair) {
	t.Helper()
	if err := openNode(t).Create(openNetns(t, pod), p); err != nil {
		t.Fatal(err)
	}
}

// dump shows both ends.
func dump(t *testing.T, node, pod *testns.NS) string {
	t.Helper()
	return "# node\n" + node.Dump(t) + "# pod\n" + pod.Dump(t)
}

func TestCreate(t *testing.T) {
	route := func(dst string) netconf.Route { return netconf.Route{Dst: netip.MustParsePrefix(dst)} }
	for name, change := range map[string]func(*veth.Pair){
		"ipv4": func(p *veth.Pair) { p.Addrs = addrs("10.244.1.5") },
		"ipv6": func(p *veth.Pair) { p.Addrs = addrs("fd00:10:244:1::5") },
		"dual": func(*veth.Pair) {},
		"routes": func(p *veth.Pair) {
			r := route("192.0.2.0/24")
			r.GW, r.MTU, r.AdvMSS, r.Priority = netip.MustParseAddr("10.244.1.1"), 1300, 1200, 7
			other := route("198.51.100.0/24")
			other.Table = 100
			p.Routes = []netconf.Route{r, other, route("2001:db8:1::/48"), route("0.0.0.0/0")}
		},
		"ipv6-route-without-address": func(p *veth.Pair) {
			p.Addrs = addrs("10.244.1.5")
			p.Routes = []netconf.Route{route("2001:db8:1::/48")}
		},
		"no-default-route": func(p *veth.Pair) { p.DefaultRoute = false },
		"mtu-too-small-for-ipv6": func(p *veth.Pair) {
			p.Addrs = addrs("10.244.1.5")
			p.MTU = 600
		},
		"requested-mac": func(p *veth.Pair) {
			p.MAC, _ = kernel.ParseMAC("02:00:5e:10:00:01")
			p.MTU = 9000
		},
	} {
		t.Run(name, func(t *testing.T) {
			node, pod := testns.Enter(t), testns.New(t)
			p := pair("a1b2c3", "10.244.1.5", "fd00:10:244:1::5")
			change(&p)
			create(t, pod, p)
			testns.Golden(t, "create/"+name+".golden", dump(t, node, pod))

			host, inPod, err := openNode(t).Read(openNetns(t, pod), p)
			if err != nil {
				t.Fatal(err)
			}
			if host.String() != p.Host().String() || inPod.String() != p.Pod().String() {
				t.Errorf("what was read isn't what was planned:\n%s%s--- planned\n%s%s", host, inPod, p.Host(), p.Pod())
			}
			if lines := append(veth.Drift(p.Host(), host), veth.Drift(p.Pod(), inPod)...); lines != nil {
				t.Errorf("drift right after creation: %s", strings.Join(lines, "; "))
			}

			if err := openNode(t).Remove(p.HostLink); err != nil {
				t.Fatal(err)
			}
			if err := veth.RemoveRules(openNetns(t, pod), p.Addrs); err != nil {
				t.Fatal(err)
			}
			if got, want := dump(t, node, pod), "# node\n# pod\n"; got != want {
				t.Errorf("left behind:\n%s", got)
			}
			if err := openNode(t).Remove(p.HostLink); err != nil {
				t.Errorf("removing what is gone: %v", err)
			}
		})
	}
}

// TestTwoInterfaces attaches a pod to the network twice: neither interface
// takes the other's routes.
func TestTwoInterfaces(t *testing.T) {
	node, pod := testns.Enter(t), testns.New(t)
	create(t, pod, pair("a1b2c3", "10.244.1.5", "fd00:10:244:1::5"))
	second := pairOf("a1b2c3", "net1", "10.244.1.6", "fd00:10:244:1::6")
	second.DefaultRoute = false
	create(t, pod, second)
	testns.Golden(t, "two-interfaces.golden", dump(t, node, pod))

	third := pairOf("a1b2c3", "net2", "10.244.1.7")
	err := openNode(t).Create(openNetns(t, pod), third)
	want := "in the pod: route 0.0.0.0/0 via 169.254.1.1 onlink dev net2: file exists, through another interface of the pod; \"defaultRoute\": false leaves it out here"
	if err == nil || err.Error() != want || !errors.Is(err, syscall.EEXIST) {
		t.Errorf("second default route: %v, want %s", err, want)
	}
	testns.Golden(t, "two-interfaces.golden", dump(t, node, pod))
}

// TestIPv6Disabled: a namespace that has IPv6 off gets it on the interface
// that is given an IPv6 address, and on no other.
func TestIPv6Disabled(t *testing.T) {
	node, pod := testns.Enter(t), testns.New(t)
	for _, ns := range []*testns.NS{node, pod} {
		ns.Sysctl(t, "net/ipv6/conf/all/disable_ipv6", "1")
		ns.Sysctl(t, "net/ipv6/conf/default/disable_ipv6", "1")
	}
	disabled := func(ns *testns.NS, link string) (value string) {
		err := ns.Do(func() error {
			b, err := os.ReadFile("/proc/sys/net/ipv6/conf/" + link + "/disable_ipv6")
			value = strings.TrimSpace(string(b))
			return err
		})
		if err != nil {
			t.Error(err)
		}
		return value
	}
	four := pairOf("a1b2c3", "eth0", "10.244.1.5")
	create(t, pod, four)
	six := pairOf("a1b2c3", "net1", "fd00:10:244:1::5")
	create(t, pod, six)
	for _, c := range []struct {
		ns         *testns.NS
		link, want string
	}{
		{pod, "eth0", "1"}, {pod, "net1", "0"}, {node, four.HostLink, "1"}, {node, six.HostLink, "0"},
	} {
		if got := disabled(c.ns, c.link); got != c.want {
			t.Errorf("disable_ipv6 of %s is %s, want %s", c.link, got, c.want)
		}
	}
	testns.Golden(t, "ipv6-disabled.golden", dump(t, node, pod))
}

// TestCreateRefused: whatever stands in the way is named, and nothing is left
// of the pair.
func TestCreateRefused(t *testing.T) {
	for _, c := range []struct {
		name    string
		prepare func(t *testing.T, node, pod *testns.NS)
		pair    veth.Pair
		want    string
		is      error
	}{{
		name: "interface exists in the pod",
		prepare: func(t *testing.T, _, pod *testns.NS) {
			add(t, pod.Handle, "eth0")
		},
		pair: pair("a1b2c3", "10.244.1.5"),
		want: "eth0 in NETNS: link exists",
		is:   veth.ErrExists,
	}, {
		name: "host end exists",
		prepare: func(t *testing.T, node, _ *testns.NS) {
			add(t, node.Handle, veth.HostLink("a1b2c3", "eth0"))
		},
		pair: pair("a1b2c3", "10.244.1.5"),
		want: "weftocnhoarbhrq: link exists",
		is:   veth.ErrExists,
	}, {
		name: "another pod has the address",
		prepare: func(t *testing.T, _, _ *testns.NS) {
			create(t, testns.New(t), pair("d4e5f6", "10.244.1.4", "fd00:10:244:1::5"))
		},
		pair: pair("a1b2c3", "10.244.1.5", "fd00:10:244:1::5"),
		want: "address fd00:10:244:1::5: a route to it leads to link weft2iuisvdu7qo",
	}, {
		name:    "mtu too small for IPv6",
		prepare: func(*testing.T, *testns.NS, *testns.NS) {},
		pair: func() veth.Pair {
			p := pair("a1b2c3", "fd00:10:244:1::5")
			p.MTU = 1000
			return p
		}(),
		want: "in the pod: addr fd00:10:244:1::5/128 dev eth0: invalid argument",
		is:   syscall.EINVAL,
	}} {
		t.Run(c.name, func(t *testing.T) {
			node, pod := testns.Enter(t), testns.New(t)
			c.prepare(t, node, pod)
			before := dump(t, node, pod)
			err := openNode(t).Create(openNetns(t, pod), c.pair)
			if err == nil || strings.ReplaceAll(err.Error(), pod.Path, "NETNS") != c.want {
				t.Errorf("got  %v\nwant %s", err, c.want)
			}
			if c.is != nil && !errors.Is(err, c.is) {
				t.Errorf("%v is not %v", err, c.is)
			}
			if after := dump(t, node, pod); after != before {
				t.Errorf("left behind:\n%s--- before\n%s", after, before)
			}
		})
	}
}

// TestHostIsTheDaemonsPlan: the daemon restores the node's side of a pod, by a
// plan of its own.
func TestHostIsTheDaemonsPlan(t *testing.T) {
	p := pair("a1b2c3", "10.244.1.5", "fd00:10:244:1::5")
	host := p.Host()
	delete(host, kernel.Key{Kind: kernel.KindLink, Name: p.HostLink})
	if want := overlay.PlanPod(p.HostLink, p.MAC, p.Addrs); host.String() != want.String() {
		t.Errorf("got\n%swant\n%s", host, want)
	}
}

func TestInUse(t *testing.T) {
	testns.Enter(t)
	create(t, testns.New(t), pair("d4e5f6", "10.244.1.5"))
	err := openNode(t).Create(openNetns(t, testns.New(t)), pair("a1b2c3", "10.244.1.5"))
	var inUse *veth.InUseError
	if !errors.As(err, &inUse) || inUse.Link != veth.HostLink("d4e5f6", "eth0") || inUse.Addr != netip.MustParseAddr("10.244.1.5") {
		t.Errorf("got %#v (%v)", inUse, err)
	}
}

func TestRemoveSparesOthers(t *testing.T) {
	node := testns.Enter(t)
	bridge := netlink.NewLinkAttrs()
	bridge.Name = veth.HostLink("a1b2c3", "eth0")
	if err := node.Handle.LinkAdd(&netlink.Bridge{LinkAttrs: bridge}); err != nil {
		t.Fatal(err)
	}
	err := openNode(t).Remove(bridge.Name)
	if want := "link weftocnhoarbhrq is a bridge link, not Weft's"; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestList(t *testing.T) {
	node, pod := testns.Enter(t), testns.New(t)
	create(t, pod, pair("a1b2c3", "10.244.1.5"))
	other := pairOf("a1b2c3", "net1")
	other.DefaultRoute = false
	other.Alias = veth.Alias("tenant", "", "", "net1")
	create(t, pod, other)
	add(t, node.Handle, "weft0")
	add(t, node.Handle, veth.HostLink("f", "eth0"))
	ends, err := openNode(t).List()
	if err != nil {
		t.Fatal(err)
	}
	got := map[veth.HostEnd]bool{}
	for _, e := range ends {
		got[e] = true
	}
	for _, want := range []veth.HostEnd{
		{Name: veth.HostLink("a1b2c3", "eth0"), Network: "weft"},
		{Name: veth.HostLink("a1b2c3", "net1"), Network: "tenant"},
		{Name: veth.HostLink("f", "eth0")},
	} {
		if !got[want] {
			t.Errorf("%+v is missing in %+v", want, ends)
		}
	}
	if len(ends) != 3 {
		t.Errorf("%d host ends, want 3: %+v", len(ends), ends)
	}
}

func TestNames(t *testing.T) {
	names, macs := map[string]bool{}, map[kernel.MAC]bool{}
	for _, id := range []string{"a", "b", strings.Repeat("f", 64)} {
		for _, ifName := range []string{"eth0", "net1"} {
			name, mac := veth.HostLink(id, ifName), veth.DefaultMAC(id, ifName)
			if len(name) != 15 || !strings.HasPrefix(name, netconf.LinkStart) || name != strings.ToLower(name) {
				t.Errorf("host end %q", name)
			}
			if !mac.IsUnicast() || mac[0]&2 == 0 {
				t.Errorf("%s is no locally administered station address", mac)
			}
			if name != veth.HostLink(id, ifName) || mac != veth.DefaultMAC(id, ifName) {
				t.Error("not the same twice")
			}
			names[name], macs[mac] = true, true
		}
	}
	if len(names) != 6 || len(macs) != 6 {
		t.Errorf("%d names and %d MACs for 6 attachments", len(names), len(macs))
	}
	if long := veth.Alias("weft", "ns", strings.Repeat("p", 300), "eth0"); len(long) != 255 {
		t.Errorf("alias of %d bytes", len(long))
	}
}

// add makes a veth pair of that name and a peer.
func add(t *testing.T, h *netlink.Handle, name string) {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	pair := netlink.NewVeth(attrs)
	pair.PeerName = "peer" + name[len(name)-4:]
	if err := h.LinkAdd(pair); err != nil {
		t.Fatal(err)
	}
}
