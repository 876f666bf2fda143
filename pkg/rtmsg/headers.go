package rtmsg

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// Link is struct ifinfomsg (rtnetlink(7)): the head of a message about a link.
// change is the mask of flags to set.
func Link(index int, flags, change uint32) []byte {
	b := binary.NativeEndian.AppendUint32(make([]byte, 4), uint32(index))
	b = binary.NativeEndian.AppendUint32(b, flags)
	return binary.NativeEndian.AppendUint32(b, change)
}

// in6AddrGenModeNone is IN6_ADDR_GEN_MODE_NONE of linux/if_link.h.
const in6AddrGenModeNone = 1

// NoLinkLocal appends to the head of a message about a link that it makes no
// IPv6 link-local address: no duplicate address detection, and no router
// solicitations. The kernel takes this of a link that is there, not with the
// message that makes one.
func NoLinkLocal(body []byte) []byte {
	inet6 := Attr(nil, unix.IFLA_INET6_ADDR_GEN_MODE, []byte{in6AddrGenModeNone})
	spec := Attr(nil, unix.AF_INET6|unix.NLA_F_NESTED, inet6)
	return Attr(body, unix.IFLA_AF_SPEC|unix.NLA_F_NESTED, spec)
}

// Addr is struct ifaddrmsg: the head of a message about an address of global
// scope.
func Addr(family uint8, bits, index int) []byte {
	return binary.NativeEndian.AppendUint32(
		[]byte{family, uint8(bits), 0, unix.RT_SCOPE_UNIVERSE}, uint32(index))
}

// Neigh is struct ndmsg: the head of a message about a neighbour or an FDB
// entry.
func Neigh(family uint8, index int, state uint16, flags uint8) []byte {
	b := binary.NativeEndian.AppendUint32([]byte{family, 0, 0, 0}, uint32(index))
	b = binary.NativeEndian.AppendUint16(b, state)
	return append(b, flags, 0)
}

// Route is struct rtmsg: the head of a message about a unicast route of the
// main table.
func Route(family uint8, bits int, proto, scope uint8, flags uint32) []byte {
	return binary.NativeEndian.AppendUint32(
		[]byte{family, uint8(bits), 0, 0, unix.RT_TABLE_MAIN, proto, scope, unix.RTN_UNICAST}, flags)
}

// IntoTable moves a route whose message is only its head into a table; 0 is
// the main one.
func IntoTable(body []byte, table uint32) []byte {
	if table == 0 {
		return body
	}
	body[4] = unix.RT_TABLE_UNSPEC
	return AttrUint32(body, unix.RTA_TABLE, table)
}

// Rule is struct fib_rule_hdr (linux/fib_rules.h): the head of a message about
// a routing rule for what comes from a range of addresses. Rules that look a
// table up have the action ToTable; to delete one, whatever it does, 0.
func Rule(family uint8, srcBits int, action uint8) []byte {
	// family, dst_len, src_len, tos, table, res1, res2, action, flags
	return []byte{family, 0, uint8(srcBits), 0, unix.RT_TABLE_UNSPEC, 0, 0, action, 0, 0, 0, 0}
}

// ToTable is FR_ACT_TO_TBL of linux/fib_rules.h.
const ToTable = 1
