package agent

import (
	"context"
	"errors"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/resourceversion"

	"github.com/weft-cni/weft/api/v1alpha1"
)

// ownObjects are this node's objects of segments, as the API has them.
type ownObjects struct {
	members shelf[*v1alpha1.SegmentMember]
	leases  shelf[*v1alpha1.IPBlock]
	asked   shelf[*v1alpha1.IPBlock] // other nodes', inside leases
}

func newOwnObjects(node string) *ownObjects {
	vniOf := func(b *v1alpha1.IPBlock) uint32 { return uint32(b.Spec.VNI) }
	return &ownObjects{
		members: shelf[*v1alpha1.SegmentMember]{
			vni: func(m *v1alpha1.SegmentMember) uint32 { return uint32(m.Spec.VNI) }, all: make(chan struct{}),
			meant: func(*v1alpha1.SegmentMember) bool { return true },
		},
		leases: shelf[*v1alpha1.IPBlock]{vni: vniOf, all: make(chan struct{}), meant: func(b *v1alpha1.IPBlock) bool { return b.Spec.Node == node }},
		asked:  shelf[*v1alpha1.IPBlock]{vni: vniOf, all: make(chan struct{}), meant: func(b *v1alpha1.IPBlock) bool { return b.Spec.Node != node }},
	}
}

// apiObject is an object of the API.
type apiObject interface {
	runtime.Object
	metav1.Object
}

// shelf has objects of one kind by their segments and names.
type shelf[T apiObject] struct {
	vni    func(T) uint32
	meant  func(T) bool // labels alone don't say
	of     map[uint32]map[string]T
	listed bool          // these are all
	all    chan struct{} // closed once listed is true
}

// put adds an object and reports whether it wasn't there in just this version. A
// watch may tell of one that is older than what is known.
func (s *shelf[T]) put(x T) (changed bool) {
	if !s.meant(x) {
		return false
	}
	if s.of == nil {
		s.of = map[uint32]map[string]T{}
	}
	vni := s.vni(x)
	if s.of[vni] == nil {
		s.of[vni] = map[string]T{}
	}
	old, had := s.of[vni][x.GetName()]
	if had && old.GetUID() == x.GetUID() {
		if order, err := resourceversion.CompareResourceVersion(x.GetResourceVersion(), old.GetResourceVersion()); err == nil && order <= 0 {
			return false
		}
	}
	s.of[vni][x.GetName()] = x
	return true
}

// remove takes an object out and reports whether it was there: one of the same name
// that was made later stays.
func (s *shelf[T]) remove(x T) (had bool) {
	vni := s.vni(x)
	old, had := s.of[vni][x.GetName()]
	if !had || old.GetUID() != x.GetUID() {
		return false
	}
	delete(s.of[vni], x.GetName())
	if len(s.of[vni]) == 0 {
		delete(s.of, vni)
	}
	return true
}

// watchOwn keeps the own objects known.
func (s *segments) watchOwn(ctx context.Context) {
	selector := labels.Set{v1alpha1.NodeLabel: s.node}.String()
	s.group.Go(func() {
		follow(ctx, "own-segmentmembers", s.membersBy(selector), &v1alpha1.SegmentMember{},
			ownStore(s, &s.state.own.members), s.metrics)
	})
	s.group.Go(func() {
		follow(ctx, "own-ipblocks", s.blocksBy(selector), &v1alpha1.IPBlock{},
			ownStore(s, &s.state.own.leases), s.metrics)
	})
	asked := labels.Set{v1alpha1.LenderLabel: s.node}.String()
	s.group.Go(func() {
		follow(ctx, "asked-ipblocks", s.blocksBy(asked), &v1alpha1.IPBlock{}, ownStore(s, &s.state.own.asked), s.metrics)
	})
}

// ownStore keeps objects on a shelf.
func ownStore[T apiObject](s *segments, own *shelf[T]) *store[T] {
	note := func(vni uint32) {
		s.state.unpublished[vni] = struct{}{}
		poke(s.publish)
	}
	return &store[T]{
		set: func(x T) {
			s.mu.Lock()
			defer s.mu.Unlock()
			if own.put(x) {
				note(own.vni(x))
			}
		},
		remove: func(x T) {
			s.mu.Lock()
			defer s.mu.Unlock()
			if own.remove(x) {
				note(own.vni(x))
			}
		},
		replace: func(list []T) {
			s.mu.Lock()
			defer s.mu.Unlock()
			before := own.of
			if !own.listed {
				close(own.all)
			}
			own.of, own.listed = nil, true
			for _, x := range list {
				own.put(x)
			}
			for _, shelf := range []map[uint32]map[string]T{before, own.of} {
				for vni := range shelf {
					note(vni)
				}
			}
			for vni := range s.state.active {
				note(vni)
			}
		},
	}
}

// runAPI publishes members and keeps leases until ctx ends.
func (s *segments) runAPI(ctx context.Context) {
	retrying(ctx, s.publish, s.publishSegments, func(err error, delay time.Duration) {
		s.metrics.failed(stepAPI)
		s.log.Warn("segments not published", "err", err, "retry", delay)
	})
}

// published bounds how many segments' objects are written at once.
const published = 8

// publishSegments brings the objects of those segments in line of which something
// has changed. The others' wait for nothing that fails.
func (s *segments) publishSegments(ctx context.Context) error {
	s.mu.Lock()
	st := &s.state
	ready := st.owner != nil && st.owner.UID != "" && st.active != nil && st.own.members.listed && st.own.leases.listed
	work := st.unpublished
	if ready {
		st.unpublished = map[uint32]struct{}{}
	}
	s.mu.Unlock()
	if !ready {
		return nil
	}
	var failed sync.Mutex
	var left []uint32
	var group errgroup.Group
	group.SetLimit(published)
	for vni := range work {
		group.Go(func() error {
			err := errors.Join(s.publishMember(ctx, vni), s.keepLeases(ctx, vni))
			if err != nil {
				failed.Lock()
				left = append(left, vni)
				failed.Unlock()
			}
			return err
		})
	}
	err := group.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, vni := range left {
		s.state.unpublished[vni] = struct{}{}
	}
	return err
}

// unpublish has the API's objects of a segment looked at.
func (s *segments) unpublish(vni uint32) {
	s.mu.Lock()
	s.state.unpublished[vni] = struct{}{}
	s.mu.Unlock()
	poke(s.publish)
}

// learn notes what was just written, before the watch tells of it.
func (s *segments) learn(change func(*ownObjects)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(s.state.own)
}

func segmentMeta(name, vni string, owner Node) metav1.ObjectMeta {
	return metav1.ObjectMeta{
		Name:   name,
		Labels: map[string]string{v1alpha1.VNILabel: vni, v1alpha1.NodeLabel: owner.Name},
		OwnerReferences: []metav1.OwnerReference{{
			APIVersion: "v1", Kind: "Node", Name: owner.Name, UID: owner.uid(),
		}},
	}
}
