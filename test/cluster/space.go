package cluster

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// space is a network namespace and, where mnt is not nil, a mount namespace.
// Open files hold both, so they end with this process, however it ends.
type space struct {
	net, mnt *os.File
}

// newSpace makes namespaces of the given kinds (unix.CLONE_NEWNET, and
// unix.CLONE_NEWNS) and runs setup in them.
func newSpace(kinds int, setup func() error) (*space, error) {
	s := &space{}
	err := onThread(func() error {
		if err := unix.Unshare(kinds); err != nil {
			return fmt.Errorf("new namespaces: %w", err)
		}
		var err error
		if s.net, err = os.Open("/proc/thread-self/ns/net"); err != nil {
			return err
		}
		if kinds&unix.CLONE_NEWNS != 0 {
			if s.mnt, err = os.Open("/proc/thread-self/ns/mnt"); err != nil {
				return err
			}
		}
		return setup()
	})
	if err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *space) close() {
	for _, f := range []*os.File{s.net, s.mnt} {
		if f != nil {
			_ = f.Close() // a namespace is let go of; there is nothing to lose
		}
	}
}

// do runs f on a thread that is in the namespaces.
func (s *space) do(f func() error) error {
	return onThread(func() error {
		if err := s.enter(); err != nil {
			return err
		}
		return f()
	})
}

// enter moves the calling thread into the namespaces, for good.
func (s *space) enter() error {
	if s.mnt != nil {
		// Threads share root and working directory; a mount namespace wants
		// them to be its own.
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return fmt.Errorf("unshare root directory: %w", err)
		}
		if err := unix.Setns(int(s.mnt.Fd()), unix.CLONE_NEWNS); err != nil {
			return fmt.Errorf("enter mount namespace: %w", err)
		}
	}
	if err := unix.Setns(int(s.net.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter network namespace: %w", err)
	}
	return nil
}

// errGoexit is what onThread gives where its function ended the goroutine
// (testing.T's FailNow does).
var errGoexit = errors.New("the function ended its goroutine")

// onThread runs f on a thread of its own that ends afterwards, so that f may
// change what the kernel keeps for each thread.
func onThread(f func() error) error {
	err := errGoexit
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		err = f()
	}()
	<-done
	return err
}

// Process is a child process in a node or in the switch. It is killed when
// this process ends, also by SIGKILL.
type Process struct {
	cmd  *exec.Cmd
	done chan struct{}
	err  error // once done is closed
}

// start starts cmd in s. The thread that forks waits for the child as well:
// the kernel sends Pdeathsig when that thread ends, not the process.
func (s *space) start(cmd *exec.Cmd) (*Process, error) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	p := &Process{cmd: cmd, done: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		err := s.enter()
		if err == nil {
			err = cmd.Start()
		}
		if err == nil {
			live.add(p)
		}
		started <- err
		if err != nil {
			return
		}
		p.err = cmd.Wait()
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	return p, nil
}

// PID is the process's id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Wait waits for the end and gives exec.Cmd.Wait's error.
func (p *Process) Wait() error {
	<-p.done
	return p.err
}

// Signal sends sig. It is no error where the process has ended.
func (p *Process) Signal(sig os.Signal) error {
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("signal %d to %s: %w", p.PID(), p.cmd.Path, err)
	}
	return nil
}

// Kill sends SIGKILL and waits for the end.
func (p *Process) Kill() {
	_ = p.Signal(os.Kill) // our own child: nothing but its end makes this fail
	<-p.done
}

// processes are those that one owner (a node, the API) has to end.
type processes struct {
	mu  sync.Mutex
	all []*Process
}

func (ps *processes) add(p *Process) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	ps.all = append(ps.all, p)
}

func (ps *processes) kill() {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	for _, p := range ps.all {
		_ = p.Signal(os.Kill)
	}
	for _, p := range ps.all {
		<-p.done
	}
	ps.all = nil
}

// ended reports whether the process has ended.
func (p *Process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}
