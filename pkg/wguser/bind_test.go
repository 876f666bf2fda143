package wguser

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/conn"

	"github.com/weft-cni/weft/test/testns"
)

// received reads packets from all receivers of a bind, in goroutines.
func received(fns []conn.ReceiveFunc) <-chan []byte {
	packets := make(chan []byte, 1000)
	for _, fn := range fns {
		go func() {
			bufs, sizes, from := make([][]byte, conn.IdealBatchSize), make([]int, conn.IdealBatchSize), make([]conn.Endpoint, conn.IdealBatchSize)
			for i := range bufs {
				bufs[i] = make([]byte, 1<<16)
			}
			for {
				n, err := fn(bufs, sizes, from)
				if errors.Is(err, net.ErrClosed) {
					return
				}
				for i := range n {
					packets <- bytes.Clone(bufs[i][:sizes[i]])
				}
			}
		}()
	}
	return packets
}

func next(t *testing.T, packets <-chan []byte) []byte {
	t.Helper()
	select {
	case p := <-packets:
		return p
	case <-time.After(10 * time.Second):
		t.Fatal("no packet")
		return nil
	}
}

// TestPackets sends batches of many forms over both families, and what comes
// is what was sent, in its order: also where the kernel cuts and joins.
func TestPackets(t *testing.T) {
	testns.Enter(t)
	to, from := newBind(sockets{}), newBind(sockets{})
	fns, port, err := to.Open(0)
	must(t, err)
	defer func() { must(t, to.Close()) }()
	_, _, err = from.Open(0)
	must(t, err)
	defer func() { must(t, from.Close()) }()
	if _, _, err = from.Open(0); !errors.Is(err, conn.ErrBindAlreadyOpen) {
		t.Errorf("a bind opens twice: %v", err)
	}
	packets := received(fns)
	for _, addr := range []string{"127.0.0.1", "[::1]"} {
		peer, err := from.ParseEndpoint(fmt.Sprintf("%s:%d", addr, port))
		must(t, err)
		for _, segments := range []bool{true, false} {
			for _, s := range from.sockets.all() {
				s.segments.Store(segments)
			}
			for _, sizes := range [][]int{{32}, {1400, 1400, 1400, 700}, {700, 1400, 1400, 32, 32}, same(1452, 128), same(100, 128), {60000, 60000}} {
				var bufs [][]byte
				for i, size := range sizes {
					bufs = append(bufs, bytes.Repeat([]byte{byte(i), byte(size)}, size/2))
				}
				must(t, from.Send(bufs, peer))
				for i, want := range bufs {
					if got := next(t, packets); !bytes.Equal(got, want) {
						t.Fatalf("to %s, cut by the kernel: %v: packet %d of %v has %d octets, or others", addr, segments, i, sizes, len(got))
					}
				}
			}
		}
	}
}

func same(size, count int) (sizes []int) {
	for range count {
		sizes = append(sizes, size)
	}
	return sizes
}

func TestRun(t *testing.T) {
	for _, c := range []struct {
		sizes []int
		want  int
	}{
		{[]int{10}, 1},
		{[]int{10, 10, 10}, 3},
		{[]int{10, 10, 5, 5}, 3}, // a shorter one is the last
		{[]int{10, 11}, 1},
		{same(1452, 128), 45}, // 65,507 octets
		{same(10, 128), maxSegments},
	} {
		var bufs [][]byte
		for _, size := range c.sizes {
			bufs = append(bufs, make([]byte, size))
		}
		if got := run(bufs); got != c.want {
			t.Errorf("of %d packets of %d octets and others %d are one message, not %d", len(bufs), c.sizes[0], got, c.want)
		}
	}
}

// TestHeldSocket: what comes while a socket is held waits in it.
func TestHeldSocket(t *testing.T) {
	testns.Enter(t)
	to, from := newBind(sockets{}), newBind(sockets{})
	fns, port, err := to.Open(0)
	must(t, err)
	_, _, err = from.Open(0)
	must(t, err)
	packets := received(fns)
	peer, err := from.ParseEndpoint(fmt.Sprintf("127.0.0.1:%d", port))
	must(t, err)
	must(t, to.hold())
	must(t, from.Send([][]byte{make([]byte, 100)}, peer))
	select {
	case <-packets:
		t.Error("a held socket was read")
	case <-time.After(50 * time.Millisecond):
	}
	must(t, to.release())
	next(t, packets)
	must(t, errors.Join(to.hold(), to.Close(), from.Close()))
}

// TestPortInUse: an error, and nothing is left open.
func TestPortInUse(t *testing.T) {
	testns.Enter(t)
	a, b := newBind(sockets{}), newBind(sockets{})
	_, port, err := a.Open(0)
	must(t, err)
	if _, _, err = b.Open(port); err == nil {
		t.Fatal("two binds have one port")
	}
	must(t, a.Close())
	_, again, err := b.Open(port)
	must(t, err)
	if again != port {
		t.Errorf("port %d, not %d", again, port)
	}
	must(t, b.Close())
}
