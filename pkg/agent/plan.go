package agent

import (
	"errors"
	"maps"
	"slices"
	"sync"

	"github.com/weft-cni/weft/pkg/encrypt"
	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/overlay"
)

// plan is what the kernel should hold. It follows from the settings, this
// node, its peers and the sessions with them alone: build makes it from
// nothing, set, remove and observe make the same with work for those peers only
// that are concerned.
//
// One goroutine changes a plan; matches may be called by others meanwhile.
type plan struct {
	config  overlay.Config
	encrypt encrypt.Config
	self    encrypt.Self
	peers   *overlay.Peers
	// faults says why a peer isn't programmed; peers without fault are.
	faults map[string]error
	// mtus counts the peers by the MTU of their underlay, where they tell it.
	mtus map[int]int
	// sessions are those that were there when they were last looked at.
	sessions encrypt.Sessions
	// readdressed are keys of WireGuard peers whose VTEP has another address
	// than before: it counts for more than what the kernel has learned.
	readdressed kernel.Keys
	// before has the objects that the kernel tells only all together
	// (kernel.Key's Together) and that changed since they were last compared: as
	// they were planned then, nil for none.
	before kernel.State

	ways sync.Map // of a peer's name to its way; others may read
	// owners are the peers by their public keys.
	owners map[kernel.PublicKey]string
	// choices counts the peers whose plan sessions may change.
	choices int

	mu   sync.RWMutex // held to change want
	want kernel.State
}

// way is how a peer is reached.
type way struct {
	link    string // empty: not at all
	tunnels []encrypt.Tunnel
	choice  bool
	// otherPSK says that the peer has another preshared key.
	otherPSK bool
}

func newPlan(o overlay.Config, e encrypt.Config) *plan {
	return &plan{
		config: o, encrypt: e, peers: overlay.NewPeers(overlay.Self{}), faults: map[string]error{}, mtus: map[int]int{},
		sessions: encrypt.Sessions{}, readdressed: kernel.Keys{}, before: kernel.State{}, owners: map[kernel.PublicKey]string{},
	}
}

// build plans everything anew for self, which has an underlay address.
func (p *plan) build(self encrypt.Self) {
	peers := overlay.NewPeers(self.Self)
	names := p.peers.Names()
	for _, name := range names {
		peer, _ := p.peers.Get(name)
		peers.Set(peer)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.self, p.peers = self, peers
	p.want = p.node()
	clear(p.faults)
	clear(p.owners)
	p.ways.Clear()
	p.choices = 0
	p.plan(names)
}

// built reports whether there has been a self to plan for.
func (p *plan) built() bool { return p.want != nil }

// node is the part of the plan that all the rest stands on.
func (p *plan) node() kernel.State {
	return encrypt.PlanNode(p.encrypt, p.config, p.self, p.sessions)
}

// essential is the part of node that the cluster network needs.
func (p *plan) essential() kernel.State {
	if p.encrypt.Mode == encrypt.None {
		return overlay.PlanNode(p.config, p.self.Self)
	}
	return p.node()
}

// set adds or replaces a peer and gives the keys of all objects that may have
// to change because of it.
func (p *plan) set(peer overlay.Peer) kernel.Keys {
	return p.change(peer.Name, func() []string { return p.peers.Set(peer) })
}

// remove is set for a peer that has gone.
func (p *plan) remove(name string) kernel.Keys {
	return p.change(name, func() []string { return p.peers.Delete(name) })
}

// observe takes note of the sessions that there are now and gives the keys of
// all objects that may have to change because of it.
func (p *plan) observe(now encrypt.Sessions) kernel.Keys {
	concerned := map[string]struct{}{}
	differ := func(a, b encrypt.Sessions) {
		for s := range a {
			_, same := b[s]
			if name, ok := p.owners[s.Peer]; ok && !same {
				if w, _ := p.way(name); w.choice {
					concerned[name] = struct{}{}
				}
			}
		}
	}
	differ(now, p.sessions)
	differ(p.sessions, now)
	keys := kernel.Keys{}
	if len(concerned) == 0 {
		p.sessions = now
		return keys
	}
	names := slices.Collect(maps.Keys(concerned))
	for _, name := range names {
		p.addKeys(keys, name)
	}
	p.sessions = now
	p.replan(keys, names)
	return keys
}

// change makes a change to one peer, which gives the names of those whose
// plans it may affect, and plans those anew. No two peers without conflict
// share a key, so what these had can go before they are planned.
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
	p.replan(keys, names)
	return keys
}

// replan plans the named peers anew, whose objects so far are at keys, and adds
// the keys of those that they have now.
func (p *plan) replan(keys kernel.Keys, names []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	old := p.want.Only(keys)
	for k := range keys {
		delete(p.want, k)
	}
	p.plan(names)
	for _, name := range names {
		p.addKeys(keys, name)
	}
	for k := range keys {
		if _, known := p.before[k]; !known && k.Together() {
			p.before[k] = old[k]
		}
		was, ok := old[k].(kernel.WireGuardPeer)
		if now, still := p.want[k].(kernel.WireGuardPeer); ok && still && now.Endpoint != was.Endpoint {
			p.readdressed.Add(k)
		}
	}
}

// doubt says that the kernel may hold something else at keys than was planned.
func (p *plan) doubt(keys kernel.Keys) {
	for k := range keys {
		delete(p.before, k)
	}
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
		p.forget(name)
		peer, ok := p.peers.Get(name)
		if !ok {
			continue
		}
		if conflict, ok := p.peers.Conflict(name); ok {
			p.faults[name] = conflict
			continue
		}
		planned, err := encrypt.PlanPeer(p.encrypt, p.config, p.self, peer, p.sessions)
		if err != nil {
			p.faults[name] = err
		}
		p.want.Merge(planned.State)
		p.remember(name, planned)
	}
}

// remember keeps how a peer is reached.
func (p *plan) remember(name string, planned encrypt.PeerPlan) {
	p.ways.Store(name, way{planned.Link, planned.Tunnels, planned.Choice, planned.OtherPresharedKey})
	if planned.Choice {
		p.choices++
	}
	for _, t := range planned.Tunnels {
		p.owners[t.Peer] = name
	}
}

func (p *plan) forget(name string) {
	w, _ := p.way(name)
	if w.choice {
		p.choices--
	}
	for _, t := range w.tunnels {
		if p.owners[t.Peer] == name {
			delete(p.owners, t.Peer)
		}
	}
	p.ways.Delete(name)
}

// way says how a peer is reached.
func (p *plan) way(name string) (way, bool) {
	v, ok := p.ways.Load(name)
	w, _ := v.(way)
	return w, ok
}

// addKeys adds the keys of a peer's objects, of which it has none where it
// yields to another.
func (p *plan) addKeys(keys kernel.Keys, name string) {
	peer, ok := p.peers.Get(name)
	if !ok || !p.built() {
		return
	}
	if conflict := (overlay.Conflict{}); errors.As(p.faults[name], &conflict) {
		return
	}
	planned, _ := encrypt.PlanPeer(p.encrypt, p.config, p.self, peer, p.sessions)
	maps.Copy(keys, planned.State.Keys())
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
