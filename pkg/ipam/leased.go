package ipam

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/weft-cni/weft/pkg/netconf"
)

// ErrNoBlock says that the node's blocks have no address left, or not the one
// that was asked for: the daemon leases further ones.
var ErrNoBlock = errors.New("no leased block has it")

// Claims are the addresses of segments' pods on this node: for each a symbolic
// link <vni>,<addr> to its owner, made in one step, so that of any number of
// processes one has it. A process that is killed leaves a link that is found by
// its owner. No lock is needed.
type Claims struct{ Dir string }

// SegmentClaims are the claims of a node. The daemon drops those of an earlier
// boot where runDir outlives that.
func SegmentClaims(runDir string) Claims {
	return Claims{Dir: filepath.Join(runDir, netconf.SegmentDir, "claims")}
}

func (c Claims) path(vni uint32, addr netip.Addr) string {
	return filepath.Join(c.Dir, strconv.FormatUint(uint64(vni), 10)+","+addr.String())
}

// Claim gives addr to owner. The error is ErrTaken where another has it.
func (c Claims) Claim(vni uint32, addr netip.Addr, owner Owner) error {
	err := os.Symlink(owner.String(), c.path(vni, addr))
	if errors.Is(err, fs.ErrNotExist) {
		if err = os.MkdirAll(c.Dir, 0o700); err == nil {
			err = os.Symlink(owner.String(), c.path(vni, addr))
		}
	}
	if errors.Is(err, fs.ErrExist) {
		has, _ := os.Readlink(c.path(vni, addr))
		if has == owner.String() {
			return nil
		}
		return fmt.Errorf("%s on segment %d: %w: it is %s's", addr, vni, ErrTaken, has)
	}
	return err
}

// Of gives the addresses of a segment that are claimed, with their owners.
func (c Claims) Of(vni uint32) (map[netip.Addr]Owner, error) {
	claimed := map[netip.Addr]Owner{}
	start := strconv.FormatUint(uint64(vni), 10) + ","
	err := c.each(start, func(name string, owner Owner) error {
		if addr, err := netip.ParseAddr(name[len(start):]); err == nil {
			claimed[addr] = owner
		}
		return nil
	})
	return claimed, err
}

// Release removes the claims of owners that match.
func (c Claims) Release(match func(Owner) bool) error {
	return c.each("", func(name string, owner Owner) error {
		if !match(owner) {
			return nil
		}
		if err := os.Remove(filepath.Join(c.Dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("release: %w", err)
		}
		return nil
	})
}

// Keep removes the claims on a segment's addresses but those that are given.
func (c Claims) Keep(vni uint32, keep []Claim) error {
	claimed, err := c.Of(vni)
	if err != nil {
		return err
	}
	for addr, owner := range claimed {
		held := slices.ContainsFunc(keep, func(k Claim) bool { return k.Owner == owner && slices.Contains(k.Addrs, addr) })
		if held {
			continue
		}
		if err := os.Remove(c.path(vni, addr)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("release: %w", err)
		}
	}
	return nil
}

// each reads the claims whose names begin with start.
func (c Claims) each(start string, do func(name string, owner Owner) error) error {
	all, err := names(c.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, name := range all {
		if !strings.HasPrefix(name, start) {
			continue
		}
		text, err := os.Readlink(filepath.Join(c.Dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("claim: %w", err)
		}
		if err := do(name, ownerFrom(text)); err != nil {
			return err
		}
	}
	return nil
}

// Leased gives an attachment addresses of the blocks that its node has leased
// of a segment's ranges. Its error is ErrNoBlock where the daemon has to lease
// another.
type Leased struct {
	Claims  Claims
	Owner   Owner
	Segment netconf.Segment
	Leases  netconf.Leases
	Want    []netip.Addr // asked for by the runtime
}

// NewLeased is the allocator of n's segment, with the leases that the node has.
func NewLeased(n *netconf.Network, leases netconf.Leases) *Leased {
	return &Leased{
		Claims: SegmentClaims(n.RunDir), Owner: Owner{n.Env.ContainerID, n.Env.IfName},
		Segment: *n.Segment, Leases: leases, Want: n.Addrs,
	}
}

// Add implements Allocator.
func (l *Leased) Add(ctx context.Context) (r Result, err error) {
	// What an ADD that was killed has claimed.
	if err = l.Del(ctx); err != nil {
		return Result{}, err
	}
	if err = l.inRange(); err != nil {
		return Result{}, err
	}
	claimed, err := l.Claims.Of(l.Segment.VNI)
	if err != nil {
		return Result{}, err
	}
	for _, in := range l.Segment.Ranges {
		addr, err := l.take(in, claimed)
		if err != nil {
			return Result{}, errors.Join(err, l.Del(ctx))
		}
		r.Addrs = append(r.Addrs, Addr{Prefix: netip.PrefixFrom(addr, in.Subnet.Bits()), Gateway: in.Gateway})
	}
	return r, nil
}

// inRange makes sure that what was asked for can be a pod's.
func (l *Leased) inRange() error {
	for _, addr := range l.Want {
		if !slices.ContainsFunc(l.Segment.Ranges, func(r netconf.Range) bool { return r.Usable(addr) }) {
			return fmt.Errorf("%s: %w: it is in no range of segment %d, reserved or excluded", addr, ErrOutside, l.Segment.VNI)
		}
	}
	return nil
}

// take claims an address of a range.
func (l *Leased) take(in netconf.Range, claimed map[netip.Addr]Owner) (netip.Addr, error) {
	for _, addr := range l.Want {
		if !in.Subnet.Contains(addr) {
			continue
		}
		if !l.Leases.Has(addr) {
			return addr, fmt.Errorf("%s: %w", addr, ErrNoBlock)
		}
		return addr, l.Claims.Claim(l.Segment.VNI, addr, l.Owner)
	}
	for _, block := range l.Leases.Blocks {
		if !in.Subnet.Contains(block.Addr()) || ForRequest(in, block) {
			continue
		}
		for addr := range cycle(block, l.Owner) {
			if _, taken := claimed[addr]; taken || !in.Usable(addr) || !l.Leases.HasIn(block, addr) {
				continue
			}
			err := l.Claims.Claim(l.Segment.VNI, addr, l.Owner)
			if err == nil || !errors.Is(err, ErrTaken) {
				return addr, err
			}
		}
	}
	return netip.Addr{}, fmt.Errorf("%s: %w", in.Subnet, ErrNoBlock)
}

// cycle gives the addresses of a block, from one that the owner decides on: an
// address that was just released is seldom the next that is given.
func cycle(block netip.Prefix, owner Owner) func(yield func(netip.Addr) bool) {
	sum := fnv.New64a()
	_, _ = sum.Write([]byte(owner.String()))
	size := uint64(1) << min(block.Addr().BitLen()-block.Bits(), 16)
	start := sum.Sum64() % size
	return func(yield func(netip.Addr) bool) {
		for i := range size {
			if !yield(offset(block.Addr(), (start+i)%size)) {
				return
			}
		}
	}
}

// offset is the address n behind a, which has as many zero bits at its end.
func offset(a netip.Addr, n uint64) netip.Addr {
	b := a.AsSlice()
	for i := len(b) - 1; n > 0; i-- {
		b[i] |= byte(n)
		n >>= 8
	}
	addr, _ := netip.AddrFromSlice(b)
	return addr
}

// Check implements Allocator.
func (l *Leased) Check(_ context.Context, addrs []netip.Addr) error {
	claimed, err := l.Claims.Of(l.Segment.VNI)
	if err != nil {
		return err
	}
	for _, addr := range addrs {
		if has, ok := claimed[addr]; !ok || has != l.Owner {
			return fmt.Errorf("%s on segment %d: %w", addr, l.Segment.VNI, ErrNotHeld)
		}
	}
	return nil
}

// Del implements Allocator.
func (l *Leased) Del(context.Context) error {
	return l.Claims.Release(func(o Owner) bool { return o == l.Owner })
}

// GC implements Allocator.
func (l *Leased) GC(_ context.Context, keep func(Owner) bool) error {
	return l.Claims.Release(func(o Owner) bool { return !keep(o) })
}

// Status implements Allocator.
func (l *Leased) Status(context.Context) error { return nil }

// ForRequest reports whether a block is a single address of a range that is
// leased in larger ones: it is there for a pod that asked for it, and no other.
func ForRequest(r netconf.Range, block netip.Prefix) bool {
	return block.IsSingleIP() && block.Bits() > r.BlockBits()
}

// Free counts the addresses of leases that pods could still have without asking
// for them, up to most.
func Free(r netconf.Range, leases netconf.Leases, claimed map[netip.Addr]Owner, most int) (n int) {
	for _, block := range leases.Blocks {
		if !r.Subnet.Contains(block.Addr()) || ForRequest(r, block) {
			continue
		}
		for addr := range cycle(block, Owner{}) {
			if n == most {
				return n
			}
			if _, taken := claimed[addr]; !taken && r.Usable(addr) && leases.HasIn(block, addr) {
				n++
			}
		}
	}
	return n
}

// NextBlock chooses a block of a range that has something beside the blocks
// taken, and is in none of them: the first behind a place that start decides on, or
// the one that holds want where that is valid. ok is false where there is none.
func NextBlock(r netconf.Range, taken []netip.Prefix, start uint64, want netip.Addr) (block netip.Prefix, ok bool) {
	free := func(p netip.Prefix) bool {
		around := func(t netip.Prefix) bool { return t == p || netconf.Inside(p, t) }
		return !slices.ContainsFunc(taken, around) && Free(r, netconf.Leases{Blocks: []netip.Prefix{p}, Lent: taken}, nil, 1) > 0
	}
	bits := r.BlockBits()
	if want.IsValid() {
		p, err := want.Prefix(bits)
		return p, err == nil && free(p) && (netconf.Leases{Blocks: []netip.Prefix{p}, Lent: taken}).Has(want)
	}
	shift := r.Subnet.Addr().BitLen() - bits
	// Nodes use a fraction of a large range: its first 65,536 blocks will do.
	count := uint64(1) << min(bits-r.Subnet.Bits(), 16)
	for i := range count {
		p := netip.PrefixFrom(offset(r.Subnet.Addr(), (start+i)%count<<shift), bits)
		if free(p) {
			return p, true
		}
	}
	return netip.Prefix{}, false
}
