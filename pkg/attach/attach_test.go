package attach_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weft-cni/weft/pkg/attach"
	"github.com/weft-cni/weft/pkg/flock"
	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/kernel/rtnl"
	"github.com/weft-cni/weft/pkg/netconf"
	"github.com/weft-cni/weft/pkg/overlay"
	"github.com/weft-cni/weft/pkg/record"
	"github.com/weft-cni/weft/test/probe"
	"github.com/weft-cni/weft/test/testns"
)

// forward makes the node what the daemon makes of it: a router that checks
// pods' source addresses.
func forward(t *testing.T) {
	t.Helper()
	h, err := rtnl.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	plan := overlay.PlanNode(overlay.Config{VNI: 1, Port: 4789}, overlay.Self{
		Name:     "node1",
		MAC:      overlay.VTEPMAC("node1"),
		PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("fd00:10:244:1::/64")},
		Underlay: []overlay.Underlay{{Addr: netip.MustParseAddr("192.0.2.1"), Link: "uplink", MTU: 1500}},
		MTU:      1450,
	})
	for _, err := range h.Apply(kernel.Diff(plan, kernel.State{}, nil)) {
		t.Fatal(err)
	}
}

func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// TestPodsTalk: two pods of one node reach each other and the node over IPv4
// and IPv6, and a pod can't send from an address that isn't its own.
func TestPodsTalk(t *testing.T) {
	n := newNode(t)
	forward(t)
	a, b := newPod(t, "a", ""), newPod(t, "b", "")
	n.attach(a)
	to := n.attach(b)
	for _, ip := range to.IPs {
		dst, _ := netip.AddrFromSlice(ip.Address.IP)
		if _, err := probe.Ping(within(t, 5*time.Second), a, dst.Unmap()); err != nil {
			t.Errorf("pod a to pod b: %v", err)
		}
		if _, err := probe.Ping(within(t, 5*time.Second), n, dst.Unmap()); err != nil {
			t.Errorf("node to pod b: %v", err)
		}
	}
	for _, dst := range []string{"10.244.1.1", "fd00:10:244:1::1"} {
		if _, err := probe.Ping(within(t, 5*time.Second), a, netip.MustParseAddr(dst)); err != nil {
			t.Errorf("pod a to the node: %v", err)
		}
	}
	addForeignAddr(t, a.NS, "eth0", "10.244.1.99/32", true)
	if _, err := probe.PingOnce(within(t, 100*time.Millisecond), a, netip.MustParseAddr("10.244.1.3")); err == nil {
		t.Error("a packet with a forged source address got through")
	}
}

// TestTwoInterfaces: both interfaces of a pod that is attached twice are
// reached, each by its own address.
func TestTwoInterfaces(t *testing.T) {
	n := newNode(t)
	forward(t)
	a, b := newPod(t, "a", ""), newPod(t, "b", "")
	n.attach(a)
	n.attach(b)
	second := b
	second.ifName, second.config = "net1", `{"defaultRoute": false}`
	for _, ip := range n.attach(second).IPs {
		dst, _ := netip.AddrFromSlice(ip.Address.IP)
		if _, err := probe.Ping(within(t, 5*time.Second), a, dst.Unmap()); err != nil {
			t.Errorf("pod a to net1 of pod b: %v", err)
		}
	}
	golden := n.hide(n.dump(a, b), a, b)
	testns.Golden(t, "two-interfaces.golden", golden)
	n.detach(second)
	n.detach(b)
	if got := b.Dump(t); got != "" {
		t.Errorf("left in the pod:\n%s", got)
	}
}

// TestAttach shows, for everything that can be asked for, the result and what
// is in the pod and on the node; CHECK is content with it, and DEL leaves
// nothing.
func TestAttach(t *testing.T) {
	for name, change := range map[string]func(*pod){
		"defaults":    func(*pod) {},
		"version-0.3": func(p *pod) { p.config = `{"cniVersion": "0.3.1"}` },
		"version-0.4": func(p *pod) { p.config = `{"cniVersion": "0.4.0"}` },
		"version-1.0": func(p *pod) {
			p.config = `{"cniVersion": "1.0.0", "routes": [{"dst": "192.0.2.0/24", "table": 100}]}`
		},
		"runtime-config": func(p *pod) {
			p.config = `{"runtimeConfig": {"mac": "02:00:5e:10:00:01", "ips": ["10.244.1.77/24", "fd00:10:244:1::77"]}}`
		},
		"args": func(p *pod) { p.config = `{"args": {"cni": {"ips": ["10.244.1.78"]}}}` },
		"cni-args": func(p *pod) {
			p.args = "IP=10.244.1.79;MAC=02:00:5e:10:00:02;K8S_POD_NAMESPACE=prod;K8S_POD_NAME=web-0;K8S_POD_UID=u1"
		},
		"mtu-dns-routes": func(p *pod) {
			p.config = `{"mtu": 1400, "dns": {"nameservers": ["10.96.0.10"], "search": ["cluster.local"]},
				"routes": [{"dst": "192.0.2.0/24", "mtu": 1300}, {"dst": "2001:db8::/32"}, {"dst": "198.51.100.0/24", "table": 100}]}`
		},
		"no-default-route": func(p *pod) { p.config = `{"defaultRoute": false, "routes": [{"dst": "192.0.2.0/24"}]}` },
		"interface-name":   func(p *pod) { p.ifName = "tenant.100" },
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			p := newPod(t, "a1b2c3", "")
			change(&p)
			result, err := n.plugin.Attach(t.Context(), n.network(netconf.Add, p))
			if err != nil {
				t.Fatal(err)
			}
			testns.Golden(t, "attach/"+name+".golden", n.hide(string(result)+"\n"+n.dump(p), p))

			check := n.network(netconf.Check, p, map[string]any{"prevResult": json.RawMessage(result)})
			if err := n.plugin.Check(t.Context(), check); err != nil {
				t.Errorf("CHECK: %v", err)
			}
			n.detach(p)
			if got, want := n.dump(p), "# node\n# pod a1b2c3\n"; got != want {
				t.Errorf("left behind:\n%s", got)
			}
		})
	}
}

// TestAttachRefused: each step of an ADD fails once. The error names what is
// wrong, has the code of docs/errors.md, and nothing is left of the attempt.
func TestAttachRefused(t *testing.T) {
	file := func(t *testing.T, path string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, c := range map[string]struct {
		prepare func(t *testing.T, n *node, p *pod)
		config  string
	}{
		"no-node-file": {prepare: func(t *testing.T, n *node, _ *pod) {
			must(t, os.Remove(filepath.Join(n.RunDir(), netconf.NodeFile)))
		}},
		"stale-node-file": {prepare: func(_ *testing.T, n *node, _ *pod) {
			n.Write(t, netconf.Node{Name: "node1", BootID: "another", PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24")}, MTU: 1450})
		}},
		"malformed-node-file": {prepare: func(t *testing.T, n *node, _ *pod) {
			must(t, os.WriteFile(filepath.Join(n.RunDir(), netconf.NodeFile), []byte("{"), 0o600))
		}},
		"chained-after-another": {config: `{"prevResult": {"cniVersion": "1.1.0"}}`},
		"no-netns":              {prepare: func(_ *testing.T, _ *node, p *pod) { p.Close() }},
		"nodes-netns":           {prepare: func(_ *testing.T, n *node, p *pod) { p.NS = n.NS }},
		"lock-is-a-directory": {prepare: func(t *testing.T, n *node, _ *pod) {
			must(t, os.MkdirAll(filepath.Join(n.RunDir(), "attach.lock"), 0o700))
		}},
		"attached-already": {prepare: func(_ *testing.T, n *node, p *pod) { n.attach(*p) }},
		"attached-without-record": {prepare: func(t *testing.T, n *node, p *pod) {
			n.attach(*p)
			must(t, n.store().Delete(p.id, p.ifName))
		}},
		"unreadable-record": {prepare: func(t *testing.T, n *node, p *pod) {
			file(t, filepath.Join(n.store().Dir, p.id+":"+p.ifName))
		}},
		"range-exhausted": {prepare: func(t *testing.T, n *node, _ *pod) {
			n.Write(t, netconf.Node{Name: "node1", BootID: n.BootID, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/30")}, MTU: 1450})
			n.attach(newPod(t, "other", ""))
		}},
		"address-taken": {
			prepare: func(t *testing.T, n *node, _ *pod) { n.attach(newPod(t, "other", "")) },
			config:  `{"runtimeConfig": {"ips": ["10.244.1.2"]}}`,
		},
		"address-outside": {config: `{"runtimeConfig": {"ips": ["10.9.9.9"]}}`},
		"mtu-too-large":   {config: `{"mtu": 1500}`},
		"mtu-too-small":   {config: `{"mtu": 1000}`},
		"records-are-a-file": {prepare: func(t *testing.T, n *node, _ *pod) {
			file(t, n.DataDir())
		}},
		"interface-exists": {prepare: func(t *testing.T, _ *node, p *pod) { addDummy(t, p.NS, "eth0") }},
		"second-default-route": {prepare: func(t *testing.T, n *node, p *pod) {
			other := *p
			other.ifName = "net1"
			n.attach(other)
		}},
		"address-routed-elsewhere": {prepare: func(t *testing.T, n *node, _ *pod) {
			addDummy(t, n.NS, "elsewhere")
			addRoute(t, n.NS, "elsewhere", "10.244.1.2/32")
		}},
		"no-such-ipam": {config: `{"ipam": {"type": "nowhere"}}`},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			p := newPod(t, "a1b2c3", c.config)
			p.path = "/nonexistent"
			if c.prepare != nil {
				c.prepare(t, n, &p)
			}
			shown := []pod{p}
			if name == "no-netns" {
				shown = nil
			}
			before := n.dump(shown...)
			_, err := n.plugin.Attach(t.Context(), n.network(netconf.Add, p))
			if err == nil {
				t.Fatal("attached")
			}
			testns.Golden(t, "refused/"+name+".golden", n.hide(text(t, attach.Report(err)), p))
			if after := n.dump(shown...); after != before {
				t.Errorf("left behind:\n%s--- before\n%s", after, before)
			}
		})
	}
}

// TestLockHeld: while a garbage collection goes on, ADD waits, and says so when
// it has no more time.
func TestLockHeld(t *testing.T) {
	n := newNode(t)
	release, err := flock.Exclusive(t.Context(), filepath.Join(n.RunDir(), record.LockFile), time.Second)
	must(t, err)
	defer release()
	p := newPod(t, "a1b2c3", "")
	_, err = n.plugin.Attach(within(t, 20*time.Millisecond), n.network(netconf.Add, p))
	if err == nil {
		t.Fatal("attached")
	}
	testns.Golden(t, "refused/lock-held.golden", n.hide(text(t, attach.Report(err)), p))
}

// TestStrayGivesWay: a host end whose record was lost keeps no address from
// the next pod; one of another network does.
func TestStrayGivesWay(t *testing.T) {
	n := newNode(t)
	old, next := newPod(t, "old", ""), newPod(t, "new", "")
	n.attach(old)
	must(t, n.store().Delete(old.id, old.ifName))
	must(t, os.RemoveAll(filepath.Join(n.RunDir(), "ipam")))
	if ip := n.attach(next).IPs[0].Address.IP.String(); ip != "10.244.1.2" {
		t.Fatalf("the new pod has %s", ip)
	}
	if got := old.Dump(t); got != "" {
		t.Errorf("left in the old pod:\n%s", got)
	}
	if !strings.Contains(n.log.String(), "interface that no record knows") {
		t.Errorf("log: %s", n.log.String())
	}

	must(t, n.store().Delete(next.id, next.ifName))
	must(t, os.RemoveAll(filepath.Join(n.RunDir(), "ipam")))
	tenant := newPod(t, "tenant", `{"name": "tenant"}`)
	before := n.dump(next, tenant)
	_, err := n.plugin.Attach(t.Context(), n.network(netconf.Add, tenant))
	if err == nil || attach.Report(err).Code != attach.CodeAddrInUse {
		t.Errorf("got %v", err)
	}
	if after := n.dump(next, tenant); after != before {
		t.Errorf("changed:\n%s--- before\n%s", after, before)
	}
}

// TestManyAtOnce attaches and detaches many pods at the same time.
func TestManyAtOnce(t *testing.T) {
	n := newNode(t)
	var pods []pod
	for i := range 30 {
		pods = append(pods, newPod(t, fmt.Sprint("pod", i), ""))
	}
	seen := map[string]bool{}
	var mu sync.Mutex
	each := func(f func(pod)) {
		var wg sync.WaitGroup
		for _, p := range pods {
			wg.Go(func() {
				n.Join(t)
				f(p)
			})
		}
		wg.Wait()
	}
	each(func(p pod) {
		result, err := n.plugin.Attach(t.Context(), n.network(netconf.Add, p))
		if err != nil {
			t.Error(err)
			return
		}
		mu.Lock()
		defer mu.Unlock()
		addrs := regexp.MustCompile(`"address": .*`).FindString(string(result))
		if seen[addrs] {
			t.Errorf("given twice: %s", addrs)
		}
		seen[addrs] = true
	})
	each(func(p pod) {
		if err := n.plugin.Detach(t.Context(), n.network(netconf.Del, p)); err != nil {
			t.Error(err)
		}
	})
	if got := n.dump(); got != "# node\n" {
		t.Errorf("left behind:\n%s", got)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
