package rtnl

import (
	"errors"
	"fmt"
	"strings"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/rtmsg"
)

// singly is how many elements of sets of links are asked for one by one; for more
// the whole table is read.
const singly = 64

// isSource reports whether an element's key is a kernel.Source's.
func isSource(k kernel.Key) bool {
	return k.Kind == kernel.KindElement && strings.Contains(k.Name, "@")
}

// readSource reads the element at k, if it is there.
func (h *Handle) readSource(s kernel.State, k kernel.Key) error {
	name, link, _ := strings.Cut(k.Name, "@")
	table := k.Table()
	set := strings.TrimPrefix(name, table+" ")
	t, err := tableOf(table)
	if err != nil {
		return err
	}
	want := sourceElement(kernel.Source{Table: table, Set: set, Link: link, Prefix: k.Dst, MAC: k.MAC})
	element := nested(nil, unix.NFTA_SET_ELEM_KEY, rtmsg.Attr(nil, unix.NFTA_DATA_VALUE, want.Key))
	if len(want.KeyEnd) > 0 {
		element = nested(element, nftables.NFTA_SET_ELEM_KEY_END, rtmsg.Attr(nil, unix.NFTA_DATA_VALUE, want.KeyEnd))
	}
	body := []byte{byte(t.Family), unix.NFNETLINK_V0, 0, 0}
	body = rtmsg.AttrString(body, unix.NFTA_SET_ELEM_LIST_TABLE, t.Name)
	body = rtmsg.AttrString(body, unix.NFTA_SET_ELEM_LIST_SET, set)
	body = nested(body, unix.NFTA_SET_ELEM_LIST_ELEMENTS, nested(nil, unix.NFTA_LIST_ELEM, element))
	b, err := h.nft.Get(rtmsg.Request{Type: unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETSETELEM, Body: body})
	switch {
	case errors.Is(err, unix.ENOENT): // not it, or not its set or table
		return nil
	case err != nil:
		return fmt.Errorf("read %s: %w", k, err)
	}
	const header = 4 // struct nfgenmsg
	for typ, v := range rtmsg.Attrs(b[min(header, len(b)):]) {
		if typ != unix.NFTA_SET_ELEM_LIST_ELEMENTS {
			continue
		}
		for _, e := range decodeElements(v) {
			// An interval may be another one that holds the address.
			if o, ok := source(table, set, e); ok && o.Key() == k {
				s.Put(o)
			}
		}
	}
	return nil
}

func nested(b []byte, typ uint16, value []byte) []byte {
	return rtmsg.Attr(b, typ|unix.NLA_F_NESTED, value)
}
