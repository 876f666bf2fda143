package segment_test

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/netconf"
	"github.com/weft-cni/weft/test/cluster"
	"github.com/weft-cni/weft/test/crash"
)

// victims is a node with a daemon, on which plugins come to harm beside a pod
// that minds nothing of it.
type victims struct {
	*lab
	neighbour *cluster.Pod
	untouched string // traces without the neighbour
	before    string // what the node holds with it
	number    uint32 // of pods
	first     bool   // each is the first on its segment
}

// beside is the segment of the pod that is there.
const beside = 1001

func newVictims(t *testing.T, first bool) *victims {
	t.Helper()
	v := &victims{lab: newLab(t, 1), first: first}
	v.untouched = v.pristine()
	v.neighbour = v.attach(v.Node(1), "neighbour", tenant(beside, ""))
	eventually(t, reachTime, func() error { // its station is published
		v.before = v.held()
		if !strings.Contains(v.before, "station") {
			return fmt.Errorf("the node holds\n%s", v.before)
		}
		return nil
	})
	return v
}

// end has the neighbour go: then nothing is left, and no address is lost.
func (v *victims) end() {
	v.t.Helper()
	v.must(v.neighbour.Check(within(v.t, 30*time.Second)))
	v.must(v.neighbour.Detach(within(v.t, 30*time.Second)))
	v.vanished(v.untouched)
}

// next is a pod, and the network that it is to be on: another one each time if
// each is to be the first on its segment.
func (v *victims) next() (p *cluster.Pod, conf []byte) {
	v.t.Helper()
	v.number++
	vni := uint32(beside)
	if v.first {
		vni += v.number
	}
	conf = tenant(vni, "")
	p, err := v.Node(1).NewPod(fmt.Sprint("victim", v.number), cluster.PodOptions{ConfList: conf, IfName: "net1", NoRetry: true})
	v.must(err)
	return p, conf
}

func (v *victims) must(err error) {
	v.t.Helper()
	if err != nil {
		v.t.Fatal(err)
	}
}

// disturbed runs a command of the plugin for a pod, and lets at decide on each of
// its steps.
func (v *victims) disturbed(command string, p *cluster.Pod, conf []byte, at func(int, crash.Step) crash.Verdict) (o crash.Outcome, out string) {
	v.t.Helper()
	var list struct {
		CNIVersion, Name string
		Plugins          []map[string]any
	}
	v.must(json.Unmarshal(conf, &list))
	list.Plugins[0]["cniVersion"], list.Plugins[0]["name"] = list.CNIVersion, list.Name
	stdin, err := json.Marshal(list.Plugins[0])
	v.must(err)
	dir := v.t.TempDir()
	v.must(os.WriteFile(filepath.Join(dir, "in"), stdin, 0o600))
	in, err := os.Open(filepath.Join(dir, "in"))
	v.must(err)
	defer in.Close()
	both, err := os.OpenFile(filepath.Join(dir, "out"), os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
	v.must(err)
	defer both.Close()
	env := []string{
		"PATH=" + os.Getenv("PATH"), "CNI_COMMAND=" + command, "CNI_CONTAINERID=" + p.ContainerID,
		"CNI_NETNS=" + p.Netns, "CNI_IFNAME=net1", "CNI_PATH=/opt/cni/bin",
	}
	v.must(p.Node.Do(func() (err error) {
		o, err = crash.Run(crash.Program{Path: "/opt/cni/bin/weft", Env: env, Stdin: in, Stdout: both, Stderr: both}, at)
		return err
	}))
	_, err = both.Seek(0, io.SeekStart)
	v.must(err)
	text, err := io.ReadAll(both)
	v.must(err)
	return o, string(text)
}

// clean waits until the node holds nothing but what it held before.
func (v *victims) clean(after string) {
	v.t.Helper()
	eventually(v.t, reachTime, func() error {
		if err := same(v.before, v.held()); err != nil {
			return fmt.Errorf("%s: %w", after, err)
		}
		return nil
	})
}

// again attaches a pod to which nothing seems to have happened.
func (v *victims) again(after string, p *cluster.Pod) {
	v.t.Helper()
	for _, do := range []func() error{
		func() error { return p.Add(within(v.t, 30*time.Second)) },
		func() error { return p.Check(within(v.t, 30*time.Second)) },
		func() error { return p.Detach(within(v.t, 30*time.Second)) },
	} {
		if err := do(); err != nil {
			v.t.Fatalf("%s: %v", after, err)
		}
	}
	v.clean(after + ", and another ADD and DEL")
}

// cleanups are what a runtime does after a crash.
var cleanups = []struct {
	name string
	do   func(v *victims, p *cluster.Pod, conf []byte) error
}{
	{"DEL", func(v *victims, p *cluster.Pod, _ []byte) error { return p.Del(within(v.t, 30*time.Second)) }},
	{"GC", func(v *victims, p *cluster.Pod, conf []byte) error {
		return p.Node.GCOf(within(v.t, 30*time.Second), conf, v.neighbour)
	}},
	{"DEL without the namespace", func(v *victims, p *cluster.Pod, _ []byte) error {
		if err := p.DestroyNetns(); err != nil {
			return err
		}
		return p.Del(within(v.t, 30*time.Second))
	}},
}

// TestKilledOnSegment kills ADD and DEL before and after each of their steps. A
// DEL or a GC then leaves nothing, no address is lost, the pod can be attached
// again, and its neighbour minds nothing.
func TestKilledOnSegment(t *testing.T) {
	v := newVictims(t, false)
	for _, victim := range []string{netconf.Add, netconf.Del} {
		for i, c := range cleanups {
			t.Run(victim+"/"+c.name, func(t *testing.T) {
				on := v.in(t)
				cases := on.kill(victim, i, crash.KillBefore)
				if i == 0 {
					cases += on.kill(victim, i, crash.KillAfter)
				}
				t.Logf("%d cases", cases)
			})
		}
	}
	t.Run("ADD fails", func(t *testing.T) { v.in(t).fail() })
	v.end()
}

// TestKilledOnNewSegment is TestKilledOnSegment for ADDs that have the daemon make
// the segment.
func TestKilledOnNewSegment(t *testing.T) {
	v := newVictims(t, true)
	t.Run("ADD/DEL", func(t *testing.T) { t.Logf("%d cases", v.in(t).kill(netconf.Add, 0, crash.KillBefore)) })
	t.Run("ADD/GC", func(t *testing.T) { t.Logf("%d cases", v.in(t).kill(netconf.Add, 1, crash.KillAfter)) })
	t.Run("ADD fails", func(t *testing.T) { v.in(t).fail() })
	v.end()
}

// in is v for a subtest.
func (v *victims) in(t *testing.T) *victims {
	t.Helper()
	on, l := *v, *v.lab
	l.t, on.lab = t, &l
	on.number += uint32(1000 * (1 + len(t.Name())))
	return &on
}

// kill kills the victim at its first step, then at its second, until it comes to
// its end, and gives the number of times.
func (v *victims) kill(victim string, cleanup int, how crash.Verdict) (cases int) {
	v.t.Helper()
	for n := 1; ; n++ {
		p, conf := v.next()
		if victim == netconf.Del {
			v.must(p.Add(within(v.t, 30*time.Second)))
		}
		var last crash.Step
		changes := 0
		o, out := v.disturbed(victim, p, conf, func(_ int, s crash.Step) crash.Verdict {
			if s.Asks {
				return crash.GoOn
			}
			changes++
			if changes != n {
				return crash.GoOn
			}
			last = s
			return how
		})
		if !o.Killed && o.ExitCode != 0 {
			v.t.Fatalf("%s ended with status %d: %s", victim, o.ExitCode, out)
		}
		c := cleanups[cleanup]
		what := fmt.Sprintf("%s killed at step %d (%s), then %s", victim, n, last, c.name)
		if err := c.do(v, p, conf); err != nil {
			v.t.Fatalf("%s: %v", what, err)
		}
		v.clean(what)
		if cleanup < 2 {
			v.again(what, p)
		}
		if !o.Killed || v.asked(last) {
			return cases
		}
		cases++
	}
}

// asked reports whether the daemon has made the segment at this step: what
// follows is the same on a segment that is there already.
func (v *victims) asked(at crash.Step) bool { return v.first && at.Call == "symlink" }

// fail fails each system call of ADD in turn, also those that only ask: ADD says
// so and leaves nothing.
func (v *victims) fail() {
	v.t.Helper()
	for n := 1; ; n++ {
		p, conf := v.next()
		var at crash.Step
		o, out := v.disturbed(netconf.Add, p, conf, func(i int, s crash.Step) crash.Verdict {
			if i == n {
				at = s
				return crash.Fail(unix.EIO)
			}
			return crash.GoOn
		})
		what := fmt.Sprintf("ADD with step %d (%s) failing", n, at)
		last := len(o.Steps) < n
		switch {
		case o.ExitCode == 0:
			if !last {
				v.t.Errorf("%s: no error", what)
			}
			v.must(p.Del(within(v.t, 30*time.Second)))
		case at.Call != "write" && !strings.Contains(out, `"code": `):
			v.t.Errorf("%s: no error object: %s", what, out)
		}
		v.clean(what)
		v.again(what, p)
		if last || v.asked(at) {
			v.t.Logf("%d cases", n-1)
			return
		}
	}
}
