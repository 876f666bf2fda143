package wguser

import (
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/tun"
)

const tunPath = "/dev/net/tun"

// gate is a TUN device whose reader can be held.
type gate struct {
	*tun.NativeTun
	valve  valve
	events chan tun.Event
	// begin lets events through: the link may be up before the device behind
	// it is set up.
	begin, ended chan struct{}
}

// openTUN makes the persistent TUN device name, or takes the one that is
// there. It leaves the link's MTU and state as they are.
func openTUN(name string) (*os.File, error) {
	fd, err := unix.Open(tunPath, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", tunPath, err)
	}
	request, err := unix.NewIfreq(name)
	if err == nil {
		request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	}
	if err == nil {
		err = unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1)
	}
	if err == nil {
		err = lengthen(request)
	}
	if err != nil {
		_ = unix.Close(fd)
		if errors.Is(err, unix.EINVAL) {
			err = fmt.Errorf("%w: a link of that name is no TUN device", err)
		}
		return nil, fmt.Errorf("TUN device %s: %w", name, err)
	}
	return os.NewFile(uintptr(fd), tunPath), nil
}

// queuePackets is the length of a device's queue. The kernel's own 500 are full
// after a tenth of a second at 5,000 packets each second, and a process on a busy
// machine waits longer for a CPU now and then.
const queuePackets = 2000

// lengthen sets the length of the queue of the device that request names.
func lengthen(request *unix.Ifreq) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	request.SetUint32(queuePackets)
	return unix.IoctlIfreq(fd, unix.SIOCSIFTXQLEN, request)
}

// newGate is the gate of a TUN device, with the link's MTU. It closes the file
// where it fails.
func newGate(name string, file *os.File) (*gate, error) {
	link, err := net.InterfaceByName(name)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("TUN device %s: %w", name, err), file.Close())
	}
	device, err := tun.CreateTUNFromFile(file, link.MTU)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("TUN device %s: %w", name, err), file.Close())
	}
	native, ok := device.(*tun.NativeTun)
	if !ok {
		return nil, errors.Join(fmt.Errorf("TUN device %s: of type %T", name, device), device.Close())
	}
	g := &gate{NativeTun: native, events: make(chan tun.Event, 8), begin: make(chan struct{}), ended: make(chan struct{})}
	go g.relay()
	return g, nil
}

// relay hands events on once begin is closed, and drops them after the end:
// the device below waits for each to be taken.
func (g *gate) relay() {
	defer close(g.events)
	for event := range g.NativeTun.Events() {
		select {
		case <-g.begin:
		case <-g.ended:
		}
		select {
		case g.events <- event:
		case <-g.ended:
		}
	}
}

// Events implements tun.Device.
func (g *gate) Events() <-chan tun.Event { return g.events }

// Read implements tun.Device.
func (g *gate) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	n, err, ok := g.valve.read(func() (int, error) { return g.NativeTun.Read(bufs, sizes, offset) })
	if !ok {
		return 0, os.ErrClosed
	}
	return n, err
}

// Close implements tun.Device. The link stays, unless it was forgotten.
func (g *gate) Close() error {
	g.valve.close()
	select {
	case <-g.ended:
	default:
		close(g.ended)
	}
	return g.NativeTun.Close()
}

// forget lets the link go with the last descriptor.
func (g *gate) forget() error { return control(g.File(), forget) }

func forget(fd int) error { return unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 0) }
