package rtnl

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/rtmsg"
)

// sizeofFibHdr is the size of struct fib_rule_hdr (linux/fib_rules.h).
const sizeofFibHdr = 12

// ruleRequest makes or deletes a rule of ours.
func ruleRequest(r kernel.Rule, del bool) rtmsg.Request {
	from := r.From.Addr()
	action := uint8(rtmsg.ToTable)
	if del {
		action = 0
	}
	body := rtmsg.Rule(rtmsg.Family(from), r.From.Bits(), action)
	if r.From.Bits() > 0 { // else it is no selector
		body = rtmsg.AttrAddr(body, unix.FRA_SRC, from)
	}
	if r.Mark != 0 {
		body = rtmsg.AttrUint32(rtmsg.AttrUint32(body, unix.FRA_FWMARK, r.Mark), unix.FRA_FWMASK, wholeMark)
	}
	body = rtmsg.AttrUint32(body, unix.FRA_PRIORITY, r.Priority)
	body = rtmsg.Attr(body, unix.FRA_PROTOCOL, []byte{kernel.RouteProtocol})
	if del {
		return rtmsg.Request{Type: unix.RTM_DELRULE, Body: body}
	}
	body = rtmsg.AttrUint32(body, unix.FRA_TABLE, r.Table)
	return rtmsg.Request{Type: unix.RTM_NEWRULE, Flags: unix.NLM_F_CREATE | unix.NLM_F_EXCL, Body: body}
}

// wholeMark is the mask of a rule that is for one mark.
const wholeMark = 0xffffffff

// applyRule adds or deletes a rule. The kernel can't change one in place.
func (h *Handle) applyRule(op kernel.Op) error {
	var requests []rtmsg.Request
	if have, ok := op.Have.(kernel.Rule); ok {
		requests = append(requests, ruleRequest(have, true))
	}
	if want, ok := op.Want.(kernel.Rule); ok {
		requests = append(requests, ruleRequest(want, false))
	}
	errs := h.conn.Execute(requests)
	if op.Verb == kernel.Delete && isGone(errs[0]) {
		return nil
	}
	return errors.Join(errs...)
}

// readRules puts the rules of our protocol.
func (h *Handle) readRules(s kernel.State) error {
	for _, fam := range []uint8{unix.AF_INET, unix.AF_INET6} {
		body := make([]byte, sizeofFibHdr)
		body[0] = fam
		err := h.collect(s, rtmsg.Request{Type: unix.RTM_GETRULE, Body: body}, func(b []byte) kernel.Object {
			if r, ok := decodeRule(b); ok {
				return r
			}
			return nil
		})
		if err != nil && !errors.Is(err, unix.EAFNOSUPPORT) && !errors.Is(err, unix.EOPNOTSUPP) {
			return fmt.Errorf("read rules: %w", err)
		}
	}
	return nil
}

// decodeRule reads an RTM_NEWRULE or RTM_DELRULE message about a rule of ours.
func decodeRule(b []byte) (r kernel.Rule, ours bool) {
	if len(b) < sizeofFibHdr {
		return kernel.Rule{}, false
	}
	r.Table = uint32(b[4])
	from := netip.IPv4Unspecified()
	if b[0] == unix.AF_INET6 {
		from = netip.IPv6Unspecified()
	}
	for typ, v := range rtmsg.Attrs(b[sizeofFibHdr:]) {
		switch typ {
		case unix.FRA_SRC:
			from = rtmsg.AddrOf(v)
		case unix.FRA_PRIORITY:
			r.Priority = u32(v)
		case unix.FRA_TABLE:
			r.Table = u32(v)
		case unix.FRA_PROTOCOL:
			ours = len(v) > 0 && v[0] == kernel.RouteProtocol
		case unix.FRA_FWMARK:
			r.Mark = u32(v)
		case unix.FRA_FWMASK:
			if mask := u32(v); mask != 0 && mask != wholeMark {
				r.Detail = fmt.Sprintf("fwmask %#x", mask)
			}
		case unix.FRA_DST, unix.FRA_IIFNAME, unix.FRA_OIFNAME, unix.FRA_GOTO,
			unix.FRA_IP_PROTO, unix.FRA_SPORT_RANGE, unix.FRA_DPORT_RANGE, unix.FRA_UID_RANGE:
			r.Detail = fmt.Sprintf("attribute %d", typ)
		}
	}
	if b[7] != rtmsg.ToTable {
		r.Detail = fmt.Sprintf("action %d", b[7])
	}
	if flags := binary.NativeEndian.Uint32(b[8:]); flags&unix.FIB_RULE_INVERT != 0 {
		r.Detail = "not"
	}
	r.From = netip.PrefixFrom(from, int(b[2]))
	return r, ours && (b[0] == unix.AF_INET || b[0] == unix.AF_INET6)
}
