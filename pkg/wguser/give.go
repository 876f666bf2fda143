package wguser

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"sync"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/device"
)

// give hands all devices over to the process at the other end of a connection.
// Where that doesn't come to its end, this process goes on as before.
func (p *process) give(conn *net.UnixConn) {
	var said hello
	if _, err := receiveParcel(conn, &said); err != nil {
		p.Log.Warn("a process that wants to take over says nothing", "err", err)
		return
	}
	if said.Version != handoverVersion {
		refusal := offer{Error: fmt.Sprintf("handover of version %d is asked for; this process knows %d", said.Version, handoverVersion)}
		p.warn("refuse a takeover", "", sendParcel(conn, refusal, nil))
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.door == nil {
		return // another was faster
	}
	p.Log.Info("another process takes over")
	p.stopKeeping()
	g := &giving{process: p, conn: conn}
	if err := g.run(); err != nil {
		p.Log.Error("the takeover failed; this process goes on", "err", err)
		g.takeBack()
		p.keep()
		return
	}
	p.warn("close", "", p.end())
	p.Log.Info("another process has taken over; this one waits for its end")
}

// giving is one handover, from the first process's side.
type giving struct {
	*process
	conn   *net.UnixConn
	passed []*net.UnixConn
	heard  bool // the other process may have made sessions
	pumps  sync.WaitGroup
	stop   chan struct{}
}

func (g *giving) all() []*tunnel {
	return slices.SortedFunc(maps.Values(g.tunnels), func(a, b *tunnel) int {
		if a.name < b.name {
			return -1
		}
		return 1
	})
}

func (g *giving) run() error {
	g.stop = make(chan struct{})
	defer g.end()
	if err := g.hold(); err != nil {
		return err
	}
	if err := g.offer(); err != nil {
		return err
	}
	if err := g.expect(stepBuilt); err != nil {
		return err
	}
	for _, t := range g.all() {
		t.bind.quiet.Store(true)
		if err := t.bind.hold(); err != nil {
			return fmt.Errorf("hold the sockets of %s: %w", t.name, err)
		}
	}
	g.heard = true
	if err := sendParcel(g.conn, stepHeard, nil); err != nil {
		return err
	}
	if err := g.expect(stepReady); err != nil {
		return err
	}
	for _, t := range g.all() {
		if err := t.gate.valve.hold(t.gate.File()); err != nil {
			return fmt.Errorf("hold %s: %w", t.name, err)
		}
	}
	if err := sendParcel(g.conn, stepYours, nil); err != nil {
		return err
	}
	return g.expect(stepDone)
}

// hold stops what changes the devices' configuration.
func (g *giving) hold() error {
	errs := []error{g.door.hold()}
	for _, t := range g.all() {
		errs = append(errs, t.door.hold())
		t.door.finish()
	}
	return errors.Join(errs...)
}

// offer sends all there is, and begins to take what the other passes on.
func (g *giving) offer() error {
	listener, err := duplicate(g.door.listener)
	if err != nil {
		return err
	}
	fds := []int{listener}
	defer func() {
		for _, fd := range fds {
			if fd >= 0 {
				_ = unix.Close(fd) // duplicates
			}
		}
	}()
	var all offer
	for _, t := range g.all() {
		one, files, passed, err := offerOf(t)
		fds = append(fds, files...)
		if passed != nil {
			g.passed = append(g.passed, passed)
			g.pumps.Go(func() { g.warn("take packets", t.name, readPassed(passed, t.bind, g.stop)) })
		}
		if err != nil {
			return fmt.Errorf("offer %s: %w", t.name, err)
		}
		all.Devices = append(all.Devices, one)
	}
	return sendParcel(g.conn, all, fds)
}

func (g *giving) expect(want step) error {
	var got step
	if _, err := receiveParcel(g.conn, &got); err != nil {
		return fmt.Errorf("wait for %q: %w", want, err)
	}
	if got != want {
		return fmt.Errorf("the other process says %q, not %q", got, want)
	}
	return nil
}

// end ends the taking of packets.
func (g *giving) end() {
	close(g.stop)
	for _, c := range g.passed {
		_ = c.Close() // its reader ends
	}
	g.pumps.Wait()
}

// takeBack goes on where the other process has failed. It may have made
// sessions, which peers use now: then there have to be newer ones.
func (g *giving) takeBack() {
	for _, t := range g.all() {
		t.bind.quiet.Store(false)
		g.warn("go on", t.name, t.bind.release())
		if g.heard {
			g.warn("go on", t.name, renew(t.wg))
		}
		g.warn("go on", t.name, errors.Join(t.gate.valve.release(t.gate.File()), t.door.release()))
	}
	g.warn("go on", "", g.door.release())
}

// renew makes new sessions with all peers that there are some with.
func renew(wg *device.Device) error {
	config, err := wg.IpcGet()
	if err != nil {
		return err
	}
	for _, key := range sessions(config, device.RejectAfterTime) {
		if peer := wg.LookupPeer(key); peer != nil {
			peer.ExpireCurrentKeypairs()
			err = errors.Join(err, peer.SendHandshakeInitiation(false))
		}
	}
	return err
}
