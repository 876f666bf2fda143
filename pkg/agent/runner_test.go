package agent

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/encrypt"
	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/kernel/rtnl"
	"github.com/weft-cni/weft/pkg/overlay"
	"github.com/weft-cni/weft/pkg/rtmsg"
	"github.com/weft-cni/weft/pkg/settings"
)

// world is a runner, its kernel, and what the API says.
type world struct {
	t      testing.TB
	kernel *fakeKernel
	runner *runner
	set    settings.Settings
	node   Node
	peers  map[string]claim
	events []string
	told   []string // announcements
}

func newWorld(t testing.TB) *world {
	w := &world{
		t: t, set: settings.Default(), peers: map[string]claim{},
		kernel: newFakeKernel(hostAddr("192.0.2.1/24", "eth0"), hostAddr("2001:db8::1/64", "eth0")),
		node: Node{
			Name: "self", UID: "1",
			PodCIDRs:    []netip.Prefix{netip.MustParsePrefix("10.244.0.0/24"), netip.MustParsePrefix("fd00:10:244::/64")},
			InternalIPs: []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")},
		},
	}
	w.start()
	return w
}

func hostAddr(prefix, link string) rtnl.HostAddr {
	return rtnl.HostAddr{Prefix: netip.MustParsePrefix(prefix), Link: link, Up: true, MTU: 1500}
}

// start is a new daemon on the same node: it knows nothing yet.
func (w *world) start() {
	w.runner = newRunner(w.kernel, w.set, slog.New(slog.DiscardHandler), newMetrics("test"))
	w.runner.report = func(reason, note string) { w.events = append(w.events, reason+": "+note) }
	w.runner.announce = func(n Node, self encrypt.Self) error {
		w.told = append(w.told, fmt.Sprintf("%s mtu %d", n.UID, self.MTU))
		return nil
	}
	w.kernel.event = func(e kernel.Event) {
		if !isPodLink(e.Key) && !w.runner.plan.matches(e) {
			w.runner.inbox.kernel(e)
		}
	}
}

// list tells the runner all that the API has, as a first or a new list does.
func (w *world) list() {
	w.runner.inbox.peers(maps.Clone(w.peers))
	w.runner.inbox.node(w.node)
	w.settle()
}

// settle runs passes until there is no more work.
func (w *world) settle() {
	w.t.Helper()
	for range 10 {
		select {
		case <-w.runner.inbox.wake:
			w.runner.pass(w.runner.inbox.take())
		default:
			return
		}
	}
	w.t.Fatal("passes don't come to an end")
}

func (w *world) tell(name string, c claim) {
	if c == (claim{}) {
		delete(w.peers, name)
	} else {
		w.peers[name] = c
	}
	w.runner.inbox.peer(name, c)
}

// resync is what the timer does.
func (w *world) resync() {
	w.runner.inbox.put(func(work *work) { work.all = true })
	w.settle()
}

// plan is what the kernel has to hold, planned from nothing.
func (w *world) plan() *plan {
	p := newPlan(w.set.Overlay, w.set.Encrypt)
	for _, c := range w.peers {
		if c.peer != nil {
			p.set(*c.peer)
		}
	}
	self, err := selfOf(w.node, w.set, w.kernel.addrs)
	if err != nil {
		w.t.Fatal(err)
	}
	p.build(encrypt.Self{Self: self})
	return p
}

// check compares the kernel with the plan.
func (w *world) check() {
	w.t.Helper()
	if ops := kernel.Diff(w.plan().want, w.kernel.state, nil); len(ops) > 0 {
		w.t.Errorf("the kernel is not as planned; missing are %d operations:\n%s", len(ops), text(ops))
	}
}

func text(ops []kernel.Op) string {
	var b strings.Builder
	for _, op := range ops {
		b.WriteString(op.String() + "\n")
	}
	return b.String()
}

// value is what a counter or a gauge shows.
func value(t testing.TB, m prometheus.Metric) float64 {
	t.Helper()
	var d dto.Metric
	if err := m.Write(&d); err != nil {
		t.Fatal(err)
	}
	return d.GetCounter().GetValue() + d.GetGauge().GetValue()
}

// somePeer is the i-th peer, in a variant.
func somePeer(i, variant int) overlay.Peer {
	return overlay.Peer{
		Name:     fmt.Sprintf("peer%d", i),
		Created:  time.Unix(int64(1000+i), 0),
		Underlay: []netip.Addr{netip.AddrFrom4([4]byte{192, 0, 2, byte(10 + i + 50*variant)})},
		MAC:      overlay.VTEPMAC(fmt.Sprint("peer", i)),
		Port:     4789,
		PodCIDRs: []netip.Prefix{
			netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(i + 1), 0}), 24),
			netip.MustParsePrefix(fmt.Sprintf("fd00:10:244:%x::/64", i+1)),
		},
		MTU: 1500,
	}
}

func valid(p overlay.Peer) claim { return claim{peer: &p} }

func TestNothingHappensBeforeAllIsKnown(t *testing.T) {
	w := newWorld(t)
	stranger := kernel.Route{Link: overlay.Link, Dst: netip.MustParsePrefix("10.244.9.0/24")}
	w.kernel.state.Put(kernel.VXLAN{Name: overlay.Link}, stranger)
	steps := map[string]func(){
		"a node without peers": func() { w.runner.inbox.node(w.node) },
		"a single peer":        func() { w.runner.inbox.peer("peer1", valid(somePeer(1, 0))) },
		"a kernel event":       func() { w.runner.inbox.kernel(kernel.Event{Lost: true}) },
		"a resync":             w.resync,
	}
	for name, step := range steps {
		step()
		w.settle()
		if len(w.kernel.applied) > 0 {
			t.Fatalf("%s made it do\n%s", name, text(w.kernel.applied))
		}
	}
	if err := w.runner.ready(); err == nil {
		t.Error("ready")
	}
	w.list()
	w.check()
	if _, ok := w.kernel.state[stranger.Key()]; ok {
		t.Error("a stranger is left on our link")
	}
	if err := w.runner.ready(); err != nil {
		t.Errorf("not ready: %v", err)
	}
}

// A peer's change costs that peer's objects and no read of everything.
func TestCostFollowsTheChange(t *testing.T) {
	w := newWorld(t)
	for i := range 200 {
		w.peers[fmt.Sprintf("peer%d", i)] = valid(somePeer(i, 0))
	}
	w.list()
	w.check()
	w.kernel.reads, w.kernel.keys, w.kernel.applied = 0, 0, nil
	w.tell("peer7", valid(somePeer(7, 1)))
	w.settle()
	w.check()
	if w.kernel.reads != 0 || w.kernel.keys > 10 || len(w.kernel.applied) != 1 {
		t.Errorf("%d whole reads, %d keys read, operations:\n%s", w.kernel.reads, w.kernel.keys, text(w.kernel.applied))
	}
	if n := value(t, w.runner.metrics.repairs.WithLabelValues("fdb")); n != 0 {
		t.Errorf("%v drift repairs", n)
	}
	// The same again is nothing at all.
	w.kernel.applied = nil
	w.tell("peer7", valid(somePeer(7, 1)))
	w.list()
	if w.kernel.reads != 0 || len(w.kernel.applied) != 0 {
		t.Errorf("%d whole reads, operations:\n%s", w.kernel.reads, text(w.kernel.applied))
	}
}

func TestDriftIsRepairedAndCounted(t *testing.T) {
	w := newWorld(t)
	for i := range 3 {
		w.peers[fmt.Sprintf("peer%d", i)] = valid(somePeer(i, 0))
	}
	w.list()
	planned := maps.Clone(w.plan().want)
	for _, k := range slices.SortedFunc(maps.Keys(planned), kernel.Key.Compare) {
		t.Run(k.String(), func(t *testing.T) {
			w.t, w.events = t, nil
			before := value(t, w.runner.metrics.repairs.WithLabelValues(k.Kind.String()))
			w.kernel.remove(k)
			w.settle()
			w.check()
			if n := value(t, w.runner.metrics.repairs.WithLabelValues(k.Kind.String())) - before; n < 1 {
				t.Error("not counted")
			}
			if len(w.events) != 1 || !strings.HasPrefix(w.events[0], reasonRepaired) {
				t.Errorf("events: %q", w.events)
			}
		})
	}
	t.Run("not at once", func(t *testing.T) { // as where a process has to make the device first
		w.t = t
		before := value(t, w.runner.metrics.repairs.WithLabelValues("link"))
		w.kernel.refuse = func(op kernel.Op) error {
			if op.Key().Kind == kernel.KindLink {
				return unix.ENODEV
			}
			return nil
		}
		w.kernel.remove(kernel.Key{Kind: kernel.KindLink, Name: overlay.Link})
		w.settle()
		w.kernel.refuse = nil
		w.runner.pass(w.runner.inbox.take()) // the retry's timer
		w.settle()
		w.check()
		if n := value(t, w.runner.metrics.repairs.WithLabelValues("link")) - before; n != 1 {
			t.Errorf("%v repairs are counted", n)
		}
	})
	t.Run("strangers", func(t *testing.T) {
		w.t = t
		w.kernel.put(kernel.Neigh{Link: overlay.Link, IP: netip.MustParseAddr("10.9.9.9"), MAC: kernel.MAC{2}})
		w.kernel.put(kernel.FDB{Link: overlay.Link, MAC: kernel.MAC{2}, VTEP: netip.MustParseAddr("192.0.2.99")})
		w.settle()
		w.check()
	})
}

func TestReadThatFailsDeletesNothing(t *testing.T) {
	w := newWorld(t)
	w.peers["peer1"] = valid(somePeer(1, 0))
	w.list()
	w.kernel.put(kernel.Neigh{Link: overlay.Link, IP: netip.MustParseAddr("10.9.9.9"), MAC: kernel.MAC{2}})
	w.kernel.broken, w.kernel.applied = rtmsg.ErrInterrupted, nil
	w.settle()
	w.resync()
	w.tell("peer2", valid(somePeer(2, 0)))
	w.settle()
	if len(w.kernel.applied) > 0 {
		t.Fatalf("on a dump that was interrupted:\n%s", text(w.kernel.applied))
	}
	if w.runner.ready() == nil || w.runner.undone.delay == 0 {
		t.Error("neither told nor tried again")
	}
	w.kernel.broken = nil
	w.runner.pass(w.runner.inbox.take()) // the retry's timer
	w.check()
	if err := w.runner.ready(); err != nil {
		t.Errorf("not ready: %v", err)
	}
}

// A peer that the kernel refuses neither keeps the others back nor makes the
// node unready, and is tried again, ever more rarely.
func TestOneBadPeer(t *testing.T) {
	w := newWorld(t)
	bad := somePeer(1, 0)
	w.kernel.refuse = func(op kernel.Op) error {
		if f, ok := op.Want.(kernel.FDB); ok && f.MAC == bad.MAC {
			return unix.EINVAL
		}
		return nil
	}
	for i := range 5 {
		w.peers[fmt.Sprintf("peer%d", i)] = valid(somePeer(i, 0))
	}
	w.list()
	if ops := kernel.Diff(w.plan().want, w.kernel.state, nil); len(ops) != 1 {
		t.Errorf("missing are\n%s", text(ops))
	}
	if err := w.runner.ready(); err != nil {
		t.Errorf("not ready: %v", err)
	}
	last := time.Duration(0)
	for range 8 {
		if w.runner.undone.delay < last || w.runner.undone.delay == 0 || w.runner.undone.delay > w.set.Resync {
			t.Errorf("tried again after %v, before that %v", w.runner.undone.delay, last)
		}
		last = w.runner.undone.delay
		w.runner.pass(w.runner.inbox.take())
	}
	if last != w.set.Resync {
		t.Errorf("tried again after %v at last", last)
	}
	w.kernel.refuse = nil
	w.runner.pass(w.runner.inbox.take())
	w.check()
	if w.runner.undone.delay != 0 {
		t.Error("tried again for nothing")
	}
	if n := value(t, w.runner.metrics.repairs.WithLabelValues("fdb")); n != 0 {
		t.Errorf("%v drift repairs", n)
	}
}

func TestNodeThatIsNotInOrderIsNotReady(t *testing.T) {
	w := newWorld(t)
	w.kernel.refuse = func(op kernel.Op) error {
		if op.Key().Kind == kernel.KindLink {
			return unix.EPERM
		}
		return nil
	}
	w.list()
	if err := w.runner.ready(); err == nil || !strings.Contains(err.Error(), "vxlan-weft") {
		t.Errorf("ready says %v", err)
	}
	if len(w.told) > 0 {
		t.Errorf("announced %q", w.told)
	}
	w.kernel.refuse = nil
	w.runner.pass(w.runner.inbox.take())
	w.check()
	if err := w.runner.ready(); err != nil || len(w.told) != 1 {
		t.Errorf("ready says %v, announced %q", err, w.told)
	}
}

func TestAnnouncementThatFailsIsRepeated(t *testing.T) {
	w := newWorld(t)
	failure := errors.New("disk full")
	w.runner.announce = func(Node, encrypt.Self) error { return failure }
	w.list()
	if err := w.runner.ready(); err == nil || !strings.Contains(err.Error(), "disk full") {
		t.Errorf("ready says %v", err)
	}
	failure = nil
	w.runner.pass(w.runner.inbox.take())
	if err := w.runner.ready(); err != nil {
		t.Errorf("ready says %v", err)
	}
}

func TestConditionsAreToldOnce(t *testing.T) {
	rival := somePeer(1, 0)
	rival.PodCIDRs = []netip.Prefix{netip.MustParsePrefix("10.244.0.0/25")} // the node's own
	younger := somePeer(3, 0)
	younger.PodCIDRs = somePeer(2, 0).PodCIDRs
	alien := somePeer(4, 0)
	alien.Underlay = []netip.Addr{netip.MustParseAddr("2001:db8::4")}
	small := somePeer(5, 0)
	small.MTU = 1400
	for name, test := range map[string]struct {
		peers  []overlay.Peer
		errs   map[string]error
		change func(*world)
		events []string
		state  map[string]float64
	}{
		"nothing": {peers: []overlay.Peer{somePeer(1, 0)}, state: map[string]float64{"programmed": 1}},
		"a peer claims this node's range": {
			peers:  []overlay.Peer{rival},
			events: []string{"ClaimConflict: peer peer1 claims 10.244.0.0/25, which belongs to self: it was there first"},
			state:  map[string]float64{"conflicting": 1},
		},
		"others' conflict is theirs to tell": {
			peers: []overlay.Peer{somePeer(2, 0), younger},
			state: map[string]float64{"programmed": 1, "conflicting": 1},
		},
		"a peer of another family": {peers: []overlay.Peer{alien}, state: map[string]float64{"unreachable": 1}},
		"a malformed VTEP": {
			errs:  map[string]error{"peer9": errors.New("spec.mac")},
			state: map[string]float64{"malformed": 1},
		},
		"most peers have another MTU": {
			peers:  []overlay.Peer{small},
			events: []string{"MTUMismatch: eth0 has an MTU of 1500, the underlay of 1 of 1 peers has 1400: large packets may get lost"},
			state:  map[string]float64{"programmed": 1},
		},
		"a few peers have another MTU": {
			peers: []overlay.Peer{small, somePeer(1, 0)}, state: map[string]float64{"programmed": 2},
		},
		"mtu is too large": {
			change: func(w *world) { w.set.MTU = 1500; w.start() },
			events: []string{"MTUMismatch: mtu is set to 1500, but eth0 with its MTU of 1500 has room for 1450: pods get that"},
		},
		"no room for IPv6": {
			change: func(w *world) { w.kernel.addrs[0].MTU = 1300 },
			events: []string{"MTUMismatch: pods have IPv6, which needs an MTU of 1280; eth0 with its MTU of 1300 leaves them 1250"},
		},
		"no underlay address": {
			change: func(w *world) { w.kernel.addrs = []rtnl.HostAddr{hostAddr("198.51.100.7/24", "eth1")} },
			events: []string{"UnderlayLost: node self: no underlay address: wanted one of the Node's InternalIPs [192.0.2.1 2001:db8::1], the interfaces have 198.51.100.7 on eth1"},
		},
		"no pod CIDRs": {
			change: func(w *world) { w.node.PodCIDRs = nil },
			events: []string{"NoPodCIDRs: node self: the Node has no pod CIDRs; kube-controller-manager gives them with --allocate-node-cidrs"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			if test.change != nil {
				test.change(w)
			}
			for _, p := range test.peers {
				w.peers[p.Name] = valid(p)
			}
			for name, err := range test.errs {
				w.peers[name] = claim{err: err}
			}
			w.list()
			w.list()
			w.resync()
			if d := cmp.Diff(test.events, w.events); d != "" {
				t.Errorf("events (-want +got):\n%s", d)
			}
			for _, state := range []string{"programmed", "conflicting", "unreachable", "malformed"} {
				if n := value(t, w.runner.metrics.states.WithLabelValues(state)); n != test.state[state] {
					t.Errorf("%v peers are %s, want %v", n, state, test.state[state])
				}
			}
		})
	}
}

// An underlay that is lost, a Node that is gone or without pod CIDRs: the
// kernel stays as it was, and follows once there is something to follow.
func TestWhatIsLostChangesNothing(t *testing.T) {
	w := newWorld(t)
	w.peers["peer1"] = valid(somePeer(1, 0))
	w.list()
	addrs, node, state := w.kernel.addrs, w.node, maps.Clone(w.kernel.state)
	for name, lose := range map[string]func(){
		"underlay":  func() { w.kernel.addrs = nil },
		"node":      func() { w.node = Node{Name: "self"} },
		"pod CIDRs": func() { w.node.PodCIDRs = nil },
	} {
		lose()
		w.told, w.kernel.applied = nil, nil
		w.runner.inbox.node(w.node)
		w.runner.inbox.kernel(kernel.Event{Underlay: true})
		w.settle()
		w.resync()
		if d := cmp.Diff(state.String(), w.kernel.state.String()); d != "" || len(w.told) > 0 {
			t.Errorf("%s lost: announced %q, kernel (-before +after):\n%s", name, w.told, d)
		}
		if w.runner.ready() == nil {
			t.Errorf("%s lost: ready", name)
		}
		w.kernel.addrs, w.node = addrs, node
		w.runner.inbox.node(w.node)
		w.settle()
		w.check()
		if err := w.runner.ready(); err != nil {
			t.Errorf("%s back: %v", name, err)
		}
	}
	w.kernel.addrs = []rtnl.HostAddr{{Prefix: netip.MustParsePrefix("192.0.2.77/24"), Link: "eth9", Up: true, MTU: 9000}}
	w.node.InternalIPs, w.node.UID = []netip.Addr{netip.MustParseAddr("192.0.2.77")}, "2"
	w.runner.inbox.node(w.node)
	w.settle()
	w.check()
	if got := w.told[len(w.told)-1]; got != "2 mtu 8950" {
		t.Errorf("announced %q", got)
	}
}

// TestRandomWalk changes the API, the kernel and the node at random, restarts
// the daemon now and then, and expects after each step that the kernel holds
// what the objects of that moment ask for.
func TestRandomWalk(t *testing.T) {
	for seed := range uint64(60) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			w := newWorld(t)
			rnd := rand.New(rand.NewPCG(seed, 1))
			w.set.Overlay.DirectRouting = seed%3 == 0
			w.start()
			w.list()
			for step := range 120 {
				name := w.randomStep(rnd)
				w.settle()
				w.check()
				if t.Failed() {
					t.Fatalf("after step %d, %s", step, name)
				}
			}
			if d := cmp.Diff(w.plan().want.String(), w.runner.plan.want.String()); d != "" {
				t.Errorf("the plan differs from one made from nothing:\n%s", d)
			}
		})
	}
}

func (w *world) randomStep(rnd *rand.Rand) string {
	i := rnd.IntN(8)
	name := fmt.Sprintf("peer%d", i)
	switch rnd.IntN(12) {
	case 0, 1, 2:
		w.tell(name, valid(somePeer(i, rnd.IntN(3))))
		return "set " + name
	case 3:
		w.tell(name, claim{})
		return "remove " + name
	case 4:
		w.tell(name, claim{err: errors.New("malformed")})
		return "garble " + name
	case 5: // claims something of another's
		p, other := somePeer(i, 0), somePeer(rnd.IntN(8), 0)
		if rnd.IntN(2) == 0 {
			p.PodCIDRs = append(p.PodCIDRs[:1:1], other.PodCIDRs[1])
		} else {
			p.MAC = other.MAC
		}
		w.tell(name, valid(p))
		return "let " + name + " claim what is " + other.Name + "'s"
	case 6, 7:
		return w.randomDrift(rnd)
	case 8: // drift that no event tells of
		event := w.kernel.event
		w.kernel.event = func(kernel.Event) {}
		done := w.randomDrift(rnd)
		w.kernel.event = event
		w.resync()
		return "silently " + done
	case 9:
		w.start()
		w.list()
		return "restart"
	case 10: // the watch breaks: a new list
		delete(w.peers, name)
		w.list()
		return "list without " + name
	default:
		addrs := [][]rtnl.HostAddr{
			{hostAddr("192.0.2.1/24", "eth0"), hostAddr("2001:db8::1/64", "eth0")},
			{hostAddr("192.0.2.1/24", "eth1")},
			{hostAddr("192.0.2.1/25", "eth0"), hostAddr("2001:db8::1/64", "eth1")},
		}
		w.kernel.addrs = addrs[rnd.IntN(len(addrs))]
		for k := range w.kernel.state { // routes go with their interface
			if k.Kind == kernel.KindRoute && !w.kernel.hasLink(k) {
				delete(w.kernel.state, k)
			}
		}
		w.runner.inbox.kernel(kernel.Event{Underlay: true})
		return "change the underlay"
	}
}

func (w *world) randomDrift(rnd *rand.Rand) string {
	keys := slices.SortedFunc(maps.Keys(w.kernel.state), kernel.Key.Compare)
	if len(keys) == 0 {
		return "do nothing"
	}
	k := keys[rnd.IntN(len(keys))]
	if rnd.IntN(2) == 0 {
		w.kernel.remove(k)
		return "delete " + k.String()
	}
	var o kernel.Object
	switch old := w.kernel.state[k].(type) {
	case kernel.VXLAN:
		old.MTU++
		o = old
	case kernel.FDB:
		old.VTEP = netip.MustParseAddr("198.51.100.1")
		o = old
	case kernel.Neigh:
		old.Detail = "reachable"
		o = old
	case kernel.Route:
		old.Via = netip.MustParseAddr("198.51.100.1")
		o = old
	case kernel.Sysctl:
		old.Value = "0"
		o = old
	case kernel.Rules:
		old.Text = ""
		o = old
	default:
		o = kernel.Neigh{Link: overlay.Link, IP: netip.MustParseAddr("10.9.9.9"), MAC: kernel.MAC{2}}
		if !w.kernel.hasLink(o.Key()) {
			return "do nothing"
		}
	}
	w.kernel.put(o)
	return "alter " + o.String()
}
