package leak

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	maxExamples = 10
	// snapBytes of each packet are looked at: all headers, tunnels included,
	// and the whole of a WireGuard handshake.
	snapBytes = 512
	// bufferBytes is a socket's buffer: some 50,000 packets.
	bufferBytes = 64 << 20
)

// Capture is a running capture. Its methods may be called at the same time.
type Capture struct {
	net     *Net
	sockets []*packetSocket
	readers sync.WaitGroup
	stopped atomic.Int64 // nanoseconds since 1970; 0 before

	mu     sync.Mutex
	report Report
	failed error
}

// packetSocket is a raw socket of one interface (packet(7)).
type packetSocket struct {
	link string
	file *os.File
}

// Start looks at all packets that come and go by interfaces of the calling
// thread's network namespace, until Stop. It needs CAP_NET_RAW; errors.Is
// os.ErrPermission without.
func Start(n *Net, interfaces ...string) (*Capture, error) {
	c := &Capture{net: n}
	for _, name := range interfaces {
		s, err := openSocket(name)
		if err != nil {
			for _, s := range c.sockets {
				_ = s.file.Close() // nothing was read
			}
			return nil, fmt.Errorf("capture on %s: %w", name, err)
		}
		c.sockets = append(c.sockets, s)
	}
	for _, s := range c.sockets {
		c.readers.Go(func() { c.read(s) })
	}
	return c, nil
}

func openSocket(name string) (*packetSocket, error) {
	link, err := net.InterfaceByName(name)
	if err != nil {
		return nil, err
	}
	// Without a protocol it takes nothing before it is bound.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, bufferBytes) // CAP_NET_ADMIN's; what is missed is told
	snap := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: snapBytes}
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_AUXDATA, 1),
		unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &snap}),
		unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: networkOrder(unix.ETH_P_ALL), Ifindex: link.Index}),
	)
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return &packetSocket{link: name, file: os.NewFile(uintptr(fd), "packets of "+name)}, nil
}

// networkOrder is a number as the kernel wants it in network byte order.
func networkOrder(n uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, n))
}

// read reads until Stop, and then what is left.
func (c *Capture) read(s *packetSocket) {
	r := &packetReader{capture: c, socket: s, buf: make([]byte, snapBytes), oob: make([]byte, unix.CmsgSpace(sizeofAux))}
	raw, err := s.file.SyscallConn()
	if err == nil {
		err = raw.Read(func(fd uintptr) bool { return r.readAll(int(fd)) })
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = raw.Control(func(fd uintptr) { r.readAll(int(fd)) })
	}
	if err != nil {
		c.fail(s, err)
	}
}

type packetReader struct {
	capture  *Capture
	socket   *packetSocket
	buf, oob []byte
}

// readAll reads what is there; done is true where there is no use in waiting
// for more.
func (r *packetReader) readAll(fd int) (done bool) {
	for !r.capture.overdue() {
		n, oobn, _, from, err := unix.Recvmsg(fd, r.buf, r.oob, 0)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return false
		case errors.Is(err, unix.EINTR) || errors.Is(err, unix.ENETDOWN):
			continue
		case err != nil:
			r.capture.fail(r.socket, os.NewSyscallError("recvmsg", err))
			return true
		}
		r.capture.count(r.socket, r.buf[:n], lengthIn(r.oob[:oobn], n), from)
	}
	return true
}

// lateTime is how long packets that came before Stop may take.
const lateTime = time.Second

// overdue reports whether Stop was called and its time is over: there are
// always more packets.
func (c *Capture) overdue() bool {
	at := c.stopped.Load()
	return at != 0 && time.Since(time.Unix(0, at)) > lateTime
}

func (c *Capture) fail(s *packetSocket, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failed = errors.Join(c.failed, fmt.Errorf("capture on %s: %w", s.link, err))
}

func (c *Capture) count(s *packetSocket, data []byte, length int, from unix.Sockaddr) {
	classify := c.net.ClassifyIP
	if ll, ok := from.(*unix.SockaddrLinklayer); ok && (ll.Hatype == unix.ARPHRD_ETHER || ll.Hatype == unix.ARPHRD_LOOPBACK) {
		classify = c.net.Classify
	}
	p := classify(data)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.report.Counts[p.Kind].Packets++
	c.report.Counts[p.Kind].Bytes += uint64(length)
	if p.Kind.IsLeak() && len(c.report.Examples) < maxExamples {
		c.report.Examples = append(c.report.Examples, Leak{Interface: s.link, Packet: p, Bytes: length})
	}
}

// sizeofAux is that of struct tpacket_auxdata, which has the packet's length on
// the wire after four octets.
const sizeofAux = 20

func lengthIn(oob []byte, captured int) int {
	if len(oob) < unix.CmsgLen(sizeofAux) {
		return captured
	}
	return int(binary.NativeEndian.Uint32(oob[unix.CmsgLen(0)+4:]))
}

// Report is what has been seen so far.
func (c *Capture) Report() Report {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.report
	r.Examples = slices.Clone(r.Examples)
	return r
}

// Stop ends the capture and gives what it has seen. The error is that of a
// socket that failed: then there may have been more.
func (c *Capture) Stop() (Report, error) {
	now := time.Now()
	c.stopped.Store(now.UnixNano())
	var errs []error
	for _, s := range c.sockets {
		errs = append(errs, s.file.SetReadDeadline(now)) // the reader ends when nothing is left
	}
	c.readers.Wait()
	for _, s := range c.sockets {
		missed, err := s.missed()
		c.mu.Lock()
		c.report.Missed += missed
		c.mu.Unlock()
		errs = append(errs, err, s.file.Close())
	}
	return c.Report(), errors.Join(append(errs, c.failed)...)
}

// missed is how many packets found the socket's buffer full.
func (s *packetSocket) missed() (uint64, error) {
	raw, err := s.file.SyscallConn()
	if err != nil {
		return 0, err
	}
	var stats *unix.TpacketStats
	var failed error
	err = raw.Control(func(fd uintptr) {
		stats, failed = unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS)
	})
	if err = errors.Join(err, failed); err != nil {
		return 0, fmt.Errorf("capture on %s: %w", s.link, err)
	}
	return uint64(stats.Drops), nil
}

// Interfaces lists the interfaces of the calling thread's network namespace
// that are up, but for loopback and those that skip says.
func Interfaces(skip func(name string) bool) ([]string, error) {
	all, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	var names []string
	for _, link := range all {
		if link.Flags&net.FlagUp != 0 && link.Flags&net.FlagLoopback == 0 && !skip(link.Name) {
			names = append(names, link.Name)
		}
	}
	return names, nil
}
