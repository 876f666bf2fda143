package wguser

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/weft-cni/weft/test/probe"
)

func testContext() context.Context { return context.Background() }

// TestHandover replaces the process of one end, then of the other, while both
// families send an echo each millisecond and a TCP stream runs.
func TestHandover(t *testing.T) {
	a, b := lab(t)
	for _, p := range b.tunnel {
		reach(t, a, p.Addr())
	}
	for _, s := range []*site{a, b, a} {
		var pings []*probe.Pings
		for _, p := range b.tunnel {
			running, err := probe.StartPings(a, p.Addr(), time.Millisecond)
			must(t, err)
			pings = append(pings, running)
		}
		ctx, cancel := context.WithCancel(t.Context())
		stream := make(chan error, 1)
		go func() { stream <- flow(ctx, a, b) }()
		started := time.Now()
		s.start()
		took := time.Since(started)
		eventually(t, "some echoes after it", settled(pings))
		cancel()
		if err := <-stream; err != nil {
			t.Errorf("the stream broke: %v", err)
		}
		for i, p := range pings {
			report := p.Stop()
			t.Logf("handover on %s in %s, IPv%d: %s", s.name, took.Round(time.Millisecond), 4+2*i, report)
			if report.Lost() > 0 {
				t.Errorf("handover on %s: %s", s.name, report)
			}
		}
	}
}

// settled is true once each has had so many more replies.
func settled(pings []*probe.Pings) func() bool {
	var want []int
	for _, p := range pings {
		want = append(want, p.Received()+300)
	}
	return func() bool {
		for i, p := range pings {
			if p.Received() < want[i] {
				return false
			}
		}
		return true
	}
}

// flow keeps one TCP stream running until ctx ends.
func flow(ctx context.Context, a, b *site) error {
	var l net.Listener
	err := b.Do(func() (err error) {
		l, err = (&net.ListenConfig{}).Listen(ctx, "tcp", netip.AddrPortFrom(b.tunnel[0].Addr(), 0).String())
		return err
	})
	if err != nil {
		return err
	}
	defer l.Close()
	var to, from net.Conn
	err = a.Do(func() (err error) {
		to, err = (&net.Dialer{}).DialContext(ctx, "tcp", l.Addr().String())
		return err
	})
	if err == nil {
		defer to.Close()
		from, err = l.Accept()
	}
	if err != nil {
		return err
	}
	defer from.Close()
	ended := make(chan error, 2)
	go func() {
		// At a rate that fills no queue: full ones lose packets by themselves.
		tick := time.NewTicker(2 * time.Millisecond)
		defer tick.Stop()
		for data := make([]byte, 8<<10); ; <-tick.C {
			if _, err := to.Write(data); err != nil {
				ended <- err
				return
			}
		}
	}()
	go func() {
		_, err := io.Copy(io.Discard, from)
		ended <- err
	}()
	select {
	case <-ctx.Done():
		return nil
	case err := <-ended:
		return fmt.Errorf("ended: %w", err)
	}
}

func reach(t *testing.T, from *site, addr netip.Addr) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if _, err := probe.Ping(ctx, from, addr); err != nil {
		t.Fatal(err)
	}
}

// TestKilled kills the process. Link, addresses and routes stay, nothing goes
// another way, and the next process has the device again.
func TestKilled(t *testing.T) {
	a, b := lab(t)
	reach(t, a, b.tunnel[0].Addr())
	first := a.start() // the lab's own hands over to it
	// A second best way: what the tunnel doesn't take would go there.
	must(t, a.Do(func() error {
		eth0, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{LinkIndex: eth0.Attrs().Index, Gw: b.underlay[0].Addr().AsSlice()})
	}))
	must(t, first.Process.Kill())
	eventually(t, "the link is without carrier", func() bool { return operState(t, a) == netlink.OperDown })
	routes := 0
	must(t, a.Do(func() error {
		l, err := netlink.LinkByName(wgDevice)
		if err != nil {
			return err
		}
		list, err := netlink.RouteList(l, netlink.FAMILY_V4)
		routes = len(list)
		return err
	}))
	if routes == 0 {
		t.Error("the link's routes are gone with the process")
	}
	for _, p := range b.tunnel {
		if by := wayTo(t, a, p.Addr()); by != wgDevice {
			t.Errorf("%s is reached by %s, in clear", p.Addr(), by)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		if _, err := probe.Ping(ctx, a, p.Addr()); err == nil {
			t.Errorf("%s answers without a process", p.Addr())
		}
		cancel()
	}
	a.start()
	eventually(t, "the link has a carrier", func() bool { return operState(t, a) != netlink.OperDown })
	a.setUp(wgMTU)
	a.connect(b)
	for _, p := range b.tunnel {
		reach(t, a, p.Addr())
	}
}

func operState(t *testing.T, s *site) (state netlink.LinkOperState) {
	t.Helper()
	must(t, s.Do(func() error {
		l, err := netlink.LinkByName(wgDevice)
		if err == nil {
			state = l.Attrs().OperState
		}
		return err
	}))
	return state
}

// wayTo is the interface that packets to an address leave by.
func wayTo(t *testing.T, s *site, addr netip.Addr) (name string) {
	t.Helper()
	must(t, s.Do(func() error {
		routes, err := netlink.RouteGet(addr.AsSlice())
		if err != nil {
			return err
		}
		l, err := netlink.LinkByIndex(routes[0].LinkIndex)
		if err == nil {
			name = l.Attrs().Name
		}
		return err
	}))
	return name
}

// TestBrokenHandover ends the process that takes over at each step. The first
// goes on.
func TestBrokenHandover(t *testing.T) {
	a, b := lab(t)
	reach(t, a, b.tunnel[0].Addr())
	for _, steps := range [][]step{nil, {}, {stepBuilt}, {stepBuilt, stepReady}} {
		t.Run(fmt.Sprint(steps), func(t *testing.T) {
			c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: filepath.Join(a.dir, "run", "takeover.sock"), Net: "unix"})
			must(t, err)
			defer c.Close()
			if steps != nil {
				must(t, sendParcel(c, hello{Version: handoverVersion}, nil))
				var o offer
				files, err := receiveParcel(c, &o)
				must(t, err)
				defer closeFiles(files)
			}
			for _, s := range steps {
				must(t, sendParcel(c, s, nil))
				var answer step
				_, err := receiveParcel(c, &answer)
				must(t, err)
			}
			must(t, c.Close())
			for _, p := range b.tunnel {
				reach(t, a, p.Addr())
			}
			a.configure("")
		})
	}
	a.start()
	reach(t, a, b.tunnel[0].Addr())
}

// TestOtherVersion asks for a handover of a kind that isn't known.
func TestOtherVersion(t *testing.T) {
	a, b := lab(t)
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: filepath.Join(a.dir, "run", "takeover.sock"), Net: "unix"})
	must(t, err)
	defer c.Close()
	must(t, sendParcel(c, hello{Version: handoverVersion + 1}, nil))
	var o offer
	_, err = receiveParcel(c, &o)
	must(t, err)
	if o.Error == "" || len(o.Devices) > 0 {
		t.Errorf("the answer is %+v", o)
	}
	reach(t, a, b.tunnel[0].Addr())
}

// TestDeletedLink deletes the link: the device is made again, as one that is
// new.
func TestDeletedLink(t *testing.T) {
	a, b := lab(t)
	must(t, a.Do(func() error {
		l, err := netlink.LinkByName(wgDevice)
		if err != nil {
			return err
		}
		return netlink.LinkDel(l)
	}))
	queue := 0
	eventually(t, "the link is back", func() bool {
		err := a.Do(func() error {
			l, err := netlink.LinkByName(wgDevice)
			if err == nil {
				queue = l.Attrs().TxQLen
			}
			return err
		})
		if err != nil && !isGone(err) {
			t.Fatal(err)
		}
		return err == nil && bytes.Contains(a.logged(), []byte("made again")) && answers(a)
	})
	if queue != queuePackets {
		t.Errorf("its queue has room for %d packets, not %d", queue, queuePackets)
	}
	a.setUp(wgMTU)
	a.connect(b)
	reach(t, a, b.tunnel[1].Addr())
}

// answers reports whether the device's control socket has a process.
func answers(s *site) bool {
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: filepath.Join(s.dir, "uapi", wgDevice+".sock"), Net: "unix"})
	if err != nil {
		return false
	}
	return c.Close() == nil
}

// TestSecrets looks for keys in all that was logged, at level debug, and at who
// may use the sockets.
func TestSecrets(t *testing.T) {
	a, b := lab(t)
	reach(t, a, b.tunnel[0].Addr())
	a.ask("set=1\nprivate_key=nonsense\n\n")
	a.start()
	reach(t, a, b.tunnel[0].Addr())
	for _, s := range []*site{a, b} {
		log := s.logged()
		for _, secret := range append(a.secrets(), b.secrets()...) {
			if bytes.Contains(log, []byte(secret)) {
				t.Errorf("the log of %s has a private key", s.name)
			}
		}
		for path, want := range map[string]os.FileMode{
			"run": os.ModeDir | 0o700, "uapi": os.ModeDir | 0o700,
			"run/takeover.sock": os.ModeSocket | 0o600, "uapi/" + wgDevice + ".sock": os.ModeSocket | 0o600,
		} {
			info, err := os.Stat(filepath.Join(s.dir, path))
			must(t, err)
			if info.Mode() != want {
				t.Errorf("%s is %s, not %s", path, info.Mode(), want)
			}
		}
	}
}

// TestUnwanted ends what another process had, and what one left.
func TestUnwanted(t *testing.T) {
	a, _ := lab(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	o := optionsIn(a.dir)
	o.Unwanted = []string{wgDevice, "lo"}
	go func() { done <- a.Do(func() error { return Run(ctx, o) }) }()
	eventually(t, "the link is gone", func() bool {
		return isGone(a.Do(func() error {
			_, err := netlink.LinkByName(wgDevice)
			return err
		}))
	})
	cancel()
	must(t, <-done)
	cmd := a.start()
	must(t, cmd.Process.Signal(syscall.SIGTERM))
	ctx, cancel = context.WithCancel(t.Context())
	go func() { done <- a.Do(func() error { return Run(ctx, o) }) }()
	eventually(t, "the link that was left is gone", func() bool {
		return isGone(a.Do(func() error {
			_, err := netlink.LinkByName(wgDevice)
			return err
		}))
	})
	cancel()
	must(t, <-done)
}
