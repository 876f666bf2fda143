package veth

import (
	"encoding/binary"
	"net/netip"

	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/netconf"
)

// hostMAC is the host end's Ethernet address.
var hostMAC = func() kernel.MAC {
	mac, err := kernel.ParseMAC(netconf.HostMAC)
	if err != nil {
		panic(err)
	}
	return mac
}()

// Host gives the pair's objects in the node's network namespace.
func (p Pair) Host() kernel.State {
	s := kernel.NewState(Link{
		Name: p.HostLink, MAC: hostMAC, MTU: p.MTU, Up: true, Peer: p.PodLink, Alias: p.Alias,
	})
	for _, a := range p.Addrs {
		if a.Is4() {
			// The source check: a packet's source must be an address that the
			// node routes to this interface. For IPv6, which has no such
			// filter, the daemon's table does it.
			s.Put(kernel.Sysctl{Name: "net/ipv4/conf/" + p.HostLink + "/rp_filter", Value: "1"})
		}
		s.Put(
			kernel.Neigh{Link: p.HostLink, IP: a, MAC: p.MAC},
			kernel.Route{Link: p.HostLink, Dst: full(a)},
		)
	}
	return s
}

// Pod gives the pair's objects in the pod's network namespace.
func (p Pair) Pod() kernel.State {
	s := kernel.NewState(Link{
		Name: p.PodLink, MAC: p.MAC, MTU: p.MTU, Up: true, Peer: p.HostLink,
	})
	for _, a := range p.Addrs {
		s.Put(kernel.Addr{Link: p.PodLink, Prefix: full(a)})
		if !p.DefaultRoute {
			s.Put(Rule{From: a, Table: p.ownTable()})
		}
	}
	for _, r := range p.PodRoutes() {
		s.Put(Route{
			Link: p.PodLink, Dst: r.Dst, Via: r.GW,
			MTU: r.MTU, AdvMSS: r.AdvMSS, Priority: r.Priority, Table: r.Table,
		})
		// The node answers for every next hop: there is nobody else on the
		// link.
		s.Put(kernel.Neigh{Link: p.PodLink, IP: r.GW, MAC: hostMAC})
	}
	if p.hasFamily(netconf.Gateway4) {
		s.Put(
			Route{Link: p.PodLink, Dst: full(netconf.Gateway4)},
			kernel.Neigh{Link: p.PodLink, IP: netconf.Gateway4, MAC: hostMAC},
		)
	}
	return s
}

// PodRoutes are the routes of the pod, next hops filled in: the default
// routes, if any, before Routes.
func (p Pair) PodRoutes() []netconf.Route {
	var routes []netconf.Route
	for _, r := range p.defaults() {
		if p.hasFamily(r.Dst.Addr()) && !p.replaced(r) {
			routes = append(routes, r)
		}
	}
	for _, r := range p.Routes {
		if !p.hasFamily(r.Dst.Addr()) {
			continue
		}
		if !r.GW.IsValid() {
			r.GW = gateway(r.Dst.Addr())
		}
		routes = append(routes, r)
	}
	return routes
}

// defaults are the routes to everywhere: in the main table or, where other
// traffic shall not take them, in one that only the pair's addresses use.
func (p Pair) defaults() []netconf.Route {
	table := 0
	if !p.DefaultRoute {
		table = p.ownTable()
	}
	return []netconf.Route{
		{Dst: netip.PrefixFrom(netip.IPv4Unspecified(), 0), GW: netconf.Gateway4, Table: table},
		{Dst: netip.PrefixFrom(netip.IPv6Unspecified(), 0), GW: netconf.Gateway6, Table: table},
	}
}

func (p Pair) replaced(r netconf.Route) bool {
	for _, other := range p.Routes {
		if other.Dst == r.Dst && other.Table == r.Table {
			return true
		}
	}
	return false
}

// ownTable is the number of the pair's own routing table in the pod: 0x57 and
// 24 bits of a hash of the interface's name, far from the numbers that people
// choose.
func (p Pair) ownTable() int {
	sum := digest("", p.PodLink)
	return 0x57<<24 | int(binary.BigEndian.Uint32(sum[:4])>>8)
}

func gateway(family netip.Addr) netip.Addr {
	if family.Is4() {
		return netconf.Gateway4
	}
	return netconf.Gateway6
}

// Gateway is the next hop that the pod uses for the family of ip.
func Gateway(ip netip.Addr) netip.Addr { return gateway(ip) }

// full is the prefix that holds ip alone.
func full(ip netip.Addr) netip.Prefix { return netip.PrefixFrom(ip, ip.BitLen()) }
