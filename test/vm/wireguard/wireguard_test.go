//go:build vm

// Package wireguard_test has what test/encrypt tests with the kernel's own
// WireGuard. Those tests need an API server, which an emulated processor is too
// slow for. Here either the test is what the daemon is there: it plans, reads,
// compares and applies; or daemons have a small stand-in for the API server.
package wireguard_test

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/weft-cni/weft/pkg/encrypt"
	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/kernel/rtnl"
	"github.com/weft-cni/weft/pkg/overlay"
	"github.com/weft-cni/weft/test/cluster"
	"github.com/weft-cni/weft/test/probe"
)

func TestMain(m *testing.M) { cluster.Main(m) }

var (
	config = encrypt.Config{Mode: encrypt.WireGuard, Port: 51820}
	vxlan  = overlay.Config{VNI: 1, Port: 4789, Masquerade: true}
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// node is a node with what its daemon would know.
type node struct {
	*cluster.Node
	self encrypt.Self
}

func newNode(t *testing.T, n *cluster.Node, userspace bool) *node {
	t.Helper()
	s := encrypt.Self{Userspace: userspace, Keys: []encrypt.Key{{Private: kernel.NewPrivateKey()}}}
	s.Name, s.MAC, s.PodCIDRs, s.Encrypted = n.Name, overlay.VTEPMAC(n.Name), n.PodCIDRs, true
	for _, p := range n.DefaultNIC().Addrs {
		s.Underlay = append(s.Underlay, overlay.Underlay{Addr: p.Addr(), Link: cluster.NICName, Subnet: p.Masked(), MTU: 1500})
	}
	s.MTU = encrypt.MTU(s.Underlay[0])
	return &node{n, s}
}

// peer is the node as others see it.
func (n *node) peer() overlay.Peer {
	p := overlay.Peer{
		Name: n.Name, MAC: n.self.MAC, Port: 4789, PodCIDRs: n.self.PodCIDRs,
		Encryption: &overlay.Encryption{Strict: true, Port: config.Port},
	}
	for _, u := range n.self.Underlay {
		p.Underlay = append(p.Underlay, u.Addr)
	}
	for _, k := range n.self.Keys {
		p.Encryption.Keys = append(p.Encryption.Keys, overlay.SlotKey{Slot: k.Slot, Public: k.Private.Public()})
	}
	return p
}

// sync is one pass. It gives the device that leads to the peer, and fails if a
// second pass had anything to do.
func (n *node) sync(t *testing.T, peer overlay.Peer) (link string) {
	t.Helper()
	must(t, n.Do(func() error {
		h, err := rtnl.Open()
		if err != nil {
			return err
		}
		defer h.Close()
		seen, err := h.PeerTraffic(encrypt.Links())
		if err != nil {
			return err
		}
		sessions := encrypt.Sessions{}
		for _, s := range seen {
			if s.Established(time.Now()) {
				sessions[encrypt.Session{Link: s.Link, Peer: s.PublicKey}] = struct{}{}
			}
		}
		planned, err := encrypt.PlanPeer(config, vxlan, n.self, peer, sessions)
		if err != nil {
			return err
		}
		want := encrypt.PlanNode(config, vxlan, n.self, sessions)
		want.Merge(planned.State)
		link = planned.Link
		for range 2 {
			have, e := h.Read(rtnl.Names(encrypt.Names))
			if e != nil {
				return e
			}
			ops := kernel.Diff(want, have, nil)
			if len(ops) == 0 {
				break
			}
			for _, failed := range h.Apply(ops) {
				return failed
			}
		}
		for k := range want { // each by itself as well
			one := kernel.Keys{k: {}}
			have, e := h.ReadKeys(one)
			if e != nil {
				return e
			}
			if ops := kernel.Diff(want, have, one); len(ops) > 0 && k.Kind != kernel.KindLink && k.Kind != kernel.KindRules {
				return fmt.Errorf("read by its key: %v", ops[0])
			}
		}
		have, err := h.Read(rtnl.Names(encrypt.Names))
		if err != nil {
			return err
		}
		if ops := kernel.Diff(want, have, nil); len(ops) > 0 {
			return fmt.Errorf("a second pass has %d operations, the first: %s", len(ops), ops[0])
		}
		return nil
	}))
	return link
}

// TestKernel: two nodes on the kernel's WireGuard, and one on it with one on a
// process, replace both keys without a lost echo, and drop all when the devices
// are gone.
func TestKernel(t *testing.T) {
	for name, userspace := range map[string]bool{"kernel": false, "mixed": true} {
		t.Run(name, func(t *testing.T) {
			c := cluster.New(t, cluster.Options{Nodes: 2, NoAPI: true})
			a, b := newNode(t, c.Node(1), false), newNode(t, c.Node(2), userspace)
			must(t, a.Do(func() error {
				h, err := rtnl.Open()
				if err != nil {
					return err
				}
				defer h.Close()
				if has, err := h.HasWireGuard(); err != nil || !has {
					return fmt.Errorf("the kernel has no WireGuard: %w", err)
				}
				return nil
			}))
			if userspace {
				// The kernel makes /dev/net/tun with the module.
				if out, err := exec.CommandContext(t.Context(), "modprobe", "tun").CombinedOutput(); err != nil {
					t.Fatalf("modprobe tun: %v: %s", err, out)
				}
				b.WireGuard(t, "--wireguard-implementation=userspace")
			}
			a.sync(t, b.peer())
			b.sync(t, a.peer())
			var streams []*probe.Pings
			for _, cidr := range b.PodCIDRs {
				s, err := probe.StartPings(a, overlay.Gateway(cidr), 20*time.Millisecond)
				must(t, err)
				streams = append(streams, s)
			}
			received(t, streams, 50)
			for _, n := range []*node{a, b} {
				n.self.Keys = append([]encrypt.Key{{Slot: 1, Private: kernel.NewPrivateKey()}}, n.self.Keys...)
			}
			a.sync(t, b.peer())
			b.sync(t, a.peer())
			wait(t, func() error {
				if ab, ba := a.sync(t, b.peer()), b.sync(t, a.peer()); ab != encrypt.Link(1, 1) || ba != encrypt.Link(1, 1) {
					return fmt.Errorf("the routes are by %s and %s", ab, ba)
				}
				return nil
			})
			received(t, streams, 50)
			for _, n := range []*node{a, b} {
				n.self.Keys = n.self.Keys[:1]
			}
			a.sync(t, b.peer())
			b.sync(t, a.peer())
			received(t, streams, 50)
			for _, s := range streams {
				report := s.Stop()
				t.Log(report)
				if report.Lost() > 0 {
					t.Errorf("echoes got lost: %s", report)
				}
			}
		})
	}
}

func received(t *testing.T, streams []*probe.Pings, n int) {
	t.Helper()
	for _, s := range streams {
		until := s.Received() + n
		wait(t, func() error {
			if s.Received() < until {
				return fmt.Errorf("%d of %d replies", s.Received(), until)
			}
			return nil
		})
	}
}

func wait(t testing.TB, check func() error) {
	t.Helper()
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	var err error
	for start := time.Now(); time.Since(start) < 3*time.Minute; <-ticker.C {
		if err = check(); err == nil {
			return
		}
	}
	t.Fatal(err)
}

// TestUnreachable: a peer without a key is refused at once, in both families.
func TestUnreachable(t *testing.T) {
	c := cluster.New(t, cluster.Options{Nodes: 2, NoAPI: true})
	a, b := newNode(t, c.Node(1), false), newNode(t, c.Node(2), false)
	peer := b.peer()
	peer.Encryption = nil
	planned, err := encrypt.PlanPeer(config, vxlan, a.self, peer, nil)
	if err == nil || !strings.Contains(err.Error(), "no WireGuard key") {
		t.Errorf("the error is %v", err)
	}
	must(t, a.Do(func() error {
		h, err := rtnl.Open()
		if err != nil {
			return err
		}
		defer h.Close()
		want := encrypt.PlanNode(config, vxlan, a.self, nil)
		want.Merge(planned.State)
		for _, failed := range h.Apply(kernel.Diff(want, nil, nil)) {
			return failed
		}
		have, err := h.Read(rtnl.Names(encrypt.Names))
		if err != nil {
			return err
		}
		if ops := kernel.Diff(want, have, nil); len(ops) > 0 {
			return fmt.Errorf("%d operations are left, the first: %s", len(ops), ops[0])
		}
		return nil
	}))
	for _, cidr := range b.PodCIDRs {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		if _, err := probe.PingOnce(ctx, a, overlay.Gateway(cidr)); err == nil {
			t.Errorf("%s is reached", cidr)
		}
		cancel()
	}
}
