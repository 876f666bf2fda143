package agent

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/weft-cni/weft/pkg/flock"
	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/kernel/rtnl"
	"github.com/weft-cni/weft/pkg/netconf"
	"github.com/weft-cni/weft/pkg/segment"
)

// portsOf are the keys of pods' ports that may have changed with a bridge, which
// takes them along, or with what is on them.
func portsOf(want kernel.State, drift kernel.Keys) kernel.Keys {
	links := map[string]bool{}
	for k := range drift {
		links[k.Name] = true
	}
	keys := kernel.Keys{}
	if len(drift) == 0 {
		return keys
	}
	for k, o := range want {
		if port, ok := o.(kernel.BridgePort); ok && (links[port.Link] || links[port.Bridge]) {
			keys.Add(k)
			links[port.Link] = true
		}
	}
	for k := range want {
		if k.Kind == kernel.KindStation && isPodLink(k) && links[k.Name] {
			keys.Add(k)
		}
	}
	return keys
}

// podPorts are the keys of all that is planned on pods' links.
func podPorts(want kernel.State) kernel.Keys {
	keys := kernel.Keys{}
	for k := range want {
		if isPodLink(k) && k.Kind != kernel.KindElement {
			keys.Add(k)
		}
	}
	return keys
}

// readFirst reads all, or where the kernel has changed.
func (s *segments) readFirst(p *segmentPass) (kernel.State, error) {
	if !p.all {
		return s.kernel.ReadKeys(p.drift)
	}
	have, err := s.kernel.Read(rtnl.Names(segment.Names))
	maps.DeleteFunc(have, func(k kernel.Key, _ kernel.Object) bool { return !ofSegment(k) })
	return have, err
}

// ofSegment reports whether an object is one that segments are made of. Routes
// and rules of our protocol, which a read brings along, are the cluster
// network's.
func ofSegment(k kernel.Key) bool {
	switch k.Kind {
	case kernel.KindRules:
		return k.Name == segment.Table || k.Name == segment.GatewayTable
	case kernel.KindElement:
		return k.Table() == segment.Table
	case kernel.KindPort:
		return isPodLink(k)
	case kernel.KindLink, kernel.KindAddr, kernel.KindFDB, kernel.KindStation, kernel.KindNeigh:
		_, is := segment.VNIOf(k.Name)
		return is || k.Kind == kernel.KindStation && isPodLink(k)
	case kernel.KindRoute, kernel.KindRule:
		return kernel.OfGateway(k.FIB)
	case kernel.KindSysctl, kernel.KindPeer:
	}
	return false
}

// readMore reads what the plan changes and, after everything else was, what
// there is of pods' ports.
func (s *segments) readMore(p *segmentPass, ports kernel.Keys) error {
	keys := ports
	if !p.all {
		keys = maps.Clone(p.scope)
		maps.DeleteFunc(keys, func(k kernel.Key, _ struct{}) bool {
			_, again := ports[k]
			return !again && p.drift.Covers(k) // read already
		})
	}
	more, err := s.kernel.ReadKeys(keys)
	p.have.Merge(more)
	return err
}

// learned reports whether an object is an entry that frames made, or a gateway
// that asked for somebody: it ages, and is nobody's to delete.
func learned(o kernel.Object) bool {
	switch o := o.(type) {
	case kernel.Station:
		return o.Detail != ""
	case kernel.FDB:
		return o.Detail == "reachable" || o.Detail == "stale"
	case kernel.Neigh:
		return o.Detail != ""
	}
	return false
}

// forgetLearned leaves out what frames made, but in the place of what is planned.
func forgetLearned(have, want kernel.State) {
	maps.DeleteFunc(have, func(k kernel.Key, o kernel.Object) bool { return want[k] == nil && learned(o) })
}

// mayDelete reports whether what isn't planned can go: not what members may be
// behind that aren't known yet, and a segment's devices only once no ADD may be
// at work on it.
func (s *segments) mayDelete(k kernel.Key, p *segmentPass) bool {
	if k.Kind == kernel.KindRules && k.Name == segment.Table {
		return !s.anyActive(p) && len(p.gone.busy) == 0
	}
	vni, ok := segment.VNIOf(linkOf(k))
	if !ok {
		return true // a pod's
	}
	if _, is := p.active[vni]; !is {
		return slices.Contains(p.gone.vnis, vni)
	}
	return s.complete(vni)
}

// linkOf is the link that an object is on, or that an element is about.
func linkOf(k kernel.Key) string {
	if _, of, is := strings.Cut(k.Link(), "@"); is {
		return of
	}
	return k.Link()
}

// segmentOf is the segment that an object is of.
func (s *segments) segmentOf(k kernel.Key) (uint32, bool) {
	link := linkOf(k)
	if vni, ok := segment.VNIOf(link); ok {
		return vni, true
	}
	return s.records.segmentOf(link)
}

// departure is the segments that this node leaves. Their locks are held.
type departure struct {
	vnis, busy []uint32
	unlock     []func()
}

func (d departure) release() {
	for _, unlock := range d.unlock {
		unlock()
	}
}

// leave locks the segments that are there and not wanted any more. Those on
// which an ADD is at work stay for now.
func (s *segments) leave(ctx context.Context, p *segmentPass) (d departure) {
	there := map[uint32]bool{}
	for vni := range p.dirty {
		there[vni] = s.plans[vni] != nil || s.kept[vni] != nil
	}
	for k := range p.have {
		if vni, ok := segment.VNIOf(k.Name); ok {
			there[vni] = true
		}
	}
	for vni := range there {
		if _, is := p.active[vni]; is || !there[vni] {
			continue
		}
		if err := netconf.MakeSegmentDir(s.runDir); err != nil {
			s.log.Warn("segments stay for now", "err", err)
		}
		unlock, err := flock.Exclusive(ctx, netconf.SegmentLock(s.runDir, vni), time.Millisecond)
		if err != nil {
			d.busy = append(d.busy, vni)
			continue
		}
		used, err := s.records.uses(vni)
		poke(s.wake) // for what it has read
		if used || err != nil {
			unlock()
			d.busy = append(d.busy, vni)
			continue
		}
		d.vnis, d.unlock = append(d.vnis, vni), append(d.unlock, unlock)
	}
	return d
}
