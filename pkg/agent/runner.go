package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"sync/atomic"
	"time"

	"github.com/weft-cni/weft/pkg/encrypt"
	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/kernel/rtnl"
	"github.com/weft-cni/weft/pkg/overlay"
	"github.com/weft-cni/weft/pkg/record"
	"github.com/weft-cni/weft/pkg/settings"
)

// Kernel is the node's kernel; *rtnl.Handle is the real one.
type Kernel interface {
	// Read gives everything that is ours.
	Read(names rtnl.Names) (kernel.State, error)
	// ReadKeys gives what is at keys.
	ReadKeys(keys kernel.Keys) (kernel.State, error)
	// Apply carries operations out, in order, and gives those that failed.
	Apply(ops []kernel.Op) []rtnl.OpError
	// HostAddrs lists the addresses of interfaces that aren't ours.
	HostAddrs(own rtnl.Names) ([]rtnl.HostAddr, error)
	// PodLinks lists the names of the host ends of pods' veths.
	PodLinks() ([]string, error)
	// HasLink reports whether there is a link of that name.
	HasLink(name string) (bool, error)
	// HasWireGuard reports whether the kernel can make WireGuard devices.
	HasWireGuard() (bool, error)
	// HasTunnel reports whether the kernel can make tunnels of a kind.
	HasTunnel(kind kernel.TunnelKind) (bool, error)
	// HasVLANFiltering reports whether the kernel's bridges can filter VLANs.
	HasVLANFiltering() (bool, error)
	// PeerTraffic gives what WireGuard devices have seen of their peers.
	PeerTraffic(links []string) ([]rtnl.PeerTraffic, error)
	// Watch tells changes until ctx ends or the watch fails.
	Watch(ctx context.Context, names rtnl.Names) (<-chan kernel.Event, error)
}

// ownNames are the names that everything of ours goes by.
func ownNames() rtnl.Names { return rtnl.Names(encrypt.Names) }

// runner is the one goroutine that changes the kernel. What it keeps between
// two passes follows from the objects of the API; the kernel itself is read
// whenever it matters.
type runner struct {
	kernel   Kernel
	settings settings.Settings
	log      *slog.Logger
	metrics  *metrics
	inbox    *inbox
	// report tells an operator (a Kubernetes Event). It doesn't block.
	report func(reason, note string)
	// announce is called after each comparison of everything that left the
	// node itself in order, and after each change of the Node.
	announce func(Node, encrypt.Self) error
	// readdressed is called when the node has lost an address: connections
	// from there are dead without a word.
	readdressed func()
	// attachments gives the pods' attachments that are on record.
	attachments func() ([]record.Attachment, error)

	plan       *plan
	encryption *encryption
	traffic    traffic
	// drains says that there were sessions when the daemon started: maybe those
	// of one that encrypted.
	drains     bool
	listed     bool             // the plan has all peers that there are
	malformed  map[string]error // VTEPs that are no peers, by name
	node       *Node            // nil before it was first told
	addrs      []rtnl.HostAddr  // of the last look
	host       error            // why there is no plan for the node as it is now
	refused    error            // of an operation that encrypted segments alone need
	stranded   []string         // pods whose addresses lead to another node, or nowhere
	conditions conditions       // what an operator has been told
	undone     undone
	done       bool // everything has been in order once
	// state says why the node isn't ready; nil when it is.
	state atomic.Pointer[string]
	// busy is when the pass that is under way began; nil between passes.
	busy atomic.Pointer[time.Time]
}

// undone is what a pass left to the next.
type undone struct {
	all   bool
	keys  kernel.Keys   // where something was asked for
	drift kernel.Keys   // where somebody else changed the kernel
	delay time.Duration // until then; 0 when there is nothing
}

// firstRetry is the delay after a first failure. It doubles up to the resync
// period.
const firstRetry = time.Second

func newRunner(k Kernel, s settings.Settings, log *slog.Logger, m *metrics) *runner {
	r := &runner{
		kernel: k, settings: s, log: log, metrics: m, inbox: newInbox(),
		report:   func(string, string) {},
		announce: func(Node, encrypt.Self) error { return nil },

		readdressed: func() {},
		attachments: func() ([]record.Attachment, error) { return nil, nil },
		plan:        newPlan(s.Overlay, s.Encrypt), malformed: map[string]error{}, conditions: conditions{},
		encryption: &encryption{config: s.Encrypt, log: log, inKernel: k.HasWireGuard},
		traffic:    traffic{},
	}
	r.settle(nil)
	return r
}

// run makes passes until ctx ends. A stop leaves the kernel as it is.
func (r *runner) run(ctx context.Context) {
	resync, retry, sessions := time.NewTimer(r.period()), time.NewTimer(0), time.NewTimer(0)
	retry.Stop()
	sessions.Stop()
	defer resync.Stop()
	defer retry.Stop()
	defer sessions.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.inbox.wake:
		case <-retry.C:
		case <-resync.C:
			r.inbox.put(func(w *work) { w.all = true })
			resync.Reset(r.period())
		case <-sessions.C:
			r.inbox.put(func(w *work) { w.sessions = true })
		}
		r.pass(r.inbox.take())
		if r.undone.delay > 0 {
			retry.Reset(r.undone.delay)
		}
		if r.traffic.delay > 0 {
			sessions.Reset(r.traffic.delay)
		}
	}
}

// once makes the passes up to the first that has compared everything. Its
// error tells of all that is not in order then, peers included.
func (r *runner) once(ctx context.Context) error {
	for !r.listed || r.node == nil {
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", r.ready(), context.Cause(ctx))
		case <-r.inbox.wake:
			r.pass(r.inbox.take())
		}
	}
	if n := len(r.undone.keys) + len(r.undone.drift); n > 0 && r.ready() == nil {
		return fmt.Errorf("the kernel refused %d operations", n)
	}
	return r.ready()
}

// period is the time to the next resync: jittered, so that nodes that started
// together don't stay together.
func (r *runner) period() time.Duration {
	return time.Duration(float64(r.settings.Resync) * (0.9 + 0.2*rand.Float64()))
}

// pass does what w asks for, and what the last pass left undone.
func (r *runner) pass(w work) {
	start := time.Now()
	r.busy.Store(&start)
	defer r.busy.Store(nil)
	if w.node != nil && r.node != nil && w.node.Equal(*r.node) {
		w.node = nil // its status changes every few minutes
	}
	before := r.undone
	r.undone = undone{}
	changed := r.learn(w)
	concerned := len(changed) > 0
	if err := r.watchTraffic(w); err != nil {
		r.metrics.failed(stepRead)
		r.log.Warn("sessions of WireGuard can't be read", "err", err)
	} else {
		maps.Copy(changed, r.plan.observe(r.traffic.sessions()))
	}
	moved, err := r.look(w)
	r.pace(w, concerned || moved)
	if err == nil && r.listed && r.plan.built() {
		w.keys = joined(w.keys, before.drift)
		r.plan.doubt(joined(w.keys, before.keys))
		maps.Copy(changed, before.keys)
		w.all = w.all || before.all || !r.done
		err = r.sync(w, changed, moved)
	}
	if r.done && (w.all || moved || len(w.pods) > 0) {
		r.restorePods(w.all || moved, w.pods)
	}
	if r.undone.all || len(r.undone.keys)+len(r.undone.drift) > 0 {
		r.undone.delay = min(max(firstRetry, 2*before.delay), r.settings.Resync)
	}
	r.settle(err)
	for _, asked := range w.sealed {
		asked <- cmp.Or(r.ready(), r.encryption.unsealed, r.refused)
	}
}

// sync brings the kernel in line with the plan: everywhere, or where peers or
// the kernel changed. moved says that the plan is new. What fails is left
// undone; the error tells of failures that concern the node itself and not a
// single peer.
func (r *runner) sync(w work, changed kernel.Keys, moved bool) error {
	start, all := time.Now(), w.all || moved
	scope := joined(changed, w.keys)
	if !all && len(scope) == 0 && w.node == nil {
		return nil
	}
	if all && !moved {
		r.plan.build(r.plan.self)
	}
	ops, err := r.compare(all, scope)
	if err != nil {
		r.metrics.failed(stepRead)
		r.undone = undone{all: all, keys: changed, drift: w.keys}
		return err
	}
	r.refused = nil // what failed before is tried again
	failed, err := r.apply(ops)
	r.undone.keys = failed
	if r.done && !moved { // what nobody asked for was drift
		r.undone.keys, r.undone.drift = split(failed, changed)
		r.repaired(slices.DeleteFunc(ops, func(op kernel.Op) bool {
			return changed.Covers(op.Key()) || failed.Covers(op.Key())
		}))
	}
	if err == nil && r.host == nil && (all || w.node != nil) {
		if err = r.announce(*r.node, r.plan.self); err != nil {
			r.metrics.failed(stepFiles)
			r.undone.all = true
		}
	}
	r.done = r.done || err == nil
	r.metrics.pass(all, time.Since(start))
	return err
}

// learn brings the plan up to date with the peers of w and gives the keys
// that have to change with them.
func (r *runner) learn(w work) kernel.Keys {
	changed := kernel.Keys{}
	if w.listed {
		for _, name := range r.plan.peers.Names() {
			if _, ok := w.peers[name]; !ok {
				maps.Copy(changed, r.plan.remove(name))
			}
		}
		clear(r.malformed)
		r.listed = true
	}
	for name, c := range w.peers {
		delete(r.malformed, name)
		if c.err != nil {
			r.malformed[name] = c.err
		}
		if c.peer == nil {
			maps.Copy(changed, r.plan.remove(name))
			continue
		}
		if old, ok := r.plan.peers.Get(name); !ok || !reflect.DeepEqual(old, *c.peer) {
			maps.Copy(changed, r.plan.set(*c.peer))
		}
	}
	return changed
}

// look finds out what this node is, where w says that this may have changed,
// and makes a new plan when it has. Where it can't tell, the plan stays as it
// was, and so does the traffic.
func (r *runner) look(w work) (moved bool, err error) {
	if w.node != nil {
		r.node = w.node
	}
	if w.seal != nil {
		r.encryption.sealed = *w.seal
	}
	stale := w.node != nil || w.host || w.all || w.seal != nil || r.host != nil || !r.plan.built() || r.rotates()
	if !r.listed || r.node == nil || !stale {
		return false, nil
	}
	if !r.plan.built() {
		r.encryption.sealed = r.encryption.sealed || sealedOnRecord(r.attachments)
		r.drains = len(r.plan.sessions) > 0
	}
	addrs, err := r.kernel.HostAddrs(ownNames())
	if err != nil {
		r.undone.all = true
		return false, err
	}
	if lost(r.addrs, addrs) {
		r.readdressed()
	}
	r.addrs = addrs
	on, host := selfOf(*r.node, r.settings, addrs)
	r.host = host
	if on.LooseReversePath, err = r.loose(); err != nil {
		r.undone.all = true
		return false, err
	}
	keepRouterAdvertisements(r.plan.self.Underlay, on.Underlay)
	self := encrypt.Self{Self: on}
	if r.host == nil {
		if err = r.retire(); err != nil {
			r.log.Warn("the old WireGuard key stays for now", "err", err)
		}
		self, r.host = r.encryption.self(on, r.draining(), time.Now())
	}
	if r.host != nil || r.plan.built() && reflect.DeepEqual(self, r.plan.self) {
		return false, nil //nolint:nilerr // settle tells of host; the plan stays
	}
	r.log.Info("planning for this node", "underlay", self.Underlay, "podCIDRs", self.PodCIDRs, "mtu", self.MTU, "mac", self.MAC)
	r.rekeyed(r.plan.self.Keys, self.Keys)
	r.plan.build(self)
	return true, nil
}

// loose reports whether the node filters no reverse path strictly.
func (r *runner) loose() (bool, error) {
	key := kernel.Sysctl{Name: overlay.ReversePathFilter}.Key()
	have, err := r.kernel.ReadKeys(kernel.Keys{key: {}})
	return have[key] == kernel.Sysctl{Name: overlay.ReversePathFilter, Value: "2"}, err
}

// settle ends a pass: it tells what is new of what an operator must know and
// whether the node is ready.
func (r *runner) settle(err error) {
	now := r.observe()
	for _, c := range now.since(r.conditions) {
		r.log.Warn("operator's attention needed", "reason", c.reason, "note", c.note)
		if c.event {
			r.report(c.reason, c.note)
		}
	}
	r.conditions = now
	r.metrics.observe(r.plan.peers.Len(), now)
	r.metrics.observeKeys(r.encryption)
	var why string
	switch {
	case !r.listed || r.node == nil:
		why = "waiting for the API server to tell this node's Node and all VTEPs"
	case err != nil:
		r.log.Error("this node is not in order", "err", err)
		why = err.Error()
	case r.host != nil:
		why = r.host.Error()
	case !r.done:
		why = "waiting for the first sync"
	default:
		r.state.Store(nil)
		return
	}
	r.state.Store(&why)
}

// ready gives nil when the node's own part of the kernel is as planned and
// pods can be attached. A peer that can't be reached is no reason against.
func (r *runner) ready() error {
	if why := r.state.Load(); why != nil {
		return errors.New(*why)
	}
	return nil
}

// maxPass is longer than any pass takes, the reads of a kernel that doesn't
// answer included.
const maxPass = 2 * time.Minute

// alive gives nil unless a pass doesn't come to its end.
func (r *runner) alive() error {
	if since := r.busy.Load(); since != nil && time.Since(*since) > maxPass {
		return fmt.Errorf("a pass has been running since %s", since.Format(time.RFC3339))
	}
	return nil
}
