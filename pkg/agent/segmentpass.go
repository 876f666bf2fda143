package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/netconf"
	"github.com/weft-cni/weft/pkg/overlay"
	"github.com/weft-cni/weft/pkg/segment"
)

// segmentPass is what one pass is about: the segments of which something has
// changed, and of them what the kernel holds and what it should.
type segmentPass struct {
	self   overlay.Self
	opened map[uint32]opened
	drift  kernel.Keys
	all    bool
	// dirty are the segments to look at; true: at attachments and files too,
	// which members' changes leave as they are.
	dirty  map[uint32]bool
	active map[uint32]activeSegment // those of dirty that this node takes part in
	have   kernel.State
	plans  map[uint32]kernel.State // of active, and of the table
	want   kernel.State            // all of plans
	// changed is where a plan isn't what it was, scope where the kernel is
	// compared; nil: everywhere.
	changed, scope kernel.Keys
	gone           departure
}

// theTable stands for what all segments of a node share, beside their VNIs.
const theTable = 0

var errNotReady = errors.New("the node isn't ready")

// pass brings the kernel and the plugin's files in line, of the segments that
// something has changed of. again says that a later pass has something left to
// do; the error joins what isn't in order.
func (s *segments) pass(ctx context.Context) (again bool, err error) {
	s.passing.Lock()
	defer s.passing.Unlock()
	p, err := s.begin()
	if err != nil {
		return false, err
	}
	faults, err := s.prepared(&p)
	if err != nil {
		s.metrics.failed(stepRead)
		s.mu.Lock()
		s.state.all = true // what it was about isn't known any more
		s.mu.Unlock()
		return true, err
	}
	p.gone = s.leave(ctx, &p)
	defer p.gone.release()
	kept := kernel.Keys{}
	ops := slices.DeleteFunc(kernel.Diff(p.want, p.have, p.scope), func(op kernel.Op) bool {
		stays := op.Verb == kernel.Delete && !s.mayDelete(op.Key(), &p)
		if stays {
			kept.Add(op.Key())
		}
		return stays
	})
	errs := []error{faults}
	for _, vni := range p.gone.vnis { // before its devices: no ADD relies on them any more
		errs = append(errs, s.removeFile(vni))
	}
	failed := s.apply(ops)
	s.note(ops, p.changed, p.all)
	s.keep(&p, kept, failed)
	errs = append(errs, s.writeFiles(&p, failed)...)
	return len(p.gone.busy) > 0 || len(failed) > 0, errors.Join(errs...)
}

// begin takes what the pass starts from.
func (s *segments) begin() (segmentPass, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := &s.state
	if st.self == nil {
		return segmentPass{}, errNotReady
	}
	for vni, o := range st.opened {
		if time.Now().After(o.until) {
			delete(st.opened, vni)
			st.dirty[vni] = true
		}
	}
	p := segmentPass{
		self: *st.self, opened: maps.Clone(st.opened), drift: st.drift, dirty: st.dirty, all: st.all || !s.mended,
		active: map[uint32]activeSegment{}, plans: map[uint32]kernel.State{}, changed: kernel.Keys{},
	}
	s.mended = true
	st.drift, st.dirty, st.all = kernel.Keys{}, map[uint32]bool{}, false
	return p, nil
}

// prepared finds out what there is and what there should be. faults tells of what
// plans leave out.
//
// The kernel is read before the records are: what an ADD makes, its record
// knows before. Pods' ports are read after everything else.
func (s *segments) prepared(p *segmentPass) (faults, err error) {
	if p.have, err = s.readFirst(p); err != nil {
		return nil, err
	}
	records, err := s.records.take(p.all)
	if err != nil {
		return nil, err
	}
	s.concern(p, records)
	for vni, own := range p.dirty {
		on, is := s.state.active[vni] // of which passes are the only writers
		if own {
			if on, is, err = s.activeNow(vni, p.opened); err != nil {
				return nil, err
			}
		}
		if is {
			p.active[vni] = on
		}
	}
	s.follow(p)
	faults = s.plan(p)
	bereft := portsOf(p.want, p.drift)
	if p.all {
		bereft = podPorts(p.want)
	} else {
		p.scope = joined(p.changed, p.drift)
		maps.Copy(p.scope, bereft)
		maps.Copy(p.scope, s.kept[theTable])
		for vni := range p.dirty {
			maps.Copy(p.scope, s.kept[vni])
		}
	}
	err = s.readMore(p, bereft)
	forgetLearned(p.have, p.want)
	return faults, err
}

// concern finds the segments that the pass is about, beside those that are known
// to be dirty.
func (s *segments) concern(p *segmentPass, records map[uint32]struct{}) {
	for vni := range records {
		p.dirty[vni] = true
	}
	whole := p.all
	for k := range p.drift {
		whole = whole || k.Kind == kernel.KindRules
		if vni, ok := s.segmentOf(k); ok {
			p.dirty[vni] = true
		}
	}
	if !whole {
		return
	}
	for k := range p.have {
		if vni, ok := segment.VNIOf(k.Name); ok {
			p.dirty[vni] = true
		}
	}
	for _, vni := range s.records.segments() {
		p.dirty[vni] = true
	}
	for vni := range p.opened {
		p.dirty[vni] = true
	}
	for vni := range s.plans {
		p.dirty[vni] = true
	}
	delete(p.dirty, theTable)
}

// activeNow is a segment as attachments and the plugin want it, if they do.
func (s *segments) activeNow(vni uint32, asked map[uint32]opened) (on activeSegment, is bool, err error) {
	o, is := asked[vni]
	if is {
		on = activeSegment{ranges: o.segment.Ranges, tunnels: o.segment.Tunnels, snooping: o.segment.Snooping, gateway: o.segment.Gateway}
	}
	for _, a := range s.records.attachedTo(vni) {
		on.recorded, is = true, true
		if a.segment != nil {
			on.ranges, on.tunnels = joinRanges(on.ranges, a.segment.Ranges), a.segment.Tunnels
			on.snooping = on.snooping || a.segment.Snooping
		}
		on.learn, on.routed = on.learn || a.port.Options.Learns(), on.routed || a.port.Options.Gateway
		on.gateway = on.gateway || on.routed
		on.stations = append(on.stations, a.port.Endpoint)
		there, err := s.kernel.HasLink(a.port.HostLink)
		if err != nil {
			return on, is, err
		}
		if there {
			on.ports = append(on.ports, a.port)
		}
		if a.claim != nil {
			on.claims = append(on.claims, *a.claim)
		}
	}
	return on, is, nil
}

func joinRanges(all, more []netconf.Range) []netconf.Range {
	for _, r := range more {
		if !slices.ContainsFunc(all, func(o netconf.Range) bool { return o.Subnet == r.Subnet }) {
			all = append(all, r)
		}
	}
	return all
}

// plan gives what the kernel should hold of the pass's segments. The error tells
// of peers and stations that are left out.
func (s *segments) plan(p *segmentPass) error {
	var errs []error
	for vni, on := range p.active {
		planned, err := segment.Plan(s.config, p.self, segment.Segment{
			VNI: vni, Tunnels: on.tunnels, Snooping: on.snooping, Gateway: on.gateway, Members: s.membersOf(vni), Ports: on.ports,
		})
		if err != nil {
			errs = append(errs, fmt.Errorf("segment %d: %w", vni, err))
		}
		p.plans[vni] = planned
	}
	if s.anyActive(p) {
		p.plans[theTable] = segment.PlanTable()
		p.plans[theTable].Merge(segment.PlanGateways(p.self, s.gateways(p)))
	}
	size := 0
	for _, planned := range p.plans {
		size += len(planned)
	}
	p.want = make(kernel.State, size) // growing step by step would cost as much as planning
	for _, planned := range p.plans {
		p.want.Merge(planned)
	}
	for vni := range p.dirty {
		addDifferences(p.changed, s.plans[vni], p.plans[vni])
	}
	addDifferences(p.changed, s.plans[theTable], p.plans[theTable])
	return errors.Join(errs...)
}

// gateways are the segments whose gateway this node is.
func (s *segments) gateways(p *segmentPass) (all []segment.Gateway) {
	add := func(vni uint32, on activeSegment, planned kernel.State) {
		if on.gateway && planned != nil {
			all = append(all, segment.Gateway{VNI: vni, Ranges: on.ranges})
		}
	}
	for vni, on := range p.active {
		add(vni, on, p.plans[vni])
	}
	for vni, on := range s.state.active {
		if _, dirty := p.dirty[vni]; !dirty {
			add(vni, on, s.plans[vni])
		}
	}
	return all
}

// anyActive reports whether this node takes part in any segment.
func (s *segments) anyActive(p *segmentPass) bool {
	if len(p.active) > 0 {
		return true
	}
	for vni := range s.state.active {
		if _, dirty := p.dirty[vni]; !dirty {
			return true
		}
	}
	return false
}

// addDifferences adds the keys of the objects that differ between two plans.
func addDifferences(keys kernel.Keys, a, b kernel.State) {
	for k, o := range a {
		if b[k] != o {
			keys.Add(k)
		}
	}
	for k := range b {
		if a[k] == nil {
			keys.Add(k)
		}
	}
}

// apply carries ops out and gives the keys of those that failed.
func (s *segments) apply(ops []kernel.Op) kernel.Keys {
	if s.log.Enabled(context.Background(), slog.LevelDebug) {
		for _, op := range ops {
			s.log.Debug("applying", "op", op)
		}
	}
	failed := kernel.Keys{}
	for i, f := range s.kernel.Apply(ops) {
		s.metrics.failed(stepApply)
		if i < maxLogged {
			s.log.Warn("the kernel refused an operation", "op", f.Op, "err", f.Err)
		}
		failed.Add(f.Op.Key())
	}
	return failed
}

// note tells of operations that undid what somebody else did.
func (s *segments) note(ops []kernel.Op, changed kernel.Keys, first bool) {
	if first {
		return
	}
	var drift []kernel.Op
	for _, op := range ops {
		if !changed.Covers(op.Key()) {
			drift = append(drift, op)
			s.metrics.repaired(op.Key().Kind)
		}
	}
	if len(drift) > 0 {
		s.log.Warn("repaired the kernel", "objects", len(drift), "first", drift[0])
		s.report(reasonRepaired, fmt.Sprintf("repaired %d kernel objects, the first: %s", len(drift), drift[0]))
	}
}

// keep remembers what the next passes start from: what was planned, what stays for
// now, and what failed.
func (s *segments) keep(p *segmentPass, kept, failed kernel.Keys) {
	for vni := range p.dirty {
		delete(s.kept, vni)
		if planned := p.plans[vni]; planned != nil {
			s.plans[vni] = planned
		} else {
			delete(s.plans, vni)
		}
	}
	s.plans[theTable] = p.plans[theTable]
	delete(s.kept, theTable)
	for k := range kept {
		vni, _ := s.segmentOf(k)
		if s.kept[vni] == nil {
			s.kept[vni] = kernel.Keys{}
		}
		s.kept[vni].Add(k)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	st := &s.state
	for k := range p.changed {
		if o := p.want[k]; o != nil {
			st.want[k] = o
		} else {
			delete(st.want, k)
		}
	}
	maps.Copy(st.drift, failed)
	if st.active == nil {
		st.active = map[uint32]activeSegment{}
	}
	for vni, own := range p.dirty {
		on, is := p.active[vni]
		if !is {
			delete(st.active, vni)
		} else {
			st.active[vni] = on
		}
		if on.recorded && (on.routed || !st.opened[vni].segment.Gateway) {
			delete(st.opened, vni)
		}
		if own {
			st.unpublished[vni] = struct{}{}
		}
	}
	for _, vni := range p.gone.busy {
		st.dirty[vni] = true
	}
	if len(st.unpublished) > 0 {
		poke(s.publish)
	}
}
