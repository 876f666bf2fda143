package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/overlay"
	"github.com/weft-cni/weft/test/cluster"
)

// measureJoins takes the time from a request to the API server that creates,
// or deletes, a peer's VTEP until the kernel has told of all its entries.
func (b scaleBench) measureJoins(ctx context.Context, r *report, n *cluster.Node, crowd *crowd) error {
	monitor, err := newMonitor(n)
	if err != nil {
		return err
	}
	defer monitor.close()
	var joins, leaves, afterwards []time.Duration
	for i := range b.joins {
		peer := b.peers + 1 + i
		for _, change := range []struct {
			times *[]time.Duration
			typ   [2]uint16 // of the neighbour's and the route's messages
			do    func() error
		}{
			{&joins, [2]uint16{unix.RTM_NEWNEIGH, unix.RTM_NEWROUTE}, func() error { return crowd.join(ctx, peer, "join") }},
			{&leaves, [2]uint16{unix.RTM_DELNEIGH, unix.RTM_DELROUTE}, func() error { return crowd.leave(ctx, peer) }},
		} {
			// At no steady beat: whatever the daemon does at intervals is met
			// at all of its moments.
			if err := pause(ctx, 20*time.Millisecond+rand.N(40*time.Millisecond)); err != nil {
				return err
			}
			seen := monitor.expect(peer, change.typ)
			start := time.Now()
			if err := change.do(); err != nil {
				return err
			}
			answered := time.Now()
			select {
			case at := <-seen:
				*change.times = append(*change.times, at.Sub(start))
				afterwards = append(afterwards, at.Sub(answered))
			case <-time.After(10 * time.Second):
				return fmt.Errorf("peer %d: no change in the kernel within 10 s", peer)
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
	// The worse of the two counts.
	r.figure("join-p50-ms@5000", ms(max(quantile(joins, 0.5), quantile(leaves, 0.5))))
	r.figure("join-p99-ms@5000", ms(max(quantile(joins, 0.99), quantile(leaves, 0.99))))
	r.note("join: %s; leave: %s; after the API server's answer: %s", spread(joins), spread(leaves), spread(afterwards))
	return nil
}

func spread(times []time.Duration) string {
	return fmt.Sprintf("p50 %.2f ms, p99 %.2f ms of %d", ms(quantile(times, 0.5)), ms(quantile(times, 0.99)), len(times))
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// A monitor hears what the kernel of a node tells of neighbours, FDB entries
// and routes.
type monitor struct {
	neighs chan netlink.NeighUpdate
	routes chan netlink.RouteUpdate
	asked  chan question
	done   chan struct{}
}

// A question is for the time when a peer's three entries have been told of.
type question struct {
	peer int
	typ  [2]uint16
	seen chan time.Time
}

func (q question) isFDB(u netlink.NeighUpdate) bool {
	return u.Type == q.typ[0] && u.Family == unix.AF_BRIDGE &&
		u.HardwareAddr.String() == overlay.VTEPMAC(peerName(q.peer)).String()
}

// isNeigh doesn't look at the Ethernet address: what is told of a neighbour
// that goes has none.
func (q question) isNeigh(u netlink.NeighUpdate) bool {
	return u.Type == q.typ[0] && u.Family == unix.AF_INET && u.IP.String() == overlay.Gateway(podCIDR(q.peer)).String()
}

func (q question) isRoute(u netlink.RouteUpdate) bool {
	return u.Type == q.typ[1] && u.Dst != nil && u.Dst.String() == podCIDR(q.peer).String()
}

func newMonitor(n *cluster.Node) (*monitor, error) {
	m := &monitor{
		neighs: make(chan netlink.NeighUpdate, 1024),
		routes: make(chan netlink.RouteUpdate, 1024),
		asked:  make(chan question),
		done:   make(chan struct{}),
	}
	err := n.Do(func() error {
		ns, err := netns.Get()
		if err != nil {
			return err
		}
		defer ns.Close()
		return errors.Join(
			netlink.NeighSubscribeWithOptions(m.neighs, m.done, netlink.NeighSubscribeOptions{Namespace: &ns}),
			netlink.RouteSubscribeWithOptions(m.routes, m.done, netlink.RouteSubscribeOptions{Namespace: &ns}),
		)
	})
	if err != nil {
		return nil, fmt.Errorf("watch the kernel: %w", err)
	}
	go m.run()
	return m, nil
}

func (m *monitor) close() { close(m.done) }

// expect gives a channel that gets the time when all entries of the peer have
// been told of, by messages of these types (neighbours' and routes').
func (m *monitor) expect(peer int, typ [2]uint16) <-chan time.Time {
	q := question{peer: peer, typ: typ, seen: make(chan time.Time, 1)}
	m.asked <- q
	return q.seen
}

func (m *monitor) run() {
	var q question
	var fdb, neigh, route bool
	for {
		select {
		case <-m.done:
			return
		case q = <-m.asked:
			fdb, neigh, route = false, false, false
		case u := <-m.neighs:
			fdb = fdb || q.isFDB(u)
			neigh = neigh || q.isNeigh(u)
		case u := <-m.routes:
			route = route || q.isRoute(u)
		}
		if fdb && neigh && route {
			q.seen <- time.Now()
			q = question{}
			fdb, neigh, route = false, false, false
		}
	}
}
