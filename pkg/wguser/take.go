package wguser

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"golang.zx2c4.com/wireguard/device"
)

// Times of a takeover.
const (
	// shakeEvery paces handshakes: a device answers no more than a queue of
	// them at a time without asking for cookies.
	shakeEvery = time.Millisecond
	// shakeTime is how long peers may take: one that missed a handshake is
	// asked again after device.RekeyTimeout. Who doesn't answer by then has no
	// session to lose.
	shakeTime = device.RekeyTimeout + 2*time.Second
	// drainTime is how long packets of the old sessions may be on their way.
	drainTime = time.Second
)

// take takes all devices over from the process at the other end.
func (p *process) take(conn *net.UnixConn) error {
	defer conn.Close()
	if err := sendParcel(conn, hello{Version: handoverVersion}, nil); err != nil {
		return fmt.Errorf("take over: %w: %w", errEnding, err)
	}
	var o offer
	files, err := receiveParcel(conn, &o)
	if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) {
		return fmt.Errorf("take over: %w", errEnding)
	}
	if err == nil && o.Error != "" {
		err = errors.New(o.Error)
	}
	if err != nil {
		return fmt.Errorf("take over: %w", err)
	}
	t := &taking{process: p, conn: conn}
	defer t.closePassed()
	if err = t.accept(o, files); err == nil {
		err = t.hear(o)
	}
	if err != nil {
		return fmt.Errorf("take over: %w", errors.Join(err, p.end()))
	}
	t.shake()
	t.switchOver()
	p.Log.Info("took over from another process", "devices", len(o.Devices))
	return nil
}

// taking is one takeover, from the second process's side.
type taking struct {
	*process
	conn   *net.UnixConn
	passed []*net.UnixConn
	peers  map[string][]device.NoisePublicKey // to make sessions with, by device
}

// accept makes the devices of an offer. The first file is the listening socket.
func (t *taking) accept(o offer, files []*os.File) error {
	count := 1
	for _, one := range o.Devices {
		count += one.files()
	}
	if len(files) != count {
		closeFiles(files)
		return fmt.Errorf("%d files came, not %d", len(files), count)
	}
	l, err := unixListener(files[0])
	if err != nil {
		closeFiles(files[1:])
		return err
	}
	t.listen(l)
	files = files[1:]
	t.peers = map[string][]device.NoisePublicKey{}
	for _, one := range o.Devices {
		n := one.files()
		made, passed, err := t.process.accept(one, files[:n])
		files = files[n:]
		if err != nil {
			closeFiles(files)
			return fmt.Errorf("%s: %w", one.Name, err)
		}
		t.passed = append(t.passed, passed)
		t.tunnels[one.Name] = made
		t.peers[one.Name] = sessions(one.Config, device.RejectAfterTime)
	}
	return nil
}

// hear reads from the UDP sockets once the first process doesn't any more.
func (t *taking) hear(o offer) error {
	if err := sendParcel(t.conn, stepBuilt, nil); err != nil {
		return err
	}
	var heard step
	if _, err := receiveParcel(t.conn, &heard); err != nil {
		return err
	}
	for _, one := range o.Devices {
		made := t.tunnels[one.Name]
		if err := errors.Join(made.bind.release(), made.wg.IpcSet(keepalives(one.Config))); err != nil {
			return fmt.Errorf("%s: %w", one.Name, err)
		}
		made.start()
	}
	return nil
}

// shake makes sessions with the peers that the first process had some with.
func (t *taking) shake() {
	tick := time.NewTicker(shakeEvery)
	defer tick.Stop()
	for name, peers := range t.peers {
		for _, key := range peers {
			if peer := t.tunnels[name].wg.LookupPeer(key); peer != nil {
				t.warn("handshake", name, peer.SendHandshakeInitiation(false))
				<-tick.C
			}
		}
	}
	deadline := time.Now().Add(shakeTime)
	for wait := time.Millisecond; time.Now().Before(deadline); wait = min(2*wait, 100*time.Millisecond) {
		left := 0
		for name, peers := range t.peers {
			silent, err := missing(t.tunnels[name].wg, peers)
			t.warn("handshake", name, err)
			t.peers[name] = silent
			left += len(silent)
		}
		if left == 0 {
			return
		}
		<-time.After(wait)
	}
	t.Log.Warn("some peers don't answer; sessions with them have to wait")
}

// switchOver reads the TUN devices from now on. Where the first process has
// ended there is nobody to wait for.
func (t *taking) switchOver() {
	err := sendParcel(t.conn, stepReady, nil)
	if err == nil {
		var got step
		_, err = receiveParcel(t.conn, &got)
	}
	for name, made := range t.tunnels {
		t.warn("read from", name, made.gate.valve.release(made.gate.File()))
	}
	if err == nil {
		<-time.After(drainTime)
		err = sendParcel(t.conn, stepDone, nil)
	}
	if err != nil {
		t.Log.Warn("the process before has ended too soon", "err", err)
	}
}

// closePassed ends the passing on of packets.
func (t *taking) closePassed() {
	for _, made := range t.tunnels {
		made.bind.sorter.Store(nil)
	}
	for _, c := range t.passed {
		_ = c.Close() // what comes now belongs to nobody
	}
}
