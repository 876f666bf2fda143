package agent

import (
	"context"
	"maps"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weft-cni/weft/api/v1alpha1"
)

// publishMember brings this node's SegmentMember of a segment in line with its
// stations there.
func (s *segments) publishMember(ctx context.Context, vni uint32) error {
	s.mu.Lock()
	var want *v1alpha1.SegmentMember
	if on, is := s.state.active[vni]; is {
		want = memberOf(vni, *s.state.owner, on)
	}
	have := maps.Clone(s.state.own.members.of[vni])
	s.mu.Unlock()
	if want != nil {
		now, err := s.putMember(ctx, want, have[want.Name])
		if err != nil {
			return err
		}
		if now != nil {
			s.learn(func(o *ownObjects) { o.members.put(now) })
		}
		delete(have, want.Name)
	}
	for name, m := range have {
		if err := s.members.Delete(ctx, name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			return err
		}
		s.learn(func(o *ownObjects) { o.members.remove(m) })
	}
	return nil
}

// putMember makes or changes a member; it gives nil where nothing is to do.
func (s *segments) putMember(ctx context.Context, want, have *v1alpha1.SegmentMember) (*v1alpha1.SegmentMember, error) {
	if have == nil {
		now, err := s.members.Create(ctx, want, metav1.CreateOptions{})
		if apierrors.IsAlreadyExists(err) { // with other labels: put right
			if have, err = s.members.Get(ctx, want.Name, metav1.GetOptions{}); err == nil {
				return s.putMember(ctx, want, have)
			}
		}
		return now, err
	}
	if equality.Semantic.DeepEqual(want.Spec, have.Spec) && equality.Semantic.DeepEqual(want.OwnerReferences, have.OwnerReferences) &&
		equality.Semantic.DeepEqual(want.Labels, have.Labels) {
		return nil, nil
	}
	m := have.DeepCopy()
	m.Spec, m.OwnerReferences, m.Labels = want.Spec, want.OwnerReferences, want.Labels
	now, err := s.members.Update(ctx, m, metav1.UpdateOptions{})
	if apierrors.IsNotFound(err) {
		s.learn(func(o *ownObjects) { o.members.remove(have) })
	}
	if apierrors.IsConflict(err) {
		if newer, getErr := s.members.Get(ctx, want.Name, metav1.GetOptions{}); getErr == nil {
			s.learn(func(o *ownObjects) { o.members.put(newer) })
		}
	}
	return now, err
}

func memberOf(vni uint32, owner Node, on activeSegment) *v1alpha1.SegmentMember {
	number := strconv.FormatUint(uint64(vni), 10)
	m := &v1alpha1.SegmentMember{
		ObjectMeta: segmentMeta(number+"."+owner.Name, number, owner),
		Spec: v1alpha1.SegmentMemberSpec{
			VNI: int32(vni), Node: owner.Name, Learn: on.learn, Tunnels: publishedTunnels(on.tunnels),
		},
	}
	for _, station := range on.stations {
		e := v1alpha1.Endpoint{MAC: station.MAC.String(), Isolated: station.Isolated, VLAN: int32(station.VLAN)}
		for _, ip := range station.IPs {
			e.IPs = append(e.IPs, ip.String())
		}
		if !slices.ContainsFunc(m.Spec.Endpoints, func(o v1alpha1.Endpoint) bool { return o.MAC == e.MAC }) {
			m.Spec.Endpoints = append(m.Spec.Endpoints, e)
		}
	}
	slices.SortFunc(m.Spec.Endpoints, func(a, b v1alpha1.Endpoint) int { return strings.Compare(a.MAC, b.MAC) })
	return m
}
