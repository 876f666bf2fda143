package segment_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/test/cluster"
	"github.com/weft-cni/weft/test/probe"
)

var (
	walkSteps = flag.Int("walk.steps", 500, "`steps` of TestRandomWalk")
	walkSeed  = flag.Uint64("walk.seed", 0, "`seed` of TestRandomWalk; 0: another one each time")
)

// TestRandomWalk attaches and detaches pods of several tenants, with the same
// ranges, in random order. Plugins and daemons are killed at any moment, and
// namespaces go without a DEL. On the way, and at the end, nodes and the API hold
// what pods that are attached have and nothing of others, and all pods of a
// tenant reach one another; in the end nothing is left.
func TestRandomWalk(t *testing.T) {
	l := newSealedLab(t, 3)
	seed := *walkSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("seed %d", seed)
	w := &walk{lab: l, r: rand.New(rand.NewPCG(seed, 1)), on: map[*cluster.Pod]uint32{}, count: map[string]int{}, networks: map[uint32][]byte{
		1001: tenant(1001, ""), 1002: tenant(1002, ""), 1003: tenant(1003, ""), 1004: tenant(1004, sealed),
	}}
	before := l.pristine()
	for step := range *walkSteps {
		w.step = step
		w.move()
		if (step+1)%100 == 0 {
			w.settle()
			w.meet()
		}
	}
	w.settle()
	w.meet()
	t.Logf("%v", w.count)
	for len(w.pods) > 0 {
		w.detach()
	}
	w.settle()
	l.vanished(before)
}

// walk is what is attached, and what isn't quite.
type walk struct {
	*lab
	r        *rand.Rand
	networks map[uint32][]byte // by VNI
	step     int
	pods     []*cluster.Pod // attached
	broken   []*cluster.Pod // whose ADD or DEL was killed, or whose namespace has gone
	on       map[*cluster.Pod]uint32
	count    map[string]int
}

// most is how many pods there are at a time.
const most = 30

// moves are what can happen, each as often as its weight says.
var moves = []struct {
	name   string
	weight int
	do     func(*walk)
}{
	{"attach", 12, (*walk).attach},
	{"detach", 4, (*walk).detach},
	{"detach twice", 1, (*walk).detachTwice},
	{"kill an ADD", 4, (*walk).killAdd},
	{"kill a DEL", 3, (*walk).killDel},
	{"lose a namespace", 1, (*walk).loseNetns},
	{"detach a broken one", 3, (*walk).mend},
	{"collect", 1, (*walk).collect},
	{"check", 3, (*walk).check},
	{"kill a daemon", 1, (*walk).killDaemon},
}

func (w *walk) move() {
	sum := 0
	for _, m := range moves {
		sum += m.weight
	}
	at := w.r.IntN(sum)
	for _, m := range moves {
		if at -= m.weight; at < 0 {
			w.t.Logf("step %d: %s", w.step, m.name)
			w.count[m.name]++
			m.do(w)
			return
		}
	}
}

// new makes a pod that isn't attached to a tenant's network yet.
func (w *walk) new() *cluster.Pod {
	w.t.Helper()
	vni := slices.Sorted(maps.Keys(w.networks))[w.r.IntN(len(w.networks))]
	n := w.Nodes()[w.r.IntN(len(w.Nodes()))]
	p, err := n.NewPod(fmt.Sprint("p", w.step), cluster.PodOptions{ConfList: w.networks[vni], IfName: "net1"})
	w.must(err)
	w.on[p] = vni
	return p
}

// any takes one of some pods out; nil where there are none.
func (w *walk) any(pods *[]*cluster.Pod) *cluster.Pod {
	if len(*pods) == 0 {
		return nil
	}
	i := w.r.IntN(len(*pods))
	p := (*pods)[i]
	*pods = slices.Delete(*pods, i, i+1)
	return p
}

func (w *walk) attach() {
	if len(w.pods) >= most {
		w.detach()
		return
	}
	p := w.new()
	w.must(p.Add(within(w.t, 30*time.Second))) // it is tried again while a daemon starts
	w.pods = append(w.pods, p)
}

func (w *walk) detach() {
	if p := w.any(&w.pods); p != nil {
		w.must(p.Detach(within(w.t, 30*time.Second)))
	}
}

func (w *walk) detachTwice() {
	if p := w.any(&w.pods); p != nil {
		w.must(p.Del(within(w.t, 30*time.Second)))
		w.must(p.Detach(within(w.t, 30*time.Second)))
	}
}

// soon is a context that ends, and what runs in it, at some moment of a plugin's
// work.
func (w *walk) soon() context.Context {
	return within(w.t, time.Duration(w.r.IntN(20_000))*time.Microsecond)
}

// killAdd kills ADD, if that isn't quicker.
func (w *walk) killAdd() {
	p := w.new()
	if err := p.Add(w.soon()); err != nil {
		w.count["ADD killed"]++
		w.broken = append(w.broken, p)
		return
	}
	w.pods = append(w.pods, p)
}

// killDel kills DEL, if that isn't quicker.
func (w *walk) killDel() {
	p := w.any(&w.pods)
	if p == nil {
		return
	}
	if err := p.Del(w.soon()); err != nil {
		w.count["DEL killed"]++
		w.broken = append(w.broken, p)
		return
	}
	w.must(p.DestroyNetns())
}

// loseNetns takes a pod's namespace away, and perhaps what the runtime knew of
// it.
func (w *walk) loseNetns() {
	p := w.any(&w.pods)
	if p == nil {
		return
	}
	w.must(p.DestroyNetns())
	if w.r.IntN(2) == 0 {
		w.forget(p)
	}
	w.broken = append(w.broken, p)
}

// forget has a node's runtime forget a pod, so that it is left to the plugin's
// own GC.
func (w *walk) forget(p *cluster.Pod) {
	w.must(p.Node.Do(func() error {
		all, err := filepath.Glob(filepath.Join(libcni.CacheDir, "results", "*"+p.ContainerID+"*"))
		for _, file := range all {
			err = errors.Join(err, os.Remove(file))
		}
		return err
	}))
}

// mend runs the DEL of a pod that is still to be had.
func (w *walk) mend() {
	if p := w.any(&w.broken); p != nil {
		w.must(p.Detach(within(w.t, 30*time.Second)))
	}
}

// collect runs GC on a node for all networks, with what is attached there.
func (w *walk) collect() { w.collectOn(w.Nodes()[w.r.IntN(len(w.Nodes()))]) }

func (w *walk) collectOn(n *cluster.Node) {
	for vni, conf := range w.networks {
		w.must(n.GCOf(within(w.t, 30*time.Second), conf, w.attached(n, vni)...))
	}
	w.broken = slices.DeleteFunc(w.broken, func(p *cluster.Pod) bool {
		if p.Node == n {
			w.must(p.DestroyNetns())
		}
		return p.Node == n
	})
}

// attached are the pods of a node that are attached to a network.
func (w *walk) attached(n *cluster.Node, vni uint32) (pods []*cluster.Pod) {
	for _, p := range w.pods {
		if p.Node == n && w.on[p] == vni {
			pods = append(pods, p)
		}
	}
	return pods
}

func (w *walk) check() {
	if len(w.pods) > 0 {
		w.must(w.pods[w.r.IntN(len(w.pods))].Check(within(w.t, 30*time.Second)))
	}
}

// killDaemon kills a daemon. The next one starts while the walk goes on.
func (w *walk) killDaemon() {
	i := w.r.IntN(len(w.daemons))
	w.daemons[i].Kill()
	var err error
	w.daemons[i], err = w.Nodes()[i].StartWeftd(within(w.t, 30*time.Second))
	w.must(err)
}

// settle has some of the broken pods detached and the rest collected: then there
// is what attached pods have, and nothing of others.
func (w *walk) settle() {
	for _, d := range w.daemons {
		w.must(d.WaitReady(within(w.t, 30*time.Second)))
	}
	for range len(w.broken) / 2 {
		w.mend()
	}
	for _, n := range w.Nodes() {
		w.collectOn(n)
	}
	w.unique()
	eventually(w.t, 20*time.Second, func() error { return same(w.expected(), w.held()) })
}

// meet has all pods of each tenant reach one another.
func (w *walk) meet() {
	for _, p := range w.pods {
		w.must(p.Do(forgetNeighbours))
	}
	var pings errgroup.Group
	pings.SetLimit(4)
	for _, a := range w.pods {
		for _, b := range w.pods {
			if a == b || w.on[a] != w.on[b] {
				continue
			}
			for _, family := range []int{4, 6} {
				pings.Go(func() error {
					if _, err := probe.Ping(within(w.t, reachTime), a, b.IP(family)); err != nil {
						return fmt.Errorf("%s on %s to %s on %s: %w", a.Name, a.Node.Name, b.Name, b.Node.Name, err)
					}
					return nil
				})
			}
		}
	}
	w.must(pings.Wait())
}

// forgetNeighbours empties a pod's neighbour table of IPv6: what it knows of an
// address that is another pod's now lasts for most of a minute, where that pod's
// first address, which its MAC follows from, is another.
func forgetNeighbours() error {
	all, err := netlink.NeighList(0, netlink.FAMILY_V6)
	for _, e := range all {
		if e.State&unix.NUD_PERMANENT == 0 {
			err = errors.Join(err, netlink.NeighDel(&e))
		}
	}
	return err
}

// unique: no address is given twice on a segment.
func (w *walk) unique() {
	w.t.Helper()
	seen := map[string]string{}
	for _, p := range w.pods {
		for _, ip := range p.IPs() {
			key := fmt.Sprint(w.on[p], " ", ip)
			if other, twice := seen[key]; twice {
				w.t.Errorf("%s and %s have %s", other, p.Name, ip)
			}
			seen[key] = p.Name
		}
	}
}

func (w *walk) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatalf("step %d: %v", w.step, err)
	}
}

// expected are the lines of held for the pods that are attached.
func (w *walk) expected() string {
	var lines []string
	for _, p := range w.pods {
		node, vni := p.Node.Name, w.on[p]
		link, mac := p.Result.Interfaces[0].Name, p.Result.Interfaces[1].Mac
		lines = append(lines,
			fmt.Sprintf("%s link %s", node, link),
			fmt.Sprintf("%s grants of %s", node, link),
			fmt.Sprintf("%s record %s:net1", node, p.ContainerID),
			fmt.Sprintf("%s station %d %s %s", node, vni, mac, p.IPs()),
		)
		for _, ip := range p.IPs() {
			lines = append(lines, fmt.Sprintf("%s claim %d,%s of %s/net1", node, vni, ip, p.ContainerID))
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}
