// Package leak looks at packets on the wire between nodes and tells those of
// pods that anybody could read from those that WireGuard has encrypted. It is
// what `weftd leak-test`, the demo and tests go by.
//
// Classify is pure. Capture feeds it from a raw socket.
package leak

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// Kind is what a packet is, as far as pods' traffic goes.
type Kind uint8

// Kinds. The order is that of tables.
const (
	// Other is no pod's packet, as far as one can see.
	Other Kind = iota
	// Encrypted is a packet of WireGuard: data, or a handshake.
	Encrypted
	// Clear has a pod's address, not in a tunnel.
	Clear
	// ClearTunnel has a pod's address inside of a tunnel that doesn't encrypt:
	// VXLAN, or IP in IP.
	ClearTunnel
	// Kinds is how many there are.
	Kinds
)

func (k Kind) String() string {
	return [...]string{"other", "WireGuard", "pods in clear", "pods in clear, in a tunnel"}[k]
}

// IsLeak reports whether a pod's packet can be read.
func (k Kind) IsLeak() bool { return k == Clear || k == ClearTunnel }

// Net is the network whose packets are classified.
type Net struct {
	// Pods are the pods' address ranges.
	Pods []netip.Prefix
	// WireGuardPorts are the UDP ports of WireGuard devices. A packet to or
	// from one is WireGuard's only if it has the form of one. VXLAN is known by
	// its form on any port.
	WireGuardPorts []uint16
}

// Packet is what Classify found.
type Packet struct {
	Kind Kind
	// Src and Dst are those of the innermost IP header, where one could be
	// read; the addresses that make a leak one.
	Src, Dst netip.Addr
	// Protocol is the innermost IP packet's upper-layer protocol (IANA), for
	// the reader of a report.
	Protocol uint8
}

// maxNesting is how many headers within each other are followed, VLAN tags and
// tunnels included. More are not to be met outside of attacks.
const maxNesting = 8

// Classify looks at an Ethernet frame. It never fails: what is cut short or
// malformed counts as what could be read of it says.
func (n *Net) Classify(frame []byte) Packet { return n.ethernet(frame, 0) }

// ClassifyIP is Classify for an IP packet without a link layer, as an interface
// without one gives it.
func (n *Net) ClassifyIP(packet []byte) Packet { return n.ip(packet, 0) }

func (n *Net) ethernet(b []byte, depth int) Packet {
	const header = 14
	if len(b) < header || depth > maxNesting {
		return Packet{}
	}
	return n.payload(binary.BigEndian.Uint16(b[12:]), b[header:], depth)
}

// payload looks at what follows an EtherType.
func (n *Net) payload(etherType uint16, b []byte, depth int) Packet {
	for range maxNesting {
		switch etherType {
		case unix.ETH_P_8021Q, unix.ETH_P_8021AD, unix.ETH_P_QINQ1:
			if len(b) < 4 {
				return Packet{}
			}
			etherType, b = binary.BigEndian.Uint16(b[2:]), b[4:]
		case unix.ETH_P_IP, unix.ETH_P_IPV6:
			return n.ip(b, depth)
		case unix.ETH_P_ARP:
			return n.arp(b, depth)
		default:
			return Packet{}
		}
	}
	return Packet{}
}

// arp is a leak where it names a pod: it tells everybody that there is one.
// RFC 826; only IPv4 over Ethernet.
func (n *Net) arp(b []byte, depth int) Packet {
	const length = 28
	if len(b) < length || binary.BigEndian.Uint16(b[2:]) != unix.ETH_P_IP {
		return Packet{}
	}
	src, _ := netip.AddrFromSlice(b[14:18])
	dst, _ := netip.AddrFromSlice(b[24:28])
	return n.judge(Packet{Src: src, Dst: dst}, depth)
}

// ip looks at an IP packet: at its addresses, and at what is in it.
func (n *Net) ip(b []byte, depth int) Packet {
	h, ok := parseIP(b)
	if !ok || depth > maxNesting {
		return Packet{}
	}
	p := n.judge(Packet{Src: h.src, Dst: h.dst, Protocol: h.protocol}, depth)
	if p.Kind.IsLeak() || h.fragment {
		return p // a fragment but the first has no further headers
	}
	switch h.protocol {
	case unix.IPPROTO_UDP:
		if inner := n.udp(h.rest, depth); inner.Kind != Other {
			return inner.or(p)
		}
	case unix.IPPROTO_IPIP, unix.IPPROTO_IPV6:
		if inner := n.ip(h.rest, depth+1); inner.Kind != Other {
			return inner
		}
	}
	return p
}

// or gives p the addresses of another where it has none.
func (p Packet) or(outer Packet) Packet {
	if !p.Src.IsValid() {
		p.Src, p.Dst, p.Protocol = outer.Src, outer.Dst, outer.Protocol
	}
	return p
}

// judge says whether a packet's addresses are pods'.
func (n *Net) judge(p Packet, depth int) Packet {
	for _, pods := range n.Pods {
		if pods.Contains(p.Src) || pods.Contains(p.Dst) {
			p.Kind = Clear
			if depth > 0 {
				p.Kind = ClearTunnel
			}
			return p
		}
	}
	return p
}

// udp looks at a UDP packet: VXLAN and WireGuard.
func (n *Net) udp(b []byte, depth int) Packet {
	const header = 8
	if len(b) < header {
		return Packet{}
	}
	src, dst, data := binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:]), b[header:]
	if (slices.Contains(n.WireGuardPorts, dst) || slices.Contains(n.WireGuardPorts, src)) && isWireGuard(data) {
		return Packet{Kind: Encrypted}
	}
	if isVXLAN(data) {
		return n.ethernet(data[vxlanHeader:], depth+1)
	}
	return Packet{}
}

const vxlanHeader = 8

// isVXLAN reports whether data begins with a VXLAN header (RFC 7348, section
// 5): the flag I, and reserved bits that are zero.
func isVXLAN(data []byte) bool {
	return len(data) >= vxlanHeader && data[0] == 0x08 && data[1]|data[2]|data[3]|data[7] == 0
}

// isWireGuard reports whether data has the form of one of the four messages of
// WireGuard (its white paper, section 5.4): the type, three zero octets, and
// the length.
func isWireGuard(data []byte) bool {
	if len(data) < 4 || data[1] != 0 || data[2] != 0 || data[3] != 0 {
		return false
	}
	switch data[0] {
	case 1:
		return len(data) == 148
	case 2:
		return len(data) == 92
	case 3:
		return len(data) == 64
	case 4:
		// Data is padded to 16 octets, but for packets of the MTU's length.
		return len(data) >= 32
	}
	return false
}
