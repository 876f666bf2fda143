// Package segment_test runs real daemons and the real plugin on tenants'
// networks: a real API server, three nodes, pods of several tenants.
package segment_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	weft "github.com/weft-cni/weft/pkg/client/versioned/typed/api/v1alpha1"
	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/kernel/rtnl"
	"github.com/weft-cni/weft/pkg/segment"
	"github.com/weft-cni/weft/test/cluster"
	"github.com/weft-cni/weft/test/probe"
)

const manifests = "../../manifests/base"

func TestMain(m *testing.M) { cluster.Main(m) }

// lab is a cluster with a daemon on each node.
type lab struct {
	*cluster.Cluster
	t       *testing.T
	api     weft.WeftV1alpha1Interface
	daemons []*cluster.Weftd
}

func newLab(t *testing.T, nodes int) *lab {
	t.Helper()
	l := &lab{t: t, Cluster: cluster.New(t, cluster.Options{Nodes: nodes, Manifests: []string{manifests}, GarbageCollector: true})}
	t.Cleanup(func() {
		if t.Failed() {
			for _, n := range l.Nodes() {
				t.Logf("%s:\n%s", n.Name, l.state(n))
			}
		}
	})
	var err error
	if l.api, err = weft.NewForConfig(l.API.Config); err != nil {
		t.Fatal(err)
	}
	for _, n := range l.Nodes() {
		l.daemons = append(l.daemons, n.Weftd(t))
	}
	return l
}

// tenant is a network of ModeOverlay with both families: all tenants have the
// same ranges.
func tenant(vni uint32, more string) []byte {
	return fmt.Appendf(nil, `{"cniVersion":"1.1.0","name":"tenant%d","plugins":[{"type":"weft","mode":"overlay","vni":%d%s,
		"ipam":{"type":"weft","ranges":[{"subnet":"192.168.7.0/24","gateway":"192.168.7.1"},{"subnet":"fd00:7::/64"}]}}]}`, vni, vni, more)
}

// attach attaches a new pod to a network of this configuration list.
func (l *lab) attach(n *cluster.Node, name string, conf []byte) *cluster.Pod {
	l.t.Helper()
	p, err := n.AttachPod(within(l.t, 30*time.Second), name, cluster.PodOptions{ConfList: conf, IfName: "net1", NoRetry: true})
	if err != nil {
		l.t.Fatal(err)
	}
	return p
}

// reach waits until a hears b in either family.
func (l *lab) reach(a, b *cluster.Pod) {
	l.t.Helper()
	for _, family := range []int{4, 6} {
		if _, err := probe.Ping(within(l.t, 10*time.Second), a, b.IP(family)); err != nil {
			l.t.Fatalf("%s on %s to %s on %s: %v", a.Name, a.Node.Name, b.Name, b.Node.Name, err)
		}
	}
}

// state is what a node's kernel holds of segments.
func (l *lab) state(n *cluster.Node) (s kernel.State) {
	l.t.Helper()
	eventually(l.t, 5*time.Second, func() error { // devices that come and go meanwhile are an error
		return n.Do(func() error {
			h, err := rtnl.Open()
			if err != nil {
				return err
			}
			defer h.Close()
			s, err = h.Read(rtnl.Names(segment.Names))
			return err
		})
	})
	for k := range s {
		if k.Kind == kernel.KindRoute && !kernel.OfGateway(k.FIB) {
			delete(s, k) // the cluster network's
		}
	}
	return s
}

// empty waits until nothing of any segment is left, on nodes and in the API: also
// of what an ADD asked for that failed after that.
func (l *lab) empty() {
	l.t.Helper()
	eventually(l.t, forgetTime+20*time.Second, func() error {
		for _, n := range l.Nodes() {
			if s := l.state(n); len(s) > 0 {
				return fmt.Errorf("%s has:\n%s", n.Name, s)
			}
		}
		return l.noObjects()
	})
}

func (l *lab) noObjects() error {
	members, err := l.api.SegmentMembers().List(l.t.Context(), metav1.ListOptions{})
	if err != nil {
		return err
	}
	blocks, err := l.api.IPBlocks().List(l.t.Context(), metav1.ListOptions{})
	if err != nil {
		return err
	}
	if m, b := len(members.Items), len(blocks.Items); m+b > 0 {
		return fmt.Errorf("the API has %d members and %d blocks", m, b)
	}
	return nil
}

func within(t testing.TB, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// eventually waits until check gives no error, for at most d.
func eventually(t testing.TB, d time.Duration, check func() error) {
	t.Helper()
	deadline := time.Now().Add(d)
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after %v: %v", d, err)
		}
		<-ticker.C
	}
}

// local is an EtherType for experiments (IEEE 802, 0x88b5): no IP, no ARP.
const local = 0x88b5

var everyone = [6]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// wire is a pod's interface for raw frames of one EtherType.
type wire struct {
	fd, index int
	mac       [6]byte
}

func (l *lab) wire(p *cluster.Pod, etherType uint16) *wire {
	l.t.Helper()
	w := &wire{}
	err := p.Do(func() error {
		link, err := netlink.LinkByName("net1")
		if err != nil {
			return err
		}
		w.index = link.Attrs().Index
		copy(w.mac[:], link.Attrs().HardwareAddr)
		if w.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(swap(etherType))); err != nil {
			return err
		}
		if err := unix.Bind(w.fd, &unix.SockaddrLinklayer{Protocol: swap(etherType), Ifindex: w.index}); err != nil {
			return err
		}
		return unix.SetsockoptTimeval(w.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 20_000})
	})
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { unix.Close(w.fd) })
	return w
}

func swap(v uint16) uint16 { return v<<8 | v>>8 }

func (w *wire) send(t testing.TB, src, dst [6]byte, etherType uint16, payload []byte) {
	t.Helper()
	frame := slices.Concat(dst[:], src[:], binary.BigEndian.AppendUint16(nil, etherType), payload)
	if err := unix.Sendto(w.fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: w.index, Halen: 6}); err != nil {
		t.Fatal(err)
	}
}

// heard gives the next frame's payload, nil where none comes for a while.
func (w *wire) heard(t testing.TB) []byte {
	t.Helper()
	buf := make([]byte, 2048)
	n, _, err := unix.Recvfrom(w.fd, buf, 0)
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	return buf[14:n]
}

// hears waits for a frame that begins with text.
func (w *wire) hears(t testing.TB, text string) {
	t.Helper()
	eventually(t, 5*time.Second, func() error {
		if got := w.heard(t); !strings.HasPrefix(string(got), text) {
			return fmt.Errorf("heard %q, not %q", got, text)
		}
		return nil
	})
}

// arp is an ARP packet for IPv4 over Ethernet.
func arp(op uint16, sender [6]byte, senderIP netip.Addr, target [6]byte, targetIP netip.Addr) []byte {
	b := []byte{0, 1, 8, 0, 6, 4, 0, byte(op)}
	s, t := senderIP.As4(), targetIP.As4()
	return slices.Concat(b, sender[:], s[:], target[:], t[:])
}
