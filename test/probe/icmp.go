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
	"sync"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
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
		e.conn, err = icmp.ListenPacket(network, local)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("socket for echo requests to %s: %w", dst, err)
	}
	return e, nil
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
	wg   sync.WaitGroup

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
	Err     error         // the last that sending gave
}

// Lost is how many requests had no reply.
func (r Report) Lost() int { return r.Sent - r.Received }

func (r Report) String() string {
	return fmt.Sprintf("%d sent, %d lost, longest gap %s", r.Sent, r.Lost(), r.Gap.Round(10*time.Microsecond))
}

// StartPings sends an echo request to dst each interval until Stop.
func StartPings(from Place, dst netip.Addr, interval time.Duration) (*Pings, error) {
	e, err := newEchoer(from, dst)
	if err != nil {
		return nil, err
	}
	p := &Pings{e: e, stop: make(chan struct{}), first: make(chan struct{}), last: time.Now()}
	p.wg.Go(func() { p.sendAll(interval) })
	p.wg.Go(p.receiveAll)
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

// straggle is how long Stop waits for the last replies.
const straggle = 200 * time.Millisecond

// Stop ends the stream, waits a moment for the last replies and gives the
// report.
func (p *Pings) Stop() Report {
	close(p.stop)
	stopped := time.Now()
	deadline := stopped
	p.mu.Lock()
	if p.report.Received < p.report.Sent && p.report.Received > 0 {
		deadline = stopped.Add(straggle)
	}
	p.mu.Unlock()
	_ = p.e.conn.SetReadDeadline(deadline) // a socket that can't have one is closed: the same end
	p.wg.Wait()
	p.e.close()
	p.report.Gap = max(p.report.Gap, stopped.Sub(p.last))
	return p.report
}
