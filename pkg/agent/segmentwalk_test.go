package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/weft-cni/weft/api/v1alpha1"
	"github.com/weft-cni/weft/pkg/control"
	"github.com/weft-cni/weft/pkg/ipam"
	"github.com/weft-cni/weft/pkg/netconf"
	"github.com/weft-cni/weft/pkg/overlay"
)

const walkVNI = 7

// walk is a cluster whose nodes lease, lend and give back in random order, over
// an API server that loses and delays what it is asked, and in which daemons die
// at any call.
type walk struct {
	t     *testing.T
	r     *rand.Rand
	api   *fakeBlocks
	nodes []*walkNode
	steps []string // the last ones
	pods  int
	given map[string]int // how many addresses, by how they were got
}

// walkNode is a node: its disk outlives its daemon, and is empty after a reboot.
type walkNode struct {
	w      *walk
	name   string
	boot   int
	life   int // of its Node object
	dir    string
	s      *segments
	seen   int // of the API's history
	pods   map[string][]netip.Addr
	asked  []netip.Addr // of an ADD that failed
	ranges []netconf.Range
}

func newWalk(t *testing.T, seed uint64) *walk {
	w := &walk{t: t, r: rand.New(rand.NewPCG(seed, 1)), api: newFakeBlocks(), given: map[string]int{}}
	for i, size := range []int{4, 4, 8} { // blocks of one are inside another's
		n := &walkNode{w: w, name: fmt.Sprint("n", i+1), dir: t.TempDir(), ranges: []netconf.Range{
			{Subnet: netip.MustParsePrefix("192.168.7.0/27"), Gateway: netip.MustParseAddr("192.168.7.1"), BlockSize: size},
			{Subnet: netip.MustParsePrefix("fd00:7::/123"), BlockSize: size},
		}}
		n.reboot()
		w.nodes = append(w.nodes, n)
	}
	return w
}

func (n *walkNode) reboot() {
	n.boot++
	n.pods = map[string][]netip.Addr{}
	if err := os.RemoveAll(filepath.Join(n.dir, "run")); err != nil {
		n.w.t.Fatal(err)
	}
	n.start()
}

// start starts a daemon. Its first list may be old.
func (n *walkNode) start() {
	n.s = newSegments(Options{
		Node: n.name, RunDir: filepath.Join(n.dir, "run"), DataDir: n.dir, BootID: fmt.Sprint(n.boot), Log: slog.New(slog.DiscardHandler),
	}, noMembers{}, n.w.api, newMetrics(""))
	n.s.lendWait = 0
	n.s.state.owner = &Node{Name: n.name, UID: fmt.Sprint(n.name, n.life)}
	n.s.state.self = &overlay.Self{Name: n.name, Underlay: []overlay.Underlay{{Addr: netip.MustParseAddr("192.0.2.1"), MTU: 1500}}}
	n.active(true)
	n.seen = max(n.seen, len(n.w.api.history)-n.w.r.IntN(4))
	then := map[string]*v1alpha1.IPBlock{}
	for _, e := range n.w.api.history[:n.seen] {
		if e.was != nil {
			delete(then, e.was.Name)
		}
		if e.is != nil {
			then[e.is.Name] = e.is
		}
	}
	for selector, store := range n.watches() {
		var list []*v1alpha1.IPBlock
		for _, b := range then {
			if matches(b, selector) {
				list = append(list, b.DeepCopy())
			}
		}
		store.replace(list)
	}
}

func (n *walkNode) watches() map[string]*store[*v1alpha1.IPBlock] {
	return map[string]*store[*v1alpha1.IPBlock]{
		v1alpha1.NodeLabel + "=" + n.name:   ownStore(n.s, &n.s.state.own.leases),
		v1alpha1.LenderLabel + "=" + n.name: ownStore(n.s, &n.s.state.own.asked),
	}
}

// active has the node take part in the segment, or not.
func (n *walkNode) active(is bool) {
	n.s.state.active = map[uint32]activeSegment{}
	if !is {
		return
	}
	on := activeSegment{ranges: n.ranges}
	for id, addrs := range n.pods {
		on.claims = append(on.claims, ipam.Claim{Owner: ipam.Owner{ContainerID: id, IfName: "net1"}, Addrs: addrs})
	}
	n.s.state.active[walkVNI] = on
	if err := n.s.writeFile(walkVNI, on); err != nil {
		n.w.t.Fatal(err)
	}
}

// daemon runs what a daemon does, which may kill it.
func (n *walkNode) daemon(do func() error) (err error) {
	defer func() {
		switch died := recover(); died {
		case nil:
		case crash{}:
			n.w.steps = append(n.w.steps, n.name+" died")
			n.start()
			err = errNoAnswer
		default:
			panic(died)
		}
	}()
	return do()
}

func (n *walkNode) keep() error {
	return n.daemon(func() error { return n.s.keepLeases(context.Background(), walkVNI) })
}

// add is an ADD of a pod that wants these addresses, if any.
func (n *walkNode) add(want []netip.Addr) {
	n.w.pods++
	id := fmt.Sprint("pod", n.w.pods)
	segment := netconf.Segment{VNI: walkVNI, Ranges: n.ranges}
	for range 3 {
		file, err := netconf.ReadSegment(n.s.runDir, walkVNI, n.s.bootID)
		if err != nil {
			n.w.t.Fatal(err)
		}
		leased := ipam.Leased{
			Claims: ipam.SegmentClaims(n.s.runDir), Owner: ipam.Owner{ContainerID: id, IfName: "net1"},
			Segment: segment, Leases: file.Leases, Want: want,
		}
		result, err := leased.Add(context.Background())
		if err == nil {
			n.pods[id] = result.IPs()
			n.w.got(n, file.Leases, result.IPs())
			return
		}
		if !errors.Is(err, ipam.ErrNoBlock) {
			return
		}
		if err = n.daemon(func() error {
			return n.s.lease(context.Background(), control.Request{Segment: segment, Addrs: want})
		}); err != nil {
			n.w.given[fmt.Sprintf("refused: %.22s", err)]++
			n.asked = want
			return
		}
	}
}

// got notes how addresses were got, and that no other pod has them.
func (w *walk) got(on *walkNode, from netconf.Leases, addrs []netip.Addr) {
	how := "from a block"
	for _, addr := range addrs {
		if slices.Contains(from.Blocks, netip.PrefixFrom(addr, addr.BitLen())) {
			how = "by a loan"
		}
		w.given[how]++
	}
	has := map[netip.Addr]string{}
	for _, n := range w.nodes {
		for id, addrs := range n.pods {
			for _, addr := range addrs {
				if other := has[addr]; other != "" {
					for _, step := range w.steps[max(0, len(w.steps)-60):] {
						w.t.Log(step)
					}
					for name, b := range w.api.objects {
						w.t.Logf("%s %s: %+v", name, b.UID, b.Spec)
					}
					w.t.Fatalf("%s on %s and %s have %s", id, n.name, other, addr)
				}
				has[addr] = id + " on " + n.name
			}
		}
	}
}

func (n *walkNode) del() {
	for id := range n.pods {
		if err := ipam.SegmentClaims(n.s.runDir).Release(func(o ipam.Owner) bool { return o.ContainerID == id }); err != nil {
			n.w.t.Fatal(err)
		}
		delete(n.pods, id)
		return
	}
}

// hear has the watches tell some of what has happened.
func (n *walkNode) hear(most int) {
	end := min(n.seen+most, len(n.w.api.history))
	for _, e := range n.w.api.history[n.seen:end] {
		for selector, store := range n.watches() {
			e.watched(selector, store)
		}
	}
	n.seen = end
}

// remove deletes the Node: it is halted, and its objects go. It may come back.
func (n *walkNode) remove() {
	n.pods = nil
	for _, b := range n.w.api.matching(v1alpha1.NodeLabel + "=" + n.name) {
		n.w.api.put(b.Name, nil)
	}
	n.life++
	n.reboot()
}

// step does something.
func (w *walk) step(faulty bool) {
	w.api.fault = func(verb string) fault {
		f, often := fault(w.r.IntN(int(faults))), 6
		if verb == "delete" {
			often = 2
		}
		if !faulty || w.r.IntN(often) > 0 || verb != "delete" && f == refused || (verb == "get" || verb == "list") && f == delayed {
			return noFault
		}
		return f
	}
	n := w.nodes[w.r.IntN(len(w.nodes))]
	var what string
	switch i := w.r.IntN(100); {
	case i < 25:
		what = "add"
		n.add(nil)
	case i < 45:
		last := byte(2 + w.r.IntN(20))
		want := []netip.Addr{netip.AddrFrom4([4]byte{192, 168, 7, last}), netip.MustParseAddr(fmt.Sprintf("fd00:7::%x", last))}[:1+w.r.IntN(2)]
		what = fmt.Sprint("add ", want)
		if n.asked != nil && w.r.IntN(2) == 0 {
			want, n.asked = n.asked, nil
		}
		n.add(want)
	case i < 65:
		what = "del"
		n.del()
	case i < 80:
		what = "keep"
		what += fmt.Sprint(" ", n.keep())
	case i < 90:
		n.hear(1 + w.r.IntN(5))
		return
	case i < 92:
		what = "restart"
		n.start()
	case i == 92:
		what = "reboot"
		n.reboot()
	case i == 93 && w.r.IntN(3) == 0:
		what = "remove"
		n.remove()
	case i < 95:
		what = "time"
		n.s.state.wanted = map[uint32]map[netip.Addr]time.Time{}
	default:
		what = "late"
		if len(w.api.late) > 0 {
			at := w.r.IntN(len(w.api.late))
			do := w.api.late[at]
			w.api.late = slices.Delete(w.api.late, at, at+1)
			do()
		}
	}
	w.steps = append(w.steps, n.name+" "+what)
}

// settle lets everything come to rest, without faults.
func (w *walk) settle() {
	w.api.fault = func(string) fault { return noFault }
	for _, do := range w.api.late {
		do()
	}
	w.api.late = nil
	for range 20 {
		before := len(w.api.history)
		for _, n := range w.nodes {
			n.s.state.wanted = map[uint32]map[netip.Addr]time.Time{}
			n.hear(len(w.api.history))
			if err := n.keep(); err != nil && !errors.Is(err, control.ErrTaken) {
				w.t.Fatalf("%s: %v", n.name, err)
			}
		}
		if len(w.api.history) == before {
			return
		}
	}
	for _, e := range w.api.history[len(w.api.history)-8:] {
		w.t.Logf("was %+v\nis %+v", e.was, e.is)
	}
	w.t.Fatal("it doesn't come to rest")
}

// rested: what is reserved is what other nodes have, and each has what its pods do.
func (w *walk) rested() {
	for _, n := range w.nodes {
		granted := n.s.granted(walkVNI)
		for _, part := range granted.Lent {
			if b := w.api.objects[blockName(walkVNI, part)]; b == nil || b.Spec.Node == n.name {
				w.t.Fatalf("%s keeps %s for nobody", n.name, part)
			}
		}
		for id, addrs := range n.pods {
			for _, addr := range addrs {
				if !slices.ContainsFunc(n.s.leasesIn(walkVNI, everything), func(b lease) bool { return b.block.Contains(addr) }) {
					w.t.Fatalf("%s of %s on %s isn't leased", addr, id, n.name)
				}
			}
		}
		for _, b := range w.api.matching(v1alpha1.NodeLabel + "=" + n.name) {
			for _, l := range b.Spec.Lent {
				if o := w.api.objects[blockName(walkVNI, netip.MustParsePrefix(l.CIDR))]; o == nil || string(o.UID) != l.UID {
					w.t.Fatalf("%s lends %s to nobody", b.Name, l.CIDR)
				}
			}
		}
	}
}

// TestLendingWalk: whatever crashes, is lost or comes late, no address is with
// two pods; and when everything has come to rest, nothing is left reserved.
func TestLendingWalk(t *testing.T) {
	walks, steps := 8, 400
	if testing.Short() {
		walks = 2
	}
	start := uint64(time.Now().UnixNano())
	given := map[string]int{}
	for i := range walks {
		seed := start + uint64(i)
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			w := newWalk(t, seed)
			for range 4 {
				for range steps / 4 {
					w.step(true)
				}
				w.settle()
				w.rested()
			}
			for _, n := range w.nodes {
				for len(n.pods) > 0 {
					n.del()
				}
				n.active(false)
			}
			w.settle()
			w.rested()
			if len(w.api.objects) > 0 {
				t.Errorf("left: %v", w.api.objects)
			}
			for how, count := range w.given {
				given[how] += count
			}
		})
	}
	t.Log(given)
	if !t.Failed() && (given["by a loan"] == 0 || given["from a block"] == 0) {
		t.Error("nothing was tried")
	}
}
