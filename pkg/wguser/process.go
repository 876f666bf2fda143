package wguser

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/weft-cni/weft/pkg/flock"
)

// Paths of a node. UAPIDir is where wgctrl looks for control sockets; in Dir is
// the socket by which one process takes over from another. Both are root's.
const (
	Dir     = "/run/weft/wireguard"
	UAPIDir = "/var/run/wireguard"
	// HostUAPIDir is the same directory without the link that /var/run is,
	// which a container doesn't have.
	HostUAPIDir = "/run/wireguard"
)

// RemoveSockets removes the control sockets of devices from a directory, and the
// directory where nothing else is in it; w is told of each. No process may run.
func RemoveSockets(dir string, devices []string, w io.Writer) error {
	var errs []error
	for _, name := range devices {
		path := filepath.Join(dir, name+".sock")
		err := os.Remove(path)
		if err == nil {
			fmt.Fprintln(w, "- file", path)
		} else if !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	if os.Remove(dir) == nil { // others may have devices there
		fmt.Fprintln(w, "- directory", dir)
	}
	return errors.Join(errs...)
}

// Options say what a process is for.
type Options struct {
	// Devices are the names of its devices; none makes the process one that
	// only ends what another had.
	Devices []string
	// Unwanted are names that no TUN device is to have: links that a process
	// left are deleted.
	Unwanted []string
	// Dir and UAPIDir are directories, made where they are missing.
	Dir, UAPIDir string
	Log          *slog.Logger
}

// Times of a process.
const (
	startTimeout = 30 * time.Second // for another process that starts
	// remakeAfter is when a device whose link was deleted is made again: who
	// deleted it may want to make one of another kind.
	remakeAfter = time.Second
	retryAfter  = time.Second            // where a device can't be made
	goneAfter   = 100 * time.Millisecond // where another process was ending
)

// Run makes the devices, or takes them over, and serves them until ctx ends or
// another process has taken them over; in that case it waits for ctx's end
// nevertheless. The links stay. An error says why it could not begin.
func Run(ctx context.Context, o Options) error {
	p := &process{Options: o, tunnels: map[string]*tunnel{}}
	if err := p.begin(ctx); err != nil {
		return err
	}
	<-ctx.Done()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stopKeeping()
	return p.end()
}

// process is one that has begun.
type process struct {
	Options
	mu      sync.Mutex
	door    *door              // of Dir's socket; nil once handed over
	tunnels map[string]*tunnel // by name
	kept    sync.WaitGroup
	cancel  context.CancelFunc // of what keeps the devices
}

func (p *process) begin(ctx context.Context) error {
	if err := errors.Join(os.MkdirAll(p.Dir, 0o700), os.Chmod(p.Dir, 0o700)); err != nil {
		return err
	}
	release, err := flock.Exclusive(ctx, filepath.Join(p.Dir, "lock"), startTimeout)
	if err != nil {
		return err
	}
	defer release()
	for err = errEnding; errors.Is(err, errEnding) && ctx.Err() == nil; {
		if err = p.meet(filepath.Join(p.Dir, "takeover.sock")); errors.Is(err, errEnding) {
			<-time.After(goneAfter)
		}
	}
	if err != nil {
		return err
	}
	p.clear()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.keep()
	p.door.serve()
	p.Log.Info("userspace WireGuard is ready", "devices", p.Devices)
	return nil
}

// errEnding says that the process that was to hand over is about to end.
var errEnding = errors.New("the process before ends")

// meet takes over from the process at a path, or listens there where none does.
func (p *process) meet(path string) error {
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err == nil {
		return p.take(conn)
	}
	if !errors.Is(err, syscall.ENOENT) && !errors.Is(err, syscall.ECONNREFUSED) {
		return err
	}
	l, err := listenAt(path)
	if err == nil {
		p.listen(l)
	}
	return err
}

func (p *process) listen(l *net.UnixListener) { p.door = newDoor(l, p.Log, p.give) }

// clear removes devices that this process isn't for.
func (p *process) clear() {
	for name, t := range p.tunnels {
		if !slices.Contains(p.Devices, name) {
			delete(p.tunnels, name)
			p.warn("remove", name, t.remove())
		}
	}
	for _, name := range p.Unwanted {
		if _, err := net.InterfaceByName(name); err != nil {
			continue // there is none
		}
		file, err := openTUN(name)
		if errors.Is(err, syscall.EINVAL) {
			continue // of another kind
		}
		if err == nil {
			err = errors.Join(control(file, forget), file.Close())
		}
		p.warn("remove", name, err)
	}
}

func (p *process) warn(what, device string, err error) {
	if err != nil {
		p.Log.Warn("a step failed", "step", what, "device", device, "err", err)
	}
}

// keep sees to it that each device is there, until stopKeeping. Holds p.mu.
func (p *process) keep() {
	ctx, cancel := context.WithCancel(context.Background())
	p.cancel = cancel
	for _, name := range p.Devices {
		if p.tunnels[name] == nil {
			p.make(name)
		}
		p.kept.Go(func() { p.keepOne(ctx, name) })
	}
}

// stopKeeping leaves the devices as they are. Holds p.mu, which keepOne wants
// for a moment.
func (p *process) stopKeeping() {
	p.cancel()
	p.mu.Unlock()
	p.kept.Wait()
	p.mu.Lock()
}

func (p *process) keepOne(ctx context.Context, name string) {
	for {
		p.mu.Lock()
		t := p.tunnels[name]
		p.mu.Unlock()
		var ended <-chan struct{}
		var retry <-chan time.Time
		if t != nil {
			ended = t.wg.Wait()
		} else {
			retry = time.After(retryAfter)
		}
		select {
		case <-ctx.Done():
			return
		case <-ended:
			p.Log.Warn("the link was deleted; the device is made again", "device", name)
			if !p.drop(ctx, name) {
				return
			}
		case <-retry:
		}
		p.mu.Lock()
		if ctx.Err() == nil {
			p.make(name)
		}
		p.mu.Unlock()
	}
}

// drop forgets a device that has ended, and waits a moment.
func (p *process) drop(ctx context.Context, name string) (again bool) {
	p.mu.Lock()
	if t := p.tunnels[name]; t != nil && ctx.Err() == nil {
		delete(p.tunnels, name)
		p.warn("close", name, t.close())
	}
	p.mu.Unlock()
	select {
	case <-ctx.Done():
		return false
	case <-time.After(remakeAfter):
		return true
	}
}

// make makes a device; where it can't, it is tried again later. Holds p.mu.
func (p *process) make(name string) {
	t, err := newTunnel(name, p.UAPIDir, p.Log)
	if err != nil {
		p.Log.Error("a device can't be made", "err", err)
		return
	}
	p.tunnels[name] = t
}

// end closes everything and leaves the links. Holds p.mu.
func (p *process) end() error {
	var errs []error
	if p.door != nil {
		errs = append(errs, p.door.listener.Close())
		p.door = nil
	}
	for _, name := range slices.Sorted(maps.Keys(p.tunnels)) {
		if err := p.tunnels[name].close(); err != nil {
			errs = append(errs, fmt.Errorf("close %s: %w", name, err))
		}
	}
	clear(p.tunnels)
	return errors.Join(errs...)
}
