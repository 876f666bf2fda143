package overlay

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/netconf"
)

// Names of the sets, less the family's number, of prefixes that see pods' own
// addresses: those of the settings, and those of peers with a direct route.
// Two sets, since within one no prefix may overlap another.
const (
	setSettings = "nomasq"
	setDirect   = "direct"
)

// PlanNode gives the objects that the node needs whatever its peers are: the
// VXLAN device with its addresses, the nftables table and the sysctls.
func PlanNode(c Config, self Self) kernel.State {
	s := kernel.NewState(
		kernel.VXLAN{Name: Link, VNI: c.VNI, Port: c.Port, Local: self.Underlay[0].Addr, MAC: self.MAC, MTU: self.MTU},
		kernel.Rules{Table: Table, Text: rules(c)},
	)
	for _, p := range c.NoMasquerade {
		wider := func(o netip.Prefix) bool { return o != p && o.Overlaps(p) && o.Bits() < p.Bits() }
		if !slices.ContainsFunc(c.NoMasquerade, wider) {
			s.Put(element(setSettings, p))
		}
	}
	for _, cidr := range firstOfFamily(self.PodCIDRs) {
		gw := Gateway(cidr)
		s.Put(kernel.Addr{Link: Link, Prefix: netip.PrefixFrom(gw, gw.BitLen())})
		if gw.Is4() {
			s.Put(kernel.Sysctl{Name: "net/ipv4/ip_forward", Value: "1"})
			if self.LooseReversePath {
				s.Put(kernel.Rules{Table: SourceTable4, Text: sourceCheck})
			}
			continue
		}
		s.Put(
			kernel.Sysctl{Name: "net/ipv6/conf/all/forwarding", Value: "1"},
			kernel.Rules{Table: SourceTable6, Text: sourceCheck},
		)
		for _, u := range self.Underlay {
			if u.AcceptRA {
				s.Put(kernel.Sysctl{Name: "net/ipv6/conf/" + u.Link + "/accept_ra", Value: "2"})
			}
		}
	}
	return s
}

// PlanPeer gives the objects that lead to a peer's pods. An error says why
// the peer can't be reached from here; the objects of other peers don't
// depend on it. Address families that this node's own pods lack are left out.
func PlanPeer(c Config, self Self, peer Peer) (kernel.State, error) {
	s := kernel.State{}
	vtep, err := Outer(self, peer)
	if err != nil {
		return nil, err
	}
	fdb := kernel.FDB{Link: Link, MAC: peer.MAC, VTEP: vtep}
	if peer.Port != c.Port {
		// Reached all the same: nodes can move to another port one by one.
		fdb.Port = peer.Port
	}
	sources := firstOfFamily(self.PodCIDRs)
	for _, cidr := range peer.PodCIDRs {
		for _, u := range self.Underlay {
			if cidr.Contains(u.Addr) {
				return nil, fmt.Errorf("peer %s claims %s, which holds this node's underlay address %s", peer.Name, cidr, u.Addr)
			}
		}
		own, ok := ofFamily(sources, cidr)
		if !ok {
			continue
		}
		if c.DirectRouting {
			if link, via, ok := direct(self, peer, cidr); ok {
				s.Put(kernel.Route{Link: link, Dst: cidr, Via: via}, element(setDirect, cidr))
				continue
			}
		}
		via := nextHop(peer, cidr)
		s.Put(
			fdb,
			kernel.Neigh{Link: Link, IP: via, MAC: peer.MAC},
			kernel.Route{Link: Link, Dst: cidr, Via: via, Src: Gateway(own)},
		)
	}
	return s, nil
}

// PlanPod gives the host's side of one pod on the cluster network: for each
// of its addresses a route to the host end of its veth and a permanent
// neighbour entry, and the check of its IPv4 source address, which is strict
// reverse path filtering. The plugin makes them at ADD; the daemon restores
// them.
func PlanPod(hostLink string, mac kernel.MAC, addrs []netip.Addr) kernel.State {
	s := kernel.State{}
	for _, a := range addrs {
		if a.Is4() {
			s.Put(kernel.Sysctl{Name: "net/ipv4/conf/" + hostLink + "/rp_filter", Value: "1"})
		}
		s.Put(
			kernel.Neigh{Link: hostLink, IP: a, MAC: mac},
			kernel.Route{Link: hostLink, Dst: netip.PrefixFrom(a, a.BitLen())},
		)
	}
	return s
}

// nextHop is the address that a route to one of the peer's pod CIDRs leads
// to. For IPv4 it is the peer's own address among its pods. For IPv6 it is the
// link-local address of its VTEP: the kernel refuses a global next hop that
// another link's route still leads to, and with it the change from a direct
// route to the tunnel.
func nextHop(peer Peer, cidr netip.Prefix) netip.Addr {
	if cidr.Addr().Is6() {
		return linkLocal(peer.MAC)
	}
	first, _ := ofFamily(peer.PodCIDRs, cidr)
	return Gateway(first)
}

// linkLocal is the modified EUI-64 address of a MAC (RFC 4291 appendix A).
func linkLocal(m kernel.MAC) netip.Addr {
	return netip.AddrFrom16([16]byte{0xfe, 0x80, 8: m[0] ^ 2, m[1], m[2], 0xff, 0xfe, m[3], m[4], m[5]})
}

// Outer is the peer's underlay address of the tunnel's family.
func Outer(self Self, peer Peer) (netip.Addr, error) {
	local := self.Underlay[0].Addr
	for _, a := range peer.Underlay {
		if a == local {
			return netip.Addr{}, fmt.Errorf("peer %s has this node's own underlay address %s", peer.Name, a)
		}
		if a.Is4() == local.Is4() {
			return a, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("peer %s has no underlay address of the family of %s (it has %v)", peer.Name, local, peer.Underlay)
}

// direct is the way to a peer on a common subnet, of the family of cidr.
func direct(self Self, peer Peer, cidr netip.Prefix) (link string, via netip.Addr, ok bool) {
	for _, u := range self.Underlay {
		for _, a := range peer.Underlay {
			if a.Is4() == cidr.Addr().Is4() && u.Subnet.Contains(a) {
				return u.Link, a, true
			}
		}
	}
	return "", netip.Addr{}, false
}

// rules is the table for what leaves the cluster, in the canonical form of
// package kernel. docs/architecture.md follows a packet through it.
func rules(c Config) string {
	var b strings.Builder
	for _, set := range []string{setSettings, setDirect} {
		fmt.Fprintf(&b, "set %s4 { type ipv4_addr; flags interval; }\n", set)
		fmt.Fprintf(&b, "set %s6 { type ipv6_addr; flags interval; }\n", set)
	}
	if c.Masquerade {
		b.WriteString("chain masquerade { type nat hook postrouting priority 100; policy accept;\n")
		for _, f := range []struct{ proto, number string }{{"ip", "4"}, {"ip6", "6"}} {
			fmt.Fprintf(&b, "\tiifname \"%s*\" oifname != \"%s*\" oifname != \"%s\" oifname != \"%s*\"",
				netconf.LinkStart, netconf.LinkStart, Link, WireGuardStart)
			fmt.Fprintf(&b, " %s daddr != @%s%s %s daddr != @%s%s", f.proto, setSettings, f.number, f.proto, setDirect, f.number)
			b.WriteString(" counter masquerade fully-random\n")
		}
		b.WriteString("}\n")
	}
	if c.DirectRouting {
		b.WriteString(tenants)
	}
	return b.String()
}

// tenants keeps segments with a way out from pods that are behind the underlay's
// interface like the world outside.
const tenants = "chain tenants { type filter hook forward priority 0; policy accept;\n" +
	"\tiifname != \"" + netconf.BridgeStart + "*\" accept\n" +
	"\tip daddr @" + setDirect + "4 counter drop\n" +
	"\tip6 daddr @" + setDirect + "6 counter drop\n}\n"

// sourceCheck lets a pod send from its own addresses only: the route back to
// the source must lead to the interface that the packet came from. IPv4 has
// rp_filter for that, at a third of the cost (docs/adr/0006).
const sourceCheck = "chain source { type filter hook prerouting priority -300; policy accept;\n" +
	"\tiifname \"" + netconf.LinkStart + "*\" fib saddr . iif oif missing counter drop\n}\n"

// element puts a prefix into the set of its family.
func element(set string, p netip.Prefix) kernel.Element {
	if p.Addr().Is4() {
		return kernel.Element{Table: Table, Set: set + "4", Prefix: p}
	}
	return kernel.Element{Table: Table, Set: set + "6", Prefix: p}
}

// firstOfFamily keeps the first prefix of each address family.
func firstOfFamily(prefixes []netip.Prefix) []netip.Prefix {
	var first []netip.Prefix
	for _, p := range prefixes {
		if _, have := ofFamily(first, p); !have {
			first = append(first, p)
		}
	}
	return first
}

// ofFamily finds the first prefix of the family of like.
func ofFamily(prefixes []netip.Prefix, like netip.Prefix) (netip.Prefix, bool) {
	for _, p := range prefixes {
		if p.Addr().Is4() == like.Addr().Is4() {
			return p, true
		}
	}
	return netip.Prefix{}, false
}
