package main

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/kernel"
)

// bare writes entries to the kernel at the lowest price there is without
// tricks: messages made beforehand, one system call to send each and one to
// take its acknowledgement.
type bare struct {
	fd       int
	messages [][]byte
}

// newBare prepares the entries of a plan for the link with this index, on a
// socket of the calling thread's network namespace.
func newBare(plan kernel.State, index int) (*bare, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	b := &bare{fd: fd}
	for _, kind := range []kernel.Kind{kernel.KindFDB, kernel.KindNeigh, kernel.KindRoute} {
		for key, object := range plan {
			if key.Kind == kind {
				b.messages = append(b.messages, message(object, index))
			}
		}
	}
	return b, nil
}

func (b *bare) close() error { return unix.Close(b.fd) }

// write sends all of it.
func (b *bare) write() error {
	answer := make([]byte, 8<<10)
	for _, m := range b.messages {
		if err := unix.Sendto(b.fd, m, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
			return os.NewSyscallError("sendto", err)
		}
		n, _, err := unix.Recvfrom(b.fd, answer, 0)
		if err != nil {
			return os.NewSyscallError("recvfrom", err)
		}
		if n < unix.NLMSG_HDRLEN+4 {
			return fmt.Errorf("acknowledgement of %d bytes", n)
		}
		if code := int32(binary.NativeEndian.Uint32(answer[unix.NLMSG_HDRLEN:])); code != 0 {
			return fmt.Errorf("entry refused: %w", unix.Errno(-code))
		}
	}
	return nil
}

// message is the request for one entry, written with another library than the
// product's.
func message(object kernel.Object, index int) []byte {
	const flags = unix.NLM_F_CREATE | unix.NLM_F_REPLACE | unix.NLM_F_ACK
	switch o := object.(type) {
	case kernel.FDB:
		r := nl.NewNetlinkRequest(unix.RTM_NEWNEIGH, flags)
		r.AddData(&netlink.Ndmsg{Family: unix.AF_BRIDGE, Index: uint32(index), State: unix.NUD_PERMANENT, Flags: unix.NTF_SELF})
		r.AddData(nl.NewRtAttr(unix.NDA_LLADDR, o.MAC[:]))
		r.AddData(nl.NewRtAttr(unix.NDA_DST, o.VTEP.AsSlice()))
		return r.Serialize()
	case kernel.Neigh:
		r := nl.NewNetlinkRequest(unix.RTM_NEWNEIGH, flags)
		r.AddData(&netlink.Ndmsg{Family: family(o.IP), Index: uint32(index), State: unix.NUD_PERMANENT})
		r.AddData(nl.NewRtAttr(unix.NDA_DST, o.IP.AsSlice()))
		r.AddData(nl.NewRtAttr(unix.NDA_LLADDR, o.MAC[:]))
		return r.Serialize()
	case kernel.Route:
		r := nl.NewNetlinkRequest(unix.RTM_NEWROUTE, flags)
		r.AddData(&nl.RtMsg{RtMsg: unix.RtMsg{
			Family: family(o.Dst.Addr()), Dst_len: uint8(o.Dst.Bits()), Table: unix.RT_TABLE_MAIN,
			Protocol: kernel.RouteProtocol, Type: unix.RTN_UNICAST, Flags: unix.RTNH_F_ONLINK,
		}})
		r.AddData(nl.NewRtAttr(unix.RTA_DST, o.Dst.Addr().AsSlice()))
		r.AddData(nl.NewRtAttr(unix.RTA_GATEWAY, o.Via.AsSlice()))
		r.AddData(nl.NewRtAttr(unix.RTA_PREFSRC, o.Src.AsSlice()))
		r.AddData(nl.NewRtAttr(unix.RTA_OIF, nl.Uint32Attr(uint32(index))))
		return r.Serialize()
	}
	panic(fmt.Sprintf("%T is no entry of a peer", object))
}

func family(a netip.Addr) uint8 {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}
