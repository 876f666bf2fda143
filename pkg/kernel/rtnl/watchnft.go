package rtnl

import (
	"encoding/binary"
	"slices"
	"strings"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/rtmsg"
)

// elementChange is what a transaction does to a set.
type elementChange struct {
	table, set string // as in kernel.Element
	gone       bool
}

// nftMessage looks at the table's name, which is attribute 1 of all messages
// that have one (NFTA_TABLE_NAME, NFTA_CHAIN_TABLE, NFTA_RULE_TABLE, ...).
func (w *watcher) nftMessage(h unix.NlMsghdr, b []byte) {
	const header = 4 // struct nfgenmsg
	if h.Type>>8 != unix.NFNL_SUBSYS_NFTABLES || len(b) < header {
		return
	}
	message := h.Type & 0xff
	if message == unix.NFT_MSG_NEWGEN { // ends a transaction
		w.elementsChanged()
		return
	}
	var table, set string
	var elements []byte
	for typ, v := range rtmsg.Attrs(b[header:]) {
		switch typ {
		case 1:
			table = w.table(b[0], rtmsg.String(v))
		case unix.NFTA_SET_ELEM_LIST_SET:
			set = rtmsg.String(v)
		case unix.NFTA_SET_ELEM_LIST_ELEMENTS:
			elements = v
		}
	}
	switch {
	case table == "":
	case message == unix.NFT_MSG_NEWSETELEM, message == unix.NFT_MSG_DELSETELEM:
		change := elementChange{table, set, message == unix.NFT_MSG_DELSETELEM}
		w.elements[change] = append(w.elements[change], decodeElements(elements)...)
	default:
		w.send(kernel.Event{Key: kernel.Key{Kind: kernel.KindRules, Name: table}})
	}
}

// table is the family and name of a table of ours, empty for others.
func (w *watcher) table(family byte, name string) string {
	for word, number := range families {
		if table := word + " " + name; byte(number) == family && slices.Contains(w.names.Tables, table) {
			return table
		}
	}
	return ""
}

// elementsChanged tells of what a transaction has put into sets or taken out:
// prefixes, or in family bridge links with what may be sent from behind them. An interval's two ends are elements of their own; where they don't
// make prefixes, as ours do, the whole table is in question.
func (w *watcher) elementsChanged() {
	for change, elements := range w.elements {
		if strings.HasPrefix(change.table, "bridge ") {
			for _, e := range elements {
				if o, ok := source(change.table, change.set, e); ok {
					w.object(o, change.gone)
				}
			}
			continue
		}
		whole, foreign := prefixes(elements)
		if foreign != "" || 2*len(whole) != len(elements) {
			w.send(kernel.Event{Key: kernel.Key{Kind: kernel.KindRules, Name: change.table}})
			continue
		}
		for _, p := range whole {
			w.object(kernel.Element{Table: change.table, Set: change.set, Prefix: p}, change.gone)
		}
	}
	clear(w.elements)
}

// decodeElements reads NFTA_SET_ELEM_LIST_ELEMENTS.
func decodeElements(b []byte) (all []nftables.SetElement) {
	for _, element := range rtmsg.Attrs(b) {
		var e nftables.SetElement
		for typ, v := range rtmsg.Attrs(element) {
			switch typ {
			case unix.NFTA_SET_ELEM_KEY:
				e.Key = value(v)
			case nftables.NFTA_SET_ELEM_KEY_END:
				e.KeyEnd = value(v)
			case unix.NFTA_SET_ELEM_FLAGS: // in network order
				e.IntervalEnd = len(v) >= 4 && binary.BigEndian.Uint32(v)&unix.NFT_SET_ELEM_INTERVAL_END != 0
			}
		}
		all = append(all, e)
	}
	return all
}

// value is the NFTA_DATA_VALUE of a key.
func value(b []byte) (key []byte) {
	for typ, v := range rtmsg.Attrs(b) {
		if typ == unix.NFTA_DATA_VALUE {
			key = slices.Clone(v)
		}
	}
	return key
}
