package main

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// A space is a network namespace that lives as long as this process has it
// open: nothing is left behind, however the process ends.
type space struct{ file *os.File }

// newSpace makes a network namespace, with its loopback down, as a runtime
// hands it to plugins.
func newSpace() (*space, error) {
	var file *os.File
	made := make(chan error)
	go func() {
		// The thread stays locked, so that it ends with the goroutine and
		// nothing else runs in the new namespace.
		runtime.LockOSThread()
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			file, err = os.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()))
		}
		made <- err
	}()
	if err := <-made; err != nil {
		return nil, fmt.Errorf("make network namespace: %w", err)
	}
	return &space{file: file}, nil
}

// do runs f on a thread in the namespace. Processes that f starts are in it
// as well.
func (n *space) do(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter network namespace: %w", err)
			return
		}
		done <- f()
	}()
	return <-done
}

// close drops the namespace; the kernel removes it once no process is in it.
func (n *space) close() error { return n.file.Close() }
