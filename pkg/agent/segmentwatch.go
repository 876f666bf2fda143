package agent

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"reflect"
	"strconv"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"

	"github.com/weft-cni/weft/api/v1alpha1"
	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/kernel/rtnl"
	"github.com/weft-cni/weft/pkg/overlay"
	"github.com/weft-cni/weft/pkg/segment"
)

// knownSegment is what the API says of a segment that this node takes part in.
type knownSegment struct {
	stop    context.CancelFunc
	members map[string]segment.Member // by node
	listed  bool
}

// complete reports whether all members of a segment are known.
func (s *segments) complete(vni uint32) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	known := s.state.known[vni]
	return s.state.listed && known != nil && known.listed
}

// membersOf gives the members of a segment whose VTEPs are known.
func (s *segments) membersOf(vni uint32) (all []segment.Member) {
	s.mu.Lock()
	defer s.mu.Unlock()
	known := s.state.known[vni]
	if known == nil {
		return nil
	}
	for node, m := range known.members {
		if peer, ok := s.state.peers[node]; ok {
			m.Peer = peer
			all = append(all, m)
		}
	}
	return all
}

// follow watches the members of active segments, and of no others.
func (s *segments) follow(p *segmentPass) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for vni := range p.dirty {
		known := s.state.known[vni]
		_, is := p.active[vni]
		switch {
		case !is && known != nil:
			known.stop()
			delete(s.state.known, vni)
		case is && known == nil && s.life != nil:
			ctx, stop := context.WithCancel(s.life)
			known = &knownSegment{stop: stop, members: map[string]segment.Member{}}
			s.state.known[vni] = known
			selector := labels.Set{v1alpha1.VNILabel: strconv.FormatUint(uint64(vni), 10)}.String()
			s.group.Go(func() {
				follow(ctx, "segmentmembers", s.membersBy(selector), &v1alpha1.SegmentMember{}, s.memberStore(vni, known), s.metrics)
			})
		}
	}
}

func (s *segments) membersBy(selector string) *cache.ListWatch {
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.LabelSelector = selector
			return s.members.List(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.LabelSelector = selector
			return s.members.Watch(ctx, o)
		},
	}
}

func (s *segments) blocksBy(selector string) *cache.ListWatch {
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.LabelSelector = selector
			return s.blocks.List(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.LabelSelector = selector
			return s.blocks.Watch(ctx, o)
		},
	}
}

// memberStore leads the other members of a segment to passes.
func (s *segments) memberStore(vni uint32, known *knownSegment) *store[*v1alpha1.SegmentMember] {
	put := func(m *v1alpha1.SegmentMember) (changed bool) {
		if m.Spec.Node == s.node {
			return false
		}
		member, err := parseMember(m)
		if err != nil {
			s.log.Warn("stations left out", "member", m.Name, "err", err)
		}
		old, had := known.members[m.Spec.Node]
		known.members[m.Spec.Node] = member
		return !had || !reflect.DeepEqual(old, member)
	}
	change := func(do func() (changed bool)) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if do() && s.state.known[vni] == known {
			s.state.touch(vni, false)
			poke(s.wake)
		}
	}
	return &store[*v1alpha1.SegmentMember]{
		set: func(m *v1alpha1.SegmentMember) { change(func() bool { return put(m) }) },
		remove: func(m *v1alpha1.SegmentMember) {
			change(func() bool { delete(known.members, m.Spec.Node); return true })
		},
		replace: func(list []*v1alpha1.SegmentMember) {
			change(func() bool {
				clear(known.members)
				for _, m := range list {
					put(m)
				}
				known.listed = true
				return true
			})
		},
	}
}

// parseMember reads a member. The API server checks them as well; a station
// that can't be read is left out, and the error tells of it.
func parseMember(m *v1alpha1.SegmentMember) (member segment.Member, err error) {
	member.Created, member.Learn = m.CreationTimestamp.Time, m.Spec.Learn
	if member.Tunnels, err = tunnelsOf(m); err != nil {
		return member, err
	}
	for _, e := range m.Spec.Endpoints {
		mac, macErr := kernel.ParseMAC(e.MAC)
		if macErr != nil || !mac.IsUnicast() {
			err = fmt.Errorf("endpoint %q is not a unicast Ethernet address", e.MAC)
			continue
		}
		endpoint := segment.Endpoint{MAC: mac, Isolated: e.Isolated, VLAN: uint16(e.VLAN)}
		for _, text := range e.IPs {
			if ip, ipErr := netip.ParseAddr(text); ipErr == nil && ip.Zone() == "" {
				endpoint.IPs = append(endpoint.IPs, ip.Unmap())
			} else {
				err = fmt.Errorf("endpoint %s: %q is not an address", mac, text)
			}
		}
		member.Endpoints = append(member.Endpoints, endpoint)
	}
	return member, err
}

// alsoPeers has the VTEPs that another store is given come here as well.
func (s *segments) alsoPeers(to *store[*v1alpha1.VTEP]) *store[*v1alpha1.VTEP] {
	change := func(node string, v *v1alpha1.VTEP) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.state.setPeer(s.node, node, v) {
			poke(s.wake)
		}
	}
	return &store[*v1alpha1.VTEP]{
		set: func(v *v1alpha1.VTEP) {
			to.set(v)
			change(v.Name, v)
		},
		remove: func(v *v1alpha1.VTEP) {
			to.remove(v)
			change(v.Name, nil)
		},
		replace: func(list []*v1alpha1.VTEP) {
			to.replace(list)
			s.update(func(st *segmentState) {
				clear(st.peers)
				st.listed = true
				for _, v := range list {
					st.setPeer(s.node, v.Name, v)
				}
				for vni := range st.known {
					st.touch(vni, false)
				}
			})
		},
	}
}

// setPeer notes what a node's VTEP has become, nil for gone, and reports whether
// that is of any segment's concern.
func (st *segmentState) setPeer(self, node string, v *v1alpha1.VTEP) (concerns bool) {
	old, had := st.peers[node]
	delete(st.peers, node)
	if v != nil && node != self {
		if peer, err := overlay.ParseVTEP(v); err == nil {
			st.peers[node] = peer
		}
	}
	now, has := st.peers[node]
	if had == has && reflect.DeepEqual(old, now) {
		return false
	}
	for vni, known := range st.known {
		if _, is := known.members[node]; is {
			st.touch(vni, false)
			concerns = true
		}
	}
	return concerns
}

// driftDelay is how long drift is gathered: an ADD or DEL changes several things.
const driftDelay = 200 * time.Millisecond

// watchKernel has what others change looked at.
func (s *segments) watchKernel(ctx context.Context) {
	for ctx.Err() == nil {
		events, err := s.kernel.Watch(ctx, rtnl.Names(segment.Names))
		if err != nil {
			s.log.Error("no watch of segments; what changes there is found by resync", "err", err)
		} else {
			s.update(func(st *segmentState) { st.all = true })
			s.gather(events)
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

// gather notes events that aren't of our own making until the watch ends.
func (s *segments) gather(events <-chan kernel.Event) {
	timer := time.NewTimer(driftDelay)
	defer timer.Stop()
	drift, all := kernel.Keys{}, false
	for {
		select {
		case <-timer.C:
			if len(drift) > 0 || all {
				s.update(func(st *segmentState) {
					for k := range drift {
						st.drift.Add(k)
					}
					st.all = st.all || all
				})
			}
			drift, all = kernel.Keys{}, false
		case e, open := <-events:
			switch {
			case !open:
				return
			case e.Lost:
				all = true
			case e.Underlay, !ofSegment(e.Key), s.planned(e):
				continue
			default:
				drift.Add(e.Key)
			}
			timer.Reset(driftDelay)
		}
	}
}

// planned reports whether an event tells of what is planned, or of what is no
// segment's.
func (s *segments) planned(e kernel.Event) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	want, is := s.state.want[e.Key]
	if isPodLink(e.Key) && e.Key.Kind != kernel.KindElement {
		return !is || want == e.Object
	}
	return want == e.Object || !is && learned(e.Object)
}

// watchRecords has a pass made whenever attachments' records change.
func (s *segments) watchRecords(ctx context.Context) {
	told, seen := "", time.Time{}
	for ctx.Err() == nil {
		err := s.records.watch(ctx, func() { poke(s.wake) })
		if err == nil {
			continue // the directory has been made
		}
		if ctx.Err() == nil && err.Error() != told {
			told = err.Error()
			s.log.Warn("no watch of records; they are looked for each second", "err", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
		// Each record that comes or goes sets the directory's time.
		if info, err := os.Stat(s.records.store.Dir); err == nil && !info.ModTime().Equal(seen) {
			seen = info.ModTime()
			poke(s.wake)
		}
	}
}
