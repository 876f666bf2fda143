package veth

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// What is wrong with a pod's network namespace.
var (
	ErrNotNetns = errors.New("not a network namespace")
	ErrOwnNetns = errors.New("the node's network namespace, not one of a pod")
)

// Netns is a pod's network namespace, held open.
type Netns struct {
	path string
	fd   netns.NsHandle
}

// OpenNetns opens the network namespace at path. The error is fs.ErrNotExist
// where there is no such file, ErrNotNetns where it is something else, as a
// namespace is once it was unmounted, and ErrOwnNetns where it is the
// caller's.
func OpenNetns(path string) (*Netns, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "network namespace", Path: path, Err: err}
	}
	n := &Netns{path: path, fd: netns.NsHandle(fd)}
	if err := n.check(); err != nil {
		n.Close()
		return nil, fmt.Errorf("network namespace %s: %w", path, err)
	}
	return n, nil
}

func (n *Netns) check() error {
	kind, err := unix.IoctlRetInt(int(n.fd), unix.NS_GET_NSTYPE)
	if err != nil || kind != unix.CLONE_NEWNET {
		return ErrNotNetns
	}
	var own, pod unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/net", &own); err != nil {
		return fmt.Errorf("own network namespace: %w", err)
	}
	if err := unix.Fstat(int(n.fd), &pod); err != nil {
		return err
	}
	if own.Dev == pod.Dev && own.Ino == pod.Ino {
		return ErrOwnNetns
	}
	return nil
}

// Close lets go of the namespace.
func (n *Netns) Close() { n.fd.Close() }

// handle talks netlink to the namespace: a socket stays in the one that it
// was opened in. netlink.NewHandleAt would do, if it told when the way back
// fails.
func (n *Netns) handle() (h *netlink.Handle, err error) {
	err = n.do(func() (err error) {
		h, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("netlink in %s: %w", n.path, err)
	}
	return h, nil
}

// do runs f in the namespace, for what needs the thread to be there: opening
// sockets and files in /proc/sys.
func (n *Netns) do(f func() error) error {
	runtime.LockOSThread()
	own, err := netns.Get()
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("own network namespace: %w", err)
	}
	defer own.Close()
	if err = netns.Set(n.fd); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter %s: %w", n.path, err)
	}
	err = f()
	if back := netns.Set(own); back != nil {
		// The thread stays locked, so that it ends with this goroutine and
		// nothing else ever runs in the wrong namespace.
		return errors.Join(err, fmt.Errorf("leave %s: %w", n.path, back))
	}
	runtime.UnlockOSThread()
	return err
}
