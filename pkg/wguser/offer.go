package wguser

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/device"
)

// handoverVersion is of what the types below look like. A process that is
// asked for another refuses.
const handoverVersion = 1

// hello is what the process that takes over says first.
type hello struct{ Version int }

// offer is the answer. With it come the listening socket of takeovers and,
// for each device, the files that it lists.
type offer struct {
	Error   string `json:",omitempty"`
	Devices []offered
}

// offered is one device, with these files: TUN device, control socket, socket
// for packets that are passed on, and where it is up the UDP sockets.
type offered struct {
	Name   string
	Config string // as UAPI gives it, keys included
	Port   uint16 // 0 where the link is down
	IP4    bool   // there is a socket for IPv4
	IP6    bool
}

func (o offered) files() int {
	n := 3
	if o.IP4 {
		n++
	}
	if o.IP6 {
		n++
	}
	return n
}

// step is what the two tell each other later on.
type step string

const (
	stepBuilt step = "built" // the second has all devices
	stepHeard step = "heard" // the first reads no UDP socket any more
	stepReady step = "ready" // the second has sessions of its own
	stepYours step = "yours" // the first reads no TUN device any more
	stepDone  step = "done"  // nothing needs the first any more
)

// offerOf describes a device that is held, and gives duplicates of its files
// and this end of the socket for packets.
func offerOf(t *tunnel) (o offered, fds []int, passed *net.UnixConn, err error) {
	o.Name = t.name
	if o.Config, err = t.wg.IpcGet(); err != nil {
		return o, nil, nil, err
	}
	theirs, ours, err := packetPair()
	if err != nil {
		return o, nil, nil, err
	}
	fds = append(fds, -1, -1, theirs)
	t.bind.mu.Lock()
	s := t.bind.sockets
	t.bind.mu.Unlock()
	o.Port, o.IP4, o.IP6 = s.port, s.ip4 != nil, s.ip6 != nil
	var errs [2]error
	fds[0], errs[0] = duplicate(t.gate.File())
	fds[1], errs[1] = duplicate(t.door.listener)
	err = errors.Join(errs[:]...)
	for _, socket := range s.all() {
		fd, failed := duplicate(socket.udp)
		fds, err = append(fds, fd), errors.Join(err, failed)
	}
	return o, fds, ours, err
}

// packetPair is a pair of connected sockets that keep messages apart.
func packetPair() (theirs int, ours *net.UnixConn, err error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, nil, os.NewSyscallError("socketpair", err)
	}
	for _, fd := range pair {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, bufferBytes) // CAP_NET_ADMIN's; else it is slower
	}
	ours, err = unixConn(os.NewFile(uintptr(pair[1]), "packets"))
	if err != nil {
		return 0, nil, errors.Join(err, unix.Close(pair[0]))
	}
	return pair[0], ours, nil
}

// unixConn makes a connection of a file, which it closes.
func unixConn(file *os.File) (*net.UnixConn, error) {
	defer file.Close()
	conn, err := net.FileConn(file)
	if err != nil {
		return nil, err
	}
	c, ok := conn.(*net.UnixConn)
	if !ok {
		return nil, errors.Join(fmt.Errorf("socket of type %T", conn), conn.Close())
	}
	return c, nil
}

func unixListener(file *os.File) (*net.UnixListener, error) {
	defer file.Close()
	l, err := net.FileListener(file)
	if err != nil {
		return nil, err
	}
	u, ok := l.(*net.UnixListener)
	if !ok {
		return nil, errors.Join(fmt.Errorf("listener of type %T", l), l.Close())
	}
	u.SetUnlinkOnClose(false)
	return u, nil
}

func udpSocket(file *os.File) (*socket, error) {
	defer file.Close()
	conn, err := net.FilePacketConn(file)
	if err != nil {
		return nil, err
	}
	udp, ok := conn.(*net.UDPConn)
	if !ok {
		return nil, errors.Join(fmt.Errorf("socket of type %T", conn), conn.Close())
	}
	return newSocket(udp)
}

// accept makes the device of what was offered. It reads nothing yet, neither
// from its sockets nor from the TUN device, and sends nothing of itself.
func (p *process) accept(o offered, files []*os.File) (t *tunnel, passed *net.UnixConn, err error) {
	var s sockets
	defer func() {
		closeFiles(files) // those that are left
		if err != nil && passed != nil {
			err = errors.Join(err, passed.Close())
		}
	}()
	take := func() *os.File {
		f := files[0]
		files = files[1:]
		return f
	}
	g, err := newGate(o.Name, take())
	if err != nil {
		return nil, nil, err
	}
	g.valve.held = true
	listener, err := unixListener(take())
	if err == nil {
		passed, err = unixConn(take())
	}
	s.port = o.Port
	if err == nil && o.IP4 {
		s.ip4, err = udpSocket(take())
	}
	if err == nil && o.IP6 {
		s.ip6, err = udpSocket(take())
	}
	if err != nil {
		return nil, passed, errors.Join(err, g.Close(), s.close())
	}
	for _, socket := range s.all() {
		socket.valve.held = true
	}
	b := newBind(s)
	b.sorter.Store(newSorter(passed))
	t = assemble(o.Name, filepath.Join(p.UAPIDir, o.Name+".sock"), g, b, listener, p.Log)
	if err = t.wg.IpcSet(settable(o.Config)); err == nil && o.Port != 0 {
		err = t.wg.Up()
	}
	if err != nil {
		return nil, passed, errors.Join(err, t.close())
	}
	return t, passed, nil
}

// settable is a configuration as UAPI gives it, less what it doesn't take and
// keepalives.
func settable(config string) string {
	var b strings.Builder
	for line := range strings.Lines(config) {
		key, _, _ := strings.Cut(line, "=")
		switch key {
		case "last_handshake_time_sec", "last_handshake_time_nsec", "tx_bytes", "rx_bytes", keepalive:
		default:
			b.WriteString(line)
		}
	}
	return b.String()
}

// keepalive is set later than all else: it makes a device send at once.
const keepalive = "persistent_keepalive_interval"

// keepalives is what settable leaves out of it.
func keepalives(config string) string {
	var b strings.Builder
	for line := range strings.Lines(config) {
		switch key, value, _ := strings.Cut(line, "="); {
		case key == "public_key":
			b.WriteString(line + "update_only=true\n")
		case key == keepalive && value != "0\n":
			b.WriteString(line)
		}
	}
	return b.String()
}

// sessions are the peers of a configuration that a device has a session with
// that is not older than age.
func sessions(config string, age time.Duration) []device.NoisePublicKey {
	var all []device.NoisePublicKey
	var peer device.NoisePublicKey
	since := time.Now().Add(-age).Unix()
	for line := range strings.Lines(config) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		switch key {
		case "public_key":
			if peer.FromHex(value) != nil {
				return all
			}
		case "last_handshake_time_sec":
			if sec, err := strconv.ParseInt(value, 10, 64); err == nil && sec >= since && sec > 0 {
				all = append(all, peer)
			}
		}
	}
	return all
}

// missing are those of peers that a device has no session with.
func missing(wg *device.Device, peers []device.NoisePublicKey) ([]device.NoisePublicKey, error) {
	config, err := wg.IpcGet()
	if err != nil {
		return nil, err
	}
	have := sessions(config, device.RejectAfterTime)
	return slices.DeleteFunc(slices.Clone(peers), func(p device.NoisePublicKey) bool { return slices.Contains(have, p) }), nil
}
