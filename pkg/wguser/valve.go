package wguser

import (
	"errors"
	"os"
	"sync"
	"time"
)

// valve lets the one goroutine that reads a file be held between two reads.
// The zero value is open.
type valve struct {
	mu      sync.Mutex
	changed sync.Cond
	held    bool // reads are to wait
	waiting bool // the reader does
	closed  bool
}

// read calls f, which reads with a deadline that hold sets, until it has read
// something. ok is false once the valve is closed.
func (v *valve) read(f func() (int, error)) (n int, err error, ok bool) { //nolint:revive // ok comes last
	for {
		if !v.pass() {
			return 0, nil, false
		}
		n, err = f()
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return n, err, true
		}
	}
}

func (v *valve) pass() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.changed.L = &v.mu
	for v.held && !v.closed {
		v.waiting = true
		v.changed.Broadcast()
		v.changed.Wait()
	}
	v.waiting = false
	return !v.closed
}

// deadliner is a file whose reads can be made to end.
type deadliner interface{ SetReadDeadline(time.Time) error }

// hold stops the reader and returns once it has stopped: all that it read
// before has been handed on. A closed valve has no reader.
func (v *valve) hold(file deadliner) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.changed.L = &v.mu
	v.held = true
	if err := file.SetReadDeadline(time.Unix(1, 0)); err != nil {
		return err
	}
	for !v.waiting && !v.closed {
		v.changed.Wait()
	}
	return nil
}

// release lets the reader go on.
func (v *valve) release(file deadliner) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.changed.L = &v.mu
	err := file.SetReadDeadline(time.Time{})
	v.held = false
	v.changed.Broadcast()
	return err
}

// close ends the reader's wait.
func (v *valve) close() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.changed.L = &v.mu
	v.closed = true
	v.changed.Broadcast()
}
