package agent

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/weft-cni/weft/pkg/flock"
	"github.com/weft-cni/weft/pkg/ipam"
	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/netconf"
	"github.com/weft-cni/weft/pkg/segment"
)

// writeFiles tells the plugin of segments whose devices are in order.
func (s *segments) writeFiles(p *segmentPass, failed kernel.Keys) (errs []error) {
	for vni, on := range p.active {
		if !p.dirty[vni] {
			continue
		}
		bridge, tunnel := kernel.Bridge{Name: segment.Bridge(vni)}.Key(), kernel.VXLAN{Name: segment.Tunnel(vni)}.Key()
		table := kernel.Rules{Table: segment.Table}.Key()
		gateways := kernel.Rules{Table: segment.GatewayTable}.Key()
		if failed.Covers(bridge) || failed.Covers(tunnel) || failed.Covers(table) || on.gateway && failed.Covers(gateways) {
			errs = append(errs, fmt.Errorf("segment %d: its devices are not in order", vni))
			continue
		}
		errs = append(errs, s.writeFile(vni, on))
	}
	return errs
}

func (s *segments) writeFile(vni uint32, on activeSegment) error {
	s.grants.Lock()
	defer s.grants.Unlock()
	self := s.itself()
	if _, err := netconf.ReadSegment(s.runDir, vni, s.bootID); err != nil {
		// New here, or somebody removed it: claims may have gone as well, or
		// are of an earlier boot. No ADD goes on without the file.
		claims := ipam.SegmentClaims(s.runDir)
		if err := claims.Keep(vni, on.claims); err != nil {
			return err
		}
		for _, c := range on.claims {
			for _, addr := range c.Addrs {
				if err := claims.Claim(vni, addr, c.Owner); err != nil {
					s.log.Warn("address not claimed", "err", err)
				}
			}
		}
	}
	mtu, err := segment.MTU(*self, on.tunnels)
	if err != nil {
		return err
	}
	return netconf.WriteSegment(s.runDir, vni, netconf.SegmentFile{
		BootID: s.bootID, MTU: mtu, Tunnels: on.tunnels, Gateway: on.gateway, Leases: s.grants.get(s, vni),
	})
}

// grants are the leases in use, by segment: what the segments' files say, or will
// say once there is one. The lock is held by who writes such a file.
type grants struct {
	sync.Mutex
	of map[uint32]netconf.Leases
}

// get is a segment's: of a daemon that has just started those in its file.
func (g *grants) get(s *segments, vni uint32) netconf.Leases {
	l, known := g.of[vni]
	if !known {
		if f, err := netconf.ReadSegment(s.runDir, vni, s.bootID); err == nil {
			l = f.Leases
		}
		g.of[vni] = l
	}
	return l
}

// granted are the leases of a segment that the plugin may give addresses of.
func (s *segments) granted(vni uint32) netconf.Leases {
	s.grants.Lock()
	defer s.grants.Unlock()
	return s.grants.get(s, vni)
}

// grant changes them. change makes slices anew. Where something is taken away,
// the segment's lock is held.
func (s *segments) grant(vni uint32, change func(netconf.Leases) netconf.Leases) error {
	s.grants.Lock()
	defer s.grants.Unlock()
	now := change(s.grants.get(s, vni))
	if f, err := netconf.ReadSegment(s.runDir, vni, s.bootID); err == nil { // without a file, no ADD
		f.Leases = now
		if err := netconf.WriteSegment(s.runDir, vni, f); err != nil {
			return err
		}
	}
	s.grants.of[vni] = now
	return nil
}

// removeFile lets no ADD attach to a segment.
func (s *segments) removeFile(vni uint32) error {
	s.grants.Lock()
	defer s.grants.Unlock()
	return netconf.RemoveSegment(s.runDir, vni)
}

// dropLost has no address given of blocks that aren't leased any more (somebody
// deleted the object, or it went with its Node), and none reserved for nothing.
func (s *segments) dropLost(vni uint32) error {
	leases, granted := s.leasesIn(vni, everything), s.granted(vni)
	s.mu.Lock()
	listed := s.state.own.leases.listed
	s.mu.Unlock()
	for _, b := range granted.Blocks {
		if !listed || slices.ContainsFunc(leases, func(l lease) bool { return l.block == b }) {
			continue
		}
		if err := s.grant(vni, func(g netconf.Leases) netconf.Leases { return without(g, b) }); err != nil {
			return err
		}
	}
	if !slices.ContainsFunc(granted.Lent, func(p netip.Prefix) bool { return !insideAny(p, granted.Blocks) }) {
		return nil
	}
	// Reserved for a block that was gone before it was in use.
	return s.grant(vni, func(g netconf.Leases) netconf.Leases { return without(g, netip.Prefix{}) })
}

// lockSegment keeps ADDs off a segment until unlock is called. The error is
// flock.ErrTimeout where they keep it longer than wait.
func (s *segments) lockSegment(ctx context.Context, vni uint32, wait time.Duration) (unlock func(), err error) {
	if err := netconf.MakeSegmentDir(s.runDir); err != nil {
		return nil, err
	}
	return flock.Exclusive(ctx, netconf.SegmentLock(s.runDir, vni), wait)
}

// with adds a prefix to a list, which stays as it is.
func with(all []netip.Prefix, p netip.Prefix) []netip.Prefix {
	if slices.Contains(all, p) {
		return all
	}
	all = append(slices.Clone(all), p)
	slices.SortFunc(all, netip.Prefix.Compare)
	return all
}

// without takes a block out, and what is lent of no other.
func without(l netconf.Leases, block netip.Prefix) netconf.Leases {
	blocks := slices.DeleteFunc(slices.Clone(l.Blocks), func(b netip.Prefix) bool { return b == block })
	lent := slices.DeleteFunc(slices.Clone(l.Lent), func(p netip.Prefix) bool { return !insideAny(p, blocks) })
	return netconf.Leases{Blocks: blocks, Lent: lent}
}

func insideAny(part netip.Prefix, blocks []netip.Prefix) bool {
	return slices.ContainsFunc(blocks, func(b netip.Prefix) bool { return netconf.Inside(part, b) })
}
