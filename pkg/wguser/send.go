package wguser

import (
	"encoding/binary"
	"errors"
	"sync"
	"syscall"

	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
)

// Limits of one system call that the kernel cuts into packets: UDP_MAX_SEGMENTS
// of the oldest kernels that have it, and an IPv4 packet's length.
const (
	maxSegments  = 64
	maxSendBytes = 1<<16 - 1 - 20 - 8
)

// messages are what one system call sends; each may be cut into packets.
type messages struct{ all []ipv6.Message }

var messagesPool = sync.Pool{New: func() any {
	m := &messages{all: make([]ipv6.Message, conn.IdealBatchSize)}
	for i := range m.all {
		m.all[i].Buffers = make([][]byte, 0, maxSegments)
		m.all[i].OOB = make([]byte, unix.CmsgSpace(2))
	}
	return m
}}

// Send implements conn.Bind.
func (b *bind) Send(bufs [][]byte, to conn.Endpoint) error {
	peer, ok := to.(*endpoint)
	if !ok {
		return errors.New("endpoint of another bind")
	}
	s := b.to4.Load()
	if peer.addr.Addr().Is6() {
		s = b.to6.Load()
	}
	if s == nil {
		return syscall.EAFNOSUPPORT
	}
	if len(bufs) == 1 && b.withheld(bufs[0]) {
		return nil
	}
	if sorter := b.sorter.Load(); sorter != nil {
		sorter.note(bufs)
	}
	for len(bufs) > 0 {
		sent, err := s.send(bufs, peer)
		bufs = bufs[sent:]
		if errors.Is(err, syscall.EIO) && s.segments.CompareAndSwap(true, false) {
			continue // the NIC has no checksum offload: one packet at a time
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// withheld reports whether a packet has to be kept back. Handshakes have
// packets to themselves.
func (b *bind) withheld(packet []byte) bool {
	return b.quiet.Load() && messageType(packet) == device.MessageInitiationType
}

// send sends as many of bufs as one system call takes, and tells how many.
func (s *socket) send(bufs [][]byte, to *endpoint) (int, error) {
	m, ok := messagesPool.Get().(*messages)
	if !ok {
		panic("pool of another type")
	}
	n := m.fill(bufs, to, s.segments.Load())
	done, err := s.batches.WriteBatch(m.all[:n], 0)
	sent := 0
	for i := range m.all[:n] {
		if i < done {
			sent += len(m.all[i].Buffers)
		}
		clear(m.all[i].Buffers)
		m.all[i].Buffers = m.all[i].Buffers[:0]
		m.all[i].OOB = m.all[i].OOB[:cap(m.all[i].OOB)]
	}
	messagesPool.Put(m)
	return sent, err
}

// fill makes messages of bufs and gives their number. With cut, packets of one
// length, of which the last may be shorter, are one message (udp(7),
// UDP_SEGMENT).
func (m *messages) fill(bufs [][]byte, to *endpoint, cut bool) int {
	n := 0
	for len(bufs) > 0 && n < len(m.all) {
		count := 1
		if cut {
			count = run(bufs)
		}
		msg := &m.all[n]
		msg.Addr, msg.N, msg.NN, msg.Flags = to.udp, 0, 0, 0
		msg.Buffers = append(msg.Buffers[:0], bufs[:count]...)
		msg.OOB = msg.OOB[:0]
		if count > 1 {
			msg.OOB = segmentSize(msg.OOB, len(bufs[0]))
		}
		bufs = bufs[count:]
		n++
	}
	return n
}

// run is how many of bufs, from the first, can be one message.
func run(bufs [][]byte) int {
	size, total := len(bufs[0]), len(bufs[0])
	for i, buf := range bufs[1:] {
		total += len(buf)
		switch {
		case len(buf) > size || total > maxSendBytes || i+1 == maxSegments:
			return i + 1
		case len(buf) < size:
			return i + 2
		}
	}
	return len(bufs)
}

// segmentSize appends the control message that asks for packets of this size.
func segmentSize(oob []byte, size int) []byte {
	start := len(oob)
	oob = oob[:start+unix.CmsgSpace(2)]
	clear(oob[start:])
	// struct cmsghdr: its length is a long, level and type are ints.
	wordLen := unix.SizeofCmsghdr - 8
	if wordLen == 8 {
		binary.NativeEndian.PutUint64(oob[start:], uint64(unix.CmsgLen(2)))
	} else {
		binary.NativeEndian.PutUint32(oob[start:], uint32(unix.CmsgLen(2)))
	}
	binary.NativeEndian.PutUint32(oob[start+wordLen:], unix.SOL_UDP)
	binary.NativeEndian.PutUint32(oob[start+wordLen+4:], unix.UDP_SEGMENT)
	binary.NativeEndian.PutUint16(oob[start+unix.CmsgLen(0):], uint16(size))
	return oob
}

// messageType is the type of a WireGuard message; 0, which is none, where it
// is too short to have one.
func messageType(packet []byte) uint32 {
	if len(packet) < 4 {
		return 0
	}
	return binary.LittleEndian.Uint32(packet)
}
