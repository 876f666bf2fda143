package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// usernsEnv marks the process that Run started in a user namespace.
const usernsEnv = "WEFT_CLUSTER_USERNS"

// grace is how long Run lets its function end by itself after a signal.
const grace = 30 * time.Second

// Main is TestMain for packages that make clusters: it runs the tests where
// that is possible (see [Run]), leaves nothing behind and ends the process.
// On SIGINT and SIGTERM it does so at once.
//
//	func TestMain(m *testing.M) { cluster.Main(m) }
func Main(m interface{ Run() int }) {
	os.Exit(run(func(context.Context) int { return m.Run() }, 0))
}

// Run runs f where clusters can be made, clears all that clusters left and
// gives f's exit status: 128 and the signal's number where a signal came and f
// did not return soon. As root that is this process; otherwise it is a copy
// of it that is root of a new user namespace, where the kernel allows one.
// SIGINT and SIGTERM cancel f's context.
func Run(f func(context.Context) int) int { return run(f, grace) }

func run(f func(context.Context) int, grace time.Duration) int {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	defer signal.Stop(signals)
	if os.Geteuid() != 0 {
		return inUserNamespace(signals)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	status := make(chan int, 1)
	go func() { status <- f(ctx) }()
	code := 0
	select {
	case code = <-status:
	case sig := <-signals:
		cancel()
		if number, ok := sig.(syscall.Signal); ok {
			code = 128 + int(number)
		}
		select {
		case code = <-status:
		case <-time.After(grace):
		case <-signals:
		}
	}
	live.kill()
	if err := processScratch.remove(); err != nil {
		fmt.Fprintln(os.Stderr, "clear the cluster's files:", err)
		return max(code, 1)
	}
	return code
}

// inUserNamespace runs this program again as root of a user namespace and
// gives its exit status.
func inUserNamespace(signals <-chan os.Signal) int {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...) //nolint:noctx // it ends with its parent, by Pdeathsig
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), usernsEnv+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
		Pdeathsig:   syscall.SIGKILL,
	}
	ended := make(chan error, 1)
	started := make(chan error, 1)
	go func() {
		// Pdeathsig follows the thread: it has to outlive the child.
		err := onThread(func() error {
			err := cmd.Start()
			started <- err
			if err != nil {
				return err
			}
			return cmd.Wait()
		})
		ended <- err
	}()
	if err := <-started; err != nil {
		fmt.Fprintf(os.Stderr, "a test cluster needs root, or a kernel that lets this user make user namespaces: %v\n", err)
		return 1
	}
	for {
		select {
		case sig := <-signals:
			_ = cmd.Process.Signal(sig) // it may have had it from the terminal, and have ended
		case err := <-ended:
			if exit, ok := errors.AsType[*exec.ExitError](err); ok {
				if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
					return 128 + int(status.Signal())
				}
				return exit.ExitCode()
			}
			if err != nil {
				fmt.Fprintln(os.Stderr, err)
				return 1
			}
			return 0
		}
	}
}

// Unprivileged reports whether this process is root of a user namespace only.
func Unprivileged() bool { return os.Getenv(usernsEnv) != "" }

// live are all child processes of all clusters of this process: a signal, too,
// ends as a process does, all at once.
var live = liveSet{all: map[*Process]struct{}{}}

type liveSet struct {
	mu  sync.Mutex
	all map[*Process]struct{}
}

func (l *liveSet) add(p *Process) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all[p] = struct{}{}
	go func() {
		<-p.done
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.all, p)
	}()
}

func (l *liveSet) kill() {
	l.mu.Lock()
	var ps processes
	for p := range l.all {
		ps.add(p)
	}
	l.mu.Unlock()
	ps.kill()
}
