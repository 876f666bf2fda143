package rtmsg

import (
	"bytes"
	"encoding/binary"
	"iter"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Attr appends one netlink attribute (linux/netlink.h: struct nlattr).
func Attr(b []byte, typ uint16, value []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(unix.SizeofRtAttr+len(value)))
	b = binary.NativeEndian.AppendUint16(b, typ)
	return padded(append(b, value...))
}

// AttrUint32 appends a number of 32 bits.
func AttrUint32(b []byte, typ uint16, v uint32) []byte {
	return Attr(b, typ, binary.NativeEndian.AppendUint32(nil, v))
}

// AttrAddr appends an address, as its 4 or 16 bytes.
func AttrAddr(b []byte, typ uint16, a netip.Addr) []byte { return Attr(b, typ, a.AsSlice()) }

// AttrString appends a string and its end, a zero.
func AttrString(b []byte, typ uint16, s string) []byte { return Attr(b, typ, append([]byte(s), 0)) }

// Attrs walks the attributes of b; the values are slices of b.
func Attrs(b []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= unix.SizeofRtAttr {
			n := int(binary.NativeEndian.Uint16(b))
			if n < unix.SizeofRtAttr || n > len(b) {
				return
			}
			typ := binary.NativeEndian.Uint16(b[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
			if !yield(typ, b[unix.SizeofRtAttr:n]) {
				return
			}
			b = b[min(align(n), len(b)):]
		}
	}
}

// AddrOf is the address that an attribute holds, invalid where it holds none.
func AddrOf(v []byte) netip.Addr {
	a, _ := netip.AddrFromSlice(v)
	return a
}

// String is the string that an attribute holds.
func String(v []byte) string {
	s, _, _ := bytes.Cut(v, []byte{0})
	return string(s)
}

func align(n int) int { return (n + unix.NLMSG_ALIGNTO - 1) &^ (unix.NLMSG_ALIGNTO - 1) }

func padded(b []byte) []byte {
	for len(b)%unix.NLMSG_ALIGNTO != 0 {
		b = append(b, 0)
	}
	return b
}

// Family is a's AF_ constant.
func Family(a netip.Addr) uint8 {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}
