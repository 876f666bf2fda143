package segment

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/netconf"
	"github.com/weft-cni/weft/pkg/overlay"
)

// GatewayTable is the nftables table of segments whose gateway the node is.
const GatewayTable = "inet weft-gateway"

// Gateway is a segment whose gateway the node is.
type Gateway struct {
	VNI    uint32
	Ranges []netconf.Range
}

// gatewayPriority is that of the rules for gateways' packets: before the rule of
// encryption and the main table's.
const gatewayPriority = 8690

// maxGateways is how many numbers there are: those of conntrack zones, less the
// two bits that kube-proxy has in packets' marks (0xc000).
const maxGateways = 1<<14 - 1

// PlanGateways gives what leads out of segments and back in. Tenants have the
// same addresses: each segment has a conntrack zone of its own for what comes
// from there, so that connections that look the same are different ones; and a
// mark, from which an answer's route follows, by a routing table of the
// segment's own that has nothing but its ranges. The main table has no route to
// any segment. What is nobody's answer has no mark, and so no way in.
//
// There is no way out for a family that the node's own pods don't have, since
// the node doesn't forward it.
func PlanGateways(self overlay.Self, all []Gateway) kernel.State {
	s := kernel.State{}
	if len(all) == 0 {
		return s
	}
	all = slices.SortedFunc(slices.Values(all), func(a, b Gateway) int { return cmp.Compare(a.VNI, b.VNI) })
	taken := map[uint32]bool{}
	var origins strings.Builder
	for _, g := range all {
		zone := numberOf(g.VNI, taken)
		number := kernel.Gateways | zone
		fmt.Fprintf(&origins, "\tiifname %q ct original zone set %d meta mark set %#x accept\n", Bridge(g.VNI), zone, number)
		for _, r := range g.Ranges {
			anywhere := netip.PrefixFrom(r.Subnet.Addr(), 0).Masked()
			if !slices.ContainsFunc(self.PodCIDRs, func(p netip.Prefix) bool { return p.Addr().Is4() == r.Subnet.Addr().Is4() }) {
				continue
			}
			s.Put(
				kernel.Route{Link: Bridge(g.VNI), Table: number, Dst: r.Subnet},
				kernel.Rule{Priority: gatewayPriority, From: anywhere, Mark: number, Table: number},
			)
		}
	}
	s.Put(kernel.Rules{Table: GatewayTable, Text: fmt.Sprintf(gatewayRules, origins.String())})
	return s
}

// numberOf takes a number for a segment. It follows from its VNI, so that its
// connections last while others come and go, but where that of another is the
// same.
func numberOf(vni uint32, taken map[uint32]bool) uint32 {
	n := (vni-1)%maxGateways + 1
	for taken[n] {
		n = n%maxGateways + 1
	}
	taken[n] = true
	return n
}

const (
	bridges = `"` + netconf.BridgeStart + `*"`
	isOurs  = "mark and 0xff000000 == 0x57000000"
)

// gatewayRules lets pods reach what the node reaches by other than our devices:
// not the node, not the cluster's pods, and not what has another address than it
// was sent to, as services' have.
const gatewayRules = `chain origin { type filter hook prerouting priority -300; policy accept;
	iifname != ` + bridges + ` accept
%s}
chain way { type filter hook prerouting priority -150; policy accept;
	iifname ` + bridges + ` meta ` + isOurs + ` ct mark set meta mark accept
	ct ` + isOurs + ` meta mark set ct mark
}
chain node { type filter hook input priority 0; policy accept;
	iifname ` + bridges + ` counter drop
}
chain cluster { type filter hook forward priority 0; policy accept;
	iifname != ` + bridges + ` accept
	oifname "` + netconf.LinkStart + `*" counter drop
	oifname "` + overlay.Link + `" counter drop
	oifname "` + overlay.WireGuardStart + `*" counter drop
	ct status dnat counter drop
}
chain masquerade { type nat hook postrouting priority 100; policy accept;
	iifname ` + bridges + ` oifname != ` + bridges + ` counter masquerade fully-random
}
`
