package encrypt

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/overlay"
)

// Encrypted segments have their tunnels inside WireGuard, also where the cluster
// network is in clear: VXLAN between the nodes' addresses in overlay.InnerPrefix,
// each of which is among the allowed addresses of its node's peers. An address
// that no device leads to is unreachable, and SegmentTable keeps what is sent to
// these addresses from all other ways, and what comes by other ways from VXLAN.

// SegmentTable is the nftables table that keeps encrypted segments' tunnels inside
// WireGuard.
const SegmentTable = "ip6 weft-segments"

// setInner is its set, which has overlay.InnerPrefix.
const setInner = "inner"

// sealed reports whether the node has encrypted segments.
func (s Self) sealed() bool { return s.Inner.Addr.IsValid() }

// InnerUnderlay is what self.Inner is on a node with encrypted segments.
func InnerUnderlay(self overlay.Self) overlay.Underlay {
	return overlay.Underlay{Addr: overlay.InnerAddr(self.Name), MTU: min(MTU(self.Underlay[0]), self.MTU)}
}

// guard keeps encrypted segments' tunnels inside WireGuard, whether there are
// devices or not. What pods send to these addresses is dropped too: WireGuard
// would take it, since it comes from a peer's pod.
func guard(s kernel.State, self Self) {
	s.Put(
		kernel.Rules{Table: SegmentTable, Text: fmt.Sprintf(segmentRules, self.InnerPort, self.InnerPort)},
		kernel.Element{Table: SegmentTable, Set: setInner, Prefix: overlay.InnerPrefix},
		kernel.Unreachable{Dst: overlay.InnerPrefix},
	)
}

const segmentRules = "set " + setInner + " { type ipv6_addr; flags interval; }\n" +
	"chain out { type filter hook postrouting priority 0; policy accept;\n" +
	"\toifname != \"" + overlay.WireGuardStart + "*\" ip6 daddr @" + setInner + " counter drop\n" +
	"}\n" +
	"chain in { type filter hook prerouting priority -300; policy accept;\n" +
	"\tiifname != \"" + overlay.WireGuardStart + "*\" ip6 daddr @" + setInner + " counter drop\n" +
	"\tiifname != \"" + overlay.WireGuardStart + "*\" meta l4proto udp th dport %d counter drop\n" +
	"\tmeta l4proto udp th dport %d ip6 saddr != @" + setInner + " counter drop\n" +
	"}\n"

// innerPrefix is a node's inner address.
func innerPrefix(node string) netip.Prefix {
	a := overlay.InnerAddr(node)
	return netip.PrefixFrom(a, a.BitLen())
}

// sealedWay leads the peer's inner address into the best of its tunnels: that of
// the newest keys that has a session, or of the oldest where none has. It gives
// the index of that tunnel.
func (p PeerPlan) sealedWay(peer overlay.Peer, sessions Sessions) int {
	best := p.best(sessions)
	if best < 0 {
		best = len(p.Tunnels) - 1
	}
	p.State.Put(kernel.Route{Link: p.Tunnels[best].Link, Dst: innerPrefix(peer.Name)})
	return best
}

// best is the first tunnel that has a session, -1 where none has.
func (p PeerPlan) best(sessions Sessions) int {
	return slices.IndexFunc(p.Tunnels, func(t Tunnel) bool { _, up := sessions[t.Session]; return up })
}
