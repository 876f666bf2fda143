// Package testns gives tests network namespaces of their own and shows what
// is in them. A namespace lives as long as somebody has it open, so nothing is
// left of it when the test's process ends, however that ends.
package testns

import (
	"fmt"
	"os"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// NS is a network namespace with its loopback interface up.
type NS struct {
	Path   string // while the test's process lives; for CNI_NETNS
	Handle *netlink.Handle
	fd     netns.NsHandle
}

// New makes a namespace and closes it when the test ends.
func New(t testing.TB) *NS {
	t.Helper()
	type made struct {
		fd  netns.NsHandle
		err error
	}
	done := make(chan made)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- made{err: err}
			return
		}
		fd, err := netns.Get()
		done <- made{fd, err}
	}()
	m := <-done
	if m.err != nil {
		t.Fatalf("network namespace: %v", m.err)
	}
	return open(t, m.fd)
}

// Enter makes a namespace and moves the test's goroutine into it for good:
// what the test calls takes it for the node's. Subtests run in goroutines of
// their own and have to Join it.
func Enter(t testing.TB) *NS {
	t.Helper()
	ns := New(t)
	ns.Join(t)
	return ns
}

// Join moves the calling goroutine into ns for good.
func (ns *NS) Join(t testing.TB) {
	t.Helper()
	runtime.LockOSThread() // never unlocked
	if err := netns.Set(ns.fd); err != nil {
		t.Fatalf("enter network namespace: %v", err)
	}
}

// Do runs f in ns and waits for it. Processes that it starts are there too.
func (ns *NS) Do(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked
		if err := netns.Set(ns.fd); err != nil {
			done <- fmt.Errorf("enter network namespace: %w", err)
			return
		}
		done <- f()
	}()
	return <-done
}

// Fd is an open file of ns, for moving links there.
func (ns *NS) Fd() int { return int(ns.fd) }

// Sysctl sets a kernel setting in ns, by its path below /proc/sys.
func (ns *NS) Sysctl(t testing.TB, name, value string) {
	t.Helper()
	err := ns.Do(func() error { return os.WriteFile("/proc/sys/"+name, []byte(value), 0) })
	if err != nil {
		t.Fatalf("sysctl: %v", err)
	}
}

// Close lets go of the namespace: nothing is at Path any more.
func (ns *NS) Close() {
	if ns.fd.IsOpen() {
		ns.Handle.Close()
		ns.fd.Close()
	}
}

func open(t testing.TB, fd netns.NsHandle) *NS {
	t.Helper()
	h, err := netlink.NewHandleAt(fd, unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatalf("netlink: %v", err)
	}
	ns := &NS{Path: fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), int(fd)), Handle: h, fd: fd}
	t.Cleanup(ns.Close)
	lo, err := h.LinkByName("lo")
	if err == nil {
		err = h.LinkSetUp(lo)
	}
	if err != nil {
		t.Fatalf("loopback interface: %v", err)
	}
	return ns
}
