package agent

import (
	"maps"
	"sync"
	"time"

	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/overlay"
)

// inbox gathers what changed until the runner takes it. What comes while a
// pass runs is done together in the next; with no pass running, the first
// change is taken at once.
type inbox struct {
	wake chan struct{} // has an element while there is work

	mu   sync.Mutex
	work work
}

// work is what changed since the last pass. Its zero value is nothing.
type work struct {
	// peers holds what VTEPs say now, by name; see claim.
	peers map[string]claim
	// listed says that peers holds all that there are: those that it lacks
	// are gone.
	listed bool
	// node is this node's object as of now; nil where it didn't change.
	node *Node
	// keys are where the kernel changed otherwise than planned.
	keys kernel.Keys
	// pods are the links of pods on which something changed.
	pods links
	// host says that interfaces or addresses that aren't ours changed.
	host bool
	// sessions says that it is time to look at WireGuard's sessions.
	sessions bool
	// asked is when an operator wanted keys made before then replaced; nil
	// where nothing was said.
	asked *time.Time
	// seal says whether the node has encrypted segments; nil where nothing was
	// said. sealed are told, after the pass, why it can't have them.
	seal   *bool
	sealed []chan<- error
	// all asks for a comparison of everything with the kernel.
	all bool
}

// claim is a peer as its VTEP says, or an error where that is malformed. With
// neither, the peer has gone.
type claim struct {
	peer *overlay.Peer
	err  error
}

func newInbox() *inbox { return &inbox{wake: make(chan struct{}, 1)} }

// put changes the pending work and wakes the runner.
func (i *inbox) put(change func(*work)) {
	i.mu.Lock()
	change(&i.work)
	i.mu.Unlock()
	select {
	case i.wake <- struct{}{}:
	default:
	}
}

// take gives the pending work, and leaves none.
func (i *inbox) take() work {
	i.mu.Lock()
	defer i.mu.Unlock()
	w := i.work
	i.work = work{}
	return w
}

func (i *inbox) peer(name string, c claim) {
	i.put(func(w *work) {
		if w.peers == nil {
			w.peers = map[string]claim{}
		}
		if w.listed && c == (claim{}) {
			delete(w.peers, name)
			return
		}
		w.peers[name] = c
	})
}

func (i *inbox) peers(all map[string]claim) {
	i.put(func(w *work) { w.peers, w.listed = all, true })
}

// seal says whether the node has encrypted segments; done is told what became of
// it, nil for nobody.
func (i *inbox) seal(on bool, done chan<- error) {
	i.put(func(w *work) {
		w.seal = &on
		if done != nil {
			w.sealed = append(w.sealed, done)
		}
	})
}

func (i *inbox) node(n Node) { i.put(func(w *work) { w.node = &n }) }

func (i *inbox) pods(dirty links) {
	i.put(func(w *work) {
		if w.pods == nil {
			w.pods = links{}
		}
		maps.Copy(w.pods, dirty)
	})
}

// kernel notes an event that isn't of our own making.
func (i *inbox) kernel(e kernel.Event) {
	i.put(func(w *work) {
		switch {
		case e.Lost:
			w.all, w.host = true, true
		case e.Underlay:
			w.host = true
		default:
			if w.keys == nil {
				w.keys = kernel.Keys{}
			}
			w.keys.Add(e.Key)
		}
	})
}
