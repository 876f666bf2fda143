package crash_test

import (
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/netconf"
	"github.com/weft-cni/weft/test/crash"
	"github.com/weft-cni/weft/test/testns"
)

// cleanup is what the runtime does after a crash.
type cleanup struct {
	name string
	do   func(*lab)
}

var cleanups = []cleanup{
	{"DEL", func(l *lab) { l.run(netconf.Del) }},
	{"GC", func(l *lab) { l.run(netconf.GC) }},
	{"DEL without the pod's namespace", func(l *lab) {
		l.pod.Close()
		l.run(netconf.Del)
		l.pod = testns.New(l.t)
	}},
}

// TestKilled kills ADD, DEL and GC before and after each of their steps. A DEL
// or a GC then leaves nothing, and the pod can be attached again.
func TestKilled(t *testing.T) {
	for _, victim := range []string{netconf.Add, netconf.Del, netconf.GC} {
		for i, v := range variants {
			for j, c := range cleanups {
				if i > 0 && j > 1 {
					continue // makes no difference to how addresses are had
				}
				t.Run(fmt.Sprintf("%s/%s/%s", victim, v.name, c.name), func(t *testing.T) {
					t.Parallel()
					l := newLab(t, v)
					cases := l.kill(victim, c, crash.KillBefore)
					if i == 0 && j == 0 {
						cases += l.kill(victim, c, crash.KillAfter)
					}
					t.Logf("%d cases", cases)
				})
			}
		}
	}
}

// kill kills the victim at its first step, then at its second, until it comes
// to its end, and gives the number of times.
func (l *lab) kill(victim string, c cleanup, how crash.Verdict) (cases int) {
	l.t.Helper()
	for n := 1; ; n++ {
		if victim != netconf.Add {
			l.run(netconf.Add)
		}
		var last crash.Step
		changes := 0
		o, out := l.disturbed(victim, func(_ int, s crash.Step) crash.Verdict {
			if s.Asks {
				return crash.GoOn
			}
			changes++
			if changes == n {
				last = s
				return how
			}
			return crash.GoOn
		})
		if !o.Killed && o.ExitCode != 0 {
			l.t.Fatalf("%s ended with status %d: %s", victim, o.ExitCode, out)
		}
		c.do(l)
		l.clean(fmt.Sprintf("%s killed at step %d (%s), then %s", victim, n, last, c.name))
		if !o.Killed {
			return cases
		}
		cases++
	}
}

// TestKilledBesideOthers kills ADD at each step while another pod is there,
// and attaches a third before anything is cleaned up: neither minds.
func TestKilledBesideOthers(t *testing.T) {
	l := newLab(t, variants[0])
	neighbour := l.beside("neighbour")
	before := neighbour.run(netconf.Add)
	quiet := neighbour.left()
	cases := 0
	for n := 1; ; n++ {
		o, _ := l.disturbed(netconf.Add, func(i int, _ crash.Step) crash.Verdict {
			if i == n {
				return crash.KillBefore
			}
			return crash.GoOn
		})
		third := l.beside("third")
		third.run(netconf.Check, third.run(netconf.Add))
		neighbour.run(netconf.Check, before)
		third.run(netconf.Del)
		third.pod.Close()
		l.run(netconf.Del)
		if left := l.pod.Dump(t) + neighbour.left(); left != quiet {
			t.Fatalf("ADD killed at step %d: left behind:\n%s--- want\n%s", n, left, quiet)
		}
		if !o.Killed {
			break
		}
		cases++
	}
	t.Logf("%d cases", cases)
}

// TestFailed fails each system call of ADD in turn, also those that only ask.
// An ADD that fails for it says so and leaves nothing; one that doesn't has
// worked.
func TestFailed(t *testing.T) {
	for _, v := range variants {
		t.Run(v.name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t, v)
			var survived []string
			for n := 1; ; n++ {
				var at crash.Step
				o, out := l.disturbed(netconf.Add, func(i int, s crash.Step) crash.Verdict {
					if i == n {
						at = s
						return crash.Fail(unix.EIO)
					}
					return crash.GoOn
				})
				what := fmt.Sprintf("ADD with step %d (%s) failing", n, at)
				switch {
				case o.ExitCode == 0:
					survived = append(survived, at.String())
					l.run(netconf.Del)
				case at.Call != "write" && !strings.Contains(out, `"code": `):
					t.Errorf("%s: no error object: %s", what, out)
				}
				l.clean(what)
				if len(o.Steps) < n {
					t.Logf("%d cases; no error of: %s", n-1, strings.Join(survived[:len(survived)-1], ", "))
					return
				}
			}
		})
	}
}

// TestUndoFails fails each step of ADD and every one after it, so that what is
// undone fails as well: the error tells of both, and a DEL leaves nothing.
func TestUndoFails(t *testing.T) {
	l := newLab(t, variants[0])
	both := 0
	for n := 1; ; n++ {
		o, out := l.disturbed(netconf.Add, func(i int, s crash.Step) crash.Verdict {
			if i >= n && s.Call != "write" {
				return crash.Fail(unix.EIO)
			}
			return crash.GoOn
		})
		if strings.Contains(out, "; then, to ") {
			both++
		}
		if o.ExitCode != 0 && !strings.Contains(out, "input/output error") {
			t.Errorf("step %d and all after it failing: %s", n, out)
		}
		l.run(netconf.Del)
		l.clean(fmt.Sprintf("ADD with step %d and all after it failing", n))
		if len(o.Steps) < n {
			break
		}
	}
	if both == 0 {
		t.Error("no error tells of an undo that failed")
	}
}
