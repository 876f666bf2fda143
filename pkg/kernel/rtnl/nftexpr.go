package rtnl

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// The statements of nft(8) that Weft's rules are made of, each compiled to
// the kernel's expressions and printed from them. What isn't known is printed
// as such and so never equals what is wanted.

const reg = 1 // the register that every match goes through

// compileRule reads one rule in nft's words.
func compileRule(text string) ([]expr.Any, error) {
	var all []expr.Any
	for words := strings.Fields(text); len(words) > 0; {
		exprs, n := compileStatement(words)
		if n == 0 {
			return nil, fmt.Errorf("nft rule %q: unknown statement at %q", text, words[0])
		}
		all, words = append(all, exprs...), words[n:]
	}
	return all, nil
}

// compileStatement reads the statement that words begins with and gives the
// number of words it took, 0 for none that is known.
func compileStatement(words []string) ([]expr.Any, int) {
	if exprs, n := compileFrame(words); n > 0 {
		return exprs, n
	}
	if exprs, n := compileMark(words); n > 0 {
		return exprs, n
	}
	switch words[0] {
	case "counter":
		return []expr.Any{&expr.Counter{}}, 1
	case "drop":
		return []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}}, 1
	case "accept":
		return []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}}, 1
	case "masquerade":
		if len(words) > 1 && words[1] == "fully-random" {
			return []expr.Any{&expr.Masq{FullyRandom: true}}, 2
		}
		return []expr.Any{&expr.Masq{}}, 1
	case "fib":
		if len(words) >= 6 && strings.Join(words[:6], " ") == fibMissing {
			return []expr.Any{
				&expr.Fib{Register: reg, FlagSADDR: true, FlagIIF: true, ResultOIF: true, FlagPRESENT: true},
				&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: []byte{0}},
			}, 6
		}
	case "iifname", "oifname":
		op, operand, n := comparison(words[1:])
		if n == 0 {
			break
		}
		key := expr.MetaKeyIIFNAME
		if words[0] == "oifname" {
			key = expr.MetaKeyOIFNAME
		}
		return []expr.Any{&expr.Meta{Key: key, Register: reg}, &expr.Cmp{Op: op, Register: reg, Data: nameData(operand)}}, 1 + n
	case "ip", "ip6":
		if len(words) < 3 {
			break
		}
		op, operand, n := comparison(words[2:])
		set, isSet := strings.CutPrefix(operand, "@")
		field, known := addressFields[words[0]+" "+words[1]]
		if n == 0 || !isSet || !known {
			break
		}
		return []expr.Any{
			&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: reg},
			&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: []byte{field.family}},
			&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: field.offset, Len: field.size},
			&expr.Lookup{SourceRegister: reg, SetName: set, Invert: op == expr.CmpOpNeq},
		}, 2 + n
	}
	return nil, 0
}

const fibMissing = "fib saddr . iif oif missing"

type addressField struct {
	family       byte
	offset, size uint32 // bytes, in the network header
}

var addressFields = map[string]addressField{
	"ip saddr":  {family: unix.NFPROTO_IPV4, offset: 12, size: 4},
	"ip daddr":  {family: unix.NFPROTO_IPV4, offset: 16, size: 4},
	"ip6 saddr": {family: unix.NFPROTO_IPV6, offset: 8, size: 16},
	"ip6 daddr": {family: unix.NFPROTO_IPV6, offset: 24, size: 16},
}

// comparison reads `[!=] operand`.
func comparison(words []string) (op expr.CmpOp, operand string, n int) {
	switch {
	case len(words) >= 2 && words[0] == "!=":
		return expr.CmpOpNeq, words[1], 2
	case len(words) >= 1:
		return expr.CmpOpEq, words[0], 1
	}
	return 0, "", 0
}

// nameData is a quoted interface name as the kernel compares it: whole, or
// its beginning where the name ends in an asterisk.
func nameData(quoted string) []byte {
	name := strings.Trim(quoted, `"`)
	if start, isStart := strings.CutSuffix(name, "*"); isStart {
		return []byte(start)
	}
	return append([]byte(name), make([]byte, unix.IFNAMSIZ-len(name))...)
}

// printRule is the opposite of compileRule.
func printRule(exprs []expr.Any) string {
	var words []string
	for len(exprs) > 0 {
		text, n := printStatement(exprs)
		words, exprs = append(words, text), exprs[n:]
	}
	return strings.Join(words, " ")
}

func printStatement(exprs []expr.Any) (text string, n int) {
	if text, n = printFrame(exprs); n > 0 {
		return text, n
	}
	if text, n = printMark(exprs); n > 0 {
		return text, n
	}
	switch e := exprs[0].(type) {
	case foreign:
		return fmt.Sprintf("[unknown %s]", e.name), 1
	case *expr.Counter:
		return "counter", 1
	case *expr.Verdict:
		switch e.Kind {
		case expr.VerdictDrop:
			return "drop", 1
		case expr.VerdictAccept:
			return "accept", 1
		}
	case *expr.Masq:
		switch *e {
		case expr.Masq{FullyRandom: true}:
			return "masquerade fully-random", 1
		case expr.Masq{}:
			return "masquerade", 1
		}
	case *expr.Fib:
		if c, ok := cmpAt(exprs, 1); ok && c.Op == expr.CmpOpEq && bytes.Equal(c.Data, []byte{0}) &&
			*e == (expr.Fib{Register: reg, FlagSADDR: true, FlagIIF: true, ResultOIF: true, FlagPRESENT: true}) {
			return fibMissing, 2
		}
	case *expr.Meta:
		return printMeta(e, exprs)
	}
	return fmt.Sprintf("[unknown %T %+v]", exprs[0], exprs[0]), 1
}

func printMeta(m *expr.Meta, exprs []expr.Any) (string, int) {
	unknown := fmt.Sprintf("[unknown meta %d]", m.Key)
	c, ok := cmpAt(exprs, 1)
	if !ok || m.SourceRegister {
		return unknown, 1
	}
	switch m.Key {
	case expr.MetaKeyIIFNAME:
		return "iifname " + operator(c.Op) + nameText(c.Data), 2
	case expr.MetaKeyOIFNAME:
		return "oifname " + operator(c.Op) + nameText(c.Data), 2
	case expr.MetaKeyNFPROTO:
		p, isPayload := at[*expr.Payload](exprs, 2)
		l, isLookup := at[*expr.Lookup](exprs, 3)
		if !isPayload || !isLookup || p.Base != expr.PayloadBaseNetworkHeader || c.Op != expr.CmpOpEq || len(c.Data) != 1 {
			break
		}
		op := expr.CmpOpEq
		if l.Invert {
			op = expr.CmpOpNeq
		}
		for name, f := range addressFields {
			if f == (addressField{family: c.Data[0], offset: p.Offset, size: p.Len}) {
				return fmt.Sprintf("%s %s@%s", name, operator(op), l.SetName), 4
			}
		}
	}
	return unknown, 1
}

func cmpAt(exprs []expr.Any, i int) (*expr.Cmp, bool) { return at[*expr.Cmp](exprs, i) }

// at gives the expression at i if there is one and it is an E.
func at[E expr.Any](exprs []expr.Any, i int) (e E, ok bool) {
	if i >= len(exprs) {
		return e, false
	}
	e, ok = exprs[i].(E)
	return e, ok
}

func operator(op expr.CmpOp) string {
	switch op {
	case expr.CmpOpEq:
		return ""
	case expr.CmpOpNeq:
		return "!= "
	}
	return fmt.Sprintf("[operator %d] ", op)
}

func nameText(data []byte) string {
	if name, _, whole := bytes.Cut(data, []byte{0}); whole {
		return `"` + string(name) + `"`
	}
	return `"` + string(data) + `*"`
}
