package segment_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/segment"
	"github.com/weft-cni/weft/test/cluster"
	"github.com/weft-cni/weft/test/probe"
)

// reachTime is how long a new station may take to be known everywhere on a busy
// machine.
const reachTime = 10 * time.Second

// TestSegmentOutlives: the traffic on a segment outlives the daemon and the API
// server; pods come and go meanwhile; what somebody breaks is repaired; a node
// that is removed leaves nothing.
func TestSegmentOutlives(t *testing.T) {
	l := newLab(t, 3)
	conf := tenant(1001, "")
	a, b, c := l.attach(l.Node(1), "a", conf), l.attach(l.Node(2), "b", conf), l.attach(l.Node(3), "c", conf)
	l.reach(a, b)
	l.reach(a, c)

	t.Run("a daemon restarts", func(t *testing.T) {
		lossless(t, a, b, func() {
			if err := l.daemons[0].Terminate(within(t, 10*time.Second)); err != nil {
				t.Fatal(err)
			}
			d := l.attach(l.Node(1), "d", conf) // without the daemon
			l.daemons[0] = l.Node(1).Weftd(t)
			l.reach(d, b)
			if err := d.Detach(t.Context()); err != nil {
				t.Error(err)
			}
		})
	})
	t.Run("the API server is away", func(t *testing.T) {
		lossless(t, a, b, func() {
			l.API.Stop()
			d := l.attach(l.Node(1), "e", conf)
			l.reach(d, a) // on the same node: nobody else knows it yet
			if err := l.API.Start(within(t, time.Minute)); err != nil {
				t.Fatal(err)
			}
			l.reach(d, b)
			if err := d.Detach(t.Context()); err != nil {
				t.Error(err)
			}
		})
	})
	t.Run("drift", func(t *testing.T) { repaired(t, l, a, b) })
	t.Run("a node is removed", func(t *testing.T) {
		if err := l.Node(3).Remove(within(t, 30*time.Second)); err != nil {
			t.Fatal(err)
		}
		vtep := c.Node.Name
		eventually(t, 20*time.Second, func() error {
			members, err := l.api.SegmentMembers().List(t.Context(), metav1.ListOptions{})
			if err != nil {
				return err
			}
			for i := range members.Items {
				if members.Items[i].Spec.Node == vtep {
					return fmt.Errorf("member %s stays", members.Items[i].Name)
				}
			}
			if s := l.state(l.Node(1)).String(); strings.Contains(s, c.IP(4).String()+" ") {
				return errors.New("its pod's neighbour entry stays")
			}
			return nil
		})
		l.reach(a, b)
	})
}

// lossless has a send b echoes while do runs: none is lost.
func lossless(t *testing.T, a, b *cluster.Pod, do func()) {
	t.Helper()
	pings, err := probe.StartPings(a, b.IP(4), 5*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	do()
	if report := pings.Stop(); report.Lost() > 0 {
		t.Errorf("%v", report)
	}
}

// repaired breaks a segment's kernel objects, and waits for their repair.
func repaired(t *testing.T, l *lab, a, b *cluster.Pod) {
	n := l.Node(1)
	var want kernel.State
	eventually(t, 5*time.Second, func() error { // what went just before has to be settled
		before := l.state(n)
		want = l.state(n)
		if ops := kernel.Diff(before, want, nil); len(ops) > 0 {
			return fmt.Errorf("%v", ops)
		}
		return nil
	})
	for name, breakIt := range map[string]func(bridge, tunnel netlink.Link) error{
		"tunnel deleted":           func(_, tunnel netlink.Link) error { return netlink.LinkDel(tunnel) },
		"tunnel out of the bridge": func(_, tunnel netlink.Link) error { return netlink.LinkSetNoMaster(tunnel) },
		"bridge deleted":           func(bridge, _ netlink.Link) error { return netlink.LinkDel(bridge) },
		"learning on":              func(_, tunnel netlink.Link) error { return netlink.LinkSetLearning(tunnel, true) },
	} {
		t.Run(name, func(t *testing.T) {
			err := n.Do(func() error {
				bridge, err := netlink.LinkByName(segment.Bridge(1001))
				if err != nil {
					return err
				}
				tunnel, err := netlink.LinkByName(segment.Tunnel(1001))
				if err != nil {
					return err
				}
				return breakIt(bridge, tunnel)
			})
			if err != nil {
				t.Fatal(err)
			}
			eventually(t, 10*time.Second, func() error {
				if ops := kernel.Diff(want, l.state(n), nil); len(ops) > 0 {
					return fmt.Errorf("%d operations, the first: %s", len(ops), ops[0])
				}
				return nil
			})
			l.reach(a, b)
			if err := a.Check(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestAddressAgain: a pod that gets the addresses of one that has just gone, on
// another node, is reached at once by those that knew that one.
func TestAddressAgain(t *testing.T) {
	l := newLab(t, 3)
	addrs := []netip.Addr{netip.MustParseAddr("192.168.21.77"), netip.MustParseAddr("fd00:21::77")}
	local, remote := l.attach(l.Node(1), "local", lending), l.attach(l.Node(2), "remote", lending)
	first := l.mustAsk(l.Node(1), "first", addrs...)
	reach := func(within time.Duration) {
		t.Helper()
		for _, from := range []*cluster.Pod{local, remote} {
			for _, ip := range addrs {
				ctx, cancel := context.WithTimeout(t.Context(), within)
				_, err := probe.Ping(ctx, from, ip)
				cancel()
				if err != nil {
					t.Errorf("%s to %s: %v", from.Name, ip, err)
				}
			}
		}
	}
	reach(reachTime)
	if err := first.Detach(t.Context()); err != nil {
		t.Fatal(err)
	}
	var again *cluster.Pod
	eventually(t, 20*time.Second, func() (err error) { // until its blocks are lent, and the other is forgotten
		again, err = l.ask(l.Node(3), "again", addrs...)
		return err
	})
	reach(3 * time.Second)
	if again.IPs()[0] != addrs[0] {
		t.Errorf("it has %v", again.IPs())
	}
}
