package segment_test

import (
	"errors"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/weft-cni/weft/test/cluster"
	"github.com/weft-cni/weft/test/probe"
)

// TestWhatCrosses counts the frames of a segment on the underlay of three nodes,
// of which the third has no pod there: what is sent to many, or to who knows
// whom, reaches the members' nodes and no other, and nobody asks over the
// underlay for a neighbour that is known.
func TestWhatCrosses(t *testing.T) {
	l := newLab(t, 3)
	conf := tenant(1001, "")
	a, b := l.attach(l.Node(1), "a", conf), l.attach(l.Node(2), "b", conf)
	others := []*cluster.Pod{l.attach(l.Node(1), "c", tenant(1002, "")), l.attach(l.Node(3), "d", tenant(1002, ""))}
	l.reach(a, b)
	l.reach(others[0], others[1])
	t.Run("to many", func(t *testing.T) { l.toMembersOnly(t, 1001, a, b) })
	t.Run("to many of the other", func(t *testing.T) { l.toMembersOnly(t, 1002, others[0], others[1]) })
	t.Run("who is", func(t *testing.T) { l.asksNoKnown(t, 1001, a, b) })
}

// nobody is an Ethernet address that no station has.
var nobody = [6]byte{2, 0, 0, 0, 0, 0x99}

// toMembersOnly sends frames from a, and counts them on all nodes: those of a
// and of b have each of them, the third has none.
func (l *lab) toMembersOnly(t *testing.T, vni uint32, a, b *cluster.Pod) {
	const times = 20
	from, to := l.wire(a, local), l.wire(b, local)
	tunnels := l.listen(t, vni)
	kinds := map[string][6]byte{
		"broadcast": everyone, "IPv4 multicast": {0x01, 0, 0x5e, 1, 2, 3}, "IPv6 multicast": {0x33, 0x33, 0, 1, 2, 3}, "unknown unicast": nobody,
	}
	for range times {
		for name, dst := range kinds {
			from.send(t, from.mac, dst, local, []byte(name))
		}
	}
	from.send(t, from.mac, to.mac, local, []byte("the last one"))
	eventually(t, reachTime, func() error {
		got := string(to.heard(t))
		if got == "unknown unicast" {
			t.Error("a pod hears what is for nobody")
		}
		if got != "the last one" {
			return errors.New("the last frame doesn't arrive")
		}
		return nil
	})
	for n, frames := range l.heardOn(t, tunnels) {
		count := map[string]int{}
		for _, f := range frames {
			if f.Type() == local {
				count[string(f[14:])]++
			}
		}
		for name := range kinds {
			want := times
			if n != a.Node && n != b.Node {
				want = 0
			}
			if count[name] != want {
				t.Errorf("%s: %d frames on the underlay of %s, want %d", name, count[name], n.Name, want)
			}
		}
		if n != a.Node && n != b.Node && len(frames) > 0 {
			t.Errorf("%d frames on the underlay of %s, which has no pod on segment %d", len(frames), n.Name, vni)
		}
	}
}

// asksNoKnown has pods look for each other, and for others that there aren't:
// requests for these cross the underlay, those for known ones never.
func (l *lab) asksNoKnown(t *testing.T, vni uint32, a, b *cluster.Pod) {
	absent := []netip.Addr{netip.MustParseAddr("192.168.7.250"), netip.MustParseAddr("fd00:7::ffff:ffff")}
	tunnels := l.listen(t, vni)
	for range 20 {
		for _, p := range []*cluster.Pod{a, b} {
			if err := p.Do(forgetNeighbours); err != nil {
				t.Fatal(err)
			}
		}
		l.reach(a, b)
		l.reach(b, a)
	}
	for _, addr := range absent {
		if _, err := probe.PingOnce(within(t, 300*time.Millisecond), a, addr); err == nil {
			t.Errorf("%s answers", addr)
		}
	}
	known := slices.Concat(a.IPs(), b.IPs())
	for n, frames := range l.heardOn(t, tunnels) {
		asked := map[netip.Addr]int{}
		for _, f := range frames {
			asked[f.Asks()]++
		}
		for _, addr := range known {
			if asked[addr] > 0 {
				t.Errorf("%d requests for %s, which is known, on the underlay of %s", asked[addr], addr, n.Name)
			}
		}
		for _, addr := range absent {
			if member := n == a.Node || n == b.Node; member != (asked[addr] > 0) {
				t.Errorf("%d requests for %s, which is unknown, on the underlay of %s", asked[addr], addr, n.Name)
			}
		}
	}
}

// listen listens to a segment's frames on the underlay of all nodes.
func (l *lab) listen(t *testing.T, vni uint32) map[*cluster.Node]*probe.Tunnel {
	t.Helper()
	tunnels := map[*cluster.Node]*probe.Tunnel{}
	for _, n := range l.Nodes() {
		tunnel, err := probe.ListenTunnel(n, cluster.NICName, vni)
		if err != nil {
			t.Fatal(err)
		}
		tunnels[n] = tunnel
	}
	return tunnels
}

// heardOn gives what listen has heard, once all nodes have what was sent.
func (l *lab) heardOn(t *testing.T, tunnels map[*cluster.Node]*probe.Tunnel) map[*cluster.Node][]probe.Frame {
	t.Helper()
	heard := map[*cluster.Node][]probe.Frame{}
	for n, tunnel := range tunnels {
		for _, from := range l.Nodes() { // behind all that went before
			if from != n {
				if _, err := probe.Ping(within(t, reachTime), from, n.Underlay()[0]); err != nil {
					t.Fatal(err)
				}
			}
		}
		frames, err := tunnel.Frames()
		if err != nil {
			t.Fatal(err)
		}
		heard[n] = frames
	}
	return heard
}
