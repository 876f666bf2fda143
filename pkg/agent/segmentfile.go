package agent

import (
	"fmt"
	"net/netip"
	"slices"

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
	s.files.Lock() // from here, so that no block is told of that was hidden meanwhile
	defer s.files.Unlock()
	s.mu.Lock()
	self := s.state.self
	blocks, listed := s.state.own.blocksOf(vni)
	s.mu.Unlock()
	old, err := netconf.ReadSegment(s.runDir, vni, s.bootID)
	if err != nil {
		// New here, or somebody removed it: claims may have gone as well, or
		// are of an earlier boot. No ADD goes on without the file.
		claims := ipam.SegmentClaims(s.runDir)
		if err = claims.Keep(vni, on.claims); err != nil {
			return err
		}
		for _, c := range on.claims {
			for _, addr := range c.Addrs {
				if err = claims.Claim(vni, addr, c.Owner); err != nil {
					s.log.Warn("address not claimed", "err", err)
				}
			}
		}
	}
	if !listed { // the API server is away: what was leased is
		for _, b := range old.Blocks {
			if !slices.Contains(blocks, b) {
				blocks = append(blocks, b)
			}
		}
	}
	slices.SortFunc(blocks, func(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) })
	mtu, err := segment.MTU(*self, on.tunnels)
	if err != nil {
		return err
	}
	return netconf.WriteSegment(s.runDir, vni, netconf.SegmentFile{BootID: s.bootID, MTU: mtu, Tunnels: on.tunnels, Gateway: on.gateway, Blocks: blocks})
}
