package ipam

import (
	"context"
	"net/netip"
	"path/filepath"
	"time"

	"github.com/weft-cni/weft/pkg/netconf"
	"github.com/weft-cni/weft/pkg/record"
)

// lockTimeout is long beside the fraction of a millisecond that a pool's lock
// is held for, and short beside the minutes that a runtime waits.
const lockTimeout = 10 * time.Second

// Local gives an attachment addresses from the node's own ranges.
type Local struct {
	Pool   *Pool
	Owner  Owner
	Ranges []netip.Prefix
	Want   []netip.Addr // asked for by the runtime
}

func newLocal(n *netconf.Network, node netconf.Node) *Local {
	return &Local{
		Pool: &Pool{
			// All networks of the mode take from the same ranges.
			Dir:         filepath.Join(n.RunDir, "ipam", string(n.Mode)),
			Boot:        node.BootID,
			LockTimeout: lockTimeout,
			Restore: func() ([]Claim, error) {
				store := record.Store{Dir: filepath.Join(n.DataDir, record.Dir)}
				return recorded(store, n.Mode, node.BootID)
			},
		},
		Owner:  Owner{n.Env.ContainerID, n.Env.IfName},
		Ranges: node.PodCIDRs,
		Want:   n.Addrs,
	}
}

// recorded gives the claims that the records of this boot tell of. Of two
// records with one address the first has it. A record that can't be read is
// passed over: nothing can be said of it, and it must not keep all pods of
// the node from starting.
func recorded(store record.Store, mode netconf.Mode, bootID string) ([]Claim, error) {
	attachments, err := store.List()
	if err != nil && len(record.Corrupt(err)) == 0 {
		return nil, err
	}
	var claims []Claim
	taken := map[netip.Addr]bool{}
	for _, a := range attachments {
		if a.Mode != string(mode) || a.IPAM != netconf.Type || a.BootID != bootID {
			continue
		}
		c := Claim{Owner: Owner{a.ContainerID, a.IfName}}
		for _, addr := range a.Addrs {
			if !taken[addr] {
				taken[addr] = true
				c.Addrs = append(c.Addrs, addr)
			}
		}
		if len(c.Addrs) > 0 {
			claims = append(claims, c)
		}
	}
	return claims, nil
}

// Add implements Allocator.
func (l *Local) Add(ctx context.Context) (Result, error) {
	addrs, err := l.Pool.Allocate(ctx, l.Owner, l.Ranges, l.Want)
	if err != nil {
		return Result{}, err
	}
	var r Result
	for _, addr := range addrs {
		r.Addrs = append(r.Addrs, Addr{Prefix: netip.PrefixFrom(addr, addr.BitLen())})
	}
	return r, nil
}

// Check implements Allocator.
func (l *Local) Check(_ context.Context, addrs []netip.Addr) error {
	return l.Pool.Holds(l.Owner, addrs)
}

// Del implements Allocator.
func (l *Local) Del(ctx context.Context) error { return l.Pool.Release(ctx, l.Owner) }

// GC implements Allocator.
func (l *Local) GC(ctx context.Context, keep func(Owner) bool) error {
	_, err := l.Pool.Sweep(ctx, keep)
	return err
}

// Status implements Allocator. What Add needs is the node's file, which the
// caller has read.
func (l *Local) Status(context.Context) error { return nil }
