package leak

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// ipHeader is what was read of an IP packet's headers.
type ipHeader struct {
	src, dst netip.Addr
	protocol uint8 // of the upper layer
	// fragment is set for all fragments but the first: the upper layer's
	// header is not in them.
	fragment bool
	rest     []byte // what follows the headers
}

// parseIP reads an IPv4 or IPv6 packet that may be cut short. ok is false where
// it has no addresses.
func parseIP(b []byte) (h ipHeader, ok bool) {
	if len(b) == 0 {
		return h, false
	}
	switch b[0] >> 4 {
	case 4:
		return parseIPv4(b)
	case 6:
		return parseIPv6(b)
	}
	return h, false
}

// parseIPv4: RFC 791, section 3.1.
func parseIPv4(b []byte) (h ipHeader, ok bool) {
	const header = 20
	if len(b) < header {
		return h, false
	}
	h.src, _ = netip.AddrFromSlice(b[12:16])
	h.dst, _ = netip.AddrFromSlice(b[16:20])
	h.protocol = b[9]
	h.fragment = binary.BigEndian.Uint16(b[6:])&0x1fff != 0
	if length := int(b[0]&0xf) * 4; length >= header && length <= len(b) {
		h.rest = b[length:]
	}
	return h, true
}

// maxExtensions bounds IPv6 extension headers; RFC 8200 has seven kinds, each
// at most once but for one.
const maxExtensions = 12

// parseIPv6: RFC 8200, sections 3 and 4.
func parseIPv6(b []byte) (h ipHeader, ok bool) {
	const header = 40
	if len(b) < header {
		return h, false
	}
	h.src, _ = netip.AddrFromSlice(b[8:24])
	h.dst, _ = netip.AddrFromSlice(b[24:40])
	h.protocol, h.rest = b[6], b[header:]
	for range maxExtensions {
		length := 0
		switch h.protocol {
		case unix.IPPROTO_HOPOPTS, unix.IPPROTO_ROUTING, unix.IPPROTO_DSTOPTS:
			if len(h.rest) >= 2 {
				length = 8 + 8*int(h.rest[1])
			}
		case unix.IPPROTO_AH: // RFC 4302, section 2.2
			if len(h.rest) >= 2 {
				length = 8 + 4*int(h.rest[1])
			}
		case unix.IPPROTO_FRAGMENT:
			if len(h.rest) >= 8 {
				length = 8
				h.fragment = binary.BigEndian.Uint16(h.rest[2:])&0xfff8 != 0
			}
		default:
			return h, true
		}
		if length == 0 || length > len(h.rest) {
			h.rest = nil
			return h, true
		}
		h.protocol, h.rest = h.rest[0], h.rest[length:]
		if h.fragment {
			return h, true
		}
	}
	return h, true
}
