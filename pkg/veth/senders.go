package veth

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/netconf"
	"github.com/weft-cni/weft/pkg/rtmsg"
)

// grant lets the pod behind link send from what grants say: elements of the sets
// of the segments' table, all of them or none.
func grant(link string, grants []netconf.Grant) error {
	if err := changeGrants(unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE, link, grants); err != nil {
		return &KernelError{Object: "senders behind " + link, Err: err}
	}
	return nil
}

// revoke takes back what grant gave, as far as it is there.
func revoke(link string, grants []netconf.Grant) error {
	err := changeGrants(unix.NFT_MSG_DELSETELEM, 0, link, grants)
	if !errors.Is(err, unix.ENOENT) || len(grants) == 1 {
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		return err
	}
	for _, g := range grants { // one that isn't there keeps the others
		if err := revoke(link, []netconf.Grant{g}); err != nil {
			return err
		}
	}
	return nil
}

// changeGrants sends one nf_tables transaction. The plugin has no use for more
// of nftables than this, and a library for all of it would double the time that
// it takes to start.
func changeGrants(typ, flags uint16, link string, grants []netconf.Grant) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	timeout := unix.Timeval{Sec: 10}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout); err != nil {
		return os.NewSyscallError("setsockopt", err)
	}
	batch := nfMessage(unix.NFNL_MSG_BATCH_BEGIN, 0, 0, nfHeader(unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES))
	for i, g := range grants {
		batch = append(batch, nfMessage(unix.NFNL_SUBSYS_NFTABLES<<8|typ, flags|unix.NLM_F_ACK, uint32(i+1), grantBody(link, g))...)
	}
	batch = append(batch, nfMessage(unix.NFNL_MSG_BATCH_END, 0, uint32(len(grants)+1), nfHeader(unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES))...)
	if err := unix.Sendto(fd, batch, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return os.NewSyscallError("sendto", err)
	}
	return nfAnswers(fd, len(grants))
}

// nfAnswers reads until each of n messages is answered, or the batch is.
func nfAnswers(fd, n int) error {
	buf := make([]byte, 16<<10)
	for n > 0 {
		size, _, err := unix.Recvfrom(fd, buf, 0)
		if err != nil {
			return os.NewSyscallError("recvfrom", err)
		}
		err = rtmsg.Messages(buf[:size], func(h unix.NlMsghdr, b []byte) error {
			if h.Type != unix.NLMSG_ERROR || len(b) < 4 {
				return fmt.Errorf("nf_tables answers with a message of type %d", h.Type)
			}
			n--
			if code := int32(binary.NativeEndian.Uint32(b)); code != 0 {
				return unix.Errno(-code)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// nfHeader is struct nfgenmsg.
func nfHeader(family byte, resource uint16) []byte {
	return binary.BigEndian.AppendUint16([]byte{family, unix.NFNETLINK_V0}, resource)
}

func nfMessage(typ, flags uint16, seq uint32, body []byte) []byte {
	b := binary.NativeEndian.AppendUint32(nil, uint32(unix.NLMSG_HDRLEN+len(body)))
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = binary.NativeEndian.AppendUint16(b, unix.NLM_F_REQUEST|flags)
	b = binary.NativeEndian.AppendUint32(b, seq)
	return append(append(b, 0, 0, 0, 0), body...)
}

// grantBody names one element: the link's name, filled up with zeros, and what
// stands beside it, filled up to whole registers.
func grantBody(link string, g netconf.Grant) []byte {
	_, table, _ := strings.Cut(netconf.SegmentTable, " ")
	key := make([]byte, unix.IFNAMSIZ)
	copy(key, link)
	value, end := g.MAC[:], []byte(nil)
	switch {
	case g.Prefix.IsValid():
		value = g.Prefix.Addr().AsSlice()
		if !g.Prefix.IsSingleIP() {
			end = lastOf(g.Prefix)
		}
	case g.MAC == kernel.MAC{}:
		value = nil
	default:
		value = append(value, 0, 0)
	}
	element := rtmsg.Attr(nil, unix.NFTA_SET_ELEM_KEY|unix.NLA_F_NESTED, data(key, value))
	if end != nil {
		element = rtmsg.Attr(element, elemKeyEnd|unix.NLA_F_NESTED, data(key, end))
	}
	list := rtmsg.Attr(nil, unix.NFTA_LIST_ELEM|unix.NLA_F_NESTED, element)
	body := rtmsg.AttrString(nfHeader(unix.NFPROTO_BRIDGE, 0), unix.NFTA_SET_ELEM_LIST_TABLE, table)
	body = rtmsg.AttrString(body, unix.NFTA_SET_ELEM_LIST_SET, g.Set)
	return rtmsg.Attr(body, unix.NFTA_SET_ELEM_LIST_ELEMENTS|unix.NLA_F_NESTED, list)
}

// elemKeyEnd is NFTA_SET_ELEM_KEY_END (linux/netfilter/nf_tables.h): the last
// key of an interval.
const elemKeyEnd = 10

func data(key, value []byte) []byte {
	return rtmsg.Attr(nil, unix.NFTA_DATA_VALUE, slices.Concat(key, value))
}

// lastOf is the last address of a prefix.
func lastOf(p netip.Prefix) []byte {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	return b
}
