package wguser

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// door is a listening unix socket that can be held and handed over.
type door struct {
	listener *net.UnixListener
	answer   func(*net.UnixConn)
	log      *slog.Logger

	accepting sync.WaitGroup
	answering sync.WaitGroup
	mu        sync.Mutex
	open      map[*net.UnixConn]struct{}
}

// listenAt makes a socket for root alone. What is at the path is a socket of a
// process that has ended.
func listenAt(path string) (*net.UnixListener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen at %s: %w", path, err)
	}
	l.SetUnlinkOnClose(false)
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

func newDoor(l *net.UnixListener, log *slog.Logger, answer func(*net.UnixConn)) *door {
	return &door{listener: l, answer: answer, log: log, open: map[*net.UnixConn]struct{}{}}
}

// serve answers each connection in a goroutine of its own, until hold or close.
func (d *door) serve() { d.accepting.Go(d.accept) }

func (d *door) accept() {
	for {
		conn, err := d.listener.AcceptUnix()
		switch {
		case errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrDeadlineExceeded):
			return
		case err != nil:
			d.log.Warn("accept a connection", "socket", d.listener.Addr(), "err", err)
			continue
		}
		d.mu.Lock()
		d.open[conn] = struct{}{}
		d.mu.Unlock()
		d.answering.Go(func() {
			defer func() {
				d.mu.Lock()
				delete(d.open, conn)
				d.mu.Unlock()
				_ = conn.Close() // everything was written
			}()
			d.answer(conn)
		})
	}
}

// hold stops to accept: connections wait in the socket.
func (d *door) hold() error {
	err := d.listener.SetDeadline(time.Unix(1, 0))
	d.accepting.Wait()
	return err
}

// finishTime is how long a request that is under way may take.
const finishTime = time.Second

// finish waits until all that was accepted has been answered. Who has not
// finished to ask by then is cut off.
func (d *door) finish() {
	done := make(chan struct{})
	go func() {
		d.answering.Wait()
		close(done)
	}()
	select {
	case <-done:
		return
	case <-time.After(finishTime):
	}
	d.mu.Lock()
	for conn := range d.open {
		_ = conn.SetReadDeadline(time.Unix(1, 0)) // its reader ends
	}
	d.mu.Unlock()
	<-done
}

// release accepts again after hold.
func (d *door) release() error {
	err := d.listener.SetDeadline(time.Time{})
	d.serve()
	return err
}

// close closes the socket; its path stays.
func (d *door) close() error {
	err := d.listener.Close()
	d.accepting.Wait()
	return err
}

// control runs f with the descriptor of a file or socket.
func control(of syscall.Conn, f func(fd int) error) error {
	raw, err := of.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) { failed = f(int(fd)) })
	return errors.Join(err, failed)
}
