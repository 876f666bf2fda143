package segment

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/netconf"
	"github.com/weft-cni/weft/pkg/overlay"
)

// Plan gives the objects of one segment on a node. The error joins one for each
// peer or station that is left out: it yields to an older one, can't be
// reached, or has other tunnels. The others don't depend on it. There is no plan
// for a node that can't have such tunnels.
func Plan(c overlay.Config, self overlay.Self, in Segment) (kernel.State, error) {
	s, to, err := planBridge(c, self, in)
	if err != nil {
		return nil, err
	}
	// The bridge answers ARP for all VLANs or for none.
	learning, moving := in.Tunnels.Open(), in.Tunnels.Open() || in.Tunnels.VLANs
	owner := map[kernel.MAC]string{}
	for _, p := range in.Ports {
		owner[p.MAC] = self.Name
		s.Merge(PlanPort(in.VNI, p))
		learning = learning || p.Options.Learns()
		moving = moving || p.Options.Moves()
	}
	if !in.Tunnels.ByObjects() {
		to.put(s, learning, moving)
		return s, nil
	}
	var errs []error
	members := slices.SortedFunc(slices.Values(in.Members), func(a, b Member) int {
		return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.Peer.Name, b.Peer.Name))
	})
	for _, m := range members {
		vtep, port, err := m.vtep(c, self, in.Tunnels)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		to.reach(s, vtep, port)
		learning = learning || m.Learn
		for _, e := range m.Endpoints {
			if other, taken := owner[e.MAC]; taken {
				errs = append(errs, fmt.Errorf("peer %s claims station %s, which is behind %s", m.Peer.Name, e.MAC, other))
				continue
			}
			owner[e.MAC] = m.Peer.Name
			planStation(s, in.VNI, e, to.station(s, e, vtep, port))
		}
	}
	to.put(s, learning, moving)
	return s, errors.Join(errs...)
}

// planStation adds what a station behind a peer has beside its place, which is
// the bridge's port link.
func planStation(s kernel.State, vni uint32, e Endpoint, link string) {
	if e.Isolated {
		s.Put(kernel.Source{Table: Table, Set: netconf.SetApart, Link: link, MAC: e.MAC})
	}
	for _, ip := range e.IPs {
		n := kernel.Neigh{Link: Bridge(vni), IP: ip, MAC: e.MAC}
		if _, taken := s[n.Key()]; !taken {
			s.Put(n)
		}
	}
}

// PlanPort gives a pod's part of the node: the port, its own station, and what
// it may send from.
func PlanPort(vni uint32, p Port) kernel.State {
	s := kernel.NewState(
		kernel.BridgePort{Link: p.HostLink, Bridge: Bridge(vni), Isolated: p.Options.Isolated, Learning: p.Options.Learns(), VLANs: p.Options.VLANs()},
	)
	s.Merge(p.Options.Station(p.HostLink, p.MAC))
	for _, g := range netconf.Grants(p.MAC, p.IPs, p.Options) {
		s.Put(kernel.Source{Table: Table, Set: g.Set, Link: p.HostLink, Prefix: g.Prefix, MAC: g.MAC})
	}
	s.Merge(netconf.Stations(vni, p.MAC, p.IPs, p.Options))
	return s
}

// PlanTable is the table that all segments of a node share: what a pod sends
// from an address that isn't its own is dropped, and what only routers and DHCP
// servers send; nothing goes from a segment to the node, or back, but between
// pods and the node that is their gateway. That has one address on all nodes, and
// none hears of another's. Nothing goes from one tunnel of a segment to another:
// each VTEP sends to all itself. Where a segment has VLANs, no tag is inside of
// another (which is what a frame's protocol is then): without the outer one, the
// frame would be of the inner one's VLAN. Without VLANs, none is behind a tag that
// is only a priority: pods take both off, and nobody has seen what is inside.
func PlanTable() kernel.State { return kernel.NewState(kernel.Rules{Table: Table, Text: rules}) }

const (
	pods      = `iifname "` + netconf.LinkStart + `*"`
	vxlans    = `"` + TunnelStart + `*"`
	peerLinks = `"` + PeerTunnelStart + `*"`
)

const rules = `set senders4 { type ifname . ipv4_addr; }
set senders6 { type ifname . ipv6_addr; }
set networks4 { type ifname . ipv4_addr; flags interval; }
set networks6 { type ifname . ipv6_addr; flags interval; }
set stations { type ifname . ether_addr; }
set learning { type ifname; }
set routers { type ifname; }
set dhcpservers { type ifname; }
set isolated { type ifname; }
set vlans { type ifname; }
set apart { type ifname . ether_addr; }
set routed { type ifname; }
chain node { type filter hook input priority 0; policy accept;
	` + pods + ` iifname != @routed counter drop
	` + pods + ` meta protocol arp counter drop
	iifname ` + vxlans + ` counter drop
	iifname ` + peerLinks + ` counter drop
}
chain gateway { type filter hook output priority 0; policy accept;
	oifname ` + vxlans + ` ether saddr 02:77:65:66:74:01 counter drop
	oifname ` + peerLinks + ` ether saddr 02:77:65:66:74:01 counter drop
}
chain apart { type filter hook forward priority 0; policy accept;
	iifname ` + vxlans + ` oifname @isolated iifname . ether saddr @apart counter drop
	oifname ` + vxlans + ` iifname @isolated oifname . ether daddr @apart counter drop
	iifname ` + peerLinks + ` oifname ` + peerLinks + ` counter drop
	iifname ` + peerLinks + ` oifname @isolated iifname . ether saddr @apart counter drop
	oifname ` + peerLinks + ` iifname @isolated oifname . ether daddr @apart counter drop
}
chain senders { type filter hook prerouting priority -300; policy accept;
	meta protocol 8021q ` + pods + ` vlan id 0 counter drop
	meta protocol 8021ad ` + pods + ` vlan id 0 counter drop
	meta protocol 8021q ` + pods + ` iifname @vlans counter drop
	meta protocol 8021ad ` + pods + ` iifname @vlans counter drop
	` + pods + ` iifname @learning iifname . ether saddr != @stations counter drop
	` + pods + ` meta protocol arp iifname . arp saddr != @senders4 iifname . arp saddr != @networks4 counter drop
	` + pods + ` meta protocol ip iifname . ip saddr != @senders4 iifname . ip saddr != @networks4 counter drop
	` + pods + ` meta protocol ip meta l4proto udp th sport 67 iifname != @dhcpservers counter drop
	` + pods + ` meta protocol ip6 iifname . ip6 saddr != @senders6 iifname . ip6 saddr != @networks6 counter drop
	` + pods + ` meta protocol ip6 meta l4proto ipv6-icmp icmpv6 type nd-router-advert iifname != @routers counter drop
	` + pods + ` meta protocol ip6 meta l4proto ipv6-icmp icmpv6 type nd-redirect iifname != @routers counter drop
	` + pods + ` meta protocol ip6 meta l4proto ipv6-icmp icmpv6 type nd-neighbor-advert iifname . icmpv6 taddr != @senders6 iifname . icmpv6 taddr != @networks6 counter drop
	` + pods + ` meta protocol ip6 meta l4proto udp th sport 547 iifname != @dhcpservers counter drop
}
`
