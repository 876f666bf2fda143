package leak

import (
	"encoding/binary"
	"net/netip"
	"slices"
)

// Builders of packets, from the inside out.

func ether(etherType uint16, payload []byte) []byte {
	b := []byte{2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1}
	return append(binary.BigEndian.AppendUint16(b, etherType), payload...)
}

func vlan(tag, etherType uint16, payload []byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, tag)
	return append(binary.BigEndian.AppendUint16(b, etherType), payload...)
}

// ipFrame is an Ethernet frame with an IP packet.
func ipFrame(packet []byte) []byte {
	if packet[0]>>4 == 4 {
		return ether(0x0800, packet)
	}
	return ether(0x86dd, packet)
}

// ip4 is an IPv4 packet; offset is that of a fragment in units of 8 octets.
func ip4(src, dst string, protocol byte, offset uint16, options, payload []byte) []byte {
	b := make([]byte, 20, 20+len(options)+len(payload))
	b[0] = 0x40 | byte(5+len(options)/4)
	binary.BigEndian.PutUint16(b[2:], uint16(20+len(options)+len(payload)))
	binary.BigEndian.PutUint16(b[6:], offset)
	b[8], b[9] = 64, protocol
	copy(b[12:], netip.MustParseAddr(src).AsSlice())
	copy(b[16:], netip.MustParseAddr(dst).AsSlice())
	return append(append(b, options...), payload...)
}

func ip6(src, dst string, next byte, payload []byte) []byte {
	b := make([]byte, 40, 40+len(payload))
	b[0] = 0x60
	binary.BigEndian.PutUint16(b[4:], uint16(len(payload)))
	b[6], b[7] = next, 64
	copy(b[8:], netip.MustParseAddr(src).AsSlice())
	copy(b[24:], netip.MustParseAddr(dst).AsSlice())
	return append(b, payload...)
}

// extension is an IPv6 extension header of 8 times n octets.
func extension(next byte, n int, payload []byte) []byte {
	b := make([]byte, 8*n)
	b[0], b[1] = next, byte(n-1)
	return slices.Concat(b, payload)
}

// fragment6 is a fragment header; offset is in units of 8 octets.
func fragment6(next byte, offset uint16, payload []byte) []byte {
	b := make([]byte, 8)
	b[0] = next
	binary.BigEndian.PutUint16(b[2:], offset<<3|1)
	return slices.Concat(b, payload)
}

func udp(src, dst uint16, data []byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, src)
	b = binary.BigEndian.AppendUint16(b, dst)
	b = binary.BigEndian.AppendUint16(b, uint16(8+len(data)))
	return append(append(b, 0, 0), data...)
}

func vxlan(frame []byte) []byte { return append([]byte{0x08, 0, 0, 0, 0, 0, 1, 0}, frame...) }

// wireGuard is a message of a type, with a length in octets.
func wireGuard(kind byte, length int) []byte {
	b := make([]byte, length)
	b[0] = kind
	return b
}

func arp(src, dst string) []byte {
	b := make([]byte, 28)
	binary.BigEndian.PutUint16(b, 1)
	binary.BigEndian.PutUint16(b[2:], 0x0800)
	b[4], b[5], b[7] = 6, 4, 1
	copy(b[14:], netip.MustParseAddr(src).AsSlice())
	copy(b[24:], netip.MustParseAddr(dst).AsSlice())
	return b
}
