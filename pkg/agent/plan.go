package agent

import (
	"maps"
	"sync"

	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/overlay"
)

// plan is what the kernel should hold. It follows from the settings, this
// node and its peers alone: build makes it from nothing, set and remove make
// the same with work for one peer only.
//
// One goroutine changes a plan; matches may be called by others meanwhile.
type plan struct {
	config overlay.Config
	self   overlay.Self
	peers  *overlay.Peers
	// faults says why a peer isn't programmed; peers without fault are.
	faults map[string]error
	// mtus counts the peers by the MTU of their underlay, where they tell it.
	mtus map[int]int

	mu   sync.RWMutex // held to change want
	want kernel.State
}

func newPlan(c overlay.Config) *plan {
	return &plan{config: c, peers: overlay.NewPeers(overlay.Self{}), faults: map[string]error{}, mtus: map[int]int{}}
}

// build plans everything anew for self, which has an underlay address.
func (p *plan) build(self overlay.Self) {
	peers := overlay.NewPeers(self)
	names := p.peers.Names()
	for _, name := range names {
		peer, _ := p.peers.Get(name)
		peers.Set(peer)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.self, p.peers = self, peers
	p.want = overlay.PlanNode(p.config, self)
	clear(p.faults)
	p.plan(names)
}

// built reports whether there has been a self to plan for.
func (p *plan) built() bool { return p.want != nil }

// node is the part of the plan that all the rest stands on.
func (p *plan) node() kernel.State { return overlay.PlanNode(p.config, p.self) }

// set adds or replaces a peer and gives the keys of all objects that may have
// to change because of it.
func (p *plan) set(peer overlay.Peer) kernel.Keys {
	return p.change(peer.Name, func() []string { return p.peers.Set(peer) })
}

// remove is set for a peer that has gone.
func (p *plan) remove(name string) kernel.Keys {
	return p.change(name, func() []string { return p.peers.Delete(name) })
}

// change makes a change to one peer, which gives the names of those whose
// plans it may affect, and plans those anew. No two peers without fault share
// a key, so what these had can go before they are planned.
func (p *plan) change(name string, do func() []string) kernel.Keys {
	keys := kernel.Keys{}
	p.addKeys(keys, name)
	p.countMTU(name, -1)
	names := do()
	p.countMTU(name, 1)
	if !p.built() {
		return keys
	}
	for _, other := range names {
		if other != name {
			p.addKeys(keys, other)
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for k := range keys {
		delete(p.want, k)
	}
	p.plan(names)
	for _, name := range names {
		p.addKeys(keys, name)
	}
	return keys
}

func (p *plan) countMTU(name string, n int) {
	if peer, ok := p.peers.Get(name); ok && peer.MTU != 0 {
		p.mtus[peer.MTU] += n
	}
}

// plan adds the named peers' objects to want, of those that may have any.
func (p *plan) plan(names []string) {
	for _, name := range names {
		delete(p.faults, name)
		peer, ok := p.peers.Get(name)
		if !ok {
			continue
		}
		s, err := overlay.PlanPeer(p.config, p.self, peer)
		if conflict, ok := p.peers.Conflict(name); ok {
			err = conflict
		}
		if err != nil {
			p.faults[name] = err
			continue
		}
		p.want.Merge(s)
	}
}

// addKeys adds the keys of a peer's objects, of which it has none with a fault.
func (p *plan) addKeys(keys kernel.Keys, name string) {
	peer, ok := p.peers.Get(name)
	if !ok || p.faults[name] != nil || !p.built() {
		return
	}
	if s, err := overlay.PlanPeer(p.config, p.self, peer); err == nil {
		maps.Copy(keys, s.Keys())
	}
}

// matches reports whether an event tells of what is planned, as those of our
// own making do. Before there is a plan nothing is amiss: the first comparison
// is still to come.
func (p *plan) matches(e kernel.Event) bool {
	if e.Lost || e.Underlay {
		return false
	}
	p.mu.RLock()
	defer p.mu.RUnlock()
	return !p.built() || p.want[e.Key] == e.Object
}

// count gives the number of planned objects of a kind.
func (p *plan) count(kind kernel.Kind) (n int) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	for k := range p.want {
		if k.Kind == kind {
			n++
		}
	}
	return n
}
