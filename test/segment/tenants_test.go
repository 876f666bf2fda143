package segment_test

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weft-cni/weft/pkg/segment"
	"github.com/weft-cni/weft/test/cluster"
)

// TestTenants: two tenants with the same ranges on three nodes. Each reaches its
// own, with IPv4, IPv6 and a protocol that is neither; none hears another's
// frames; nothing is left at the end.
func TestTenants(t *testing.T) {
	l := newLab(t, 3)
	red, blue := map[int]*cluster.Pod{}, map[int]*cluster.Pod{}
	for i := 1; i <= 3; i++ {
		red[i] = l.attach(l.Node(i), fmt.Sprint("red", i), tenant(1001, ""))
		blue[i] = l.attach(l.Node(i), fmt.Sprint("blue", i), tenant(1002, ""))
	}
	seen := map[netip.Addr]string{}
	for i, p := range red {
		for _, ip := range p.IPs() {
			if other, twice := seen[ip]; twice {
				t.Fatalf("%s and %s have %s", other, p.Name, ip)
			}
			seen[ip] = p.Name
		}
		if err := p.Check(t.Context()); err != nil {
			t.Errorf("%d: %v", i, err)
		}
	}
	for _, pods := range []map[int]*cluster.Pod{red, blue} {
		for i := 1; i <= 3; i++ {
			l.reach(pods[i], pods[i%3+1])
		}
	}
	t.Run("raw frames", func(t *testing.T) { noFrameCrosses(t, l, red, blue) })
	t.Run("spoofing", func(t *testing.T) { spoofed(t, l, red) })
	t.Run("no way to the node", func(t *testing.T) { noWayOut(t, l, red[1]) })
	t.Run("ARP stays at home", func(t *testing.T) { suppressed(t, l, red) })
	for i := 1; i <= 3; i++ {
		for _, p := range []*cluster.Pod{red[i], blue[i]} {
			if err := p.Detach(t.Context()); err != nil {
				t.Error(err)
			}
		}
	}
	l.empty()
}

// noFrameCrosses sends broadcasts of one tenant and waits until its own have
// them: the other's pods have heard nothing by then, or after it.
func noFrameCrosses(t *testing.T, l *lab, red, blue map[int]*cluster.Pod) {
	from := l.wire(red[1], local)
	own := []*wire{l.wire(red[2], local), l.wire(red[3], local)}
	others := []*wire{l.wire(blue[1], local), l.wire(blue[2], local), l.wire(blue[3], local)}
	for range 10 {
		from.send(t, from.mac, everyone, local, []byte("red"))
	}
	for _, w := range own {
		w.hears(t, "red")
	}
	// A unicast of the other tenant's MAC goes nowhere either.
	for _, w := range others {
		from.send(t, from.mac, w.mac, local, []byte("red"))
	}
	for i, w := range others {
		if got := w.heard(t); got != nil {
			t.Errorf("blue%d heard %q", i+1, got)
		}
	}
}

// spoofed sends frames under MACs and addresses that aren't the pod's; each time
// a true one behind it shows that the others would have arrived.
func spoofed(t *testing.T, l *lab, red map[int]*cluster.Pod) {
	from, to := l.wire(red[1], local), l.wire(red[2], local)
	false1 := from.mac
	false1[5] ^= 1
	from.send(t, false1, everyone, local, []byte("false"))
	from.send(t, to.mac, everyone, local, []byte("false"))
	from.send(t, from.mac, everyone, local, []byte("true"))
	to.hears(t, "true") // in order: the false ones would have come before

	fromARP, toARP := l.wire(red[1], unix.ETH_P_ARP), l.wire(red[2], unix.ETH_P_ARP)
	third, own := red[3].IP(4), red[1].IP(4)
	claim := func(ip netip.Addr) []byte { return arp(2, fromARP.mac, ip, toARP.mac, red[2].IP(4)) }
	fromARP.send(t, fromARP.mac, toARP.mac, unix.ETH_P_ARP, claim(third))
	fromARP.send(t, fromARP.mac, toARP.mac, unix.ETH_P_ARP, claim(own))
	toARP.hears(t, string(claim(own)))

	// A receiver takes a priority tag (VLAN 0) off, and another one behind it.
	fromIP, toIP := l.wire(red[1], unix.ETH_P_IP), l.wire(red[2], unix.ETH_P_IP)
	packet := func(src netip.Addr, text string) []byte {
		ip := []byte{0x45, 0, 0, byte(20 + len(text)), 0, 1, 0, 0, 9, 253, 0, 0}
		return slices.Concat(ip, src.AsSlice(), red[2].IP(4).AsSlice(), []byte(text))
	}
	const q = unix.ETH_P_8021Q
	tag, priority := []byte{q >> 8, q & 0xff, 0, 0}, []byte{0, 0}
	ipv4 := []byte{8, 0}
	fromIP.send(t, fromIP.mac, toIP.mac, unix.ETH_P_IP, packet(third, "false"))
	fromIP.send(t, fromIP.mac, toIP.mac, q, slices.Concat(priority, ipv4, packet(third, "false by one tag")))
	fromIP.send(t, fromIP.mac, toIP.mac, q, slices.Concat(priority, tag, ipv4, packet(third, "false by two")))
	fromIP.send(t, fromIP.mac, toIP.mac, q, slices.Concat([]byte{0xe0, 0}, tag, tag, ipv4, packet(third, "false by three")))
	fromIP.send(t, fromIP.mac, toIP.mac, q, slices.Concat(priority, ipv4, packet(own, "true by one tag")))
	eventually(t, 5*time.Second, func() error {
		got := string(toIP.heard(t))
		if strings.Contains(got, "false") {
			t.Fatalf("heard %q", got)
		}
		if !strings.Contains(got, "true by one tag") {
			return fmt.Errorf("heard %q", got)
		}
		return nil
	})
}

// noWayOut: the bridge's own address is no way to the node, nor through it. With
// the table taken away the same packets arrive, so it is the table that keeps
// them.
func noWayOut(t *testing.T, l *lab, p *cluster.Pod) {
	n, at := p.Node, p.Node.Underlay()[0]
	var node net.PacketConn
	err := n.Do(func() (err error) {
		node, err = net.ListenPacket("udp4", ":0")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer node.Close()
	var pod net.PacketConn
	err = p.Do(func() (err error) {
		link, err := netlink.LinkByName("net1")
		if err != nil {
			return err
		}
		to := &net.IPNet{IP: at.AsSlice(), Mask: net.CIDRMask(32, 32)}
		if err = netlink.RouteReplace(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: to, Scope: netlink.SCOPE_LINK}); err != nil {
			return err
		}
		bridge := segment.MAC(n.Name, 1001).HardwareAddr()
		err = netlink.NeighSet(&netlink.Neigh{LinkIndex: link.Attrs().Index, IP: at.AsSlice(), HardwareAddr: bridge, State: netlink.NUD_PERMANENT})
		if err == nil {
			pod, err = net.ListenPacket("udp4", ":0")
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer pod.Close()
	to := net.UDPAddrFromAddrPort(netip.AddrPortFrom(at, netip.MustParseAddrPort(node.LocalAddr().String()).Port()))
	arrives := func() error {
		if _, err = pod.WriteTo([]byte("out"), to); err != nil {
			return err
		}
		if err = node.SetReadDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
			return err
		}
		_, _, err = node.ReadFrom(make([]byte, 16))
		return err
	}
	for range 5 {
		if err = arrives(); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("a packet from a segment for the node: %v", err)
		}
	}
	at0 := slices.Index(l.Nodes(), n)
	if err = l.daemons[at0].Terminate(within(t, 10*time.Second)); err != nil {
		t.Fatal(err)
	}
	err = n.Do(func() error {
		c, openErr := nftables.New()
		if openErr != nil {
			return openErr
		}
		c.DelTable(&nftables.Table{Family: nftables.TableFamilyBridge, Name: "weft"})
		return c.Flush()
	})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, 5*time.Second, arrives)
	l.daemons[at0] = n.Weftd(t)
	eventually(t, 5*time.Second, func() error {
		if err = arrives(); !errors.Is(err, os.ErrDeadlineExceeded) {
			return fmt.Errorf("the table isn't back: %w", err)
		}
		return nil
	})
}

// suppressed: requests for a neighbour that is known don't leave the node.
func suppressed(t *testing.T, l *lab, red map[int]*cluster.Pod) {
	from, to := l.wire(red[1], unix.ETH_P_ARP), l.wire(red[2], unix.ETH_P_ARP)
	other := l.wire(red[2], local)
	request := arp(1, from.mac, red[1].IP(4), [6]byte{}, red[2].IP(4))
	from.send(t, from.mac, everyone, unix.ETH_P_ARP, request)
	answer := arp(2, to.mac, red[2].IP(4), from.mac, red[1].IP(4))
	from.hears(t, string(answer))
	l.wire(red[1], local).send(t, from.mac, everyone, local, []byte("behind"))
	other.hears(t, "behind")
	for got := to.heard(t); got != nil; got = to.heard(t) {
		if bytes.HasPrefix(got, request) {
			t.Errorf("the request crossed the underlay")
		}
	}
}

// TestErrors: what can't be met says so, with its code, and leaves nothing.
func TestErrors(t *testing.T) {
	l := newLab(t, 2)
	try := func(n *cluster.Node, conf []byte, o cluster.PodOptions) error {
		o.ConfList, o.IfName, o.NoRetry = conf, "net1", true
		_, err := n.AttachPod(within(t, 30*time.Second), fmt.Sprint("p", time.Now().UnixNano()), o)
		return err
	}
	refused := func(t *testing.T, err error, words ...string) {
		t.Helper()
		if err == nil {
			t.Fatal("it was attached")
		}
		for _, word := range words {
			if !strings.Contains(err.Error(), word) {
				t.Errorf("%v: not a word of %q", err, word)
			}
		}
	}
	t.Run("the cluster network's VNI", func(t *testing.T) {
		refused(t, try(l.Node(1), tenant(1, ""), cluster.PodOptions{}), "vni 1 is the cluster network's")
	})
	small := []byte(`{"cniVersion":"1.1.0","name":"small","plugins":[{"type":"weft","mode":"overlay","vni":5,
		"ipam":{"type":"weft","ranges":[{"subnet":"192.168.8.0/29","blockSize":4}]}}]}`)
	t.Run("exhausted", func(t *testing.T) {
		for i := range 3 {
			l.attach(l.Node(1), fmt.Sprint("small", i), small)
		}
		for range 3 {
			if err := try(l.Node(1), small, cluster.PodOptions{}); err != nil {
				refused(t, err, "192.168.8.0/29", "n1")
				return
			}
		}
		refused(t, try(l.Node(1), small, cluster.PodOptions{}), "no free address", "192.168.8.0/29", "n1")
	})
	t.Run("another node's", func(t *testing.T) {
		refused(t, try(l.Node(2), []byte(strings.Replace(string(small), `"ipam"`, `"args":{"cni":{"ips":["192.168.8.2"]}},"ipam"`, 1)), cluster.PodOptions{}),
			"192.168.8.2", "node n1")
	})
	t.Run("other tunnels", func(t *testing.T) {
		l.attach(l.Node(1), "found", tenant(7, ""))
		static := tenant(7, `,"discovery":"static","vteps":["192.0.2.7"]`)
		refused(t, try(l.Node(1), static, cluster.PodOptions{}), "segment 7", "discovery", "kubernetes, as the segment has it on this node")
		eventually(t, reachTime, func() error {
			_, err := l.api.SegmentMembers().Get(t.Context(), "7."+l.Node(1).Name, metav1.GetOptions{})
			return err
		})
		refused(t, try(l.Node(2), static, cluster.PodOptions{}), "segment 7", "discovery", "kubernetes, as the segment has it on node "+l.Node(1).Name)
		refused(t, try(l.Node(2), tenant(7, `,"vteps":["192.0.2.7"]`), cluster.PodOptions{}), "vteps", "[192.0.2.7]", "[], as the segment has it")
	})
	t.Run("VTEPs of another family", func(t *testing.T) {
		refused(t, try(l.Node(1), tenant(8, `,"vteps":["fd30::7"]`), cluster.PodOptions{}), "vteps: fd30::7", "172.30.0.")
	})
	t.Run("a MAC twice", func(t *testing.T) {
		conf := tenant(6, `,"mac":"02:00:00:00:00:06"`)
		l.attach(l.Node(1), "first", conf)
		refused(t, try(l.Node(1), conf, cluster.PodOptions{}), "02:00:00:00:00:06", "segment 6")
		eventually(t, 5*time.Second, func() error {
			err := try(l.Node(2), conf, cluster.PodOptions{})
			if err == nil {
				return errors.New("it was attached on the other node")
			}
			return nil
		})
	})
}
