package rtnl

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/rtmsg"
)

// sendsItself reports whether an operation is on a table that has expressions
// which the library can't send.
func sendsItself(op kernel.Op) bool {
	r, ok := op.Want.(kernel.Rules)
	return ok && strings.Contains(r.Text, setZone)
}

// sendTable puts a table, without sets, in the place of the one that is there,
// in one transaction.
func sendTable(o kernel.Object) error {
	r, ok := o.(kernel.Rules)
	if !ok {
		return fmt.Errorf("%T is not a table", o)
	}
	table, err := tableOf(r.Table)
	if err != nil {
		return err
	}
	t := transaction{family: byte(table.Family)}
	name := text(unix.NFTA_TABLE_NAME, table.Name)
	t.add(unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE, name)
	t.add(unix.NFT_MSG_DELTABLE, 0, name)
	t.add(unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE, name)
	var chain *nftables.Chain
	for line := range strings.Lines(r.Text) {
		line = strings.TrimSpace(line)
		switch {
		case line == "}":
			chain = nil
		case chain != nil:
			if err = t.rule(chain, line); err != nil {
				return err
			}
		default:
			if chain, err = compileChain(table, line); err != nil {
				return err
			}
			t.chain(chain)
		}
	}
	return t.send()
}

// transaction is a batch of nf_tables messages: all of them, or none.
type transaction struct {
	family   byte
	messages []netlink.Message
}

func (t *transaction) add(typ int, flags netlink.HeaderFlags, body []byte) {
	t.messages = append(t.messages, netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | typ), Flags: netlink.Request | flags},
		Data:   slices.Concat([]byte{t.family, unix.NFNETLINK_V0, 0, 0}, body),
	})
}

func (t *transaction) chain(c *nftables.Chain) {
	hook := attrs(bigEndian(unix.NFTA_HOOK_HOOKNUM, uint32(*c.Hooknum)), bigEndian(unix.NFTA_HOOK_PRIORITY, uint32(*c.Priority)))
	t.add(unix.NFT_MSG_NEWCHAIN, unix.NLM_F_CREATE, attrs(
		text(unix.NFTA_CHAIN_TABLE, c.Table.Name), text(unix.NFTA_CHAIN_NAME, c.Name),
		attr(unix.NFTA_CHAIN_HOOK|unix.NLA_F_NESTED, hook),
		bigEndian(unix.NFTA_CHAIN_POLICY, uint32(*c.Policy)), text(unix.NFTA_CHAIN_TYPE, string(c.Type)),
	))
}

func (t *transaction) rule(c *nftables.Chain, words string) error {
	exprs, err := compileRule(words)
	if err != nil {
		return err
	}
	var list []byte
	for _, e := range exprs {
		if _, is := e.(zoneSet); is {
			list = append(list, attr(unix.NFTA_LIST_ELEM|unix.NLA_F_NESTED, zoneSetAttr())...)
			continue
		}
		b, err := expr.Marshal(t.family, e)
		if err != nil {
			return err
		}
		list = append(list, attr(unix.NFTA_LIST_ELEM|unix.NLA_F_NESTED, b)...)
	}
	t.add(unix.NFT_MSG_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_APPEND, attrs(
		text(unix.NFTA_RULE_TABLE, c.Table.Name), text(unix.NFTA_RULE_CHAIN, c.Name),
		attr(unix.NFTA_RULE_EXPRESSIONS|unix.NLA_F_NESTED, list),
	))
	return nil
}

// send has the last message answered: errors of those before come first.
func (t *transaction) send() error {
	t.messages[len(t.messages)-1].Header.Flags |= netlink.Acknowledge
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return err
	}
	defer c.Close()
	border := func(typ uint16) netlink.Message {
		return netlink.Message{
			Header: netlink.Header{Type: netlink.HeaderType(typ), Flags: netlink.Request},
			Data:   []byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, unix.NFNL_SUBSYS_NFTABLES},
		}
	}
	all := slices.Concat([]netlink.Message{border(unix.NFNL_MSG_BATCH_BEGIN)}, t.messages, []netlink.Message{border(unix.NFNL_MSG_BATCH_END)})
	size := 0
	for _, m := range all {
		size += len(m.Data) + unix.NLMSG_HDRLEN
	}
	err = errors.Join(c.SetWriteBuffer(max(2*size, 1<<16)), c.SetReadDeadline(deadline()))
	if err == nil {
		_, err = c.SendMessages(all)
	}
	if err == nil {
		_, err = c.Receive()
	}
	if err != nil {
		return fmt.Errorf("nf_tables: %w", err)
	}
	return nil
}

// Attributes of nf_tables: numbers are in network order.

func attr(typ uint16, v []byte) []byte { return rtmsg.Attr(nil, typ, v) }

func text(typ uint16, s string) []byte { return rtmsg.AttrString(nil, typ, s) }

func bigEndian(typ uint16, v uint32) []byte {
	return attr(typ, binary.BigEndian.AppendUint32(nil, v))
}

func attrs(all ...[]byte) []byte { return slices.Concat(all...) }

func expression(name string, data []byte) []byte {
	return attrs(text(unix.NFTA_EXPR_NAME, name), attr(unix.NFTA_EXPR_DATA|unix.NLA_F_NESTED, data))
}
