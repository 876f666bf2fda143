package wireguard_test

import (
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/weft-cni/weft/pkg/encrypt"
	"github.com/weft-cni/weft/test/cluster"
)

// TestReplaced replaces the process, and the daemon, at both ends while pods
// send an echo each millisecond: none is lost, and nothing is to be read.
func TestReplaced(t *testing.T) {
	l := newLab(t, cluster.Options{Nodes: 2})
	capture := l.capture(l.Node(1))
	for i, n := range l.Nodes() {
		for what, replace := range map[string]func(){
			"process": func() {
				old := l.processes[i]
				l.processes[i] = n.WireGuard(t, userspace)
				old.Kill() // as kubelet does when the new one is ready
			},
			"daemon, killed": func() {
				l.daemons[i].Kill()
				l.daemons[i] = n.Weftd(t, strict, userspace)
			},
		} {
			running := l.ping(0, 1)
			running.more(t, 100)
			replace()
			running.more(t, 300)
			for family, report := range running.stop() {
				t.Logf("%s on %s, IPv%d: %s", what, n.Name, 4+2*family, report)
				if report.Lost() > 0 {
					t.Errorf("%s on %s, IPv%d: %s", what, n.Name, 4+2*family, report)
				}
			}
		}
	}
	sealed(t, capture)
	l.keysStaySecret()
}

// TestKilled kills the process. The link stays, nothing goes another way, and
// the daemon sets up the device that the next process takes.
func TestKilled(t *testing.T) {
	l := newLab(t, cluster.Options{Nodes: 2})
	n := l.Node(1)
	capture := l.capture(n)
	index := linkIndex(t, n)
	running := l.ping(0, 1)
	running.more(t, 100)
	l.processes[0].Kill()
	settle(t, running)
	started := time.Now()
	l.processes[0] = n.WireGuard(t, userspace)
	running.more(t, 100)
	t.Logf("traffic runs %s after the next process was started", time.Since(started).Round(time.Millisecond))
	running.stop()
	if got := linkIndex(t, n); got != index {
		t.Errorf("the link is another: index %d, and was %d", got, index)
	}
	l.talk()
	sealed(t, capture)
	l.keysStaySecret()
}

// settle waits until the streams have sent for a while without a reply.
func settle(t *testing.T, running pings) {
	t.Helper()
	before, since := -1, time.Now()
	eventually(t, 20*time.Second, func() error {
		if now := running[0].Received(); now != before {
			before, since = now, time.Now()
		}
		if time.Since(since) < 300*time.Millisecond {
			return errStillRunning
		}
		return nil
	})
}

func linkIndex(t *testing.T, n *cluster.Node) (index int) {
	t.Helper()
	err := n.Do(func() error {
		link, err := netlink.LinkByName(encrypt.Link(0, 0))
		if err == nil {
			index = link.Attrs().Index
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return index
}
