package wguser

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
)

// sorter passes packets that belong to sessions of the process before on to
// it. Which are this one's own it learns from the handshakes that it sends:
// the index in them is what the peer puts into its packets.
type sorter struct {
	mu  sync.RWMutex
	own map[uint32]struct{}
	out *net.UnixConn // a seqpacket socket: a message for each packet
}

func newSorter(out *net.UnixConn) *sorter { return &sorter{own: map[uint32]struct{}{}, out: out} }

// note learns from what is sent. Handshakes have packets to themselves.
func (s *sorter) note(bufs [][]byte) {
	if len(bufs) != 1 {
		return
	}
	switch messageType(bufs[0]) {
	case device.MessageInitiationType, device.MessageResponseType:
		s.mu.Lock()
		s.own[binary.LittleEndian.Uint32(bufs[0][4:])] = struct{}{}
		s.mu.Unlock()
	}
}

// sort passes on what isn't this process's, and leaves a size of 0.
func (s *sorter) sort(bufs [][]byte, sizes []int, from []conn.Endpoint) {
	for i, buf := range bufs {
		index, ok := receiverIndex(buf[:sizes[i]])
		if !ok {
			continue
		}
		s.mu.RLock()
		_, own := s.own[index]
		s.mu.RUnlock()
		if own {
			continue
		}
		if peer, ok := from[i].(*endpoint); ok {
			s.pass(buf[:sizes[i]], peer)
		}
		sizes[i] = 0
	}
}

// receiverIndex is the index of the session that a message belongs to; a
// handshake's first message belongs to none.
func receiverIndex(packet []byte) (index uint32, ok bool) {
	at := 4
	switch messageType(packet) {
	case device.MessageResponseType:
		at = 8
	case device.MessageCookieReplyType, device.MessageTransportType:
	default:
		return 0, false
	}
	if len(packet) < at+4 {
		return 0, false
	}
	return binary.LittleEndian.Uint32(packet[at:]), true
}

// datagram is a packet that was passed on.
type datagram struct {
	from *endpoint
	data []byte
}

// pass sends a packet as one message: the address's length, the address, the
// packet. Where the other process has ended it is lost with its keys.
func (s *sorter) pass(packet []byte, from *endpoint) {
	message := make([]byte, 1, len(packet)+64)
	message, err := from.addr.AppendBinary(message)
	if err != nil {
		return
	}
	message[0] = byte(len(message) - 1)
	_, _ = s.out.Write(append(message, packet...))
}

// readPassed gives each packet that comes over a socket to b, until the
// socket's or the bind's end.
func readPassed(in *net.UnixConn, b *bind, stop <-chan struct{}) error {
	buf := make([]byte, 1<<17)
	for {
		n, err := in.Read(buf)
		if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		if n == 0 || n < 1+int(buf[0]) {
			continue
		}
		var from netip.AddrPort
		if err := from.UnmarshalBinary(buf[1 : 1+buf[0]]); err != nil {
			continue
		}
		select {
		case b.passed <- datagram{newEndpoint(from), append([]byte(nil), buf[1+int(buf[0]):n]...)}:
		case <-stop:
			return nil
		}
	}
}

// receivePassed is the receiver of what another process passed on.
func (b *bind) receivePassed(closed <-chan struct{}) conn.ReceiveFunc {
	return func(bufs [][]byte, sizes []int, from []conn.Endpoint) (int, error) {
		select {
		case d := <-b.passed:
			sizes[0], from[0] = copy(bufs[0], d.data), d.from
			return 1, nil
		case <-closed:
			return 0, net.ErrClosed
		}
	}
}

// hold stops reading from the sockets, and returns once all that was read has
// been handed on.
func (b *bind) hold() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	var errs []error
	for _, s := range b.sockets.all() {
		errs = append(errs, s.valve.hold(s.udp))
	}
	return errors.Join(errs...)
}

// release reads on.
func (b *bind) release() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	var errs []error
	for _, s := range b.sockets.all() {
		errs = append(errs, s.valve.release(s.udp))
	}
	return errors.Join(errs...)
}
