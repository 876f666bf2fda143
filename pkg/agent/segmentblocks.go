package agent

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/weft-cni/weft/api/v1alpha1"
	"github.com/weft-cni/weft/pkg/control"
	"github.com/weft-cni/weft/pkg/flock"
	"github.com/weft-cni/weft/pkg/ipam"
	"github.com/weft-cni/weft/pkg/netconf"
)

// errGone says that a block isn't this node's any more.
var errGone = fmt.Errorf("%w: the lease is gone", control.ErrNotYet)

func blockName(vni uint32, block netip.Prefix) string {
	return strconv.FormatUint(uint64(vni), 10) + "." + strings.NewReplacer(":", "-", "/", "-").Replace(block.String())
}

// leaseAttempts bounds how often a block that another node was quicker to lease
// makes this one look for the next.
const leaseAttempts = 100

// leaseOne leases one more block of a range, with want valid that which holds it:
// want alone, where another node has that block.
func (s *segments) leaseOne(ctx context.Context, vni uint32, r netconf.Range, want netip.Addr) error {
	// Mostly the first that isn't our own is free: who makes the object has it,
	// so that a list is needed only after somebody else was quicker.
	var all []v1alpha1.IPBlock
	s.mu.Lock()
	taken := slices.Clone(s.state.larger[vni])
	s.mu.Unlock()
	for _, b := range s.leasesIn(vni, r.Subnet) {
		taken = append(taken, b.block)
	}
	listed := false
	relist := func() (err error) {
		all, err = s.listBlocks(ctx, vni)
		taken, listed = blocksOf(all), err == nil
		s.noteLarger(vni, r, taken)
		return err
	}
	sum := fnv.New64a()
	_, _ = sum.Write([]byte(s.node))
	for range leaseAttempts {
		block, ok := ipam.NextBlock(r, taken, sum.Sum64(), want)
		switch {
		case !ok && !listed:
			if err := relist(); err != nil {
				return err
			}
			continue
		case !ok && want.IsValid():
			return s.borrow(ctx, vni, want, all)
		case !ok:
			return exhausted(vni, r, all)
		}
		b, err := s.create(ctx, vni, block, "")
		if apierrors.IsAlreadyExists(err) {
			if err = relist(); err != nil {
				return err
			}
			taken = append(taken, block)
			continue
		}
		if err == nil {
			err = s.settle(ctx, b, false)
		}
		if !errors.Is(err, errUnlent) && !errors.Is(err, control.ErrTaken) {
			return err
		}
		// Another node has a larger block around it.
		if err = errors.Join(s.remove(ctx, b), relist()); err != nil {
			return fmt.Errorf("%w: lease %s: %w", control.ErrNotYet, block, err)
		}
	}
	return fmt.Errorf("%w: other nodes lease the blocks of %s at the same time", control.ErrNotYet, r.Subnet)
}

// noteLarger remembers which blocks of a range, where all are taken, are larger
// than this node's.
func (s *segments) noteLarger(vni uint32, r netconf.Range, taken []netip.Prefix) {
	s.mu.Lock()
	defer s.mu.Unlock()
	others := slices.DeleteFunc(slices.Clone(s.state.larger[vni]), func(p netip.Prefix) bool { return r.Subnet.Contains(p.Addr()) })
	for _, p := range taken {
		if r.Subnet.Contains(p.Addr()) && p.Bits() < r.BlockBits() {
			others = append(others, p)
		}
	}
	if len(others) == 0 {
		delete(s.state.larger, vni)
		return
	}
	s.state.larger[vni] = others
}

// listBlocks lists the blocks of a segment as they are now: the API server asks
// its store, since no resource version is given.
func (s *segments) listBlocks(ctx context.Context, vni uint32) ([]v1alpha1.IPBlock, error) {
	selector := labels.Set{v1alpha1.VNILabel: strconv.FormatUint(uint64(vni), 10)}.String()
	l, err := s.blocks.List(ctx, metav1.ListOptions{LabelSelector: selector})
	if err != nil {
		return nil, fmt.Errorf("%w: list blocks: %w", control.ErrNotYet, err)
	}
	return l.Items, nil
}

// create makes a block's object. lender is the node that is asked to lend it.
func (s *segments) create(ctx context.Context, vni uint32, block netip.Prefix, lender string) (*v1alpha1.IPBlock, error) {
	s.mu.Lock()
	owner := *s.state.owner
	s.mu.Unlock()
	b := &v1alpha1.IPBlock{
		ObjectMeta: segmentMeta(blockName(vni, block), strconv.FormatUint(uint64(vni), 10), owner),
		Spec:       v1alpha1.IPBlockSpec{VNI: int32(vni), CIDR: block.String(), Node: s.node},
	}
	if lender != "" {
		b.Labels[v1alpha1.LenderLabel] = lender
	}
	b, err := s.blocks.Create(ctx, b, metav1.CreateOptions{})
	if err != nil {
		return nil, fmt.Errorf("%w: lease %s: %w", control.ErrNotYet, block, err)
	}
	s.learn(func(o *ownObjects) { o.leases.put(b) })
	return b, nil
}

// settle takes a block into use, once no other node can give a pod an address of
// it: the nodes with blocks around it have lent it, and it is known what others
// have inside it. It lists them after the block was made. So of two nodes whose
// blocks overlap the second sees the first's; which is second doesn't matter.
//
// A block that was found, and not just made, may have been given back with no
// answer, and the deletion may be on its way yet: it is renewed first, so that
// the deletion finds another version than it is for.
//
// The error is errUnlent where a block around it has to be lent first, and errGone
// where the block isn't this node's.
func (s *segments) settle(ctx context.Context, b *v1alpha1.IPBlock, found bool) error {
	vni := uint32(b.Spec.VNI)
	all, err := s.listBlocks(ctx, vni)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(all, func(o v1alpha1.IPBlock) bool { return o.UID == b.UID })
	if i < 0 {
		s.learn(func(o *ownObjects) { o.leases.remove(b) })
		return fmt.Errorf("%w: ipblock %s", errGone, b.Name)
	}
	b = &all[i]
	around, inside := overlapping(b, all)
	if len(around) > 0 {
		return s.unlent(ctx, b, around[0])
	}
	can, err := s.lendable(ctx, vni, inside)
	if err != nil {
		return err
	}
	if found || !slices.Equal(b.Spec.Lent, can) {
		b, err = s.change(ctx, b, func(b *v1alpha1.IPBlock) {
			b.Spec.Lent = can
			metav1.SetMetaDataAnnotation(&b.ObjectMeta, v1alpha1.RenewedAnnotation, b.ResourceVersion)
		})
		if err != nil {
			return err
		}
	}
	block, err := netip.ParsePrefix(b.Spec.CIDR)
	if err != nil {
		return fmt.Errorf("ipblock %s: %w", b.Name, err)
	}
	err = s.grant(vni, func(g netconf.Leases) netconf.Leases {
		g.Blocks = with(g.Blocks, block)
		return g
	})
	if err != nil {
		return err
	}
	s.log.Info("block leased", "vni", vni, "block", b.Spec.CIDR)
	return nil
}

// change writes to a block of this node what do does to it. The error is errGone
// where the block isn't this node's any more. With any other, it may yet be
// written.
func (s *segments) change(ctx context.Context, b *v1alpha1.IPBlock, do func(*v1alpha1.IPBlock)) (*v1alpha1.IPBlock, error) {
	for range 3 {
		next := b.DeepCopy()
		do(next)
		now, err := s.blocks.Update(ctx, next, metav1.UpdateOptions{})
		if err == nil {
			s.learn(func(o *ownObjects) { o.leases.put(now) })
			return now, nil
		}
		if !apierrors.IsConflict(err) && !apierrors.IsNotFound(err) {
			return nil, fmt.Errorf("%w: %w", control.ErrNotYet, err)
		}
		if b, err = s.reread(ctx, b); err != nil {
			return nil, err
		}
	}
	return nil, fmt.Errorf("%w: ipblock %s changes again and again", control.ErrNotYet, b.Name)
}

// reread finds out what has become of a block. The error is errGone where it
// isn't this node's any more.
func (s *segments) reread(ctx context.Context, b *v1alpha1.IPBlock) (*v1alpha1.IPBlock, error) {
	now, err := s.blocks.Get(ctx, b.Name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err) || err == nil && now.UID != b.UID:
		s.learn(func(o *ownObjects) { o.leases.remove(b) })
		return nil, fmt.Errorf("%w: ipblock %s", errGone, b.Name)
	case err != nil:
		return nil, fmt.Errorf("%w: %w", control.ErrNotYet, err)
	}
	s.learn(func(o *ownObjects) { o.leases.put(now) })
	return now, nil
}

// giveBack gives a block back unless an address of it is in use. The plugin
// hears of it first.
func (s *segments) giveBack(ctx context.Context, b lease) error {
	vni := uint32(b.Spec.VNI)
	unlock, err := s.lockSegment(ctx, vni, time.Millisecond)
	if errors.Is(err, flock.ErrTimeout) {
		time.AfterFunc(firstRetry, func() { s.unpublish(vni) }) // an ADD is at work
		return nil
	}
	if err != nil {
		return err
	}
	free, err := s.hide(vni, b.block)
	unlock()
	if err != nil || !free {
		return err
	}
	if err := s.remove(ctx, b.IPBlock); err != nil {
		return err
	}
	s.log.Info("block given back", "vni", vni, "block", b.block)
	return nil
}

// hide has the plugin give no address of a block any more. free is false where
// one is in use. The segment's lock is held.
func (s *segments) hide(vni uint32, block netip.Prefix) (free bool, err error) {
	claimed, err := s.inUse(vni)
	if err != nil || s.needed(vni, block, claimed) {
		return false, err
	}
	return true, s.grant(vni, func(g netconf.Leases) netconf.Leases { return without(g, block) })
}

// remove deletes the object of a block that isn't in use. With an error it may be
// deleted or not, now or later: the block is settled again before it is used.
func (s *segments) remove(ctx context.Context, b *v1alpha1.IPBlock) error {
	for range 3 {
		only := metav1.Preconditions{UID: &b.UID, ResourceVersion: &b.ResourceVersion}
		err := s.blocks.Delete(ctx, b.Name, metav1.DeleteOptions{Preconditions: &only})
		if err == nil || apierrors.IsNotFound(err) {
			s.learn(func(o *ownObjects) { o.leases.remove(b) })
			return nil
		}
		if !apierrors.IsConflict(err) {
			return err
		}
		if b, err = s.reread(ctx, b); errors.Is(err, errGone) {
			return nil
		} else if err != nil {
			return err
		}
	}
	return fmt.Errorf("%w: ipblock %s changes again and again", control.ErrNotYet, b.Name)
}

// blocksOf are the prefixes of blocks.
func blocksOf(all []v1alpha1.IPBlock) (taken []netip.Prefix) {
	for i := range all {
		if p, err := netip.ParsePrefix(all[i].Spec.CIDR); err == nil {
			taken = append(taken, p)
		}
	}
	return taken
}

// exhausted says why there is no block: which range, and who has how many.
func exhausted(vni uint32, r netconf.Range, all []v1alpha1.IPBlock) error {
	count := map[string]int{}
	for i := range all {
		if p, err := netip.ParsePrefix(all[i].Spec.CIDR); err == nil && r.Subnet.Overlaps(p) {
			count[all[i].Spec.Node]++
		}
	}
	var words []string
	total := 0
	for _, node := range slices.Sorted(maps.Keys(count)) {
		words = append(words, fmt.Sprintf("%d to %s", count[node], node))
		total += count[node]
	}
	return fmt.Errorf("%w: segment %d: all %d blocks of %s are leased (%s)", control.ErrExhausted, vni, total, r.Subnet, strings.Join(words, ", "))
}
