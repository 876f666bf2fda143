package agent

import (
	"context"
	"maps"

	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/kernel/rtnl"
)

// fakeKernel is a kernel that holds a State, with the rules that matter here:
// what is on a link goes with it, and so do a table's elements. Every change
// is told as an event.
type fakeKernel struct {
	state  kernel.State
	addrs  []rtnl.HostAddr
	refuse func(kernel.Op) error // nil refuses nothing
	broken error                 // what reads give
	event  func(kernel.Event)
	// calls counts whole reads, single keys read, and those of them that a
	// kernel tells only together with all others.
	reads, keys, together int
	applied               []kernel.Op
	noWireGuard           bool
	noTunnels, noVLANs    bool
	traffic               []rtnl.PeerTraffic
}

func newFakeKernel(addrs ...rtnl.HostAddr) *fakeKernel {
	return &fakeKernel{state: kernel.State{}, addrs: addrs, event: func(kernel.Event) {}}
}

func (f *fakeKernel) Read(rtnl.Names) (kernel.State, error) {
	f.reads++
	have := maps.Clone(f.state)
	maps.DeleteFunc(have, func(k kernel.Key, _ kernel.Object) bool { return isPodLink(k) })
	return have, f.broken
}

func (f *fakeKernel) ReadKeys(keys kernel.Keys) (kernel.State, error) {
	f.keys += len(keys)
	for k := range keys {
		if k.Together() {
			f.together++
		}
	}
	return f.state.Only(keys), f.broken
}

func (f *fakeKernel) HostAddrs(rtnl.Names) ([]rtnl.HostAddr, error) { return f.addrs, f.broken }

func (f *fakeKernel) HasWireGuard() (bool, error) { return !f.noWireGuard, f.broken }

func (f *fakeKernel) HasTunnel(kernel.TunnelKind) (bool, error) { return !f.noTunnels, f.broken }

func (f *fakeKernel) HasVLANFiltering() (bool, error) { return !f.noVLANs, f.broken }

func (f *fakeKernel) PeerTraffic([]string) ([]rtnl.PeerTraffic, error) { return f.traffic, f.broken }

func (f *fakeKernel) HasLink(name string) (bool, error) {
	return f.state[kernel.Key{Kind: kernel.KindLink, Name: name}] != nil, f.broken
}

func (f *fakeKernel) PodLinks() (names []string, err error) {
	for k := range f.state {
		if k.Kind == kernel.KindLink && isPodLink(k) {
			names = append(names, k.Name)
		}
	}
	return names, f.broken
}

func (f *fakeKernel) Watch(context.Context, rtnl.Names) (<-chan kernel.Event, error) {
	return nil, unix.EOPNOTSUPP
}

func (f *fakeKernel) Apply(ops []kernel.Op) (failed []rtnl.OpError) {
	for _, op := range ops {
		f.applied = append(f.applied, op)
		if f.refuse != nil {
			if err := f.refuse(op); err != nil {
				failed = append(failed, rtnl.OpError{Op: op, Err: err})
				continue
			}
		}
		if op.Verb == kernel.Delete || op.Verb == kernel.Recreate {
			f.remove(op.Key())
		}
		if op.Want == nil {
			continue
		}
		if k := op.Key(); !f.hasLink(k) {
			failed = append(failed, rtnl.OpError{Op: op, Err: unix.ENODEV})
			continue
		}
		f.put(op.Want)
	}
	return failed
}

// hasLink reports whether there is a place for an object.
func (f *fakeKernel) hasLink(k kernel.Key) bool {
	switch k.Kind {
	case kernel.KindAddr, kernel.KindFDB, kernel.KindNeigh, kernel.KindPeer, kernel.KindRoute, kernel.KindPort, kernel.KindStation:
		if _, ok := f.state[kernel.Key{Kind: kernel.KindLink, Name: k.Link()}]; ok || k.Name == "" {
			return true
		}
		for _, a := range f.addrs {
			if a.Link == k.Name {
				return true
			}
		}
		return false
	case kernel.KindSysctl, kernel.KindRules, kernel.KindElement, kernel.KindLink, kernel.KindRule:
	}
	return true
}

func (f *fakeKernel) put(o kernel.Object) {
	f.state.Put(o)
	switch k := o.Key(); k.Kind {
	case kernel.KindRules:
		f.event(kernel.Event{Key: k})
	default:
		f.event(kernel.Event{Key: k, Object: o})
	}
}

// remove deletes what is at k, and what is on it.
func (f *fakeKernel) remove(k kernel.Key) {
	on := kernel.Keys{k: {}}
	for key := range f.state {
		if on.Covers(key) {
			delete(f.state, key)
		}
	}
	f.event(kernel.Event{Key: k})
}
