package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/encrypt"
	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/kernel/rtnl"
	"github.com/weft-cni/weft/pkg/overlay"
	"github.com/weft-cni/weft/pkg/settings"
	"github.com/weft-cni/weft/test/testns"
)

// live is a runner on a real kernel, in a network namespace of its own, with
// the watch that tells it of drift.
type live struct {
	t     *testing.T
	ns    *testns.NS
	set   settings.Settings
	node  Node
	peers map[string]claim

	runner *runner
	stop   func()
}

func newLive(t *testing.T) *live {
	t.Helper()
	l := &live{t: t, ns: testns.New(t), set: settings.Default(), node: newWorld(t).node, peers: map[string]claim{}}
	l.set.Resync = time.Hour // what it repairs, it repairs by events
	eth0 := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "cable"}
	if err := l.ns.Handle.LinkAdd(eth0); err != nil {
		t.Fatal(err)
	}
	for _, ip := range l.node.InternalIPs {
		addr := &netlink.Addr{IPNet: &net.IPNet{IP: ip.AsSlice(), Mask: net.CIDRMask(24, ip.BitLen())}}
		if ip.Is6() {
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := l.ns.Handle.AddrAdd(eth0, addr); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.ns.Handle.LinkSetUp(eth0); err != nil {
		t.Fatal(err)
	}
	l.start()
	t.Cleanup(func() { l.stop() })
	return l
}

// start is a new daemon, which is told all there is.
func (l *live) start() {
	ctx, cancel := context.WithCancel(l.t.Context())
	var group sync.WaitGroup
	l.stop = func() { cancel(); group.Wait() }
	opened := make(chan error)
	group.Go(func() {
		err := l.ns.Do(func() error { // sockets and sysctls are those of the runner's thread
			handle, err := rtnl.Open()
			if err != nil {
				return err
			}
			defer handle.Close()
			l.runner = newRunner(handle, l.set, slog.New(slog.DiscardHandler), newMetrics("test"))
			a := &Agent{Options: Options{Kernel: handle, Log: l.runner.log}, runner: l.runner}
			events, err := handle.Watch(ctx, ownNames())
			if err != nil {
				return err
			}
			group.Go(func() {
				for e := range events {
					a.event(ctx, e, nil)
				}
			})
			opened <- nil
			l.runner.run(ctx)
			return nil
		})
		if err != nil {
			opened <- err
		}
	})
	if err := <-opened; err != nil {
		l.t.Fatal(err)
	}
	l.runner.inbox.peers(maps.Clone(l.peers))
	l.runner.inbox.node(l.node)
}

func (l *live) tell(name string, c claim) {
	l.peers[name] = c
	if c == (claim{}) {
		delete(l.peers, name)
	}
	l.runner.inbox.peer(name, c)
}

// missing gives what the kernel lacks, by a handle of its own.
func (l *live) missing() ([]kernel.Op, error) {
	var ops []kernel.Op
	failed := l.ns.Do(func() error {
		handle, err := rtnl.Open()
		if err != nil {
			return err
		}
		defer handle.Close()
		addrs, err := handle.HostAddrs(ownNames())
		if err != nil {
			return err
		}
		self, err := selfOf(l.node, l.set, addrs)
		if err != nil {
			return err
		}
		keepRouterAdvertisements([]overlay.Underlay{{Link: "eth0", Addr: l.node.InternalIPs[1], AcceptRA: true}}, self.Underlay)
		p := newPlan(l.set.Overlay, l.set.Encrypt)
		for _, c := range l.peers {
			p.set(*c.peer)
		}
		p.build(encrypt.Self{Self: self})
		have, err := handle.Read(rtnl.NamesOf(p.want))
		ops = kernel.Diff(p.want, have, nil)
		return err
	})
	return ops, failed
}

// settled waits until the kernel is as planned.
func (l *live) settled(after string) {
	l.t.Helper()
	deadline := time.Now().Add(3 * time.Second) // a second, on a busy machine
	ticker := time.NewTicker(time.Millisecond)
	defer ticker.Stop()
	for {
		ops, err := l.missing()
		if err == nil && len(ops) == 0 {
			return
		}
		if time.Now().After(deadline) {
			l.t.Fatalf("after %s: %v; missing are\n%s", after, err, text(ops))
		}
		<-ticker.C
	}
}

// TestRandomWalkOnAKernel is TestRandomWalk with a real kernel, which is
// changed by others meanwhile.
func TestRandomWalkOnAKernel(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			l := newLive(t)
			rnd := rand.New(rand.NewPCG(seed, 2))
			for i := range 6 {
				l.tell(fmt.Sprintf("peer%d", i), valid(somePeer(i, 0)))
			}
			l.settled("the start")
			for range 60 {
				l.settled(l.randomStep(rnd))
			}
		})
	}
}

func (l *live) randomStep(rnd *rand.Rand) string {
	i := rnd.IntN(8)
	name := fmt.Sprintf("peer%d", i)
	switch rnd.IntN(8) {
	case 0, 1:
		l.tell(name, valid(somePeer(i, rnd.IntN(3))))
		return "set " + name
	case 2:
		l.tell(name, claim{})
		return "remove " + name
	case 3:
		rival := somePeer(i, 0)
		rival.MAC = somePeer(rnd.IntN(8), 0).MAC
		l.tell(name, valid(rival))
		return "let " + name + " take a MAC"
	case 4:
		l.stop()
		l.start()
		return "restart"
	default:
		drift := drifts[rnd.IntN(len(drifts))]
		link, err := l.ns.Handle.LinkByName(overlay.Link)
		if err == nil {
			err = drift.change(l.ns.Handle, link, rnd)
		}
		if err != nil && !errors.Is(err, errNothing) {
			l.t.Fatalf("%s: %v", drift.name, err)
		}
		return drift.name
	}
}

// errNothing says that there is nothing to change.
var errNothing = errors.New("nothing to change")

var drifts = []struct {
	name   string
	change func(*netlink.Handle, netlink.Link, *rand.Rand) error
}{
	{"link deleted", func(h *netlink.Handle, l netlink.Link, _ *rand.Rand) error { return h.LinkDel(l) }},
	{"link down", func(h *netlink.Handle, l netlink.Link, _ *rand.Rand) error { return h.LinkSetDown(l) }},
	{"link MTU", func(h *netlink.Handle, l netlink.Link, _ *rand.Rand) error { return h.LinkSetMTU(l, 1300) }},
	{"address deleted", func(h *netlink.Handle, l netlink.Link, rnd *rand.Rand) error {
		addrs, err := h.AddrList(l, netlink.FAMILY_ALL)
		if err != nil || len(addrs) == 0 {
			return errors.Join(err, errNothing)
		}
		return h.AddrDel(l, &addrs[rnd.IntN(len(addrs))])
	}},
	{"neighbour or FDB entry deleted", func(h *netlink.Handle, l netlink.Link, rnd *rand.Rand) error {
		n, err := someNeigh(h, l, rnd)
		if err != nil {
			return err
		}
		return h.NeighDel(n)
	}},
	{"neighbour or FDB entry altered", func(h *netlink.Handle, l netlink.Link, rnd *rand.Rand) error {
		n, err := someNeigh(h, l, rnd)
		if err != nil {
			return err
		}
		if n.Family == unix.AF_BRIDGE {
			n.IP = net.IPv4(198, 51, 100, 9)
		} else {
			n.HardwareAddr = net.HardwareAddr{2, 0, 0, 0, 0, 9}
		}
		return h.NeighSet(n)
	}},
	{"route deleted", func(h *netlink.Handle, l netlink.Link, rnd *rand.Rand) error {
		r, err := someRoute(h, l, rnd)
		if err != nil {
			return err
		}
		return h.RouteDel(r)
	}},
	{"stranger's neighbour", func(h *netlink.Handle, l netlink.Link, rnd *rand.Rand) error {
		return h.NeighSet(&netlink.Neigh{
			LinkIndex: l.Attrs().Index, Family: unix.AF_INET, State: netlink.NUD_PERMANENT,
			HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 8}, IP: net.IPv4(10, 99, 0, byte(rnd.IntN(250))),
		})
	}},
	{"stranger's route", func(h *netlink.Handle, l netlink.Link, rnd *rand.Rand) error {
		dst := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 99, byte(rnd.IntN(250)), 0}), 24)
		return h.RouteReplace(&netlink.Route{
			LinkIndex: l.Attrs().Index, Scope: netlink.SCOPE_LINK,
			Dst: &net.IPNet{IP: dst.Addr().AsSlice(), Mask: net.CIDRMask(24, 32)},
		})
	}},
}

func someNeigh(h *netlink.Handle, l netlink.Link, rnd *rand.Rand) (*netlink.Neigh, error) {
	families := []int{unix.AF_INET, unix.AF_INET6, unix.AF_BRIDGE}
	neighs, err := h.NeighList(l.Attrs().Index, families[rnd.IntN(len(families))])
	if err != nil || len(neighs) == 0 {
		return nil, errors.Join(err, errNothing)
	}
	return &neighs[rnd.IntN(len(neighs))], nil
}

func someRoute(h *netlink.Handle, l netlink.Link, rnd *rand.Rand) (*netlink.Route, error) {
	routes, err := h.RouteListFiltered(netlink.FAMILY_ALL,
		&netlink.Route{LinkIndex: l.Attrs().Index, Protocol: kernel.RouteProtocol}, netlink.RT_FILTER_OIF|netlink.RT_FILTER_PROTOCOL)
	if err != nil || len(routes) == 0 {
		return nil, errors.Join(err, errNothing)
	}
	return &routes[rnd.IntN(len(routes))], nil
}
