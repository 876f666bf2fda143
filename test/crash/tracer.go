package crash

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// Verdict is what happens at a step.
type Verdict struct {
	kind verdictKind
	err  unix.Errno
}

type verdictKind int

const (
	goOn verdictKind = iota
	killBefore
	killAfter
	fail
)

// What can happen at a step: it is carried out; the program is killed before
// it or after it; it isn't carried out and returns an error.
var (
	GoOn       = Verdict{}
	KillBefore = Verdict{kind: killBefore}
	KillAfter  = Verdict{kind: killAfter}
)

// Fail makes the step an error.
func Fail(errno unix.Errno) Verdict { return Verdict{kind: fail, err: errno} }

// Program is a program to be run in the calling thread's namespaces.
type Program struct {
	Path                  string
	Env                   []string
	Stdin, Stdout, Stderr *os.File
}

// Outcome is how a program ended.
type Outcome struct {
	Steps    []Step // those that it came to, also one that it was killed before
	Killed   bool
	ExitCode int
}

// Run runs p, asks at for a verdict on each step, numbered from 1, and returns
// when p has ended, and all processes that it started. Only the steps of p
// itself count.
func Run(p Program, at func(n int, s Step) Verdict) (Outcome, error) {
	runtime.LockOSThread() // ptrace and wait belong to the thread
	defer runtime.UnlockOSThread()
	proc, err := os.StartProcess(p.Path, []string{p.Path}, &os.ProcAttr{
		Env: p.Env, Files: []*os.File{p.Stdin, p.Stdout, p.Stderr}, Sys: &unix.SysProcAttr{Ptrace: true, Setpgid: true},
	})
	if err != nil {
		return Outcome{}, err
	}
	t := &tracer{main: proc.Pid, at: at, threads: map[int]*thread{}}
	if err := proc.Release(); err != nil {
		return Outcome{}, err
	}
	if err := t.run(); err != nil {
		return t.outcome, errors.Join(fmt.Errorf("trace %s: %w", p.Path, err), unix.Kill(t.main, unix.SIGKILL))
	}
	return t.outcome, nil
}

type tracer struct {
	main    int // process
	at      func(int, Step) Verdict
	threads map[int]*thread
	outcome Outcome
}

// thread is a thread of a traced process.
type thread struct {
	id      int
	ours    bool // of the main process
	verdict Verdict
}

const options = unix.PTRACE_O_EXITKILL | unix.PTRACE_O_TRACESYSGOOD | unix.PTRACE_O_TRACEEXEC |
	unix.PTRACE_O_TRACECLONE | unix.PTRACE_O_TRACEFORK | unix.PTRACE_O_TRACEVFORK

// run begins at the stop that follows the program's execve.
func (t *tracer) run() error {
	var status unix.WaitStatus
	if _, err := wait(t.main, &status); err != nil {
		return err
	}
	if !status.Stopped() {
		return fmt.Errorf("it did not start: %#x", uint32(status))
	}
	if err := unix.PtraceSetOptions(t.main, options); err != nil {
		return err
	}
	t.threads[t.main] = &thread{id: t.main, ours: true}
	if err := t.resume(t.threads[t.main], 0); err != nil {
		return err
	}
	for len(t.threads) > 0 {
		id, err := wait(-t.main, &status) // the process group
		if errors.Is(err, unix.ECHILD) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := t.event(id, status); err != nil {
			return err
		}
	}
	return nil
}

// wait waits for a process or, by a negative number, for those of a group. The
// test's other children are not ours to reap, whichever thread started them.
func wait(pid int, status *unix.WaitStatus) (int, error) {
	for {
		id, err := unix.Wait4(pid, status, unix.WALL|unix.WNOTHREAD, nil)
		if !errors.Is(err, unix.EINTR) {
			return id, err
		}
	}
}

func (t *tracer) event(id int, status unix.WaitStatus) error {
	if status.Exited() || status.Signaled() {
		if id == t.main {
			t.outcome.Killed = status.Signaled() && status.Signal() == unix.SIGKILL
			t.outcome.ExitCode = status.ExitStatus()
		}
		delete(t.threads, id)
		return nil
	}
	th, known := t.threads[id]
	if !known {
		th = &thread{id: id, ours: t.isOurs(id)}
		t.threads[id] = th
	}
	signal := status.StopSignal()
	switch {
	case signal == unix.SIGTRAP|0x80: // a system call begins or ends
		return t.syscall(th)
	case signal == unix.SIGTRAP, !known && signal == unix.SIGSTOP: // ptrace's own
		signal = 0
	}
	return t.resume(th, signal)
}

// isOurs reports whether a thread belongs to the main process.
func (t *tracer) isOurs(id int) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", id))
	return err == nil && strings.Contains(string(text), fmt.Sprintf("\nTgid:\t%d\n", t.main))
}

// resume lets a thread run on, to its next system call if it is ours. One that
// is gone was killed meanwhile, and wait tells of that.
func (t *tracer) resume(th *thread, signal unix.Signal) error {
	how := unix.PtraceCont
	if th.ours {
		how = unix.PtraceSyscall
	}
	if err := how(th.id, int(signal)); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	return nil
}

func (t *tracer) syscall(th *thread) error {
	info, err := syscallInfo(th.id)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return err
	}
	switch info.op {
	case unix.PTRACE_SYSCALL_INFO_ENTRY:
		return t.enter(th, info)
	case unix.PTRACE_SYSCALL_INFO_EXIT:
		return t.leave(th)
	}
	return t.resume(th, 0)
}

func (t *tracer) enter(th *thread, info callInfo) error {
	th.verdict = GoOn
	step, ok := stepOf(th.id, info)
	if ok {
		t.outcome.Steps = append(t.outcome.Steps, step)
		th.verdict = t.at(len(t.outcome.Steps), step)
	}
	switch th.verdict.kind {
	case killBefore:
		return unix.Kill(t.main, unix.SIGKILL)
	case fail:
		if err := skipCall(th.id); err != nil {
			return err
		}
	case goOn, killAfter:
	}
	return t.resume(th, 0)
}

func (t *tracer) leave(th *thread) error {
	switch th.verdict.kind {
	case killAfter:
		return unix.Kill(t.main, unix.SIGKILL)
	case fail:
		if err := setResult(th.id, -int64(th.verdict.err)); err != nil {
			return err
		}
	case goOn, killBefore:
	}
	th.verdict = GoOn
	return t.resume(th, 0)
}
