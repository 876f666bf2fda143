package wguser

import (
	"encoding/binary"
	"net"
	"net/netip"

	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
)

// receiver reads packets from a socket, for one goroutine.
type receiver struct {
	bind   *bind
	socket *socket
	// in are the messages of one system call. Where the kernel joins packets
	// each has a buffer of its own, and is taken apart; else they are read
	// right into where they are wanted.
	in   []ipv6.Message
	last *endpoint // of the packet before
}

func newReceiver(b *bind, s *socket) *receiver {
	r := &receiver{bind: b, socket: s}
	count := conn.IdealBatchSize
	if s.merges {
		count = conn.IdealBatchSize / maxSegments // each is that many at most
	}
	r.in = make([]ipv6.Message, count)
	for i := range r.in {
		r.in[i].Buffers = make([][]byte, 1)
		if s.merges {
			r.in[i].Buffers[0] = make([]byte, 1<<16)
		}
		r.in[i].OOB = make([]byte, unix.CmsgSpace(4))
	}
	return r
}

// receive implements conn.ReceiveFunc.
func (r *receiver) receive(bufs [][]byte, sizes []int, from []conn.Endpoint) (int, error) {
	in := r.in
	if !r.socket.merges {
		in = in[:min(len(in), len(bufs))]
		for i := range in {
			in[i].Buffers[0] = bufs[i]
		}
	}
	count, err, ok := r.socket.valve.read(func() (int, error) { return r.socket.batches.ReadBatch(in, 0) })
	if !ok {
		return 0, net.ErrClosed
	}
	if err != nil {
		return 0, err
	}
	n := 0
	for i := range in[:count] {
		msg := &in[i]
		peer := r.peer(msg.Addr)
		if !r.socket.merges {
			sizes[n], from[n] = msg.N, peer
			n++
			continue
		}
		data, size := msg.Buffers[0][:msg.N], joinedSize(msg.OOB[:msg.NN])
		for size > 0 && len(data) > size && n < len(bufs) {
			sizes[n], from[n] = copy(bufs[n], data[:size]), peer
			data = data[size:]
			n++
		}
		if n < len(bufs) {
			sizes[n], from[n] = copy(bufs[n], data), peer
			n++
		}
	}
	if sorter := r.bind.sorter.Load(); sorter != nil {
		sorter.sort(bufs[:n], sizes, from)
	}
	return n, nil
}

func (r *receiver) peer(addr net.Addr) *endpoint {
	udp, ok := addr.(*net.UDPAddr)
	if !ok {
		return newEndpoint(netip.AddrPort{})
	}
	now := udp.AddrPort()
	if r.last == nil || r.last.addr != netip.AddrPortFrom(now.Addr().Unmap(), now.Port()) {
		r.last = newEndpoint(now)
	}
	return r.last
}

// joinedSize is the length of the packets that the kernel joined, but for the
// last, which may be shorter; 0 where it joined none (udp(7), UDP_GRO).
func joinedSize(oob []byte) int {
	for len(oob) > unix.SizeofCmsghdr {
		header, data, rest, err := unix.ParseOneSocketControlMessage(oob)
		if err != nil {
			return 0
		}
		if header.Level == unix.SOL_UDP && header.Type == unix.UDP_GRO && len(data) >= 4 {
			return int(binary.NativeEndian.Uint32(data))
		}
		oob = rest
	}
	return 0
}
