package veth

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/weft-cni/weft/pkg/kernel"
)

// Link is one end of a pair.
type Link struct {
	Name string
	MAC  kernel.MAC
	MTU  int // bytes
	Up   bool
	// Peer is the name of the other end, and empty where what is there isn't
	// connected to it.
	Peer  string
	Alias string
}

// Key implements kernel.Object.
func (l Link) Key() kernel.Key { return kernel.Key{Kind: kernel.KindLink, Name: l.Name} }

func (l Link) String() string {
	s := fmt.Sprintf("link %s type veth peer %s address %s mtu %d %s", l.Name, l.peer(), l.MAC, l.MTU, l.state())
	if l.Alias != "" {
		s += fmt.Sprintf(" alias %q", l.Alias)
	}
	return s
}

func (l Link) state() string {
	if l.Up {
		return "up"
	}
	return "down"
}

func (l Link) peer() string {
	if l.Peer == "" {
		return "(another link)"
	}
	return l.Peer
}

// Route is a route of the pod on its end of the pair, protocol
// kernel.RouteProtocol.
type Route struct {
	Link     string
	Dst      netip.Prefix
	Via      netip.Addr // next hop, onlink; invalid for a route with link scope
	MTU      int        // bytes; 0 is the link's
	AdvMSS   int        // bytes; 0 is derived from the MTU
	Priority int        // metric; 0 is the kernel's default
	Table    int        // 0 is the main table
}

// Key implements kernel.Object. Routes of different tables or metrics live
// side by side.
func (r Route) Key() kernel.Key {
	return kernel.Key{Kind: kernel.KindRoute, Name: r.Link + r.place(), Dst: r.Dst}
}

func (r Route) place() string {
	var b strings.Builder
	if r.Table != 0 {
		fmt.Fprintf(&b, " table %d", r.Table)
	}
	if r.Priority != 0 {
		fmt.Fprintf(&b, " metric %d", r.Priority)
	}
	return b.String()
}

func (r Route) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "route %s", r.Dst)
	if r.Via.IsValid() {
		fmt.Fprintf(&b, " via %s onlink", r.Via)
	}
	fmt.Fprintf(&b, " dev %s%s", r.Link, r.place())
	if r.MTU != 0 {
		fmt.Fprintf(&b, " mtu %d", r.MTU)
	}
	if r.AdvMSS != 0 {
		fmt.Fprintf(&b, " advmss %d", r.AdvMSS)
	}
	return b.String()
}

// Rule sends what the pod sends from one address to a routing table of its
// own, priority rulePriority, protocol kernel.RouteProtocol.
type Rule struct {
	From  netip.Addr
	Table int
}

// Key implements kernel.Object.
func (r Rule) Key() kernel.Key {
	return kernel.Key{Kind: kernel.KindRules, Dst: netip.PrefixFrom(r.From, r.From.BitLen())}
}

func (r Rule) String() string { return fmt.Sprintf("rule from %s lookup %d", r.From, r.Table) }
