package wguser

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"

	"golang.org/x/time/rate"
	"golang.zx2c4.com/wireguard/device"
)

// tunnel is one device: a TUN link, WireGuard behind it, and the socket that
// it is configured by.
type tunnel struct {
	name string
	gate *gate
	bind *bind
	wg   *device.Device
	door *door
	path string // of the socket
}

// newTunnel makes the device, or takes the TUN link that is there. The socket
// is there before the link: who sees that can ask at once.
func newTunnel(name, uapiDir string, log *slog.Logger) (*tunnel, error) {
	path := filepath.Join(uapiDir, name+".sock")
	listener, err := listenAt(path)
	if err != nil {
		return nil, err
	}
	var g *gate
	file, err := openTUN(name)
	if err == nil {
		g, err = newGate(name, file)
	}
	if err != nil {
		return nil, errors.Join(err, listener.Close(), os.Remove(path))
	}
	t := assemble(name, path, g, newBind(sockets{}), listener, log)
	t.start()
	return t, nil
}

func assemble(name, path string, g *gate, b *bind, l *net.UnixListener, log *slog.Logger) *tunnel {
	log = log.With("device", name)
	t := &tunnel{name: name, path: path, gate: g, bind: b, wg: device.NewDevice(g, b, logger(log))}
	t.door = newDoor(l, log, func(c *net.UnixConn) { t.wg.IpcHandle(c) })
	return t
}

// start follows the link's state and answers at the socket.
func (t *tunnel) start() {
	close(t.gate.begin)
	t.door.serve()
}

// close ends the device and leaves the link.
func (t *tunnel) close() error {
	err := t.door.close()
	t.wg.Close()
	return err
}

// remove ends the device with link and socket.
func (t *tunnel) remove() error {
	err := errors.Join(t.gate.forget(), t.close())
	if gone := os.Remove(t.path); gone != nil && !errors.Is(gone, os.ErrNotExist) {
		err = errors.Join(err, gone)
	}
	return err
}

// What the library says of packets it can't send comes for each batch.
const (
	logEvery = 1 // a second
	logBurst = 20
)

// logger is the library's log in ours. It never holds keys but the first and
// last letters of public ones.
func logger(log *slog.Logger) *device.Logger {
	limit := rate.NewLimiter(logEvery, logBurst)
	l := &device.Logger{Verbosef: device.DiscardLogf, Errorf: func(format string, args ...any) {
		if limit.Allow() {
			log.Warn("WireGuard", "what", fmt.Sprintf(format, args...))
		}
	}}
	if log.Enabled(context.Background(), slog.LevelDebug) {
		l.Verbosef = func(format string, args ...any) { log.Debug("WireGuard", "what", fmt.Sprintf(format, args...)) }
	}
	return l
}
