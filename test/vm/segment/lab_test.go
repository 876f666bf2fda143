//go:build vm

// Package segment_test has segments of the encapsulations that a test machine's
// kernel may not have, on nodes that are namespaces. The test is what the daemon
// is there: it plans, reads, compares and applies.
package segment_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/kernel/rtnl"
	"github.com/weft-cni/weft/pkg/netconf"
	"github.com/weft-cni/weft/pkg/overlay"
	"github.com/weft-cni/weft/pkg/segment"
	"github.com/weft-cni/weft/test/cluster"
	"github.com/weft-cni/weft/test/probe"
	"github.com/weft-cni/weft/test/testns"
)

func TestMain(m *testing.M) { cluster.Main(m) }

// vni is a VSID that tenants can have.
const vni = 10001

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// node is a node with what its daemon would know, and a pod.
type node struct {
	*cluster.Node
	self overlay.Self
	pod  *testns.NS
	port segment.Port
	// ports are all that the node has, port mostly; planned is what it holds.
	ports   []segment.Port
	planned kernel.State
}

// newNodes makes nodes with a pod each. Their tunnels are over the underlay's
// IPv6 where six is true.
func newNodes(t *testing.T, count int, six bool) (all []*node) {
	t.Helper()
	c := cluster.New(t, cluster.Options{Nodes: count, NoAPI: true})
	for i := range count {
		n := &node{Node: c.Node(i + 1), pod: testns.New(t)}
		n.self = overlay.Self{Name: n.Name}
		for _, p := range n.DefaultNIC().Addrs {
			if p.Addr().Is6() == six {
				n.self.Underlay = append(n.self.Underlay, overlay.Underlay{Addr: p.Addr(), Link: cluster.NICName, Subnet: p.Masked(), MTU: 1500})
			}
		}
		last := byte(i + 1)
		n.port = segment.Port{HostLink: "weft0", Endpoint: segment.Endpoint{
			MAC: kernel.MAC{2, 0, 0, 0, 0, last},
			IPs: []netip.Addr{netip.AddrFrom4([4]byte{192, 168, 7, last}), netip.AddrFrom16([16]byte{0xfd, 0, 0, 7, 15: last})},
		}}
		n.ports = []segment.Port{n.port}
		all = append(all, n)
	}
	return all
}

// attach makes a node's pod an interface.
func (n *node) attach(t *testing.T, mtu int) {
	t.Helper()
	must(t, n.Do(func() error {
		pair := netlink.NewVeth(netlink.LinkAttrs{Name: n.port.HostLink, MTU: mtu})
		pair.PeerName, pair.PeerNamespace, pair.PeerHardwareAddr = "net1", netlink.NsFd(n.pod.Fd()), n.port.MAC.HardwareAddr()
		pair.PeerMTU = uint32(mtu)
		if err := netlink.LinkAdd(pair); err != nil {
			return err
		}
		return netlink.LinkSetUp(pair)
	}))
	link, err := n.pod.Handle.LinkByName("net1")
	must(t, err)
	for i, ip := range n.port.IPs {
		addr := &netlink.Addr{IPNet: &net.IPNet{IP: ip.AsSlice(), Mask: net.CIDRMask([]int{24, 64}[i], ip.BitLen())}, Flags: unix.IFA_F_NODAD}
		must(t, n.pod.Handle.AddrAdd(link, addr))
	}
	must(t, n.pod.Handle.LinkSetUp(link))
}

// member is the node as others see it.
func (n *node) member(tunnels netconf.Tunnels) segment.Member {
	return segment.Member{
		Peer:    overlay.Peer{Name: n.Name, Underlay: []netip.Addr{n.self.Underlay[0].Addr}, Port: 4789},
		Tunnels: tunnels, Endpoints: []segment.Endpoint{n.port.Endpoint},
	}
}

// plan is what a node should hold with these members.
func (n *node) plan(t *testing.T, tunnels netconf.Tunnels, members ...segment.Member) kernel.State {
	t.Helper()
	s, err := segment.Plan(overlay.Config{VNI: 1, Port: 4789}, n.self, segment.Segment{
		VNI: vni, Tunnels: tunnels, Members: members, Ports: n.ports,
	})
	must(t, err)
	s.Merge(segment.PlanTable())
	return s
}

// read is what a node holds of segments, but for what frames made.
func (n *node) read(h *rtnl.Handle) (kernel.State, error) {
	have, err := h.Read(rtnl.Names(segment.Names))
	if err != nil {
		return nil, err
	}
	keys := kernel.Keys{}
	for _, p := range n.ports {
		for k := range segment.PlanPort(vni, p) {
			if k.Kind == kernel.KindPort || k.Kind == kernel.KindStation {
				keys.Add(k)
			}
		}
	}
	ports, err := h.ReadKeys(keys)
	have.Merge(ports)
	maps.DeleteFunc(have, func(k kernel.Key, o kernel.Object) bool {
		station, _ := o.(kernel.Station)
		neigh, _ := o.(kernel.Neigh)
		return k.Kind == kernel.KindRoute || station.Detail+neigh.Detail != ""
	})
	return have, err
}

// with runs f with a handle on the node's kernel.
func (n *node) with(t *testing.T, f func(h *rtnl.Handle) error) {
	t.Helper()
	must(t, n.Do(func() error {
		h, err := rtnl.Open()
		if err != nil {
			return err
		}
		defer h.Close()
		return f(h)
	}))
}

// sync is one pass, which leaves nothing to do for a second one. It gives the
// number of operations.
func (n *node) sync(t *testing.T, want kernel.State) (count int) {
	t.Helper()
	n.with(t, func(h *rtnl.Handle) error {
		have, err := n.read(h)
		if err != nil {
			return err
		}
		ops := kernel.Diff(want, have, nil)
		for _, failed := range h.Apply(ops) {
			return failed
		}
		count = len(ops)
		if have, err = n.read(h); err != nil {
			return err
		}
		if d := cmp.Diff(want.String(), have.String()); d != "" {
			return fmt.Errorf("the kernel differs from the plan (-want +have):\n%s", d)
		}
		if again := kernel.Diff(want, have, nil); len(again) > 0 {
			return fmt.Errorf("a second pass has %d operations, the first: %s", len(again), again[0])
		}
		for k := range want { // each by itself as well
			one, err := h.ReadKeys(kernel.Keys{k: {}})
			if err != nil {
				return err
			}
			if one[k] != want[k] {
				return fmt.Errorf("read by its key: %v, not %v", one[k], want[k])
			}
		}
		return nil
	})
	return count
}

// together has nodes with these tunnels be members of the segment, and gives
// their plans.
func together(t *testing.T, nodes []*node, tunnels netconf.Tunnels) (plans []kernel.State) {
	t.Helper()
	for _, n := range nodes {
		var others []segment.Member
		for _, o := range nodes {
			if o != n {
				others = append(others, o.member(tunnels))
			}
		}
		mtu, err := segment.MTU(n.self, tunnels)
		must(t, err)
		n.attach(t, mtu)
		plans = append(plans, n.plan(t, tunnels, others...))
		n.sync(t, plans[len(plans)-1])
	}
	return plans
}

// reach waits until each pod has heard each other in both families.
func reach(t *testing.T, nodes []*node) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for _, a := range nodes {
		for _, b := range nodes {
			for _, ip := range b.port.IPs {
				if _, err := probe.Ping(ctx, a.pod, ip); a != b && err != nil {
					t.Fatalf("the pod of %s to that of %s: %v", a.Name, b.Name, err)
				}
			}
		}
	}
}

// local is an EtherType for experiments (IEEE 802, 0x88b5): no IP, no ARP.
const local = 0x88b5

var everyone = kernel.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// wire sends and hears frames of one EtherType on a link, and what others send
// from there where it is to hear all.
type wire struct{ fd, index int }

func listen(t *testing.T, at probe.Place, link string, protocol uint16) *wire {
	t.Helper()
	w := &wire{}
	must(t, at.Do(func() error {
		l, err := netlink.LinkByName(link)
		if err != nil {
			return err
		}
		w.index = l.Attrs().Index
		if w.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(swap(protocol))); err != nil {
			return err
		}
		return unix.Bind(w.fd, &unix.SockaddrLinklayer{Protocol: swap(protocol), Ifindex: w.index})
	}))
	t.Cleanup(func() { unix.Close(w.fd) })
	return w
}

func swap(v uint16) uint16 { return v<<8 | v>>8 }

func (w *wire) send(t *testing.T, src, dst kernel.MAC, payload []byte) {
	t.Helper()
	frame := slices.Concat(dst[:], src[:], binary.BigEndian.AppendUint16(nil, local), payload)
	must(t, unix.Sendto(w.fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: w.index, Halen: 6}))
}

// next is the payload of the next frame of EtherType local that is there
// already, nil where there is none.
func (w *wire) next(t *testing.T) []byte {
	t.Helper()
	buf := make([]byte, 4096)
	for {
		n, _, err := unix.Recvfrom(w.fd, buf, 0)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return nil
		case errors.Is(err, unix.EINTR):
		case err != nil:
			t.Fatal(err)
		case n >= 14 && binary.BigEndian.Uint16(buf[12:]) == local:
			return buf[14:n]
		}
	}
}

// hears waits for a frame with this payload; all others are an error.
func (w *wire) hears(t *testing.T, payload []byte) {
	t.Helper()
	wait(t, func() error {
		got := w.next(t)
		if got == nil {
			return fmt.Errorf("heard nothing of %.40q", payload)
		}
		if !bytes.Equal(got, payload) {
			t.Fatalf("heard %.40q (%d bytes), not %.40q (%d)", got, len(got), payload, len(payload))
		}
		return nil
	})
}

// wait waits until check gives no error.
func wait(t *testing.T, check func() error) {
	t.Helper()
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	for deadline := time.Now().Add(30 * time.Second); ; <-ticker.C {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

// fragments is how many outer packets a node has cut into pieces.
func (n *node) fragments(t *testing.T) (found []string) {
	t.Helper()
	must(t, n.Do(func() error {
		four, err := os.ReadFile("/proc/thread-self/net/snmp")
		if err != nil {
			return err
		}
		fields := regexp.MustCompile(`(?m)^Ip: (.*)$`).FindAllSubmatch(four, 2)
		names, values := regexp.MustCompile(`\S+`).FindAll(fields[0][1], -1), regexp.MustCompile(`\S+`).FindAll(fields[1][1], -1)
		for i, name := range names {
			if string(name) == "FragCreates" && string(values[i]) != "0" {
				found = append(found, "IPv4: "+string(values[i]))
			}
		}
		six, err := os.ReadFile("/proc/thread-self/net/snmp6")
		if m := regexp.MustCompile(`Ip6FragCreates\s+([1-9]\d*)`).FindSubmatch(six); m != nil {
			found = append(found, "IPv6: "+string(m[1]))
		}
		return err
	}))
	return found
}
