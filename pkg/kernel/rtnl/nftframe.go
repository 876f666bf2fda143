package rtnl

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/netconf"
)

// Statements about frames, for tables of family bridge.

// reg2 follows reg, which an interface's name fills.
const reg2 = 2

// vlanIDMask is the VLAN identifier in a tag (IEEE 802.1Q section 9.6).
var vlanIDMask = []byte{0x0f, 0xff}

// frameMatches are matches of one value of a packet with a constant.
var frameMatches = map[string][]expr.Any{
	"meta protocol ip":               protocol(unix.ETH_P_IP),
	"meta protocol arp":              protocol(unix.ETH_P_ARP),
	"meta protocol ip6":              protocol(unix.ETH_P_IPV6),
	"meta protocol 8021q":            protocol(unix.ETH_P_8021Q),
	"meta protocol 8021ad":           protocol(unix.ETH_P_8021AD),
	"meta l4proto udp":               l4proto(unix.IPPROTO_UDP),
	"meta l4proto ipv6-icmp":         l4proto(unix.IPPROTO_ICMPV6),
	"icmpv6 type nd-router-advert":   transport([]byte{134}),
	"icmpv6 type nd-redirect":        transport([]byte{137}),
	"icmpv6 type nd-neighbor-advert": transport([]byte{136}),
	"th sport 67":                    transport([]byte{0, 67}),
	"th sport 547":                   transport([]byte{547 >> 8, 547 & 0xff}),
	"vlan id 0": { // of the outer tag
		&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseLLHeader, Offset: 14, Len: 2},
		&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 2, Mask: vlanIDMask, Xor: []byte{0, 0}},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: []byte{0, 0}},
	},
	// of all segments' gateways
	"ether saddr 02:77:65:66:74:01": {
		&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseLLHeader, Offset: 6, Len: 6},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: netconf.GatewayMAC[:]},
	},
}

func protocol(p uint16) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyPROTOCOL, Register: reg},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: binary.BigEndian.AppendUint16(nil, p)},
	}
}

func l4proto(p byte) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: []byte{p}},
	}
}

// transport matches the beginning of a transport header.
func transport(data []byte) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Len: uint32(len(data))},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: data},
	}
}

// portMatch matches the port that a packet is for.
func portMatch(port uint16) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: binary.BigEndian.AppendUint16(nil, port)},
	}
}

// fields are what a link's name can stand before in the key of a set: places of
// addresses by which a packet says who sent it, or whom it is for.
var fields = map[string]expr.Payload{
	"ether saddr":  {DestRegister: reg2, Base: expr.PayloadBaseLLHeader, Offset: 6, Len: 6},
	"ether daddr":  {DestRegister: reg2, Base: expr.PayloadBaseLLHeader, Offset: 0, Len: 6},
	"ip saddr":     {DestRegister: reg2, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4},
	"ip6 saddr":    {DestRegister: reg2, Base: expr.PayloadBaseNetworkHeader, Offset: 8, Len: 16},
	"arp saddr":    {DestRegister: reg2, Base: expr.PayloadBaseNetworkHeader, Offset: 14, Len: 4},
	"icmpv6 taddr": {DestRegister: reg2, Base: expr.PayloadBaseTransportHeader, Offset: 8, Len: 16},
}

// linkKeys are the links of a packet, by nft's words.
var linkKeys = map[string]expr.MetaKey{"iifname": expr.MetaKeyIIFNAME, "oifname": expr.MetaKeyOIFNAME}

// compileFrame reads a statement of this file; n is 0 for none.
func compileFrame(words []string) (exprs []expr.Any, n int) {
	if len(words) >= 3 {
		if match, ok := frameMatches[strings.Join(words[:3], " ")]; ok {
			return match, 3
		}
	}
	if len(words) >= 3 && words[0] == "th" && words[1] == "dport" {
		if port, err := strconv.ParseUint(words[2], 10, 16); err == nil {
			return portMatch(uint16(port)), 3
		}
	}
	// iifname [. ether saddr] [!=] @set
	key, isLink := linkKeys[words[0]]
	if !isLink {
		return nil, 0
	}
	exprs, n = []expr.Any{&expr.Meta{Key: key, Register: reg}}, 1
	if len(words) >= 4 && words[1] == "." {
		where, known := fields[words[2]+" "+words[3]]
		if !known {
			return nil, 0
		}
		exprs, n = append(exprs, &where), 4
	}
	op, operand, more := comparison(words[n:])
	set, isSet := strings.CutPrefix(operand, "@")
	if !isSet {
		return nil, 0
	}
	return append(exprs, &expr.Lookup{SourceRegister: reg, SetName: set, Invert: op == expr.CmpOpNeq}), n + more
}

// printFrame is the opposite of compileFrame.
func printFrame(exprs []expr.Any) (text string, n int) {
	if len(exprs) < 2 {
		return "", 0
	}
	for text, match := range frameMatches {
		if len(exprs) >= len(match) && slices.EqualFunc(match, exprs[:len(match)], sameExprs) {
			return text, len(match)
		}
	}
	if c, isCmp := cmpAt(exprs, 1); isCmp && len(c.Data) == 2 {
		if port := binary.BigEndian.Uint16(c.Data); sameExprs(portMatch(port)[0], exprs[0]) && sameExprs(portMatch(port)[1], c) {
			return fmt.Sprintf("th dport %d", port), 2
		}
	}
	m, isMeta := exprs[0].(*expr.Meta)
	if !isMeta || m.Register != reg {
		return "", 0
	}
	for word, key := range linkKeys {
		if key == m.Key {
			text = word
		}
	}
	n = 1
	if p, isPayload := at[*expr.Payload](exprs, n); isPayload {
		for name, where := range fields {
			if *p == where {
				text, n = text+" . "+name, 2
			}
		}
	}
	l, isLookup := at[*expr.Lookup](exprs, n)
	if text == "" || !isLookup || l.SourceRegister != reg {
		return "", 0
	}
	op := expr.CmpOpEq
	if l.Invert {
		op = expr.CmpOpNeq
	}
	return text + " " + operator(op) + "@" + l.SetName, n + 1
}

func sameExprs(want, have expr.Any) bool {
	switch w := want.(type) {
	case *expr.Meta:
		h, ok := have.(*expr.Meta)
		return ok && *w == *h
	case *expr.Payload:
		h, ok := have.(*expr.Payload)
		return ok && *w == *h
	case *expr.Ct:
		h, ok := have.(*expr.Ct)
		return ok && *w == *h
	case *expr.Bitwise:
		return sameBitwise(w, have)
	case *expr.Cmp:
		h, ok := have.(*expr.Cmp)
		return ok && w.Op == h.Op && w.Register == h.Register && bytes.Equal(w.Data, h.Data)
	}
	return false
}
