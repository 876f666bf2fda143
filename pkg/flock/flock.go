// Package flock is flock(2) with a deadline. The kernel drops a lock when its
// holder dies, so a process killed at any instruction leaves none behind.
package flock

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"
)

// ErrTimeout says that another process held the lock all the time that the
// caller was ready to wait. A later attempt may do (CNI error code 11).
var ErrTimeout = errors.New("lock is held by another process")

// Shared takes the lock of file together with other holders of a shared lock;
// see Exclusive.
func Shared(ctx context.Context, file string, timeout time.Duration) (release func(), err error) {
	return lock(ctx, file, syscall.LOCK_SH, timeout)
}

// Exclusive takes the lock of file alone, waiting for at most timeout. The
// file is made where it is missing, its directory is not; it stays when the
// lock is released, since whoever waits has it open. Two locks taken within
// one process exclude each other like those of two processes.
//
// The error is ErrTimeout when timeout or ctx's deadline passes, ctx's error
// when ctx is cancelled.
func Exclusive(ctx context.Context, file string, timeout time.Duration) (release func(), err error) {
	return lock(ctx, file, syscall.LOCK_EX, timeout)
}

func lock(ctx context.Context, file string, how int, timeout time.Duration) (func(), error) {
	f, err := os.OpenFile(file, os.O_RDONLY|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock: %w", err)
	}
	fd := int(f.Fd())
	release := func() { f.Close() }
	err = flock(fd, how|syscall.LOCK_NB)
	if err == nil {
		return release, nil
	}
	if !errors.Is(err, syscall.EWOULDBLOCK) {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", file, err)
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	locked := make(chan error, 1)
	go func() { locked <- flock(fd, how) }()
	select {
	case err := <-locked:
		if err != nil {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", file, err)
		}
		return release, nil
	case <-ctx.Done():
		// A blocked flock can't be taken back: whenever it gets the lock, the
		// close gives it up again.
		go func() {
			<-locked //nolint:errcheck // nobody waits for it any more
			f.Close()
		}()
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return nil, fmt.Errorf("lock %s: %w", file, ErrTimeout)
		}
		return nil, fmt.Errorf("lock %s: %w", file, ctx.Err())
	}
}

func flock(fd, how int) error {
	for {
		if err := syscall.Flock(fd, how); !errors.Is(err, syscall.EINTR) {
			return err
		}
	}
}
