package rtnl

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/rtmsg"
)

// The library passes over expressions that it doesn't know, and doesn't read
// directions of connections. Both would be taken for what is planned.

// expressions are those that Weft's rules are made of, by the kernel's names;
// "ct" is decoded here.
var expressions = map[string]func() expr.Any{
	"bitwise":   func() expr.Any { return &expr.Bitwise{} },
	"cmp":       func() expr.Any { return &expr.Cmp{} },
	"counter":   func() expr.Any { return &expr.Counter{} },
	"fib":       func() expr.Any { return &expr.Fib{} },
	"immediate": func() expr.Any { return &expr.Immediate{} },
	"lookup":    func() expr.Any { return &expr.Lookup{} },
	"masq":      func() expr.Any { return &expr.Masq{} },
	"meta":      func() expr.Any { return &expr.Meta{} },
	"payload":   func() expr.Any { return &expr.Payload{} },
}

// foreign is an expression that is none of ours.
type foreign struct {
	expr.Any
	name string
}

// readRules gives a chain's rules.
func readRules(chain *nftables.Chain) (rules [][]expr.Any, err error) {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if err = c.SetReadDeadline(deadline()); err != nil {
		return nil, err
	}
	family := byte(chain.Table.Family)
	messages, err := c.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETRULE, Flags: netlink.Request | netlink.Dump},
		Data: attrs([]byte{family, unix.NFNETLINK_V0, 0, 0},
			text(unix.NFTA_RULE_TABLE, chain.Table.Name), text(unix.NFTA_RULE_CHAIN, chain.Name)),
	})
	if err != nil {
		return nil, fmt.Errorf("rules of chain %s: %w", chain.Name, err)
	}
	const header = 4 // struct nfgenmsg
	for _, m := range messages {
		if m.Header.Type != unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWRULE || len(m.Data) < header {
			continue
		}
		for typ, v := range rtmsg.Attrs(m.Data[header:]) {
			if typ != unix.NFTA_RULE_EXPRESSIONS {
				continue
			}
			rule, err := decodeRuleExprs(family, v)
			if err != nil {
				return nil, fmt.Errorf("rules of chain %s: %w", chain.Name, err)
			}
			rules = append(rules, rule)
		}
	}
	return rules, nil
}

// decodeRuleExprs reads NFTA_RULE_EXPRESSIONS.
func decodeRuleExprs(family byte, list []byte) (exprs []expr.Any, err error) {
	for _, element := range rtmsg.Attrs(list) {
		var name string
		var data []byte
		for typ, v := range rtmsg.Attrs(element) {
			switch typ {
			case unix.NFTA_EXPR_NAME:
				name = rtmsg.String(v)
			case unix.NFTA_EXPR_DATA:
				data = v
			}
		}
		e, known := foreign{name: name}, expressions[name]
		switch {
		case name == "ct":
			exprs = append(exprs, decodeCt(data))
			continue
		case known == nil:
			exprs = append(exprs, e)
			continue
		}
		one := known()
		err = errors.Join(err, expr.Unmarshal(family, data, one))
		if i, is := one.(*expr.Immediate); is && i.Register == unix.NFT_REG_VERDICT {
			one = &expr.Verdict{}
			err = errors.Join(err, expr.Unmarshal(family, data, one))
		}
		exprs = append(exprs, one)
	}
	return exprs, err
}

// decodeCt reads the data of an expression about connections.
func decodeCt(data []byte) expr.Any {
	var ct expr.Ct
	direction := -1
	for typ, v := range rtmsg.Attrs(data) {
		switch {
		case typ == unix.NFTA_CT_DIRECTION && len(v) > 0:
			direction = int(v[0])
		case len(v) < 4:
		case typ == unix.NFTA_CT_KEY:
			ct.Key = expr.CtKey(binary.BigEndian.Uint32(v))
		case typ == unix.NFTA_CT_DREG:
			ct.Register = binary.BigEndian.Uint32(v)
		case typ == unix.NFTA_CT_SREG:
			ct.Register, ct.SourceRegister = binary.BigEndian.Uint32(v), true
		}
	}
	switch {
	case direction < 0:
		return &ct
	case direction == original && ct == expr.Ct{Key: expr.CtKeyZONE, Register: reg, SourceRegister: true}:
		return zoneSet{&ct}
	}
	return foreign{name: fmt.Sprintf("ct key %d direction %d", ct.Key, direction)}
}
