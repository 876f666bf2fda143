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
	"sync"
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

// leasing is held by who takes a segment's leases or gives them back. Segments
// share some locks, so that there is a bounded number of them.
type leasing [64]sync.Mutex

func (l *leasing) of(vni uint32) *sync.Mutex { return &l[vni%uint32(len(l))] }

// keepLeases leases blocks of a segment ahead of need, gives back those that
// aren't needed, and keeps the leases that there are this Node's.
func (s *segments) keepLeases(ctx context.Context, vni uint32) error {
	lock := s.leasing.of(vni)
	lock.Lock()
	defer lock.Unlock()
	s.mu.Lock()
	on, isActive := s.state.active[vni]
	_, isOpened := s.state.opened[vni]
	leases := maps.Clone(s.state.own.leases.of[vni])
	s.mu.Unlock()
	var errs []error
	for _, r := range on.ranges {
		errs = append(errs, s.keepRange(ctx, vni, r, max(r.BlockSize/4, 1)))
	}
	if !isActive && !isOpened {
		for _, b := range leases {
			errs = append(errs, s.giveBack(ctx, b))
		}
	}
	return errors.Join(errs...)
}

// keepRange sees to it that at least low addresses of a range are free, and
// that no block is kept without need. That a range is used up is for who asks
// for an address to hear.
func (s *segments) keepRange(ctx context.Context, vni uint32, r netconf.Range, low int) error {
	claimed, err := ipam.SegmentClaims(s.runDir).Of(vni)
	if err != nil {
		return err
	}
	s.mu.Lock()
	blocks, _ := s.state.own.blocksOf(vni)
	s.mu.Unlock()
	// A lease that somebody deleted, or that went with a Node which was made
	// anew, while pods have its addresses.
	for addr, owner := range claimed {
		if !r.Subnet.Contains(addr) || slices.ContainsFunc(blocks, func(b netip.Prefix) bool { return b.Contains(addr) }) {
			continue
		}
		if err := s.leaseOne(ctx, vni, r, addr); err != nil {
			return fmt.Errorf("%s of %s has no lease any more: %w", addr, owner, err)
		}
		return nil // the rest in the next pass
	}
	if ipam.Free(r, blocks, claimed, low) < low {
		if err := s.leaseOne(ctx, vni, r, netip.Addr{}); !errors.Is(err, control.ErrExhausted) {
			return err
		}
		return nil
	}
	for _, b := range blocks {
		used := slices.ContainsFunc(slices.Collect(maps.Keys(claimed)), b.Contains)
		rest := slices.DeleteFunc(slices.Clone(blocks), func(o netip.Prefix) bool { return o == b })
		if used || !r.Subnet.Overlaps(b) || ipam.Free(r, rest, claimed, 2*low) < 2*low {
			continue
		}
		s.mu.Lock()
		lease := s.state.own.leases.of[vni][blockName(vni, b)]
		s.mu.Unlock()
		if lease != nil {
			return s.giveBack(ctx, lease)
		}
	}
	return nil
}

// giveBack gives a block back unless an address of it is in use. The plugin
// hears of it first.
func (s *segments) giveBack(ctx context.Context, b *v1alpha1.IPBlock) error {
	vni := uint32(b.Spec.VNI)
	block, err := netip.ParsePrefix(b.Spec.CIDR)
	if err != nil {
		return fmt.Errorf("ipblock %s: %w", b.Name, err)
	}
	unlock, err := flock.Exclusive(ctx, netconf.SegmentLock(s.runDir, vni), time.Millisecond)
	if errors.Is(err, flock.ErrTimeout) {
		time.AfterFunc(firstRetry, func() { s.unpublish(vni) }) // an ADD is at work
		return nil
	}
	if err != nil {
		return err
	}
	free, err := s.hide(b, vni, block)
	unlock()
	if err == nil && !free {
		return nil
	}
	if err == nil {
		err = s.blocks.Delete(ctx, b.Name, metav1.DeleteOptions{})
	}
	if err != nil && !apierrors.IsNotFound(err) {
		s.update(func(st *segmentState) {
			st.own.leases.put(b)
			st.touch(vni, true)
		})
		return err
	}
	s.log.Info("block given back", "vni", vni, "block", block)
	return nil
}

// hide has the plugin give no address of a block any more. free is false where
// one is in use. The segment's lock is held.
func (s *segments) hide(b *v1alpha1.IPBlock, vni uint32, block netip.Prefix) (free bool, err error) {
	claimed, err := ipam.SegmentClaims(s.runDir).Of(vni)
	if err != nil || slices.ContainsFunc(slices.Collect(maps.Keys(claimed)), block.Contains) {
		return false, err
	}
	s.files.Lock()
	defer s.files.Unlock()
	s.learn(func(o *ownObjects) { o.leases.remove(b) })
	f, err := netconf.ReadSegment(s.runDir, vni, s.bootID)
	if err != nil { // no file, no ADD
		return true, nil //nolint:nilerr // as said
	}
	f.Blocks = slices.DeleteFunc(f.Blocks, func(p netip.Prefix) bool { return p == block })
	return true, netconf.WriteSegment(s.runDir, vni, f)
}

// listWait is how long a request waits for a daemon that has just started to
// hear of this node's blocks.
const listWait = 3 * time.Second

// lease sees to it that what r asks for can be had of this node's blocks.
func (s *segments) lease(ctx context.Context, r control.Request) error {
	wait, cancel := context.WithTimeout(ctx, listWait)
	defer cancel()
	select {
	case <-s.state.own.leases.all:
	case <-wait.Done():
		return fmt.Errorf("%w: waiting for the API server to tell this node's blocks", control.ErrNotYet)
	}
	lock := s.leasing.of(r.Segment.VNI)
	lock.Lock()
	defer lock.Unlock()
	claimed, err := ipam.SegmentClaims(s.runDir).Of(r.Segment.VNI)
	if err != nil {
		return fmt.Errorf("%w: %w", control.ErrNotYet, err)
	}
	for _, in := range r.Segment.Ranges {
		s.mu.Lock()
		blocks, _ := s.state.own.blocksOf(r.Segment.VNI)
		s.mu.Unlock()
		var want netip.Addr
		for _, addr := range r.Addrs {
			if in.Subnet.Contains(addr) {
				want = addr
			}
		}
		has := ipam.Free(in, blocks, claimed, 1) > 0
		if want.IsValid() {
			has = slices.ContainsFunc(blocks, func(b netip.Prefix) bool { return b.Contains(want) })
		}
		if !has {
			if err := s.leaseOne(ctx, r.Segment.VNI, in, want); err != nil {
				return err
			}
		}
	}
	return nil
}

func blockName(vni uint32, block netip.Prefix) string {
	return strconv.FormatUint(uint64(vni), 10) + "." + strings.NewReplacer(":", "-", "/", "-").Replace(block.String())
}

// leaseAttempts bounds how often a block that another node was quicker to lease
// makes this one look for the next.
const leaseAttempts = 100

// leaseOne leases one more block of a range, that which holds want where it is
// valid.
func (s *segments) leaseOne(ctx context.Context, vni uint32, r netconf.Range, want netip.Addr) error {
	number := strconv.FormatUint(uint64(vni), 10)
	list := func() ([]v1alpha1.IPBlock, error) {
		l, err := s.blocks.List(ctx, metav1.ListOptions{LabelSelector: labels.Set{v1alpha1.VNILabel: number}.String()})
		if err != nil {
			return nil, fmt.Errorf("%w: list blocks: %w", control.ErrNotYet, err)
		}
		return l.Items, nil
	}
	// Mostly the first that isn't our own is free: who makes the object has it,
	// so that a list is needed only after somebody else was quicker.
	s.mu.Lock()
	owner := *s.state.owner
	taken, _ := s.state.own.blocksOf(vni)
	s.mu.Unlock()
	var all []v1alpha1.IPBlock
	var err error
	sum := fnv.New64a()
	_, _ = sum.Write([]byte(s.node))
	for range leaseAttempts {
		block, ok := ipam.NextBlock(r, taken, sum.Sum64(), want)
		if !ok && all == nil {
			if all, err = list(); err != nil {
				return err
			}
		}
		if !ok {
			return exhausted(vni, r, want, all)
		}
		b, err := s.blocks.Create(ctx, &v1alpha1.IPBlock{
			ObjectMeta: segmentMeta(blockName(vni, block), number, owner),
			Spec:       v1alpha1.IPBlockSpec{VNI: int32(vni), CIDR: block.String(), Node: s.node},
		}, metav1.CreateOptions{})
		if apierrors.IsAlreadyExists(err) {
			if all == nil {
				if all, err = list(); err != nil {
					return err
				}
				taken = blocksOf(all)
			}
			taken = append(taken, block)
			continue
		}
		if err != nil {
			return fmt.Errorf("%w: lease %s: %w", control.ErrNotYet, block, err)
		}
		// One of another size, leased at the same time, has another name: who
		// sees the other as older yields.
		if all, err = list(); err != nil || yields(b, all) {
			err = errors.Join(err, s.blocks.Delete(ctx, b.Name, metav1.DeleteOptions{}))
			if err != nil {
				return fmt.Errorf("%w: lease %s: %w", control.ErrNotYet, block, err)
			}
			taken = blocksOf(all)
			continue
		}
		s.update(func(st *segmentState) {
			st.own.leases.put(b)
			st.touch(vni, true)
		})
		s.log.Info("block leased", "vni", vni, "block", block)
		return nil
	}
	return fmt.Errorf("%w: other nodes lease the blocks of %s at the same time", control.ErrNotYet, r.Subnet)
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

// yields reports whether an older block overlaps b.
func yields(b *v1alpha1.IPBlock, all []v1alpha1.IPBlock) bool {
	own, err := netip.ParsePrefix(b.Spec.CIDR)
	for i := range all {
		o := &all[i]
		other, otherErr := netip.ParsePrefix(o.Spec.CIDR)
		if o.Name == b.Name || err != nil || otherErr != nil || !own.Overlaps(other) {
			continue
		}
		if o.CreationTimestamp.Before(&b.CreationTimestamp) ||
			o.CreationTimestamp.Equal(&b.CreationTimestamp) && o.Name < b.Name {
			return true
		}
	}
	return false
}

// exhausted says why there is no block: which range, and who has how many.
func exhausted(vni uint32, r netconf.Range, want netip.Addr, all []v1alpha1.IPBlock) error {
	count := map[string]int{}
	for i := range all {
		p, err := netip.ParsePrefix(all[i].Spec.CIDR)
		if err != nil || !r.Subnet.Overlaps(p) {
			continue
		}
		if want.IsValid() && p.Contains(want) {
			return fmt.Errorf("%w: %s on segment %d is in block %s, which is leased to node %s", control.ErrTaken, want, vni, p, all[i].Spec.Node)
		}
		count[all[i].Spec.Node]++
	}
	var words []string
	total := 0
	for _, node := range slices.Sorted(maps.Keys(count)) {
		words = append(words, fmt.Sprintf("%d to %s", count[node], node))
		total += count[node]
	}
	return fmt.Errorf("%w: segment %d: all %d blocks of %s are leased (%s)", control.ErrExhausted, vni, total, r.Subnet, strings.Join(words, ", "))
}
