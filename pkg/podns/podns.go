// Package podns opens the network namespaces of pods, and works in them.
package podns

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

// NS is a network namespace, held open.
type NS struct {
	path string
	fd   netns.NsHandle
}

// Own opens the calling thread's network namespace: the node's.
func Own() (*NS, error) {
	fd, err := netns.Get()
	if err != nil {
		return nil, fmt.Errorf("own network namespace: %w", err)
	}
	return &NS{path: "/proc/thread-self/ns/net", fd: fd}, nil
}

// Open opens the network namespace at path. The error is fs.ErrNotExist
// where there is no such file, ErrNotNetns where it is something else, as a
// namespace is once it was unmounted, and ErrOwnNetns where it is the
// caller's.
func Open(path string) (*NS, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "network namespace", Path: path, Err: err}
	}
	n := &NS{path: path, fd: netns.NsHandle(fd)}
	if err := n.check(); err != nil {
		n.Close()
		return nil, fmt.Errorf("network namespace %s: %w", path, err)
	}
	return n, nil
}

func (n *NS) check() error {
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
func (n *NS) Close() { n.fd.Close() }

// FD is the file descriptor of the namespace, for messages that name it.
func (n *NS) FD() int { return int(n.fd) }

// Path is the path that it was opened at.
func (n *NS) Path() string { return n.path }

// Handle talks netlink to the namespace: a socket stays in the one that it
// was opened in. netlink.NewHandleAt would do, if it told when the way back
// fails.
func (n *NS) Handle() (h *netlink.Handle, err error) {
	err = n.Do(func() (err error) {
		h, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("netlink in %s: %w", n.path, err)
	}
	return h, nil
}

// Do runs f in the namespace, for what needs the thread to be there: opening
// sockets and files in /proc/sys.
func (n *NS) Do(f func() error) error {
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
