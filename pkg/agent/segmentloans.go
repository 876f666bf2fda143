package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weft-cni/weft/api/v1alpha1"
	"github.com/weft-cni/weft/pkg/control"
	"github.com/weft-cni/weft/pkg/flock"
	"github.com/weft-cni/weft/pkg/netconf"
)

// errUnlent says that another node has a block around this one, and hasn't lent
// it.
var errUnlent = fmt.Errorf("%w: not lent", control.ErrNotYet)

// overlapping finds what of other nodes' blocks overlaps b: around it those that
// don't lend it, inside it the loans that b has to make, in the order of their
// names. all has to have been listed after b was made.
func overlapping(b *v1alpha1.IPBlock, all []v1alpha1.IPBlock) (around []*v1alpha1.IPBlock, inside []v1alpha1.Loan) {
	block, err := netip.ParsePrefix(b.Spec.CIDR)
	if err != nil {
		return nil, nil
	}
	for i := range all {
		o := &all[i]
		other, err := netip.ParsePrefix(o.Spec.CIDR)
		switch {
		case err != nil || o.Spec.Node == b.Spec.Node:
		case netconf.Inside(block, other) && !slices.Contains(o.Spec.Lent, loanOf(b)):
			around = append(around, o)
		case netconf.Inside(other, block):
			inside = append(inside, loanOf(o))
		}
	}
	slices.SortFunc(inside, func(a, b v1alpha1.Loan) int { return strings.Compare(a.CIDR, b.CIDR) })
	return around, inside
}

// loanOf is b as a loan of what is around it.
func loanOf(b *v1alpha1.IPBlock) v1alpha1.Loan {
	return v1alpha1.Loan{CIDR: b.Spec.CIDR, UID: string(b.UID), Node: b.Spec.Node}
}

// borrow leases an address alone that is in another node's block, or finds out
// why that can't be. all are the segment's blocks.
func (s *segments) borrow(ctx context.Context, vni uint32, want netip.Addr, all []v1alpha1.IPBlock) error {
	single := netip.PrefixFrom(want, want.BitLen())
	var holder *v1alpha1.IPBlock // of the smallest block with it
	smallest := netip.PrefixFrom(want, 0)
	for i := range all {
		p, err := netip.ParsePrefix(all[i].Spec.CIDR)
		if err == nil && p.Contains(want) && p.Bits() >= smallest.Bits() {
			holder, smallest = &all[i], p
		}
	}
	switch {
	case holder == nil:
		return fmt.Errorf("%w: %s on segment %d: its block was given back just now", control.ErrNotYet, want, vni)
	case holder.Spec.Node == s.node && slices.Contains(s.granted(vni).Blocks, smallest):
		s.unpublish(vni)
		return fmt.Errorf("%w: %s on segment %d was returned just now", control.ErrNotYet, want, vni)
	case holder.Spec.Node == s.node: // made in vain, as it seemed
		s.learn(func(o *ownObjects) { o.leases.put(holder) })
		return s.settle(ctx, holder, true)
	case smallest == single:
		return fmt.Errorf("%w: %s on segment %d is leased to node %s", control.ErrTaken, want, vni, holder.Spec.Node)
	}
	b, err := s.create(ctx, vni, single, holder.Spec.Node)
	if err != nil {
		return err
	}
	return s.settle(ctx, b, false)
}

// unlent asks the node with a block around b to lend it. The error says what is
// in the way.
func (s *segments) unlent(ctx context.Context, b, around *v1alpha1.IPBlock) error {
	addr, _, single := strings.Cut(b.Spec.CIDR, "/")
	if ip, err := netip.ParseAddr(addr); err != nil || !single || b.Spec.CIDR != netip.PrefixFrom(ip, ip.BitLen()).String() {
		return fmt.Errorf("%w: %s is in block %s of node %s", errUnlent, b.Spec.CIDR, around.Spec.CIDR, around.Spec.Node)
	}
	node := around.Spec.Node
	if b.Labels[v1alpha1.LenderLabel] != node {
		_, err := s.change(ctx, b, func(b *v1alpha1.IPBlock) { metav1.SetMetaDataLabel(&b.ObjectMeta, v1alpha1.LenderLabel, node) })
		if err != nil {
			return err
		}
	}
	m, err := s.members.Get(ctx, strconv.Itoa(int(b.Spec.VNI))+"."+node, metav1.GetOptions{})
	if err == nil && slices.ContainsFunc(m.Spec.Endpoints, func(e v1alpha1.Endpoint) bool { return slices.Contains(e.IPs, addr) }) {
		return fmt.Errorf("%w: %s on segment %d is a pod's on node %s", control.ErrTaken, addr, b.Spec.VNI, node)
	}
	return fmt.Errorf("%w: %s on segment %d is in block %s, which is leased to node %s, and weftd there hasn't lent it yet",
		errUnlent, addr, b.Spec.VNI, around.Spec.CIDR, node)
}

// keepLoans lends of this node's blocks what others have asked for and no pod
// has, and takes back what was returned.
func (s *segments) keepLoans(ctx context.Context, vni uint32) error {
	leases, granted := s.leasesIn(vni, everything), s.granted(vni)
	if len(leases) == 0 {
		return nil
	}
	parts := slices.Clone(granted.Lent)
	s.mu.Lock()
	asked := map[netip.Prefix]*v1alpha1.IPBlock{}
	for _, b := range s.state.own.asked.of[vni] {
		if p, err := netip.ParsePrefix(b.Spec.CIDR); err == nil {
			asked[p] = b
			parts = with(parts, p)
		}
	}
	s.mu.Unlock()
	for _, b := range leases {
		for _, l := range b.Spec.Lent {
			if p, err := netip.ParsePrefix(l.CIDR); err == nil {
				parts = with(parts, p)
			}
		}
	}
	var errs []error
	for _, part := range parts {
		lenders := aroundPart(leases, part)
		lent := func(b lease) bool { return slices.Contains(b.Spec.Lent, loanOf(asked[part])) }
		reserved := slices.Contains(granted.Lent, part) || !insideAny(part, granted.Blocks)
		if len(lenders) == 0 || asked[part] != nil && reserved && !slices.ContainsFunc(lenders, func(b lease) bool { return !lent(b) }) {
			continue
		}
		errs = append(errs, s.keepLoan(ctx, vni, part))
	}
	return errors.Join(errs...)
}

// aroundPart are the leases with a part inside.
func aroundPart(leases []lease, part netip.Prefix) []lease {
	return slices.DeleteFunc(slices.Clone(leases), func(b lease) bool { return !netconf.Inside(part, b.block) })
}

// keepLoan asks the API whether another node has a part of this node's blocks, and
// lends it or takes it back.
func (s *segments) keepLoan(ctx context.Context, vni uint32, part netip.Prefix) error {
	b, err := s.blocks.Get(ctx, blockName(vni, part), metav1.GetOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return err
	}
	lender := aroundPart(s.leasesIn(vni, everything), part)
	if err != nil || b.Spec.Node == s.node {
		return s.takeBack(ctx, vni, part, lender)
	}
	free, err := s.reserve(ctx, vni, part)
	switch {
	case errors.Is(err, flock.ErrTimeout):
		time.AfterFunc(firstRetry, func() { s.unpublish(vni) })
		return nil
	case err != nil:
		return err
	case !free:
		s.log.Info("address not lent while a pod has it", "vni", vni, "address", part, "node", b.Spec.Node)
		return nil
	}
	var errs []error
	for _, l := range lender {
		if !slices.Contains(l.Spec.Lent, loanOf(b)) {
			errs = append(errs, s.setLoan(ctx, l.IPBlock, b.Spec.CIDR, []v1alpha1.Loan{loanOf(b)}))
			s.log.Info("address lent", "vni", vni, "address", b.Spec.CIDR, "node", b.Spec.Node)
		}
	}
	return errors.Join(errs...)
}

// setLoan writes what a block of this node lends of a CIDR. That the block is gone
// is no error.
func (s *segments) setLoan(ctx context.Context, b *v1alpha1.IPBlock, cidr string, now []v1alpha1.Loan) error {
	_, err := s.change(ctx, b, func(b *v1alpha1.IPBlock) {
		b.Spec.Lent = append(slices.DeleteFunc(b.Spec.Lent, func(l v1alpha1.Loan) bool { return l.CIDR == cidr }), now...)
	})
	if errors.Is(err, errGone) {
		return nil
	}
	return err
}

// reserveWait is how long an ADD on a segment may keep the daemon from lending.
const reserveWait = time.Second

// reserve has the plugin give no address of a part of this node's blocks any more.
// free says that no pod has one either. The error is flock.ErrTimeout where ADDs
// are in the way.
func (s *segments) reserve(ctx context.Context, vni uint32, part netip.Prefix) (free bool, err error) {
	if !slices.Contains(s.granted(vni).Lent, part) {
		unlock, lockErr := s.lockSegment(ctx, vni, reserveWait)
		if lockErr != nil {
			return false, lockErr
		}
		err = s.grant(vni, func(g netconf.Leases) netconf.Leases {
			g.Lent = with(g.Lent, part)
			return g
		})
		unlock()
		if err != nil {
			return false, err
		}
	}
	claimed, err := s.inUse(vni)
	return err == nil && !anyIn(part, claimed), err
}

// lendable are those of loans that can be made for now. All of them are reserved.
func (s *segments) lendable(ctx context.Context, vni uint32, loans []v1alpha1.Loan) (can []v1alpha1.Loan, err error) {
	for _, l := range loans {
		part, err := netip.ParsePrefix(l.CIDR)
		if err != nil {
			return nil, fmt.Errorf("loan %s: %w", l.CIDR, err)
		}
		free, err := s.reserve(ctx, vni, part)
		if err != nil {
			return nil, fmt.Errorf("%w: lend %s: %w", control.ErrNotYet, part, err)
		}
		if free {
			can = append(can, l)
		}
	}
	return can, nil
}

// takeBack ends a loan whose object is gone: nobody has the part now, and who
// makes an object of that name again has to be lent it anew, since that has
// another UID.
func (s *segments) takeBack(ctx context.Context, vni uint32, part netip.Prefix, lender []lease) error {
	for _, b := range lender {
		if !slices.ContainsFunc(b.Spec.Lent, func(l v1alpha1.Loan) bool { return l.CIDR == part.String() }) {
			continue
		}
		if err := s.setLoan(ctx, b.IPBlock, part.String(), nil); err != nil {
			return err
		}
	}
	return s.grant(vni, func(g netconf.Leases) netconf.Leases {
		g.Lent = slices.DeleteFunc(slices.Clone(g.Lent), func(p netip.Prefix) bool { return p == part })
		return g
	})
}
