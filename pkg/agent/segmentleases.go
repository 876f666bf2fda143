package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/weft-cni/weft/api/v1alpha1"
	"github.com/weft-cni/weft/pkg/control"
	"github.com/weft-cni/weft/pkg/ipam"
	"github.com/weft-cni/weft/pkg/netconf"
)

// leasing is held by who takes a segment's leases, lends of them, or gives them
// back. Segments share some locks, so that there is a bounded number of them.
type leasing [64]sync.Mutex

func (l *leasing) of(vni uint32) *sync.Mutex { return &l[vni%uint32(len(l))] }

// keepLeases leases blocks of a segment ahead of need, lends of them what other
// nodes ask for, gives back those that aren't needed, and keeps the leases that
// there are this Node's.
func (s *segments) keepLeases(ctx context.Context, vni uint32) error {
	lock := s.leasing.of(vni)
	lock.Lock()
	defer lock.Unlock()
	claimed, err := s.inUse(vni)
	if err != nil {
		return err
	}
	s.mu.Lock()
	on, isActive := s.state.active[vni]
	_, isOpened := s.state.opened[vni]
	s.state.forgetWanted(vni, claimed)
	s.mu.Unlock()
	errs := []error{s.dropLost(vni), s.keepLoans(ctx, vni)}
	for _, r := range on.ranges {
		errs = append(errs, s.keepRange(ctx, vni, r, claimed))
	}
	if !isActive && !isOpened {
		for _, b := range s.leasesIn(vni, everything) {
			errs = append(errs, s.giveBack(ctx, b))
		}
	}
	return errors.Join(errs...)
}

// keepRange sees to it that a quarter of a block of a range is free, and that
// no block is kept without need. That a range is used up is for who asks for an
// address to hear.
func (s *segments) keepRange(ctx context.Context, vni uint32, r netconf.Range, claimed map[netip.Addr]ipam.Owner) error {
	leases := s.leasesIn(vni, r.Subnet)
	// A lease that somebody deleted, or that went with a Node which was made
	// anew, while pods have its addresses.
	for addr, owner := range claimed {
		if !r.Subnet.Contains(addr) || slices.ContainsFunc(leases, func(b lease) bool { return b.block.Contains(addr) }) {
			continue
		}
		if err := s.leaseOne(ctx, vni, r, addr); err != nil {
			return fmt.Errorf("%s of %s has no lease any more: %w", addr, owner, err)
		}
		return nil // the rest in the next pass
	}
	low := max(r.BlockSize/4, 1)
	for _, b := range leases {
		granted := s.granted(vni)
		if slices.Contains(granted.Blocks, b.block) {
			continue
		}
		err := errUnlent
		if s.needed(vni, b.block, claimed) || !ipam.ForRequest(r, b.block) && ipam.Free(r, granted, claimed, low) < low {
			err = s.settle(ctx, b.IPBlock, true)
		}
		if errors.Is(err, errUnlent) { // no more than asked for
			err = s.giveBack(ctx, b)
		}
		if err != nil {
			return err
		}
	}
	if ipam.Free(r, s.granted(vni), claimed, low) < low {
		if err := s.leaseOne(ctx, vni, r, netip.Addr{}); !errors.Is(err, control.ErrExhausted) {
			return err
		}
		return nil
	}
	return s.giveSpare(ctx, vni, r, claimed, 2*low)
}

// giveSpare gives a block back without which enough addresses are free.
func (s *segments) giveSpare(ctx context.Context, vni uint32, r netconf.Range, claimed map[netip.Addr]ipam.Owner, enough int) error {
	granted := s.granted(vni)
	for _, b := range s.leasesIn(vni, r.Subnet) {
		rest := without(granted, b.block)
		if !s.needed(vni, b.block, claimed) && (ipam.ForRequest(r, b.block) || ipam.Free(r, rest, claimed, enough) >= enough) {
			return s.giveBack(ctx, b)
		}
	}
	return nil
}

// needed reports whether a pod has an address of a block, or is about to.
func (s *segments) needed(vni uint32, block netip.Prefix, claimed map[netip.Addr]ipam.Owner) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for addr := range s.state.wanted[vni] {
		if block.Contains(addr) {
			return true
		}
	}
	return anyIn(block, claimed)
}

func anyIn(block netip.Prefix, claimed map[netip.Addr]ipam.Owner) bool {
	for addr := range claimed {
		if block.Contains(addr) {
			return true
		}
	}
	return false
}

// inUse are the addresses of a segment that pods of this node have: by their
// claims, and by their records where claims were lost.
func (s *segments) inUse(vni uint32) (map[netip.Addr]ipam.Owner, error) {
	all, err := ipam.SegmentClaims(s.runDir).Of(vni)
	if err != nil {
		return nil, err
	}
	for _, a := range s.records.attachedTo(vni) {
		if a.claim == nil {
			continue
		}
		for _, addr := range a.claim.Addrs {
			if _, is := all[addr]; !is {
				all[addr] = a.claim.Owner
			}
		}
	}
	return all, nil
}

// lease is one of this node's, as far as the API has told.
type lease struct {
	*v1alpha1.IPBlock
	block netip.Prefix
}

// everything stands for the ranges of both families.
var everything netip.Prefix

// leasesIn lists this node's leases of a range, in the order of their addresses.
func (s *segments) leasesIn(vni uint32, subnet netip.Prefix) (all []lease) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, b := range s.state.own.leases.of[vni] {
		p, err := netip.ParsePrefix(b.Spec.CIDR)
		if err == nil && (subnet == everything || subnet.Contains(p.Addr())) {
			all = append(all, lease{b, p})
		}
	}
	slices.SortFunc(all, func(a, b lease) int { return a.block.Compare(b.block) })
	return all
}

// listWait is how long a request waits for a daemon that has just started to
// hear of this node's blocks, lendWait for other nodes to lend what it asks for.
const (
	listWait = 3 * time.Second
	lendWait = 5 * time.Second
	lendPoll = 50 * time.Millisecond // at first; it doubles
)

// lease sees to it that what r asks for can be had of this node's blocks.
func (s *segments) lease(ctx context.Context, r control.Request) error {
	wait, cancel := context.WithTimeout(ctx, listWait)
	defer cancel()
	select {
	case <-s.state.own.leases.all:
	case <-wait.Done():
		return fmt.Errorf("%w: waiting for the API server to tell this node's blocks", control.ErrNotYet)
	}
	s.want(r)
	err := s.leaseNow(ctx, r)
	until := time.Now().Add(s.lendWait)
	for delay := lendPoll; errors.Is(err, errUnlent) && time.Now().Before(until); delay *= 2 {
		select {
		case <-ctx.Done():
			return err
		case <-time.After(min(delay, time.Until(until))):
		}
		err = s.leaseNow(ctx, r)
	}
	if errors.Is(err, control.ErrTaken) {
		s.unwant(r)
	}
	return err
}

// leaseNow is lease without waiting for other nodes: the error is errUnlent where
// that is to be done.
func (s *segments) leaseNow(ctx context.Context, r control.Request) error {
	lock := s.leasing.of(r.Segment.VNI)
	lock.Lock()
	defer lock.Unlock()
	var unlent error
	for _, in := range r.Segment.Ranges {
		lease := s.leaseAny
		for _, addr := range r.Addrs {
			if in.Subnet.Contains(addr) {
				lease = func(ctx context.Context, vni uint32, in netconf.Range) error { return s.leaseAddr(ctx, vni, in, addr) }
			}
		}
		switch err := lease(ctx, r.Segment.VNI, in); {
		case errors.Is(err, errUnlent) && unlent != nil:
			unlent = fmt.Errorf("%w; %w", unlent, err)
		case errors.Is(err, errUnlent):
			unlent = err // what other ranges need can be asked for meanwhile
		case err != nil:
			return err
		}
	}
	return unlent
}

// leaseAny sees to it that an address of a range is free.
func (s *segments) leaseAny(ctx context.Context, vni uint32, r netconf.Range) error {
	claimed, err := s.inUse(vni)
	if err != nil {
		return fmt.Errorf("%w: %w", control.ErrNotYet, err)
	}
	for _, b := range s.leasesIn(vni, r.Subnet) {
		granted := s.granted(vni)
		if ipam.Free(r, granted, claimed, 1) > 0 {
			return nil
		}
		if slices.Contains(granted.Blocks, b.block) || ipam.ForRequest(r, b.block) {
			continue
		}
		if err := s.settle(ctx, b.IPBlock, true); err != nil && !errors.Is(err, errUnlent) && !errors.Is(err, errGone) {
			return err
		}
	}
	if ipam.Free(r, s.granted(vni), claimed, 1) > 0 {
		return nil
	}
	return s.leaseOne(ctx, vni, r, netip.Addr{})
}

// leaseAddr sees to it that this node has an address that was asked for.
func (s *segments) leaseAddr(ctx context.Context, vni uint32, r netconf.Range, want netip.Addr) error {
	for _, b := range s.leasesIn(vni, r.Subnet) {
		granted := s.granted(vni)
		if granted.Has(want) {
			return nil
		}
		if !b.block.Contains(want) || slices.Contains(granted.Blocks, b.block) {
			continue
		}
		if err := s.settle(ctx, b.IPBlock, true); err != nil && !errors.Is(err, errGone) {
			return err
		}
	}
	single := netip.PrefixFrom(want, want.BitLen())
	if slices.Contains(s.granted(vni).Lent, single) { // unless it was returned just now
		if err := s.keepLoan(ctx, vni, single); err != nil {
			return fmt.Errorf("%w: %s: %w", control.ErrNotYet, want, err)
		}
	}
	if s.granted(vni).Has(want) {
		return nil
	}
	return s.leaseOne(ctx, vni, r, want)
}

// want notes which addresses are about to be a pod's: until it has them, or had
// time enough.
func (s *segments) want(r control.Request) {
	if len(r.Addrs) == 0 {
		return
	}
	vni := r.Segment.VNI
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state.wanted[vni] == nil {
		s.state.wanted[vni] = map[netip.Addr]time.Time{}
	}
	for _, addr := range r.Addrs {
		s.state.wanted[vni][addr] = time.Now().Add(openTime)
	}
	time.AfterFunc(openTime, func() { s.unpublish(vni) })
}

func (s *segments) unwant(r control.Request) {
	s.mu.Lock()
	for _, addr := range r.Addrs {
		delete(s.state.wanted[r.Segment.VNI], addr)
	}
	s.mu.Unlock()
	s.unpublish(r.Segment.VNI)
}

// forgetWanted forgets what pods have by now, or have had time to take.
func (st *segmentState) forgetWanted(vni uint32, claimed map[netip.Addr]ipam.Owner) {
	now := time.Now()
	maps.DeleteFunc(st.wanted[vni], func(addr netip.Addr, until time.Time) bool {
		_, has := claimed[addr]
		return has || !now.Before(until)
	})
	if len(st.wanted[vni]) == 0 {
		delete(st.wanted, vni)
	}
}
