package wireguard_test

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/weft-cni/weft/pkg/encrypt"
	"github.com/weft-cni/weft/pkg/kernel/rtnl"
	"github.com/weft-cni/weft/test/cluster"
)

var errStillRunning = errors.New("replies still come")

// TestNothingLeaks does to a node what can happen to it, while its pod talks to
// those of others without pause, and looks at every packet on its underlay.
func TestNothingLeaks(t *testing.T) {
	l := newLab(t, cluster.Options{Nodes: 3})
	n, peer := l.Node(1), l.Node(2)
	for _, event := range []struct {
		name string
		do   func()
	}{
		{"daemon stopped and started", func() {
			if err := l.daemons[0].Terminate(within(t, 20*time.Second)); err != nil {
				t.Fatal(err)
			}
			l.daemons[0] = n.Weftd(t, strict, userspace)
		}},
		{"daemon killed", func() {
			l.daemons[0].Kill()
			l.daemons[0] = n.Weftd(t, strict, userspace)
		}},
		{"process killed", func() {
			l.processes[0].Kill()
			l.processes[0] = n.WireGuard(t, userspace)
		}},
		{"process and daemon killed", func() {
			l.processes[0].Kill()
			l.daemons[0].Kill()
			l.processes[0] = n.WireGuard(t, userspace)
			l.daemons[0] = n.Weftd(t, strict, userspace)
		}},
		{"device deleted", func() { deleteLink(t, n) }},
		{"rotation here", func() { l.rotate(n) }},
		{"rotation of a peer", func() { l.rotate(peer) }},
	} {
		t.Run(event.name, func(t *testing.T) {
			out, in := l.ping(0, 1), l.ping(1, 0)
			capture := l.capture(n)
			out.more(t, 50)
			event.do()
			out.more(t, 300)
			in.more(t, 300)
			for _, report := range append(out.stop(), in.stop()...) {
				t.Log(report)
			}
			sealed(t, capture)
		})
	}
	t.Run("peer without a key", func(t *testing.T) {
		out, back, fine := l.ping(0, 2), l.ping(2, 0), l.ping(0, 1)
		capture := l.capture(n)
		fine.more(t, 50)
		l.daemons[2].Kill()
		l.daemons[2] = l.Node(3).Weftd(t, "--encryption=none")
		settle(t, out)
		fine.more(t, 300)
		out.stop()
		back.stop()
		fine.stop()
		sealed(t, capture)
	})
	t.Run("the peer has one again", func(t *testing.T) {
		out := l.ping(0, 2)
		capture := l.capture(n)
		l.daemons[2].Kill()
		l.daemons[2] = l.Node(3).Weftd(t, strict, userspace)
		out.more(t, 50)
		out.stop()
		sealed(t, capture)
	})
	l.talk()
	l.keysStaySecret()
}

// TestLeaksAreSeen looks at a node without encryption: the test of leaks finds
// them, and so does the command.
func TestLeaksAreSeen(t *testing.T) {
	c := cluster.New(t, cluster.Options{Nodes: 2, Manifests: []string{manifests}})
	l := &lab{Cluster: c, t: t}
	for _, n := range l.Nodes() {
		n.Weftd(t)
		l.pods = append(l.pods, n.Attach(t, "pod-"+n.Name))
	}
	l.talk()
	running := l.ping(0, 1)
	capture := l.capture(l.Node(1))
	bin, err := cluster.BinDir()
	if err != nil {
		t.Fatal(err)
	}
	_, err = l.Node(1).Run(within(t, time.Minute), bin+"/weftd", "leak-test", "--duration=500ms")
	if err == nil || !strings.Contains(err.Error(), "packets of pods could be read") {
		t.Errorf("weftd leak-test: %v", err)
	}
	running.stop()
	report, err := capture.Stop()
	if err != nil {
		t.Fatal(err)
	}
	if report.Leaks() == 0 || report.Encrypted() > 0 {
		t.Errorf("of a cluster without encryption:\n%s", report)
	}
	_, err = l.Node(1).Run(within(t, time.Minute), bin+"/weftd", "leak-test", "--duration=100ms", "--pod-cidrs=198.51.100.0/24")
	if err != nil {
		t.Errorf("with other pods: %v", err)
	}
}

func deleteLink(t *testing.T, n *cluster.Node) {
	t.Helper()
	err := n.Do(func() error {
		link, err := netlink.LinkByName(encrypt.Link(0, 0))
		if err != nil {
			return err
		}
		return netlink.LinkDel(link)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestImplementation: the nodes of this test have no WireGuard in the kernel,
// or don't use it.
func TestImplementation(t *testing.T) {
	c := cluster.New(t, cluster.Options{Nodes: 1, NoAPI: true})
	has := false
	err := c.Node(1).Do(func() error {
		h, err := rtnl.Open()
		if err != nil {
			return err
		}
		defer h.Close()
		has, err = h.HasWireGuard()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	c.Node(1).WireGuard(t) // auto
	_, err = c.Node(1).ReadFile("/var/run/wireguard/" + encrypt.Link(0, 0) + ".sock")
	if gone := errors.Is(err, os.ErrNotExist); gone != has {
		t.Errorf("the kernel has WireGuard: %v; the process has no device: %v", has, gone)
	}
}
