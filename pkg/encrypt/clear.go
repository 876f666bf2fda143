package encrypt

import (
	"net/netip"

	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/netconf"
	"github.com/weft-cni/weft/pkg/overlay"
)

// Names of the sets, less the family's number, that say what must not be seen
// in clear: pods of the peers and of this node, what wireguard.clusterCIDRs has
// (within one set no range may overlap another), and the peers themselves.
const (
	setPods    = "pods"
	setCluster = "cluster"
	setNodes   = "nodes"
)

const sets = "set pods4 { type ipv4_addr; flags interval; }\n" +
	"set pods6 { type ipv6_addr; flags interval; }\n" +
	"set cluster4 { type ipv4_addr; flags interval; }\n" +
	"set cluster6 { type ipv6_addr; flags interval; }\n" +
	"set nodes4 { type ipv4_addr; flags interval; }\n" +
	"set nodes6 { type ipv6_addr; flags interval; }\n"

// out and in match what doesn't go to, or doesn't come from, WireGuard, a pod
// of this node, or this node itself.
const (
	out = "\toifname != \"" + overlay.WireGuardStart + "*\" oifname != \"" + netconf.LinkStart + "*\" oifname != \"lo\" "
	in  = "\tiifname != \"" + overlay.WireGuardStart + "*\" iifname != \"" + netconf.LinkStart + "*\" iifname != \"lo\" "
)

// chains drop packets in clear whatever the routing table says: those to pods,
// and from pods to other nodes, before they leave, and with the source that
// they have before it is masqueraded; those from pods when they come. A pod's
// packets to the world outside are none of these.
const chains = "chain leak { type filter hook postrouting priority 0; policy accept;\n" +
	out + "ip daddr @pods4 counter drop\n" +
	out + "ip daddr @cluster4 counter drop\n" +
	out + "ip saddr @pods4 ip daddr @nodes4 counter drop\n" +
	out + "ip6 daddr @pods6 counter drop\n" +
	out + "ip6 daddr @cluster6 counter drop\n" +
	out + "ip6 saddr @pods6 ip6 daddr @nodes6 counter drop\n" +
	"}\n" +
	"chain clear { type filter hook prerouting priority -300; policy accept;\n" +
	in + "ip saddr @pods4 counter drop\n" +
	in + "ip saddr @cluster4 counter drop\n" +
	in + "ip6 saddr @pods6 counter drop\n" +
	in + "ip6 saddr @cluster6 counter drop\n" +
	"}\n"

// protect puts what a peer has into the sets.
func protect(s kernel.State, peer overlay.Peer) {
	for _, cidr := range peer.PodCIDRs {
		s.Put(element(setPods, cidr))
	}
	for _, a := range peer.Underlay {
		s.Put(element(setNodes, netip.PrefixFrom(a, a.BitLen())))
	}
}

// element puts a prefix into the set of its family.
func element(set string, p netip.Prefix) kernel.Element {
	number := "6"
	if p.Addr().Is4() {
		number = "4"
	}
	return kernel.Element{Table: overlay.Table, Set: set + number, Prefix: p}
}
