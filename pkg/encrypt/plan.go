package encrypt

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/overlay"
)

// Why a peer's pods are unreachable. PlanPeer's errors are these, overlay's or
// both.
var (
	ErrNoKey  = errors.New("it has no WireGuard key, and nothing is sent in clear")
	ErrStrict = errors.New("it takes nothing in clear, and encryption is off here")
)

// rulePriority is that of the rule for pods' packets to nodes: before the main
// table's, 32766.
const rulePriority = 8700

// choosing is the most time between two keepalives, in seconds, where a peer
// has more than one way: what WireGuard's authors recommend for NAT.
const choosing = 25

// PlanNode gives the objects that the node needs whatever its peers are.
func PlanNode(c Config, o overlay.Config, self Self, sessions Sessions) kernel.State {
	s := overlay.PlanNode(o, self.Self)
	if self.sealed() {
		guard(s, self)
	}
	if c.Mode == None && len(sessions) == 0 && !self.sealed() {
		return s
	}
	for _, k := range self.Keys {
		for slot := range Slots {
			link := kernel.WireGuard{
				Name: Link(k.Slot, slot), Userspace: self.Userspace, Port: c.Port + uint16(k.Slot*Slots+slot),
				MTU: min(MTU(self.Underlay[0]), self.MTU), Private: k.Private,
			}
			s.Put(link)
			for _, gw := range gateways(self) {
				s.Put(kernel.Addr{Link: link.Name, Prefix: netip.PrefixFrom(gw, gw.BitLen())})
			}
			if self.sealed() {
				s.Put(kernel.Addr{Link: link.Name, Prefix: innerPrefix(self.Name)})
			}
		}
	}
	if c.Mode == None {
		return s // what peers still send by the old way is taken
	}
	for _, cidr := range self.PodCIDRs {
		s.Put(kernel.Rule{Priority: rulePriority, From: cidr, Table: kernel.RouteTable})
	}
	if c.Mode == WireGuard {
		strict(c, self, s)
	}
	return s
}

// strict takes all out of the plan that sends or takes packets in clear, and
// puts in what keeps others from it.
func strict(c Config, self Self, s kernel.State) {
	vxlan := kernel.Keys{{Kind: kernel.KindLink, Name: overlay.Link}: {}}
	for k := range s.Only(vxlan) {
		delete(s, k)
	}
	table, _ := s[kernel.Key{Kind: kernel.KindRules, Name: overlay.Table}].(kernel.Rules)
	table.Text = sets + table.Text + chains
	s.Put(table)
	for _, cidr := range self.PodCIDRs {
		s.Put(element(setPods, cidr))
	}
	for _, cidr := range c.ClusterCIDRs {
		if _, ok := gateway(self, cidr.Addr()); ok { // the kernel may lack the other family
			s.Put(element(setCluster, cidr), kernel.Unreachable{Dst: cidr})
		}
	}
}

// Tunnel is one of the ways to a peer that encrypt.
type Tunnel struct {
	Session
	OwnSlot, PeerSlot int
}

// PeerPlan is what leads to a peer.
type PeerPlan struct {
	State kernel.State
	// Link is the device that routes to its pods lead to: overlay.Link, one of
	// Links, or empty where nothing does.
	Link string
	// Tunnels are those that are planned, the best first.
	Tunnels []Tunnel
	// Choice says that sessions which come and go may change the plan.
	Choice bool
	// OtherPresharedKey says that the peer has a preshared key that this node
	// doesn't know, or one of them has none.
	OtherPresharedKey bool
}

// PlanPeer gives the objects that lead to a peer's pods. Of the ways that there
// are it takes the best with a session: that of the newest keys. Without any
// session it takes the clear one where that is allowed, and the oldest keys
// where not: those that both ends have known longest.
//
// An error says why the peer can't be reached from here. The plan's objects are
// wanted all the same: they keep packets from other ways.
func PlanPeer(c Config, o overlay.Config, self Self, peer overlay.Peer, sessions Sessions) (p PeerPlan, err error) {
	p.State = kernel.State{}
	if c.Mode == WireGuard {
		protect(p.State, peer)
	}
	plain, err := clearWay(c, o, self, peer)
	outer, noWay := overlay.Outer(self.Self, peer)
	if err == nil && slices.ContainsFunc(peer.PodCIDRs, func(cidr netip.Prefix) bool { return slices.Contains(c.ClusterCIDRs, cidr) }) {
		err = fmt.Errorf("peer %s claims all of a range of wireguard.clusterCIDRs", peer.Name)
	}
	if err = cmp.Or(err, noWay); err != nil && (c.Mode == WireGuard || errors.Is(err, ErrStrict)) {
		refuse(c, p.State, self, peer)
	}
	allowed := allowedIPs(c, self, peer, err)
	if peer.Encryption != nil && len(allowed) > 0 {
		p.Tunnels = tunnels(self, peer)
		if drains(c, self, peer) { // only what is still in use, and only to receive by it
			p.Tunnels = slices.DeleteFunc(p.Tunnels, func(t Tunnel) bool { _, up := sessions[t.Session]; return !up })
		}
	}
	psk, same := preshared(self, peer)
	p.OtherPresharedKey = len(p.Tunnels) > 0 && !same
	taken := 0
	if err == nil {
		taken = p.lead(c, self, peer, plain, sessions)
	}
	if len(p.Tunnels) > 0 && self.sealed() {
		way := p.sealedWay(peer, sessions)
		if p.Link == "" || !encrypts(c, peer) { // the tunnels are for segments alone
			taken, p.Choice = way, len(p.Tunnels) > 1
		}
	}
	for i, t := range p.Tunnels {
		p.State.Put(t.object(peer, outer, psk, p.keepalive(c, drains(c, self, peer), i, taken), allowed))
	}
	return p, err
}

// encrypts reports whether packets between this node's pods and the peer's may
// be encrypted.
func encrypts(c Config, peer overlay.Peer) bool {
	return c.Mode != None && peer.Encryption != nil && !peer.Encryption.SegmentsOnly
}

// drains reports whether tunnels to the peer are only there for what one end
// sent before it, or the other, stopped to encrypt.
func drains(c Config, self Self, peer overlay.Peer) bool {
	return !self.sealed() && !encrypts(c, peer)
}

// lead leads the peer's pods into the best way, in the clear if there is none
// better than plain, and gives the index of the tunnel that is taken: that behind
// the last for none.
func (p *PeerPlan) lead(c Config, self Self, peer overlay.Peer, plain kernel.State, sessions Sessions) int {
	if plain != nil && !encrypts(c, peer) {
		p.Choice = len(p.Tunnels) > 0
		p.Link = overlay.Link
		p.State.Merge(plain)
		return len(p.Tunnels)
	}
	ways := len(p.Tunnels)
	if plain != nil {
		ways++
	}
	p.Choice = ways > 1
	best := p.best(sessions)
	switch {
	case best < 0 && plain != nil:
		p.Link = overlay.Link
		p.State.Merge(plain)
		return len(p.Tunnels)
	case best < 0:
		best = len(p.Tunnels) - 1
	}
	p.Link = p.Tunnels[best].Link
	route(p.State, self, peer, p.Link)
	return best
}

// allowedIPs are what is taken from a peer: what its pods and itself send to pods,
// unless there is something against it, and encrypted segments. From a peer that
// sends to pods in clear that is what it sent before it did.
func allowedIPs(c Config, self Self, peer overlay.Peer, against error) (allowed []netip.Prefix) {
	if against == nil && peer.Encryption != nil && (!peer.Encryption.SegmentsOnly || c.Mode != WireGuard) {
		allowed = slices.Clone(peer.PodCIDRs)
		for _, a := range peer.Underlay {
			allowed = append(allowed, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	if self.sealed() && (against == nil || errors.Is(against, ErrNoKey) || errors.Is(against, ErrStrict)) {
		allowed = append(allowed, innerPrefix(peer.Name))
	}
	return allowed
}

// keepalive is the time between two keepalives, in seconds, on the tunnel i.
// Where there is a choice, the way that is taken is kept alive, and those that
// are better are tried; those that are worse are silent, so that their other
// end can tell when nobody needs them any more.
func (p PeerPlan) keepalive(c Config, drains bool, i, taken int) uint16 {
	configured := uint16(c.Keepalive.Seconds())
	switch {
	case drains:
		return 0
	case !p.Choice:
		return configured
	case i > taken:
		return 0
	case configured == 0:
		return choosing
	}
	return min(configured, choosing)
}

// clearWay plans the way without encryption; nil where none is allowed. The
// error is of a peer that can't be reached at all.
func clearWay(c Config, o overlay.Config, self Self, peer overlay.Peer) (kernel.State, error) {
	// Also where it isn't taken: what makes a peer unreachable does so by any way.
	s, err := overlay.PlanPeer(o, self.Self, peer)
	switch {
	case err != nil:
		return nil, err
	case c.Mode == WireGuard && !encrypts(c, peer):
		return nil, fmt.Errorf("peer %s: %w", peer.Name, ErrNoKey)
	case c.Mode == WireGuard:
		return nil, nil
	case peer.Encryption == nil || !peer.Encryption.Strict:
		return s, nil
	case c.Mode == None:
		return nil, fmt.Errorf("peer %s: %w", peer.Name, ErrStrict)
	}
	return nil, nil
}

// tunnels lists a tunnel for each key of either end, those of the newest first.
func tunnels(self Self, peer overlay.Peer) []Tunnel {
	var all []Tunnel
	for _, own := range self.Keys {
		for _, k := range peer.Encryption.Keys {
			all = append(all, Tunnel{Session{Link(own.Slot, k.Slot), k.Public}, own.Slot, k.Slot})
		}
	}
	return all
}

func (t Tunnel) object(peer overlay.Peer, outer netip.Addr, psk kernel.Secret, keepalive uint16, allowed []netip.Prefix) kernel.WireGuardPeer {
	return kernel.WireGuardPeer{
		Link: t.Link, PublicKey: t.Peer, PresharedKey: psk, Keepalive: keepalive,
		Endpoint:   netip.AddrPortFrom(outer, peer.Encryption.Port+uint16(t.PeerSlot*Slots+t.OwnSlot)),
		AllowedIPs: kernel.PrefixListOf(allowed),
	}
}

// preshared is the key that both ends have, or else that of the file.
func preshared(self Self, peer overlay.Peer) (key kernel.Secret, same bool) {
	hash := ""
	if peer.Encryption != nil {
		hash = peer.Encryption.PresharedKeyHash
	}
	for _, k := range self.Preshared {
		if k.Hash() == hash {
			return k, true
		}
	}
	if len(self.Preshared) == 0 {
		return kernel.Secret{}, hash == ""
	}
	return self.Preshared[0], false
}

// route leads the peer's pods, and what pods send to the peer itself, into a
// device.
func route(s kernel.State, self Self, peer overlay.Peer, link string) {
	for _, cidr := range peer.PodCIDRs {
		if gw, ok := gateway(self, cidr.Addr()); ok {
			s.Put(kernel.Route{Link: link, Dst: cidr, Src: gw})
		}
	}
	for _, a := range peer.Underlay {
		if _, ok := gateway(self, a); ok {
			s.Put(kernel.Route{Link: link, Table: kernel.RouteTable, Dst: netip.PrefixFrom(a, a.BitLen())})
		}
	}
}

// refuse makes the peer's pods unreachable and, where there is a rule that asks
// for it, the peer itself for pods.
func refuse(c Config, s kernel.State, self Self, peer overlay.Peer) {
	for _, cidr := range peer.PodCIDRs {
		if _, ok := gateway(self, cidr.Addr()); ok && !holdsOwn(self, cidr) {
			s.Put(kernel.Unreachable{Dst: cidr})
		}
	}
	if c.Mode == None {
		return
	}
	for _, a := range peer.Underlay {
		own := slices.ContainsFunc(self.Underlay, func(u overlay.Underlay) bool { return u.Addr == a })
		if _, ok := gateway(self, a); ok && !own {
			s.Put(kernel.Unreachable{Table: kernel.RouteTable, Dst: netip.PrefixFrom(a, a.BitLen())})
		}
	}
}

// holdsOwn reports whether a range holds an underlay address of this node.
func holdsOwn(self Self, cidr netip.Prefix) bool {
	return slices.ContainsFunc(self.Underlay, func(u overlay.Underlay) bool { return cidr.Contains(u.Addr) })
}

// gateways are the node's own addresses among its pods', one of each family.
func gateways(self Self) (all []netip.Addr) {
	for _, like := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		if gw, ok := gateway(self, like); ok {
			all = append(all, gw)
		}
	}
	return all
}

// gateway is the node's own address among its pods' of the family of like.
func gateway(self Self, like netip.Addr) (netip.Addr, bool) {
	for _, cidr := range self.PodCIDRs {
		if cidr.Addr().Is4() == like.Is4() {
			return overlay.Gateway(cidr), true
		}
	}
	return netip.Addr{}, false
}
