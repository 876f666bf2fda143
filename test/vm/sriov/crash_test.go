//go:build vm

package sriov

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/netconf"
	"github.com/weft-cni/weft/test/crash"
)

// outcome is how a disturbed plugin ended, and what it printed.
type outcome struct {
	crash.Outcome
	out string
}

// last is the step that it came to last.
func (o outcome) last() (s crash.Step) {
	if len(o.Steps) > 0 {
		s = o.Steps[len(o.Steps)-1]
	}
	return s
}

// verdict is what becomes of the plugin's n-th step.
type verdict func(n int, s crash.Step) crash.Verdict

func undisturbed(int, crash.Step) crash.Verdict { return crash.GoOn }

// killedAt kills the plugin before its n-th step that changes something.
func killedAt(n int) verdict {
	changes := 0
	return func(_ int, s crash.Step) crash.Verdict {
		if s.Asks {
			return crash.GoOn
		}
		changes++
		if changes == n {
			return crash.KillBefore
		}
		return crash.GoOn
	}
}

// disturbed runs the plugin and lets at decide on each of its steps.
func (l *lab) disturbed(command string, p pod, at verdict) outcome {
	l.t.Helper()
	in := filepath.Join(l.t.TempDir(), "in")
	must(l.t, os.WriteFile(in, l.stdin(command, p, nil), 0o600))
	stdin, err := os.Open(in)
	must(l.t, err)
	defer stdin.Close()
	out, err := os.Create(in + ".out")
	must(l.t, err)
	defer out.Close()
	o, err := crash.Run(crash.Program{
		Path: filepath.Join(bin, "weft"), Env: env(command, p), Stdin: stdin, Stdout: out, Stderr: out,
	}, at)
	must(l.t, err)
	text, err := os.ReadFile(out.Name())
	must(l.t, err)
	return outcome{o, string(text)}
}

// crashConfig changes as much of a VF as there is, by as many ways.
func crashConfig(device string) map[string]any {
	return vfConfig(device, "vlan", 100, "vlanQoS", 3, "mac", "02:00:00:00:0a:01", "mtu", 1400,
		"spoofchk", "off", "trust", "on", "max_tx_rate", 100)
}

// TestKilled kills ADD and DEL before each of their steps; a DEL or a GC then
// leaves the VF as it was.
func TestKilled(t *testing.T) {
	t.Parallel()
	for i, c := range []struct{ victim, cleanup string }{
		{netconf.Add, netconf.Del}, {netconf.Add, netconf.GC}, {netconf.Del, netconf.Del}, {netconf.Del, netconf.GC},
	} {
		t.Run(c.victim+" then "+c.cleanup, func(t *testing.T) {
			t.Parallel()
			l, was := newLab(t), view(t, vfs[i])
			p := newPod(t, "a", crashConfig(vfs[i]))
			for n := 1; ; n++ {
				if c.victim == netconf.Del {
					l.must(netconf.Add, p, nil)
				}
				o := l.disturbed(c.victim, p, killedAt(n))
				l.must(c.cleanup, p, nil)
				l.back(vfs[i], was, fmt.Sprintf("%s killed at step %d (%s)", c.victim, n, o.last()))
				if !o.Killed {
					t.Logf("%d cases", n-1)
					return
				}
			}
		})
	}
}

// TestFailed fails each system call of DEL in turn, also those that only ask. A
// DEL that fails for it says so, and the next leaves the VF as it was; one that
// doesn't fail has done its work.
func TestFailed(t *testing.T) {
	t.Parallel()
	device := vfs[5]
	l, was := newLab(t), view(t, device)
	p := newPod(t, "a", crashConfig(device))
	survived := 0
	for n := 1; ; n++ {
		l.must(netconf.Add, p, nil)
		var at crash.Step
		o := l.disturbed(netconf.Del, p, func(i int, s crash.Step) crash.Verdict {
			if i != n {
				return crash.GoOn
			}
			at = s
			return crash.Fail(unix.EIO)
		})
		what := fmt.Sprintf("DEL with step %d (%s) failing", n, at)
		if o.ExitCode == 0 {
			survived++
		} else {
			if at.Call != "write" && !strings.Contains(o.out, `"code": `) {
				t.Errorf("%s: no error object: %s", what, o.out)
			}
			l.must(netconf.Del, p, nil)
		}
		l.back(device, was, what+": "+o.out)
		if len(o.Steps) < n {
			t.Logf("%d cases, %d of them without an error", n-1, survived-1)
			return
		}
	}
}

// TestUndoFails fails every third step of ADD and all after it, so that what is
// undone fails as well: the error tells of both, and a DEL gives the VF back.
func TestUndoFails(t *testing.T) {
	t.Parallel()
	device := vfs[6]
	l, was := newLab(t), view(t, device)
	p := newPod(t, "a", crashConfig(device))
	both := 0
	for n := 1; ; n += 3 {
		o := l.disturbed(netconf.Add, p, func(i int, s crash.Step) crash.Verdict {
			if i >= n && !strings.HasSuffix(s.On, ".out") { // what it prints is to be read
				return crash.Fail(unix.EIO)
			}
			return crash.GoOn
		})
		if strings.Contains(o.out, "; then, to ") {
			both++
		}
		l.must(netconf.Del, p, nil)
		l.back(device, was, fmt.Sprintf("ADD with step %d and all after it failing", n))
		if len(o.Steps) < n {
			break
		}
	}
	if both == 0 {
		t.Error("no error tells of an undo that failed")
	}
}
