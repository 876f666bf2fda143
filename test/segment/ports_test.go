package segment_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/segment"
	"github.com/weft-cni/weft/test/cluster"
	"github.com/weft-cni/weft/test/probe"
)

// virtual is a router's MAC that moves (RFC 9568 section 7.3).
var virtual = [6]byte{0x00, 0x00, 0x5e, 0x00, 0x01, 0x0a}

const shared = `,"allowedMACs":["00:00:5e:00:01:0a"],"allowedIPs":["192.168.7.200","fd00:7::200"]`

// TestSharedAddress: what keepalived does. An address, and a MAC, that two pods
// on two nodes may have moves between them and back, and traffic follows; who may
// not have it doesn't get it.
func TestSharedAddress(t *testing.T) {
	l := newLab(t, 3)
	conf := tenant(1001, shared)
	a, b := l.attach(l.Node(1), "a", conf), l.attach(l.Node(2), "b", conf)
	beside := l.attach(l.Node(1), "beside", conf) // a's neighbour, with the same rights
	c := l.attach(l.Node(3), "c", tenant(1001, ""))
	for _, p := range []*cluster.Pod{a, b, beside} {
		l.reach(c, p)
		if err := p.Check(t.Context()); err != nil {
			t.Error(err)
		}
	}
	t.Run("address", func(t *testing.T) { addressMoves(t, l, c, a, b, beside) })
	t.Run("MAC", func(t *testing.T) { stationMoves(t, l, c, a, b, beside) })
	t.Run("resync", func(t *testing.T) {
		// What was learned is nobody's drift.
		before := l.state(l.Node(1))
		for i := range l.daemons {
			l.daemons[i].Kill()
			l.daemons[i] = l.Node(i + 1).Weftd(t)
		}
		eventually(t, 10*time.Second, func() error {
			if ops := kernel.Diff(before, l.state(l.Node(1)), nil); len(ops) > 0 {
				return fmt.Errorf("%v", ops)
			}
			return nil
		})
		stationMoves(t, l, c, a, b)
	})
	for _, p := range []*cluster.Pod{a, b, beside, c} {
		if err := p.Detach(t.Context()); err != nil {
			t.Error(err)
		}
	}
	l.empty()
}

// addressMoves has one after the other take the shared addresses.
func addressMoves(t *testing.T, l *lab, from *cluster.Pod, owners ...*cluster.Pod) {
	addrs := []netip.Prefix{netip.MustParsePrefix("192.168.7.200/24"), netip.MustParsePrefix("fd00:7::200/64")}
	set := func(p *cluster.Pod, change func(netlink.Link, *netlink.Addr) error) {
		t.Helper()
		err := p.Do(func() error {
			link, err := netlink.LinkByName("net1")
			for _, a := range addrs {
				ip := &net.IPNet{IP: a.Addr().AsSlice(), Mask: net.CIDRMask(a.Bits(), a.Addr().BitLen())}
				err = errors.Join(err, change(link, &netlink.Addr{IPNet: ip, Flags: unix.IFA_F_NODAD}))
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for i, owner := range append(owners, owners[0]) {
		if i > 0 {
			set(owners[i-1], netlink.AddrDel)
		}
		set(owner, netlink.AddrAdd)
		moved := time.Now()
		announce(t, l, owner, addrs[0].Addr(), addrs[1].Addr())
		for _, a := range addrs {
			if _, err := probe.Ping(within(t, 5*time.Second), from, a.Addr()); err != nil {
				t.Fatalf("%s at %s: %v", a.Addr(), owner.Name, err)
			}
		}
		t.Logf("at %s after %v", owner.Name, time.Since(moved))
	}
	set(owners[0], netlink.AddrDel)
}

// announce tells all that addresses are p's now (RFC 5227 section 3, RFC 4861
// section 7.2.6).
func announce(t *testing.T, l *lab, p *cluster.Pod, ip4, ip6 netip.Addr) {
	t.Helper()
	w := l.wire(p, unix.ETH_P_ARP)
	w.send(t, w.mac, everyone, unix.ETH_P_ARP, arp(1, w.mac, ip4, [6]byte{}, ip4))
	nodes := netip.MustParseAddr("ff02::1")
	target := ip6.As16()
	advert := slices.Concat([]byte{136, 0, 0, 0, 0x20, 0, 0, 0}, target[:], []byte{2, 1}, w.mac[:])
	w.send(t, w.mac, [6]byte{0x33, 0x33, 5: 1}, unix.ETH_P_IPV6, icmp6(ip6, nodes, advert))
}

// icmp6 is an ICMPv6 message in a packet, with its checksum.
func icmp6(src, dst netip.Addr, message []byte) []byte {
	head := binary.BigEndian.AppendUint16([]byte{0x60, 0, 0, 0}, uint16(len(message)))
	head = append(head, unix.IPPROTO_ICMPV6, 255)
	s, d := src.As16(), dst.As16()
	sum := uint32(len(message)) + unix.IPPROTO_ICMPV6
	for part := range slices.Chunk(slices.Concat(s[:], d[:], message), 2) {
		sum += uint32(binary.BigEndian.Uint16(part))
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	binary.BigEndian.PutUint16(message[2:], ^uint16(sum))
	return slices.Concat(head, s[:], d[:], message)
}

// stationMoves has one after the other send from the virtual MAC: each has what
// is sent to it then, and nobody else.
func stationMoves(t *testing.T, l *lab, c *cluster.Pod, owners ...*cluster.Pod) {
	from := l.wire(c, local)
	var wires []*wire
	for _, p := range owners {
		wires = append(wires, l.wire(p, local))
	}
	for i, owner := range append(wires, wires[0]) {
		name := fmt.Sprint("from ", i)
		owner.send(t, virtual, everyone, local, []byte(name))
		from.hears(t, name)
		from.send(t, virtual, virtual, local, []byte("stolen")) // it isn't c's
		to := fmt.Sprint("to ", i)
		from.send(t, from.mac, virtual, local, []byte(to))
		owner.hears(t, to)
		for j, other := range wires {
			for got := other.heard(t); other != owner && got != nil; got = other.heard(t) {
				if bytes.HasPrefix(got, []byte("to")) || bytes.HasPrefix(got, []byte("stolen")) {
					t.Errorf("%s heard %q, which was for %s", owners[j].Name, got, owners[i%len(owners)].Name)
				}
			}
		}
	}
	// No other MAC is allowed.
	false1 := wires[0].mac
	false1[5] ^= 1
	wires[0].send(t, false1, everyone, local, []byte("false"))
	wires[0].send(t, wires[0].mac, everyone, local, []byte("true"))
	from.hears(t, "true")
}

// TestAllowed: what only some pods may send is heard from them, and not from
// others.
func TestAllowed(t *testing.T) {
	l := newLab(t, 2)
	ordinary := l.attach(l.Node(1), "ordinary", tenant(1001, ""))
	other := l.attach(l.Node(2), "other", tenant(1001, ""))
	nested := l.attach(l.Node(1), "nested", tenant(1001, `,"allowedMACs":["any"],"allowedIPs":["any"]`))
	router := l.attach(l.Node(1), "router", tenant(1001, `,"allowRA":true,"allowDHCPServer":true,"allowedIPs":["172.16.0.0/12"]`))
	for _, p := range []*cluster.Pod{ordinary, nested, router} {
		l.reach(p, other)
		if err := p.Check(t.Context()); err != nil {
			t.Error(err)
		}
	}
	far := l.wire(other, local)
	t.Run("a nested bridge", func(t *testing.T) {
		w, inner := l.wire(nested, local), [6]byte{2, 0, 0, 0, 0x77, 1}
		w.send(t, inner, everyone, local, []byte("inner"))
		far.hears(t, "inner")
		far.send(t, far.mac, inner, local, []byte("back"))
		w.hears(t, "back")
		// It can't take another's place all the same.
		w.send(t, far.mac, everyone, local, []byte("false"))
		ordinaryWire := l.wire(ordinary, local)
		ordinaryWire.send(t, ordinaryWire.mac, far.mac, local, []byte("still here"))
		far.hears(t, "still here")
	})
	mac := func(p *cluster.Pod) [6]byte { return l.wire(p, local).mac }
	all := netip.MustParseAddr("ff02::1")
	linkLocal := func(p *cluster.Pod) netip.Addr {
		m := mac(p)
		return netip.AddrFrom16([16]byte{0xfe, 0x80, 8: m[0] ^ 2, m[1], m[2], 0xff, 0xfe, m[3], m[4], m[5]})
	}
	for name, try := range map[string]struct {
		etherType uint16
		packet    func(p *cluster.Pod) []byte
	}{
		"router advertisement": {unix.ETH_P_IPV6, func(p *cluster.Pod) []byte {
			return icmp6(linkLocal(p), all, []byte{134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0})
		}},
		"DHCP reply": {unix.ETH_P_IP, func(p *cluster.Pod) []byte { return udp4(p.IP(4), netip.MustParseAddr("255.255.255.255"), 67, 68) }},
		"another source": {unix.ETH_P_IP, func(p *cluster.Pod) []byte {
			return udp4(netip.MustParseAddr("172.16.9.9"), netip.MustParseAddr("255.255.255.255"), 5000, 5000)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			ear := l.wire(other, try.etherType)
			for _, p := range []*cluster.Pod{ordinary, router} {
				w, packet := l.wire(p, try.etherType), try.packet(p)
				w.send(t, w.mac, everyone, try.etherType, packet)
				if p == router {
					ear.hears(t, string(packet))
					continue
				}
				w.send(t, w.mac, everyone, local, []byte("behind"))
				far.hears(t, "behind")
				for got := ear.heard(t); got != nil; got = ear.heard(t) {
					if bytes.HasPrefix(got, packet) {
						t.Error("it arrived from an ordinary pod")
					}
				}
			}
		})
	}
	for _, p := range []*cluster.Pod{ordinary, nested, router, other} {
		if err := p.Detach(t.Context()); err != nil {
			t.Error(err)
		}
	}
	l.empty()
}

// udp4 is an empty UDP datagram, without checksum.
func udp4(src, dst netip.Addr, srcPort, dstPort uint16) []byte {
	s, d := src.As4(), dst.As4()
	head := slices.Concat([]byte{0x45, 0, 0, 28, 0, 0, 0, 0, 64, unix.IPPROTO_UDP, 0, 0}, s[:], d[:])
	var sum uint32
	for part := range slices.Chunk(head, 2) {
		sum += uint32(binary.BigEndian.Uint16(part))
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	binary.BigEndian.PutUint16(head[10:], ^uint16(sum))
	b := binary.BigEndian.AppendUint16(head, srcPort)
	b = binary.BigEndian.AppendUint16(b, dstPort)
	return append(b, 0, 8, 0, 0)
}

// TestIsolatedPorts: isolated pods reach those that aren't and no other, on one
// node and on two.
func TestIsolatedPorts(t *testing.T) {
	l := newLab(t, 2)
	conf := tenant(1001, `,"isolatePorts":true`)
	pods := map[string]*cluster.Pod{
		"here": l.attach(l.Node(1), "here", conf), "beside": l.attach(l.Node(1), "beside", conf), "far": l.attach(l.Node(2), "far", conf),
		"server": l.attach(l.Node(1), "server", tenant(1001, "")), "farserver": l.attach(l.Node(2), "farserver", tenant(1001, "")),
	}
	for _, server := range []string{"server", "farserver"} {
		for _, name := range []string{"here", "beside", "far"} {
			l.reach(pods[name], pods[server])
			l.reach(pods[server], pods[name])
		}
	}
	wires := map[string]*wire{}
	for name, p := range pods {
		wires[name] = l.wire(p, local)
		if err := p.Check(t.Context()); err != nil {
			t.Error(err)
		}
	}
	l.apart(1, wires["far"].mac)
	l.apart(2, wires["here"].mac, wires["beside"].mac)
	names := []string{"here", "beside", "far"}
	for _, from := range names {
		w := wires[from]
		for _, to := range names {
			if to != from {
				w.send(t, w.mac, wires[to].mac, local, []byte("crossed"))
			}
		}
		w.send(t, w.mac, everyone, local, []byte("crossed"))
		for _, server := range []string{"server", "farserver"} {
			wires[server].hears(t, "crossed")
		}
		for _, to := range names {
			if got := wires[to].heard(t); to != from && got != nil {
				t.Errorf("%s heard %q from %s", to, got, from)
			}
		}
	}
	for _, p := range pods {
		if err := p.Detach(t.Context()); err != nil {
			t.Error(err)
		}
	}
	l.empty()
}

// apart waits until a node keeps the isolated stations apart that are behind
// others.
func (l *lab) apart(node int, macs ...[6]byte) {
	l.t.Helper()
	eventually(l.t, reachTime, func() error {
		s := l.state(l.Node(node))
		for _, mac := range macs {
			e := kernel.Source{Table: segment.Table, Set: "apart", Link: segment.Tunnel(1001), MAC: mac}
			if s[e.Key()] == nil {
				return fmt.Errorf("n%d has no %s", node, e)
			}
		}
		return nil
	})
}

// TestMulticastSnooping: a group's frames go to pods that joined it.
func TestMulticastSnooping(t *testing.T) {
	l := newLab(t, 2)
	conf := tenant(1001, `,"multicastSnooping":true`)
	from := l.attach(l.Node(1), "from", conf)
	joined, not := l.attach(l.Node(2), "joined", conf), l.attach(l.Node(2), "not", conf)
	l.reach(from, joined)
	l.reach(from, not)
	group := netip.MustParseAddr("239.1.2.3")
	var member net.PacketConn
	err := joined.Do(func() (err error) {
		link, err := net.InterfaceByName("net1")
		if err != nil {
			return err
		}
		member, err = net.ListenMulticastUDP("udp4", link, &net.UDPAddr{IP: group.AsSlice(), Port: 5000})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer member.Close()
	source, ear, other := l.wire(from, unix.ETH_P_IP), l.wire(joined, unix.ETH_P_IP), l.wire(not, unix.ETH_P_IP)
	packet := udp4(from.IP(4), group, 5000, 5000)
	to := [6]byte{0x01, 0x00, 0x5e, 0x01, 0x02, 0x03}
	// The bridges flood until they have been asking for a while.
	eventually(t, time.Minute, func() error {
		source.send(t, source.mac, to, unix.ETH_P_IP, packet)
		ear.hears(t, string(packet))
		for got := other.heard(t); got != nil; got = other.heard(t) {
			if bytes.HasPrefix(got, packet) {
				return errors.New("a pod that didn't join heard it")
			}
		}
		return nil
	})
	for _, p := range []*cluster.Pod{from, joined, not} {
		if err := p.Detach(t.Context()); err != nil {
			t.Error(err)
		}
	}
	l.empty()
}
