package segment_test

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weft-cni/weft/pkg/encrypt"
	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/kernel/rtnl"
	"github.com/weft-cni/weft/pkg/leak"
	"github.com/weft-cni/weft/pkg/overlay"
	"github.com/weft-cni/weft/test/cluster"
)

// sealed is a tenant whose segment is encrypted.
const sealed = `,"encrypt":true`

// newSealedLab is a lab whose nodes have WireGuard.
func newSealedLab(t *testing.T, nodes int) *lab {
	t.Helper()
	l := newLab(t, nodes)
	for _, n := range l.Nodes() {
		n.WireGuard(t)
	}
	return l
}

// TestEncryptedSegment: pods on an encrypted segment reach each other while the
// cluster network is in clear; of what they send, the underlay sees WireGuard's
// packets alone, whatever somebody breaks; the last pod takes all of it along.
func TestEncryptedSegment(t *testing.T) {
	l := newSealedLab(t, 2)
	conf := tenant(1001, sealed)
	a, b := l.attach(l.Node(1), "a", conf), l.attach(l.Node(2), "b", conf)
	open := []*cluster.Pod{l.attach(l.Node(1), "c", tenant(1002, "")), l.attach(l.Node(2), "d", tenant(1002, ""))}
	watch := l.tap(l.Node(1))
	l.reach(a, b)
	from, to := l.wire(a, local), l.wire(b, local)
	from.send(t, from.mac, everyone, local, secretText)
	to.hears(t, string(secretText))
	for _, p := range []*cluster.Pod{a, b} {
		if err := p.Check(t.Context()); err != nil {
			t.Error(err)
		}
		if want := 1500 - 60 - 70; l.mtu(p) != want {
			t.Errorf("%s has an MTU of %d, not %d", p.Name, l.mtu(p), want)
		}
	}
	l.full(a, b)
	t.Run("the API tells", func(t *testing.T) { l.toldSealed(t) })
	t.Run("drift", func(t *testing.T) { l.breakSealed(t, a, b) })
	t.Run("daemon", func(t *testing.T) {
		lossless(t, a, b, func() {
			l.daemons[0].Kill()
			l.daemons[0] = l.Node(1).Weftd(t)
		})
	})
	t.Run("rotation", func(t *testing.T) { l.rotated(t, a, b) })
	watch.silent(t)
	t.Run("from outside", func(t *testing.T) { l.notTaken(t, a) })
	inClear := l.tap(l.Node(1)) // the same on a segment that isn't encrypted
	l.reach(open[0], open[1])
	if err := inClear.loud(); err != nil {
		t.Error(err)
	}
	for _, p := range append(open, a, b) {
		if err := p.Detach(t.Context()); err != nil {
			t.Error(err)
		}
	}
	l.empty()
	eventually(t, 20*time.Second, func() error {
		for _, n := range l.Nodes() {
			if s := l.cluster(n).String(); strings.Contains(s, encrypt.SegmentTable) || strings.Contains(s, overlay.InnerPrefix.String()) ||
				strings.Contains(s, "peer ") {
				return fmt.Errorf("%s has:\n%s", n.Name, s)
			}
			v, err := l.api.VTEPs().Get(t.Context(), n.Name, metav1.GetOptions{})
			if err != nil || v.Spec.WireGuard != nil {
				return fmt.Errorf("VTEP %s has keys: %w", n.Name, err)
			}
		}
		return nil
	})
}

// secretText is what must not be read on the underlay.
var secretText = []byte("for nobody but the members of the segment")

// tap looks at what a node's underlay carries.
type tap struct {
	*leak.Capture
	fd int // for whole frames
}

func (l *lab) tap(n *cluster.Node) *tap {
	l.t.Helper()
	w := &tap{}
	err := n.Do(func() (err error) {
		nic, err := netlink.LinkByName(cluster.NICName)
		if err != nil {
			return err
		}
		if w.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(swap(unix.ETH_P_ALL))); err != nil {
			return err
		}
		if err = unix.Bind(w.fd, &unix.SockaddrLinklayer{Protocol: swap(unix.ETH_P_ALL), Ifindex: nic.Attrs().Index}); err != nil {
			return err
		}
		if err = unix.SetsockoptInt(w.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20); err != nil {
			return err
		}
		w.Capture, err = leak.Start(&leak.Net{
			Pods:           []netip.Prefix{netip.MustParsePrefix("192.168.7.0/24"), netip.MustParsePrefix("fd00:7::/64"), overlay.InnerPrefix},
			WireGuardPorts: []uint16{51820, 51821, 51822, 51823},
		}, cluster.NICName)
		return err
	})
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { unix.Close(w.fd) })
	return w
}

// silent ends the tap: it has seen WireGuard, and nothing of the segment.
func (w *tap) silent(t *testing.T) {
	t.Helper()
	report, err := w.Stop()
	if err != nil || report.Leaks() > 0 || report.Encrypted() == 0 {
		t.Errorf("%v\n%s", err, report)
	}
	buf := make([]byte, 65536)
	for {
		n, _, err := unix.Recvfrom(w.fd, buf, 0)
		if errors.Is(err, unix.EAGAIN) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(buf[:n], secretText) {
			t.Fatalf("in clear: % x", buf[:n])
		}
	}
}

// loud ends the tap: it has seen a segment's packets.
func (w *tap) loud() error {
	report, err := w.Stop()
	if err == nil && report.Leaks() == 0 {
		err = fmt.Errorf("nothing in clear was seen:\n%s", report)
	}
	return err
}

// mtu is that of a pod's interface.
func (l *lab) mtu(p *cluster.Pod) (mtu int) {
	l.t.Helper()
	err := p.Do(func() error {
		link, err := netlink.LinkByName("net1")
		if err == nil {
			mtu = link.Attrs().MTU
		}
		return err
	})
	if err != nil {
		l.t.Fatal(err)
	}
	return mtu
}

// full sends a frame as large as the segment takes.
func (l *lab) full(a, b *cluster.Pod) {
	l.t.Helper()
	from, to := l.wire(a, local), l.wire(b, local)
	frame := append(bytes.Clone(secretText), make([]byte, l.mtu(a)-len(secretText))...)
	eventually(l.t, reachTime, func() error {
		from.send(l.t, from.mac, to.mac, local, frame)
		if got := to.heard(l.t); len(got) != len(frame) {
			return fmt.Errorf("heard %d bytes of %d", len(got), len(frame))
		}
		return nil
	})
}

// toldSealed: objects say that nodes have keys for segments alone, and that the
// segment is encrypted.
func (l *lab) toldSealed(t *testing.T) {
	for _, n := range l.Nodes() {
		v, err := l.api.VTEPs().Get(t.Context(), n.Name, metav1.GetOptions{})
		if err != nil || v.Spec.WireGuard == nil || v.Spec.WireGuard.Mode != "none" {
			t.Errorf("VTEP %s: %+v, %v", n.Name, v.Spec.WireGuard, err)
		}
		m, err := l.api.SegmentMembers().Get(t.Context(), "1001."+n.Name, metav1.GetOptions{})
		if err != nil || m.Spec.Tunnels == nil || !m.Spec.Tunnels.Encrypt {
			t.Errorf("member on %s: %+v, %v", n.Name, m, err)
		}
	}
	// A member in clear isn't one of the segment.
	_, err := l.Node(2).AttachPod(within(t, 30*time.Second), "mixed", cluster.PodOptions{ConfList: tenant(1001, ""), IfName: "net1", NoRetry: true})
	if err == nil || !strings.Contains(err.Error(), "encrypt") {
		t.Errorf("a pod of the same VNI without encryption: %v", err)
	}
}

// cluster is what a node's kernel holds of the cluster network and of WireGuard.
func (l *lab) cluster(n *cluster.Node) (s kernel.State) {
	l.t.Helper()
	eventually(l.t, 2*time.Second, func() (err error) {
		s, err = n.Kernel(rtnl.Names(encrypt.Names))
		return err
	})
	return s
}

// breakSealed takes away what the segment's tunnels stand on while the daemon is
// away: nothing gets through, and nothing leaves in clear, as the tap will have
// seen. The daemon mends it.
func (l *lab) breakSealed(t *testing.T, a, b *cluster.Pod) {
	inner := overlay.InnerAddr(l.Node(2).Name)
	host := &net.IPNet{IP: inner.AsSlice(), Mask: net.CIDRMask(128, 128)}
	clearWay := func(nic netlink.Link) *netlink.Route {
		return &netlink.Route{LinkIndex: nic.Attrs().Index, Dst: host, Priority: 1}
	}
	nothing := func(_, _ netlink.Link) error { return nil }
	for _, c := range []struct {
		name          string
		breakIt, mend func(device, nic netlink.Link) error
	}{
		{"no route to the peer", func(device, _ netlink.Link) error {
			return netlink.RouteDel(&netlink.Route{LinkIndex: device.Attrs().Index, Dst: host})
		}, nothing},
		{"the device is down", func(device, _ netlink.Link) error { return netlink.LinkSetDown(device) }, nothing},
		{"another way, in clear", func(_, nic netlink.Link) error {
			return errors.Join(netlink.RouteAdd(clearWay(nic)), netlink.NeighSet(&netlink.Neigh{
				LinkIndex: nic.Attrs().Index, IP: inner.AsSlice(), State: netlink.NUD_PERMANENT, HardwareAddr: nic.Attrs().HardwareAddr,
			}))
		}, func(_, nic netlink.Link) error { return netlink.RouteDel(clearWay(nic)) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			l.daemons[0].Kill()
			l.onLinks(c.breakIt)
			from, to := l.wire(a, local), l.wire(b, local)
			for range 5 {
				from.send(t, from.mac, to.mac, local, secretText)
				if got := to.heard(t); got != nil {
					t.Fatalf("heard %q", got)
				}
			}
			l.onLinks(c.mend)
			l.daemons[0] = l.Node(1).Weftd(t)
			l.reach(a, b)
		})
	}
}

// onLinks does something with node 1's WireGuard device and its NIC.
func (l *lab) onLinks(do func(device, nic netlink.Link) error) {
	l.t.Helper()
	err := l.Node(1).Do(func() error {
		device, err := netlink.LinkByName(encrypt.Link(0, 0))
		if err != nil {
			return err
		}
		nic, err := netlink.LinkByName(cluster.NICName)
		if err != nil {
			return err
		}
		return do(device, nic)
	})
	if err != nil {
		l.t.Fatal(err)
	}
}

// notTaken: VXLAN packets that come from outside of WireGuard don't get into the
// segment. With the table taken away they do, so it is the table that keeps them.
func (l *lab) notTaken(t *testing.T, p *cluster.Pod) {
	w, n := l.wire(p, local), p.Node
	inject := func() {
		frame := slices.Concat(everyone[:], []byte{2, 0, 0, 0, 0, 0x77, local >> 8, local & 0xff}, []byte("intruder"), make([]byte, 46))
		packet := slices.Concat([]byte{0x08, 0, 0, 0, 0, 1001 >> 8, 1001 & 0xff, 0}, frame)
		for _, at := range n.Underlay() {
			c, err := l.Node(2).Dial(t.Context(), "udp", netip.AddrPortFrom(at, overlay.InnerPort(51820)).String())
			if err != nil {
				t.Fatal(err)
			}
			_, _ = c.Write(packet) // the answer to the one before may be that nobody listens
			_ = c.Close()
		}
	}
	inject()
	if got := w.heard(t); got != nil {
		t.Errorf("heard %q", got)
	}
	l.daemons[0].Kill()
	err := n.Do(func() error {
		c := &nftables.Conn{}
		_, name, _ := strings.Cut(encrypt.SegmentTable, " ")
		c.DelTable(&nftables.Table{Family: nftables.TableFamilyIPv6, Name: name})
		return c.Flush()
	})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, 5*time.Second, func() error {
		inject()
		if got := w.heard(t); !strings.HasPrefix(string(got), "intruder") {
			return fmt.Errorf("heard %q without the table", got)
		}
		return nil
	})
	l.daemons[0] = l.Node(1).Weftd(t)
	eventually(t, 10*time.Second, func() error {
		if !strings.Contains(l.cluster(n).String(), encrypt.SegmentTable) {
			return errors.New("the table is not there again")
		}
		return nil
	})
}

// rotated replaces a node's key: the segment's packets take the tunnel of the new
// one, and none is lost.
func (l *lab) rotated(t *testing.T, a, b *cluster.Pod) {
	lossless(t, a, b, func() {
		patch := fmt.Appendf(nil, `{"metadata":{"annotations":{"weft.dev/rotate-keys-before":%q}}}`, time.Now().UTC().Format(time.RFC3339))
		eventually(t, 10*time.Second, func() error {
			_, err := l.api.VTEPs().Patch(t.Context(), l.Node(1).Name, types.MergePatchType, patch, metav1.PatchOptions{})
			return err
		})
		want := kernel.Route{Link: encrypt.Link(1, 0), Dst: netip.PrefixFrom(overlay.InnerAddr(l.Node(2).Name), 128)}
		eventually(t, 20*time.Second, func() error {
			if _, there := l.cluster(l.Node(1))[want.Key()]; !there {
				return errors.New("packets don't take the new key's device")
			}
			return nil
		})
	})
}

// TestNoWireGuard: on a node without WireGuard an encrypted segment can't be had,
// the message says why, and the cluster network doesn't mind.
func TestNoWireGuard(t *testing.T) {
	const userspace = "--wireguard-implementation=userspace" // also where the kernel has it
	l := newLab(t, 1)
	l.daemons[0].Kill()
	l.daemons[0] = l.Node(1).Weftd(t, userspace)
	conf := tenant(1001, sealed)
	_, err := l.Node(1).AttachPod(within(t, 30*time.Second), "a", cluster.PodOptions{ConfList: conf, IfName: "net1", NoRetry: true})
	if err == nil || !strings.Contains(err.Error(), "encrypt") || !strings.Contains(err.Error(), encrypt.Link(0, 0)) {
		t.Fatalf("ADD: %v", err)
	}
	if _, err = l.daemons[0].Get(within(t, 5*time.Second), "/readyz"); err != nil {
		t.Errorf("the node isn't ready: %v", err)
	}
	l.Node(1).Attach(t, "cluster")
	l.Node(1).WireGuard(t, userspace)
	eventually(t, 20*time.Second, func() error {
		_, err := l.Node(1).AttachPod(t.Context(), "b", cluster.PodOptions{ConfList: conf, IfName: "net1", NoRetry: true})
		return err
	})
}

// TestEncryptedSegmentAlways: an encrypted segment spans nodes whatever each of
// them does with the cluster network, of which it is no part.
func TestEncryptedSegmentAlways(t *testing.T) {
	l := newSealedLab(t, 2)
	conf := tenant(1001, sealed)
	a, b := l.attach(l.Node(1), "a", conf), l.attach(l.Node(2), "b", conf)
	c, d := l.Node(1).Attach(t, "c"), l.Node(2).Attach(t, "d")
	for _, modes := range [][2]string{{"wireguard", "none"}, {"permissive", "none"}, {"wireguard", "permissive"}, {"wireguard", "wireguard"}} {
		t.Run(modes[0]+" and "+modes[1], func(t *testing.T) {
			for i, mode := range modes {
				l.daemons[i].Kill()
				l.daemons[i] = l.Node(i+1).Weftd(t, "--encryption="+mode)
			}
			l.reach(a, b)
			eventually(t, 20*time.Second, func() error { // once each has heard of the other
				v, err := l.api.VTEPs().Get(t.Context(), l.Node(2).Name, metav1.GetOptions{})
				if err == nil && v.Spec.WireGuard.Mode != modes[1] {
					err = fmt.Errorf("n2 is told to be %s", v.Spec.WireGuard.Mode)
				}
				return err
			})
			l.reach(a, b)
			if modes[1] != "none" || modes[0] != "wireguard" {
				l.reach(c, d)
			}
		})
	}
}
