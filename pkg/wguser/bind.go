package wguser

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
)

// bind is the UDP side of one device. It differs from the library's own
// conn.StdNetBind in that its sockets can be handed over, and in that replies
// leave with the source address that routing gives them.
type bind struct {
	mu      sync.Mutex
	sockets sockets
	mark    uint32
	// inherited are sockets that the next Open takes, where the port is theirs.
	inherited sockets
	closed    chan struct{} // by Close

	// What Send and the receivers look at, for each packet or batch.
	to4, to6 atomic.Pointer[socket]
	sorter   atomic.Pointer[sorter]
	// quiet keeps handshakes back: the process that takes over makes them.
	quiet atomic.Bool
	// passed are packets that the process which takes over passed on.
	passed chan datagram
}

func newBind(inherited sockets) *bind {
	return &bind{inherited: inherited, passed: make(chan datagram, conn.IdealBatchSize)}
}

// sockets are the two of one port; nil where the kernel lacks the family.
type sockets struct {
	port     uint16
	ip4, ip6 *socket
}

func (s sockets) all() []*socket {
	var all []*socket
	for _, socket := range []*socket{s.ip4, s.ip6} {
		if socket != nil {
			all = append(all, socket)
		}
	}
	return all
}

func (s sockets) close() error {
	var errs []error
	for _, socket := range s.all() {
		socket.valve.close()
		errs = append(errs, socket.udp.Close())
	}
	return errors.Join(errs...)
}

// batches is what ipv4.PacketConn and ipv6.PacketConn have in common; their
// messages are one type.
type batches interface {
	ReadBatch([]ipv6.Message, int) (int, error)
	WriteBatch([]ipv6.Message, int) (int, error)
}

// socket is one UDP socket.
type socket struct {
	udp     *net.UDPConn
	batches batches
	// segments is whether the kernel cuts what is sent (UDP_SEGMENT); a NIC
	// without checksum offload makes it refuse.
	segments atomic.Bool
	merges   bool // whether it joins what is received (UDP_GRO)
	valve    valve
}

func newSocket(udp *net.UDPConn) (*socket, error) {
	s := &socket{udp: udp}
	if addr, ok := udp.LocalAddr().(*net.UDPAddr); ok && addr.IP.To4() != nil {
		s.batches = ipv4.NewPacketConn(udp)
	} else {
		s.batches = ipv6.NewPacketConn(udp)
	}
	raw, err := udp.SyscallConn()
	if err != nil {
		return nil, err
	}
	err = raw.Control(func(fd uintptr) {
		_, missing := unix.GetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_SEGMENT)
		s.segments.Store(missing == nil)
		on, missing := unix.GetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_GRO)
		s.merges = missing == nil && on == 1
	})
	return s, err
}

// bufferBytes is the size of a socket's buffers, that of the library's own.
const bufferBytes = 7 << 20

// prepare sets a new socket's options.
func prepare(network, _ string, c syscall.RawConn) error {
	var failed error
	err := c.Control(func(fd uintptr) {
		for _, o := range []int{unix.SO_RCVBUF, unix.SO_SNDBUF, unix.SO_RCVBUFFORCE, unix.SO_SNDBUFFORCE} {
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, o, bufferBytes) // beyond the limit with CAP_NET_ADMIN only
		}
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_GRO, 1) // faster, where there is it
		if network == "udp6" {
			failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1)
		}
	})
	return errors.Join(err, failed)
}

// listen opens the sockets of a port, or of one that is free on both families
// where it is 0.
func listen(port uint16) (s sockets, err error) {
	for range 100 {
		s = sockets{port: port}
		if s.ip4, err = listenOn("udp4", &s.port); err == nil {
			s.ip6, err = listenOn("udp6", &s.port)
		}
		if err == nil && s.ip4 == nil && s.ip6 == nil {
			err = syscall.EAFNOSUPPORT
		}
		if err == nil {
			return s, nil
		}
		err = errors.Join(err, s.close())
		if port != 0 || !errors.Is(err, syscall.EADDRINUSE) {
			break
		}
	}
	return sockets{}, err
}

func listenOn(network string, port *uint16) (*socket, error) {
	config := net.ListenConfig{Control: prepare}
	packets, err := config.ListenPacket(context.Background(), network, ":"+strconv.Itoa(int(*port)))
	if errors.Is(err, syscall.EAFNOSUPPORT) {
		return nil, nil //nolint:nilnil // a kernel without the family
	}
	if err != nil {
		return nil, err
	}
	udp, ok := packets.(*net.UDPConn)
	if !ok {
		return nil, fmt.Errorf("%s socket of type %T", network, packets)
	}
	if addr, ok := udp.LocalAddr().(*net.UDPAddr); ok {
		*port = addr.AddrPort().Port()
	}
	return newSocket(udp)
}

// Open implements conn.Bind.
func (b *bind) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed != nil {
		return nil, 0, conn.ErrBindAlreadyOpen
	}
	s := b.inherited
	b.inherited = sockets{}
	if len(s.all()) == 0 || s.port != port {
		if err := s.close(); err != nil {
			return nil, 0, err
		}
		var err error
		if s, err = listen(port); err != nil {
			return nil, 0, err
		}
	}
	b.sockets, b.closed = s, make(chan struct{})
	b.to4.Store(s.ip4)
	b.to6.Store(s.ip6)
	receive := []conn.ReceiveFunc{b.receivePassed(b.closed)}
	for _, socket := range s.all() {
		receive = append(receive, newReceiver(b, socket).receive)
	}
	return receive, s.port, b.setMark()
}

// Close implements conn.Bind. All that waits in receivers ends.
func (b *bind) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed == nil {
		return nil
	}
	b.to4.Store(nil)
	b.to6.Store(nil)
	close(b.closed)
	b.closed = nil
	err := b.sockets.close()
	b.sockets = sockets{}
	return err
}

// SetMark implements conn.Bind.
func (b *bind) SetMark(mark uint32) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.mark = mark
	return b.setMark()
}

func (b *bind) setMark() error {
	if b.mark == 0 {
		return nil
	}
	var errs []error
	for _, s := range b.sockets.all() {
		raw, err := s.udp.SyscallConn()
		if err == nil {
			err = raw.Control(func(fd uintptr) {
				errs = append(errs, os.NewSyscallError("setsockopt", unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, int(b.mark))))
			})
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// BatchSize implements conn.Bind.
func (b *bind) BatchSize() int { return conn.IdealBatchSize }

// ParseEndpoint implements conn.Bind.
func (b *bind) ParseEndpoint(s string) (conn.Endpoint, error) {
	addr, err := netip.ParseAddrPort(s)
	if err != nil {
		return nil, err
	}
	return newEndpoint(addr), nil
}

// endpoint is a peer's address. It doesn't change, so many packets share one.
type endpoint struct {
	addr netip.AddrPort
	udp  *net.UDPAddr
}

func newEndpoint(addr netip.AddrPort) *endpoint {
	addr = netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())
	return &endpoint{addr: addr, udp: net.UDPAddrFromAddrPort(addr)}
}

// ClearSrc implements conn.Endpoint; no source is kept.
func (e *endpoint) ClearSrc() {}

// SrcToString implements conn.Endpoint.
func (e *endpoint) SrcToString() string { return "" }

// SrcIP implements conn.Endpoint.
func (e *endpoint) SrcIP() netip.Addr { return netip.Addr{} }

// DstToString implements conn.Endpoint.
func (e *endpoint) DstToString() string { return e.addr.String() }

// DstToBytes implements conn.Endpoint; cookies are made with it.
func (e *endpoint) DstToBytes() []byte {
	b, err := e.addr.MarshalBinary()
	if err != nil {
		panic(err) // there is no address that can't be
	}
	return b
}

// DstIP implements conn.Endpoint.
func (e *endpoint) DstIP() netip.Addr { return e.addr.Addr() }
