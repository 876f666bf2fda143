package probe

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// A stream is written and read in pieces of this size.
const chunk = 256 << 10

// Throughput sends one TCP stream from a place to an address of another for a
// duration, and gives what the receiver got in bits per second.
//
// It and RoundTrips use blocking sockets on threads of their own, as iperf and
// netperf do: Go's poller would add its own time to both ends.
func Throughput(ctx context.Context, from, to Place, addr netip.Addr, cpus CPUs, duration time.Duration) (float64, error) {
	var received int64
	var took time.Duration
	err := connected(ctx, from, to, addr, cpus, func(fd int) error {
		buf := make([]byte, chunk)
		for end := time.Now().Add(duration); time.Now().Before(end); {
			if err := writeAll(fd, buf); err != nil {
				return err
			}
		}
		return nil
	}, func(fd int) error {
		buf := make([]byte, chunk)
		started := time.Now()
		for {
			n, err := unix.Read(fd, buf)
			if err != nil && !errors.Is(err, unix.EINTR) {
				return err
			}
			if n == 0 {
				took = time.Since(started)
				return nil
			}
			received += int64(max(n, 0))
		}
	})
	if err != nil {
		return 0, fmt.Errorf("stream to %s: %w", addr, err)
	}
	return float64(received) * 8 / took.Seconds(), nil
}

// Stream sends one TCP stream of so many bits per second until ctx ends, which is
// no error. It is one if the stream breaks before.
func Stream(ctx context.Context, from, to Place, addr netip.Addr, rate float64) error {
	cpus, err := OneEach()
	if err != nil {
		return err
	}
	const piece = 16 << 10
	pace := time.NewTicker(time.Duration(piece * 8 / rate * float64(time.Second)))
	defer pace.Stop()
	// Not ctx: its end would break the connection.
	return connected(context.WithoutCancel(ctx), from, to, addr, cpus, func(fd int) error {
		buf := make([]byte, piece)
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-pace.C:
			}
			if err := writeAll(fd, buf); err != nil {
				return err
			}
		}
	}, func(fd int) error {
		buf := make([]byte, chunk)
		for {
			if n, err := unix.Read(fd, buf); n == 0 || err != nil && !errors.Is(err, unix.EINTR) {
				return err
			}
		}
	})
}

// RoundTrips sends one byte to and fro over one TCP connection n times, and
// gives the times each took, sorted.
func RoundTrips(ctx context.Context, from, to Place, addr netip.Addr, cpus CPUs, n int) ([]time.Duration, error) {
	times := make([]time.Duration, 0, n)
	err := connected(ctx, from, to, addr, cpus, func(fd int) error {
		buf := make([]byte, 1)
		for range n {
			started := time.Now()
			if err := writeAll(fd, buf); err != nil {
				return err
			}
			if _, err := readOne(fd, buf); err != nil {
				return err
			}
			times = append(times, time.Since(started))
		}
		return nil
	}, func(fd int) error {
		buf := make([]byte, 1)
		for {
			if more, err := readOne(fd, buf); err != nil || !more {
				return err
			}
			if err := writeAll(fd, buf); err != nil {
				return err
			}
		}
	})
	if err != nil {
		return nil, fmt.Errorf("round trips to %s: %w", addr, err)
	}
	slices.Sort(times)
	return times, nil
}

// Median is the middle of sorted times.
func Median(sorted []time.Duration) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[len(sorted)/2]
}

// connected connects from a place to an address of another, runs client and
// server on the two ends at the same time, and closes each when it ends. The
// end of ctx ends both. The threads that run them stay on cpus.
func connected(ctx context.Context, from, to Place, addr netip.Addr, cpus CPUs, client, server func(fd int) error) error {
	listening := make(chan int, 1)
	result := make(chan error, 2)
	go func() {
		result <- to.Do(func() error {
			fd, err := listen(addr)
			if err != nil {
				close(listening)
				return err
			}
			port, err := localPort(fd)
			if err != nil {
				close(listening)
				return errors.Join(err, unix.Close(fd))
			}
			listening <- port
			conn, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC)
			if err = errors.Join(err, unix.Close(fd)); err != nil {
				return fmt.Errorf("accept: %w", err)
			}
			return pinned(cpus[1], func() error { return serve(ctx, conn, server) })
		})
	}()
	port, ok := <-listening
	if !ok {
		return <-result
	}
	go func() {
		result <- from.Do(func() error {
			conn, err := dial(addr, port)
			if err != nil {
				return err
			}
			return pinned(cpus[0], func() error { return serve(ctx, conn, client) })
		})
	}()
	return errors.Join(<-result, <-result, ctx.Err())
}

// timeout bounds connecting, and each wait for the other end.
const timeout = 5 * time.Second

func serve(ctx context.Context, fd int, f func(fd int) error) error {
	stop := context.AfterFunc(ctx, func() { _ = unix.Shutdown(fd, unix.SHUT_RDWR) }) // what f waits for then ends
	err := errors.Join(setTimeouts(fd), unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1))
	if err == nil {
		err = f(fd)
	}
	if !stop() {
		err = errors.Join(err, ctx.Err())
	}
	return errors.Join(err, unix.Close(fd))
}

func listen(addr netip.Addr) (int, error) {
	fd, err := socket(addr)
	if err != nil {
		return 0, err
	}
	if err := errors.Join(setTimeouts(fd), unix.Bind(fd, sockaddr(addr, 0)), unix.Listen(fd, 1)); err != nil {
		return 0, errors.Join(fmt.Errorf("listen on %s: %w", addr, err), unix.Close(fd))
	}
	return fd, nil
}

func dial(addr netip.Addr, port int) (int, error) {
	fd, err := socket(addr)
	if err != nil {
		return 0, err
	}
	if err := errors.Join(setTimeouts(fd), unix.Connect(fd, sockaddr(addr, port))); err != nil {
		return 0, errors.Join(fmt.Errorf("connect: %w", err), unix.Close(fd))
	}
	return fd, nil
}

func socket(addr netip.Addr) (int, error) {
	family := unix.AF_INET
	if addr.Is6() {
		family = unix.AF_INET6
	}
	return unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
}

func sockaddr(addr netip.Addr, port int) unix.Sockaddr {
	if addr.Is4() {
		return &unix.SockaddrInet4{Port: port, Addr: addr.As4()}
	}
	return &unix.SockaddrInet6{Port: port, Addr: addr.As16()}
}

func localPort(fd int) (int, error) {
	name, err := unix.Getsockname(fd)
	if err != nil {
		return 0, err
	}
	switch name := name.(type) {
	case *unix.SockaddrInet4:
		return name.Port, nil
	case *unix.SockaddrInet6:
		return name.Port, nil
	}
	return 0, fmt.Errorf("socket of an unknown family: %T", name)
}

func setTimeouts(fd int) error {
	tv := unix.NsecToTimeval(timeout.Nanoseconds())
	return errors.Join(
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &tv),
	)
}

func writeAll(fd int, data []byte) error {
	for len(data) > 0 {
		n, err := unix.Write(fd, data)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("write: %w", err)
		}
		data = data[max(n, 0):]
	}
	return nil
}

// readOne fills buf, of one byte; more is false where the other end closed.
func readOne(fd int, buf []byte) (more bool, err error) {
	for {
		n, err := unix.Read(fd, buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return false, fmt.Errorf("read: %w", err)
		}
		return n == 1, nil
	}
}
