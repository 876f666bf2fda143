package leak

import (
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// Addresses of two nodes and a pod on each.
const (
	node1, node2   = "172.30.0.11", "172.30.0.12"
	pod1, pod2     = "10.244.1.2", "10.244.2.2"
	node61, node62 = "fd30::11", "fd30::12"
	pod61, pod62   = "fd00:10:244:1::2", "fd00:10:244:2::2"
	world, world6  = "192.0.2.1", "2001:db8::1"
)

func testNet() *Net {
	return &Net{
		Pods:           []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10:244::/48")},
		WireGuardPorts: []uint16{51820, 51821, 51822, 51823},
	}
}

type packetCase struct {
	name  string
	frame []byte
	want  Kind
}

const (
	tcp    = unix.IPPROTO_TCP
	udpPro = unix.IPPROTO_UDP
	port   = 51820
)

func cases() []packetCase {
	segment := make([]byte, 40)
	inner4 := ipFrame(ip4(pod1, pod2, tcp, 0, nil, segment))
	inner6 := ipFrame(ip6(pod61, pod62, tcp, segment))
	data := udp(port, port, wireGuard(4, 96))
	return []packetCase{
		{"nothing", nil, Other},
		{"node to node", ipFrame(ip4(node1, node2, tcp, 0, nil, segment)), Other},
		{"node to node, IPv6", ipFrame(ip6(node61, node62, tcp, segment)), Other},
		{"masqueraded to the world", ipFrame(ip4(node1, world, tcp, 0, nil, segment)), Other},
		{"LLDP", ether(0x88cc, segment), Other},

		{"pod to pod", ipFrame(ip4(pod1, pod2, tcp, 0, nil, segment)), Clear},
		{"pod to pod, IPv6", ipFrame(ip6(pod61, pod62, tcp, segment)), Clear},
		{"pod to node", ipFrame(ip4(pod1, node2, tcp, 0, nil, segment)), Clear},
		{"node to pod", ipFrame(ip4(node1, pod2, tcp, 0, nil, segment)), Clear},
		{"pod to the world, not masqueraded", ipFrame(ip6(pod61, world6, tcp, segment)), Clear},
		{"with options", ipFrame(ip4(pod1, pod2, tcp, 0, make([]byte, 8), segment)), Clear},
		{"first fragment", ipFrame(ip4(pod1, pod2, udpPro, 0x2000, nil, segment)), Clear},
		{"later fragment", ipFrame(ip4(pod1, pod2, udpPro, 100, nil, segment)), Clear},
		{"later fragment, IPv6", ipFrame(ip6(pod61, pod62, unix.IPPROTO_FRAGMENT, fragment6(udpPro, 100, segment))), Clear},
		{"VLAN", ether(0x8100, vlan(7, 0x0800, ip4(pod1, pod2, tcp, 0, nil, segment))), Clear},
		{"two VLANs, IPv6", ether(0x88a8, vlan(7, 0x8100, vlan(8, 0x86dd, ip6(pod61, pod62, tcp, segment)))), Clear},
		{"ARP for a pod", ether(0x0806, arp(node1, pod2)), Clear},
		{"ARP for a node", ether(0x0806, arp(node1, node2)), Other},
		{"cut short behind the addresses", ipFrame(ip4(pod1, pod2, tcp, 0, nil, nil)), Clear},
		{"cut short before the addresses", ipFrame(ip4(pod1, pod2, tcp, 0, nil, nil))[:30], Other},
		{"a pod's own packet in WireGuard's form", ipFrame(ip4(pod1, node2, udpPro, 0, nil, data)), Clear},

		{"VXLAN", ipFrame(ip4(node1, node2, udpPro, 0, nil, udp(40000, 4789, vxlan(inner4)))), ClearTunnel},
		{"VXLAN over IPv6", ipFrame(ip6(node61, node62, udpPro, udp(40000, 4789, vxlan(inner6)))), ClearTunnel},
		{"VXLAN on another port", ipFrame(ip4(node1, node2, udpPro, 0, nil, udp(40000, 8472, vxlan(inner6)))), ClearTunnel},
		{"VXLAN behind extension headers", ipFrame(ip6(node61, node62, unix.IPPROTO_HOPOPTS, extension(unix.IPPROTO_DSTOPTS, 1,
			extension(udpPro, 2, udp(40000, 4789, vxlan(inner4)))))), ClearTunnel},
		{"VXLAN, first fragment", ipFrame(ip6(node61, node62, unix.IPPROTO_FRAGMENT, fragment6(udpPro, 0, udp(40000, 4789, vxlan(inner4))))), ClearTunnel},
		{"VXLAN in a VLAN, a VLAN within", ether(0x8100, vlan(7, 0x0800, ip4(node1, node2, udpPro, 0, nil, udp(40000, 4789,
			vxlan(ether(0x8100, vlan(8, 0x0800, ip4(pod1, pod2, tcp, 0, nil, segment)))))))), ClearTunnel},
		{"VXLAN with ARP for a pod", ipFrame(ip4(node1, node2, udpPro, 0, nil, udp(40000, 4789, vxlan(ether(0x0806, arp(pod1, pod2)))))), ClearTunnel},
		{"VXLAN of another network", ipFrame(ip4(node1, node2, udpPro, 0, nil, udp(40000, 4789, vxlan(ipFrame(ip4(world, node1, tcp, 0, nil, segment)))))), Other},
		{"VXLAN on a WireGuard port", ipFrame(ip4(node1, node2, udpPro, 0, nil, udp(port, port, vxlan(inner4)))), ClearTunnel},
		{"IP in IP", ipFrame(ip4(node1, node2, unix.IPPROTO_IPIP, 0, nil, ip4(pod1, pod2, tcp, 0, nil, segment))), ClearTunnel},
		{"IPv6 in IP", ipFrame(ip4(node1, node2, unix.IPPROTO_IPV6, 0, nil, ip6(pod61, pod62, tcp, segment))), ClearTunnel},

		{"WireGuard data", ipFrame(ip4(node1, node2, udpPro, 0, nil, data)), Encrypted},
		{"WireGuard data, IPv6", ipFrame(ip6(node61, node62, udpPro, data)), Encrypted},
		{"WireGuard data to another port", ipFrame(ip4(node1, node2, udpPro, 0, nil, udp(port+3, 1234, wireGuard(4, 1452)))), Encrypted},
		{"WireGuard keepalive in a VLAN", ether(0x8100, vlan(7, 0x0800, ip4(node1, node2, udpPro, 0, nil, udp(port, port, wireGuard(4, 32))))), Encrypted},
		{"WireGuard initiation", ipFrame(ip4(node1, node2, udpPro, 0, nil, udp(port, port, wireGuard(1, 148)))), Encrypted},
		{"WireGuard response", ipFrame(ip4(node1, node2, udpPro, 0, nil, udp(port, port, wireGuard(2, 92)))), Encrypted},
		{"WireGuard cookie", ipFrame(ip4(node1, node2, udpPro, 0, nil, udp(port, port, wireGuard(3, 64)))), Encrypted},
		{"no message of WireGuard's", ipFrame(ip4(node1, node2, udpPro, 0, nil, udp(port, port, wireGuard(5, 96)))), Other},
		{"WireGuard on no port of ours", ipFrame(ip4(node1, node2, udpPro, 0, nil, udp(1, 2, wireGuard(4, 96)))), Other},
	}
}

func TestClassify(t *testing.T) {
	n := testNet()
	for _, c := range cases() {
		if got := n.Classify(c.frame); got.Kind != c.want {
			t.Errorf("%s: %s, not %s (%+v)", c.name, got.Kind, c.want, got)
		}
	}
}

// The addresses of a leak are the pods', also within a tunnel.
func TestInnermostAddresses(t *testing.T) {
	n := testNet()
	for _, c := range cases() {
		p := n.Classify(c.frame)
		if !p.Kind.IsLeak() {
			continue
		}
		if pods := func(a netip.Addr) bool {
			return slices.ContainsFunc(n.Pods, func(r netip.Prefix) bool { return r.Contains(a) })
		}; !pods(p.Src) && !pods(p.Dst) {
			t.Errorf("%s: neither %s nor %s is a pod", c.name, p.Src, p.Dst)
		}
	}
}

// Without a link layer the same packets are the same.
func TestClassifyIP(t *testing.T) {
	n := testNet()
	for _, c := range cases() {
		if len(c.frame) < 34 || c.frame[12] != 0x08 && c.frame[12] != 0x86 || c.frame[13] == 0x06 {
			continue // no IP packet
		}
		if got := n.ClassifyIP(c.frame[14:]); got.Kind != c.want {
			t.Errorf("%s: %s, not %s", c.name, got.Kind, c.want)
		}
	}
}

// FuzzClassify: nothing makes it fail, and a longer capture of the same packet
// never takes back that it is a pod's.
func FuzzClassify(f *testing.F) {
	for _, c := range cases() {
		f.Add(c.frame)
	}
	n := testNet()
	f.Fuzz(func(t *testing.T, frame []byte) {
		p := n.Classify(frame)
		if p.Kind >= Kinds {
			t.Fatalf("kind %d", p.Kind)
		}
		if p.Kind.IsLeak() && !p.Src.IsValid() {
			t.Errorf("a leak without addresses: %+v", p)
		}
		for _, cut := range []int{len(frame) / 2, len(frame) - 1} {
			if cut > 0 && n.Classify(frame[:cut]).Kind.IsLeak() && !p.Kind.IsLeak() && p.Kind != Encrypted {
				t.Errorf("the first %d octets are a leak, all %d are %s", cut, len(frame), p.Kind)
			}
		}
	})
}
