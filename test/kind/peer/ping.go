package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// Lengths of headers, in bytes.
const (
	headerICMP = 8
	headerIPv4 = 20
	headerIPv6 = 40
)

// echoer sends echoes to one address, by a socket that takes no privilege
// (icmp(7), ping_group_range). Not for concurrent use.
type echoer struct {
	conn net.PacketConn
	dst  netip.Addr
	seq  uint16
}

// newEchoer gives one that sends from an address, or from any, where it is the
// zero Addr. What it sends is never fragmented.
func newEchoer(from, dst netip.Addr) (*echoer, error) {
	family, protocol := unix.AF_INET, unix.IPPROTO_ICMP
	if dst.Is6() {
		family, protocol = unix.AF_INET6, unix.IPPROTO_ICMPV6
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
	if err != nil {
		return nil, fmt.Errorf("socket for echoes to %s: %w", dst, err)
	}
	file := os.NewFile(uintptr(fd), "echoes")
	defer file.Close()
	if dst.Is6() {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DO)
	} else {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO)
	}
	if err == nil && from.IsValid() {
		err = unix.Bind(fd, sockaddr(from))
	}
	if err != nil {
		return nil, fmt.Errorf("socket for echoes from %s to %s: %w", from, dst, err)
	}
	conn, err := net.FilePacketConn(file)
	return &echoer{conn: conn, dst: dst}, err
}

func sockaddr(a netip.Addr) unix.Sockaddr {
	if a.Is6() {
		return &unix.SockaddrInet6{Addr: a.As16()}
	}
	return &unix.SockaddrInet4{Addr: a.As4()}
}

// echo sends one of size bytes, IP header included, and waits for its reply.
func (e *echoer) echo(size int, timeout time.Duration) (time.Duration, error) {
	message := icmp.Message{Type: ipv4.ICMPTypeEcho}
	payload := size - headerIPv4 - headerICMP
	if e.dst.Is6() {
		message.Type = ipv6.ICMPTypeEchoRequest
		payload = size - headerIPv6 - headerICMP
	}
	data := make([]byte, max(payload, 8))
	for i := range data {
		data[i] = byte(rand.Uint32())
	}
	e.seq++
	message.Body = &icmp.Echo{Seq: int(e.seq), Data: data} // the kernel sets ID and checksum
	packet, err := message.Marshal(nil)
	if err != nil {
		return 0, err
	}
	started := time.Now()
	if err = e.conn.SetReadDeadline(started.Add(timeout)); err != nil {
		return 0, err
	}
	if _, err = e.conn.WriteTo(packet, &net.UDPAddr{IP: e.dst.AsSlice()}); err != nil {
		return 0, err
	}
	err = e.await(data)
	return time.Since(started), err
}

// await reads until the reply with these data has come.
func (e *echoer) await(data []byte) error {
	buf := make([]byte, len(data)+headerICMP+1)
	for {
		n, _, err := e.conn.ReadFrom(buf)
		if err != nil {
			return err
		}
		if n >= headerICMP && bytes.Equal(buf[headerICMP:n], data) {
			return nil
		}
	}
}

func ping(_ context.Context, args []string) error {
	f := flag.NewFlagSet("ping", flag.ContinueOnError)
	size := f.Int("size", 64, "")
	var from netip.Addr
	f.TextVar(&from, "from", netip.Addr{}, "")
	if err := f.Parse(args); err != nil {
		return err
	}
	dst, err := netip.ParseAddr(f.Arg(0))
	if err != nil {
		return err
	}
	e, err := newEchoer(from, dst)
	if err != nil {
		return err
	}
	defer e.conn.Close()
	rtt, err := e.echo(*size, time.Second)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("echo of %d bytes to %s: no reply", *size, dst)
	}
	if err == nil {
		fmt.Println(rtt)
	}
	return err
}
