package vf

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/sriov"
)

// Announce tells the hosts and switches of the link that the device has these
// IPv4 addresses now (RFC 5227 section 3), as soon as it has carrier: before
// that, nothing can be sent. The error is context.DeadlineExceeded where it
// gets none within wait.
//
// IPv6 addresses are the kernel's to announce, once it has made sure that
// nobody else has them (see Address): an advertisement before that comes back
// from NICs that send multicast to its sender, who takes it for another's.
func (v *VF) Announce(ctx context.Context, mac kernel.MAC, addrs []netip.Addr, wait time.Duration) error {
	c, at, err := v.locate(sriov.Pod)
	if err != nil {
		return err
	}
	return c.ns.Do(func() error {
		if err := awaitCarrier(ctx, at.index, wait); err != nil {
			return fmt.Errorf("carrier of %s: %w", v.Device, err)
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return os.NewSyscallError("packet socket", err)
		}
		defer unix.Close(fd)
		const arp = unix.ETH_P_ARP>>8 | unix.ETH_P_ARP&0xff<<8 // in network order
		to := unix.SockaddrLinklayer{Ifindex: at.index, Protocol: arp, Halen: 6, Addr: [8]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}}
		for _, a := range addrs {
			if !a.Is4() {
				continue
			}
			if err := unix.Sendto(fd, gratuitous(a, mac), 0, &to); err != nil {
				return fmt.Errorf("announce %s: %w", a, err)
			}
		}
		return nil
	})
}

// awaitCarrier waits until a link of the thread's namespace can send.
func awaitCarrier(ctx context.Context, index int, wait time.Duration) error {
	events, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK)
	if err != nil {
		return err
	}
	defer events.Close()
	// The answer to a question comes to the same socket as the events.
	question := nl.NewNetlinkRequest(unix.RTM_GETLINK, 0)
	m := nl.NewIfInfomsg(unix.AF_UNSPEC)
	m.Index = int32(index)
	question.AddData(m)
	if err := events.Send(question); err != nil {
		return err
	}
	deadline := time.Now().Add(wait)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	for {
		left := time.Until(deadline)
		if left <= 0 || ctx.Err() != nil {
			return context.DeadlineExceeded
		}
		timeout := unix.NsecToTimeval(left.Nanoseconds())
		if err := events.SetReceiveTimeout(&timeout); err != nil {
			return err
		}
		messages, _, err := events.Receive()
		if errors.Is(err, unix.EAGAIN) {
			continue
		}
		if err != nil {
			return err
		}
		for _, m := range messages {
			if m.Header.Type != unix.RTM_NEWLINK || len(m.Data) < unix.SizeofIfInfomsg {
				continue
			}
			info := nl.DeserializeIfInfomsg(m.Data)
			if int(info.Index) == index && info.Flags&unix.IFF_LOWER_UP != 0 && info.Flags&unix.IFF_RUNNING != 0 {
				return nil
			}
		}
	}
}

// gratuitous is an ARP request for a by a (RFC 826), to everybody.
func gratuitous(a netip.Addr, mac kernel.MAC) []byte {
	b := []byte{0, 1, 8, 0, 6, 4, 0, 1}
	b = append(b, mac[:]...)
	b = append(b, a.AsSlice()...)
	b = append(b, make([]byte, 6)...)
	return append(b, a.AsSlice()...)
}
