package rtnl

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Statements about packets' marks and connections, for segments' gateways.

// ctStatusDNAT is IPS_DST_NAT (linux/netfilter/nf_conntrack_common.h).
const ctStatusDNAT = 1 << 5

// markStatements are those without a parameter of their own.
var markStatements = []struct {
	text  string
	exprs []expr.Any
}{
	{"meta mark and 0xff000000 == 0x57000000", append([]expr.Any{loadMark}, ofGateway...)},
	{"ct mark and 0xff000000 == 0x57000000", append([]expr.Any{loadCtMark}, ofGateway...)},
	{"ct mark set meta mark", []expr.Any{loadMark, &expr.Ct{Key: expr.CtKeyMARK, Register: reg, SourceRegister: true}}},
	{"meta mark set ct mark", []expr.Any{loadCtMark, setMark}},
	{"ct status dnat", []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATUS, Register: reg}, masked(ctStatusDNAT),
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg, Data: native(0)},
	}},
}

var (
	loadMark   = &expr.Meta{Key: expr.MetaKeyMARK, Register: reg}
	setMark    = &expr.Meta{Key: expr.MetaKeyMARK, Register: reg, SourceRegister: true}
	loadCtMark = &expr.Ct{Key: expr.CtKeyMARK, Register: reg}
	ofGateway  = []expr.Any{masked(0xff000000), &expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: native(0x57000000)}}
)

func native(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }

func masked(mask uint32) *expr.Bitwise {
	return &expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 4, Mask: native(mask), Xor: native(0)}
}

// original is IP_CT_DIR_ORIGINAL.
const original = 0

// zoneSet is `ct original zone set`. The library's expression has no direction
// for zones: where one is compiled, the table is sent by sendTable.
type zoneSet struct{ *expr.Ct }

const (
	setZone  = "ct original zone set"
	setAMark = "meta mark set"
)

// compileMark reads a statement of this file; n is 0 for none.
func compileMark(words []string) (exprs []expr.Any, n int) {
	text := strings.Join(words, " ") + " "
	for _, s := range markStatements {
		if strings.HasPrefix(text, s.text+" ") {
			return s.exprs, len(strings.Fields(s.text))
		}
	}
	for _, set := range []string{setZone, setAMark} {
		n = len(strings.Fields(set))
		if !strings.HasPrefix(text, set+" ") || len(words) <= n {
			continue
		}
		bits := 32
		if set == setZone {
			bits = 16
		}
		v, err := strconv.ParseUint(words[n], 0, bits)
		switch {
		case err != nil:
			return nil, 0
		case set == setZone:
			data := binary.NativeEndian.AppendUint16(nil, uint16(v))
			return []expr.Any{&expr.Immediate{Register: reg, Data: data}, zoneSet{}}, n + 1
		}
		return []expr.Any{&expr.Immediate{Register: reg, Data: native(uint32(v))}, setMark}, n + 1
	}
	return nil, 0
}

// printMark is the opposite of compileMark.
func printMark(exprs []expr.Any) (text string, n int) {
	for _, s := range markStatements {
		if begins(exprs, s.exprs) {
			return s.text, len(s.exprs)
		}
	}
	value, isValue := exprs[0].(*expr.Immediate)
	if !isValue || value.Register != reg || len(exprs) < 2 {
		return "", 0
	}
	_, isZone := exprs[1].(zoneSet)
	switch {
	case isZone && len(value.Data) >= 2:
		return fmt.Sprintf("%s %d", setZone, binary.NativeEndian.Uint16(value.Data)), 2
	case len(value.Data) == 4 && sameExprs(setMark, exprs[1]):
		return fmt.Sprintf("%s %#x", setAMark, u32(value.Data)), 2
	}
	return "", 0
}

func begins(have, want []expr.Any) bool {
	if len(have) < len(want) {
		return false
	}
	for i, w := range want {
		if !sameExprs(w, have[i]) {
			return false
		}
	}
	return true
}

func sameBitwise(w *expr.Bitwise, have expr.Any) bool {
	h, ok := have.(*expr.Bitwise)
	return ok && w.SourceRegister == h.SourceRegister && w.DestRegister == h.DestRegister && w.Len == h.Len &&
		bytes.Equal(w.Mask, h.Mask) && bytes.Equal(w.Xor, h.Xor)
}

// zoneSetAttr encodes a zoneSet as an element of a rule's list.
func zoneSetAttr() []byte {
	return expression("ct", attrs(
		bigEndian(unix.NFTA_CT_KEY, uint32(expr.CtKeyZONE)),
		attr(unix.NFTA_CT_DIRECTION, []byte{original}),
		bigEndian(unix.NFTA_CT_SREG, reg),
	))
}
