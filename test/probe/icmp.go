// Package probe measures a network from inside network namespaces: echoes
// (ICMP, ICMPv6), and throughput and round trips over TCP.
package probe

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// Place is where a probe runs: Do runs f on a thread that is in a network
// namespace.
type Place interface {
	Do(f func() error) error
}

// echoer sends echo requests from one place to one address. Its requests bear
// a number of its own, so that several don't take each other's replies.
type echoer struct {
	conn  *icmp.PacketConn
	dst   *net.IPAddr
	id    int
	nonce uint64
}

// protocol numbers of ICMP and ICMPv6 in IP (IANA).
const (
	protocolICMP   = 1
	protocolICMPv6 = 58
)

const payloadLen = 16 // nonce, number

func newEchoer(from Place, dst netip.Addr) (*echoer, error) {
	network, local := "ip4:icmp", "0.0.0.0"
	if dst.Is6() {
		network, local = "ip6:ipv6-icmp", "::"
	}
	e := &echoer{
		dst:   &net.IPAddr{IP: dst.AsSlice(), Zone: dst.Zone()},
		id:    rand.IntN(1 << 16),
		nonce: rand.Uint64(),
	}
	err := from.Do(func() error {
		var err error
		if e.conn, err = icmp.ListenPacket(network, local); err != nil {
			return err
		}
		return enlarge(e.conn)
	})
	if err != nil {
		return nil, fmt.Errorf("socket for echo requests to %s: %w", dst, err)
	}
	return e, nil
}

// replyBuffer is room for the replies of some seconds at one a millisecond: a
// busy machine that lets this process wait loses none of them by that.
const replyBuffer = 8 << 20

func enlarge(c *icmp.PacketConn) error {
	var conn net.PacketConn
	if p := c.IPv4PacketConn(); p != nil {
		conn = p.PacketConn
	} else {
		conn = c.IPv6PacketConn().PacketConn
	}
	ip, ok := conn.(*net.IPConn)
	if !ok {
		return fmt.Errorf("echo socket of type %T", conn)
	}
	raw, err := ip.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		failed = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, replyBuffer)
		if errors.Is(failed, unix.EPERM) { // root of a user namespace: as much as it may
			failed = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, replyBuffer)
		}
	})
	return errors.Join(err, failed)
}

func (e *echoer) close() { _ = e.conn.Close() } // only ends what waits on it

func (e *echoer) send(number uint64) error {
	payload := binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, e.nonce), number)
	m := icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{ID: e.id, Seq: int(number & 0xffff), Data: payload}}
	if e.dst.IP.To4() == nil {
		m.Type = ipv6.ICMPTypeEchoRequest
	}
	packet, err := m.Marshal(nil) // the kernel sets ICMPv6's checksum
	if err != nil {
		return err
	}
	_, err = e.conn.WriteTo(packet, e.dst)
	return err
}

// receive waits for the reply to one of the requests and gives its number.
func (e *echoer) receive() (uint64, error) {
	buf := make([]byte, 1500)
	protocol := protocolICMP
	if e.dst.IP.To4() == nil {
		protocol = protocolICMPv6
	}
	for {
		n, _, err := e.conn.ReadFrom(buf)
		if err != nil {
			return 0, err
		}
		m, err := icmp.ParseMessage(protocol, buf[:n])
		if err != nil || (m.Type != ipv4.ICMPTypeEchoReply && m.Type != ipv6.ICMPTypeEchoReply) {
			continue
		}
		echo, ok := m.Body.(*icmp.Echo)
		if ok && len(echo.Data) == payloadLen && binary.BigEndian.Uint64(echo.Data) == e.nonce {
			return binary.BigEndian.Uint64(echo.Data[8:]), nil
		}
	}
}

// ErrNoReply is what Ping's error is where no reply came in time.
var ErrNoReply = errors.New("no reply")

// Ping sends echo requests to dst, one each 100 ms, until one is answered, and
// gives the round-trip time of that one. Where ctx ends before, the error is
// ErrNoReply, or the last error of sending.
func Ping(ctx context.Context, from Place, dst netip.Addr) (time.Duration, error) {
	return ping(ctx, from, dst, 100*time.Millisecond)
}

// PingOnce sends one echo request and waits for its reply until ctx ends.
func PingOnce(ctx context.Context, from Place, dst netip.Addr) (time.Duration, error) {
	return ping(ctx, from, dst, time.Hour)
}

func ping(ctx context.Context, from Place, dst netip.Addr, interval time.Duration) (time.Duration, error) {
	p, err := StartPings(from, dst, interval)
	if err != nil {
		return 0, err
	}
	select {
	case <-p.first:
	case <-ctx.Done():
	}
	report := p.Stop()
	if report.Received == 0 {
		return 0, fmt.Errorf("echo to %s: %w", dst, errors.Join(ErrNoReply, report.Err))
	}
	return report.Fastest, nil
}

// Pings is a running stream of echo requests.
type Pings struct {
	e    *echoer
	stop chan struct{}

	sending, receiving sync.WaitGroup

	first chan struct{} // closed at the first reply

	mu     sync.Mutex
	sent   []time.Time // by number; zero once answered
	report Report
	last   time.Time // of the last reply
}

// Report is what became of a stream of echo requests.
type Report struct {
	Sent, Received int
	// Gap is the longest time between two replies, or between a reply and
	// the end.
	Gap     time.Duration
	Fastest time.Duration // round trip
	// Missing are the numbers, from 0, of the requests that had no reply.
	Missing []int
	// MissingFrom and MissingTo are when the first and the last of them were
	// sent.
	MissingFrom, MissingTo time.Time
	Err                    error // the last that sending gave
}

// Lost is how many requests had no reply.
func (r Report) Lost() int { return r.Sent - r.Received }

func (r Report) String() string {
	lost := strconv.Itoa(r.Lost())
	if few := r.Missing[:min(len(r.Missing), 10)]; len(few) > 0 {
		const clock = "15:04:05.000" // as in logs
		lost += fmt.Sprintf(" (the first: %v, sent from %s to %s)", few, r.MissingFrom.UTC().Format(clock), r.MissingTo.UTC().Format(clock))
	}
	text := fmt.Sprintf("%d sent, %s lost, longest gap %s", r.Sent, lost, r.Gap.Round(10*time.Microsecond))
	if r.Err != nil {
		text += fmt.Sprintf(", the last error of sending: %v", r.Err)
	}
	return text
}

// StartPings sends an echo request to dst each interval until Stop.
func StartPings(from Place, dst netip.Addr, interval time.Duration) (*Pings, error) {
	e, err := newEchoer(from, dst)
	if err != nil {
		return nil, err
	}
	p := &Pings{e: e, stop: make(chan struct{}), first: make(chan struct{}), last: time.Now()}
	p.sending.Go(func() { p.sendAll(interval) })
	p.receiving.Go(p.receiveAll)
	return p, nil
}

func (p *Pings) sendAll(interval time.Duration) {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		p.sendOne()
		select {
		case <-p.stop:
			return
		case <-ticker.C:
		}
	}
}

func (p *Pings) sendOne() {
	p.mu.Lock()
	number := uint64(len(p.sent))
	p.sent = append(p.sent, time.Now())
	p.report.Sent++
	p.mu.Unlock()
	if err := p.e.send(number); err != nil {
		p.mu.Lock()
		p.report.Err = err
		p.mu.Unlock()
	}
}

func (p *Pings) receiveAll() {
	for {
		number, err := p.e.receive()
		if errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrDeadlineExceeded) {
			return
		}
		if err == nil {
			p.received(number)
		}
	}
}

func (p *Pings) received(number uint64) {
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	if number >= uint64(len(p.sent)) || p.sent[number].IsZero() {
		return // a duplicate
	}
	rtt := now.Sub(p.sent[number])
	p.sent[number] = time.Time{}
	if p.report.Received == 0 {
		p.report.Fastest = rtt
		close(p.first)
	}
	p.report.Received++
	p.report.Fastest = min(p.report.Fastest, rtt)
	p.report.Gap = max(p.report.Gap, now.Sub(p.last))
	p.last = now
}

// Received is how many replies have come so far.
func (p *Pings) Received() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.report.Received
}

// straggle is how long Stop waits for the next of the last replies.
const straggle = 2 * time.Second

// Stop ends the stream, waits a moment for the last replies and gives the
// report.
func (p *Pings) Stop() Report {
	close(p.stop)
	p.sending.Wait() // what is sent counts
	stopped := time.Now()
	ticker := time.NewTicker(time.Millisecond)
	defer ticker.Stop()
	for p.awaited(stopped) {
		<-ticker.C
	}
	_ = p.e.conn.SetReadDeadline(stopped) // a socket that can't have one is closed: the same end
	p.receiving.Wait()
	p.e.close()
	p.report.Gap = max(p.report.Gap, stopped.Sub(p.last))
	for number, at := range p.sent {
		if !at.IsZero() {
			p.report.Missing = append(p.report.Missing, number)
			p.report.MissingTo = at
			if p.report.MissingFrom.IsZero() {
				p.report.MissingFrom = at
			}
		}
	}
	return p.report
}

// awaited reports whether replies are missing that may still come. Where none
// has come at all there is nobody to wait for.
func (p *Pings) awaited(stopped time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	since := p.last
	if stopped.After(since) {
		since = stopped
	}
	return p.report.Received > 0 && p.report.Received < p.report.Sent && time.Since(since) < straggle
}
