package overlay

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/gaissmai/bart"

	"github.com/weft-cni/weft/pkg/kernel"
)

// Peers is the set of known peers, indexed so that a change of one finds the
// few others it concerns without a look at the rest. Not safe for concurrent
// use.
type Peers struct {
	self   Self
	byName map[string]Peer
	byCIDR bart.Table[[]string] // range -> names, in no order; see ranges
	byMAC  map[kernel.MAC][]string
	byKey  map[kernel.PublicKey][]string
}

// NewPeers makes an empty set as seen by self, whose own claims nobody takes.
func NewPeers(self Self) *Peers {
	return &Peers{self: self, byName: map[string]Peer{}, byMAC: map[kernel.MAC][]string{}, byKey: map[kernel.PublicKey][]string{}}
}

// Conflict says that a peer is not programmed because of what it claims.
type Conflict struct {
	Peer  string // the one that yields
	Other string // the one that holds
	Claim string // what both claim: a range, a VTEP MAC or a public key
}

func (c Conflict) Error() string {
	return fmt.Sprintf("peer %s claims %s, which belongs to %s: it was there first", c.Peer, c.Claim, c.Other)
}

// Set adds or replaces a peer and gives the names of all peers whose plans
// may have changed by it, itself included.
func (p *Peers) Set(peer Peer) []string {
	affected := p.Delete(peer.Name)
	p.byName[peer.Name] = peer
	for _, cidr := range p.ranges(peer) {
		p.byCIDR.Modify(cidr, func(names []string, _ bool) ([]string, bool) {
			return append(names, peer.Name), false
		})
	}
	p.byMAC[peer.MAC] = append(p.byMAC[peer.MAC], peer.Name)
	for _, k := range p.keys(peer) {
		p.byKey[k] = append(p.byKey[k], peer.Name)
	}
	return union(affected, p.rivals(peer), []string{peer.Name})
}

// Delete removes a peer and gives the names of all peers whose plans may have
// changed by it, itself included.
func (p *Peers) Delete(name string) []string {
	peer, ok := p.byName[name]
	if !ok {
		return []string{name}
	}
	affected := p.rivals(peer)
	delete(p.byName, name)
	for _, cidr := range p.ranges(peer) {
		p.byCIDR.Modify(cidr, func(names []string, _ bool) ([]string, bool) {
			left := without(names, name)
			return left, len(left) == 0
		})
	}
	drop(p.byMAC, peer.MAC, name)
	for _, k := range p.keys(peer) {
		drop(p.byKey, k, name)
	}
	return union(affected, []string{name})
}

func without(names []string, name string) []string {
	return slices.DeleteFunc(slices.Clone(names), func(n string) bool { return n == name })
}

// drop takes a name from an index.
func drop[K comparable](index map[K][]string, k K, name string) {
	if left := without(index[k], name); len(left) > 0 {
		index[k] = left
	} else {
		delete(index, k)
	}
}

// ranges are what no other node may claim a part of: the peer's pod CIDRs and,
// where a packet is taken from the one peer that has its source, its addresses.
func (p *Peers) ranges(peer Peer) []netip.Prefix {
	all := slices.Clip(peer.PodCIDRs)
	if p.self.Encrypted {
		for _, a := range peer.Underlay {
			all = append(all, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	if p.sealed(peer) {
		all = append(all, netip.PrefixFrom(InnerAddr(peer.Name), InnerPrefix.Addr().BitLen()))
	}
	return all
}

// sealed reports whether there are encrypted segments here, in which the peer
// may take part.
func (p *Peers) sealed(peer Peer) bool { return p.self.Inner.Addr.IsValid() && peer.Encryption != nil }

// keys are the public keys that no other node may have.
func (p *Peers) keys(peer Peer) (keys []kernel.PublicKey) {
	if p.self.Encrypted && peer.Encryption != nil || p.sealed(peer) {
		for _, k := range peer.Encryption.Keys {
			keys = append(keys, k.Public)
		}
	}
	return keys
}

// Get gives a peer by name.
func (p *Peers) Get(name string) (Peer, bool) {
	peer, ok := p.byName[name]
	return peer, ok
}

// Len is the number of peers.
func (p *Peers) Len() int { return len(p.byName) }

// Names lists all peers, sorted.
func (p *Peers) Names() []string {
	names := make([]string, 0, len(p.byName))
	for name := range p.byName {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// Conflict reports whether a peer claims something that is this node's own or
// an older peer's. Every node comes to the same answer: the older VTEP holds,
// by creation time and then by name, and a peer that yields to another still
// keeps younger ones out.
func (p *Peers) Conflict(name string) (Conflict, bool) {
	peer, ok := p.byName[name]
	if !ok {
		return Conflict{}, false
	}
	for _, cidr := range p.ranges(peer) {
		for _, own := range p.self.PodCIDRs {
			if own.Overlaps(cidr) {
				return Conflict{Peer: name, Other: p.self.Name, Claim: cidr.String()}, true
			}
		}
		if p.self.Inner.Addr.IsValid() && cidr.Contains(p.self.Inner.Addr) {
			return Conflict{Peer: name, Other: p.self.Name, Claim: cidr.String()}, true
		}
		for _, other := range p.overlapping(cidr) {
			if older(p.byName[other], peer) {
				return Conflict{Peer: name, Other: other, Claim: cidr.String()}, true
			}
		}
	}
	if peer.MAC == p.self.MAC {
		return Conflict{Peer: name, Other: p.self.Name, Claim: peer.MAC.String()}, true
	}
	for _, other := range p.byMAC[peer.MAC] {
		if older(p.byName[other], peer) {
			return Conflict{Peer: name, Other: other, Claim: peer.MAC.String()}, true
		}
	}
	for _, k := range p.keys(peer) {
		if slices.Contains(p.self.PublicKeys, k) {
			return Conflict{Peer: name, Other: p.self.Name, Claim: k.String()}, true
		}
		for _, other := range p.byKey[k] {
			if older(p.byName[other], peer) {
				return Conflict{Peer: name, Other: other, Claim: k.String()}, true
			}
		}
	}
	return Conflict{}, false
}

// rivals lists the peers that claim something of what peer claims; peer may
// be among them.
func (p *Peers) rivals(peer Peer) []string {
	rivals := slices.Clone(p.byMAC[peer.MAC])
	for _, cidr := range p.ranges(peer) {
		rivals = append(rivals, p.overlapping(cidr)...)
	}
	for _, k := range p.keys(peer) {
		rivals = append(rivals, p.byKey[k]...)
	}
	return rivals
}

func (p *Peers) overlapping(cidr netip.Prefix) []string {
	var names []string
	for _, n := range p.byCIDR.Supernets(cidr) {
		names = append(names, n...)
	}
	for found, n := range p.byCIDR.Subnets(cidr) {
		if found != cidr { // Supernets gave that one
			names = append(names, n...)
		}
	}
	return names
}

func older(a, b Peer) bool {
	if c := a.Created.Compare(b.Created); c != 0 {
		return c < 0
	}
	return a.Name < b.Name
}

func union(lists ...[]string) []string {
	all := slices.Concat(lists...)
	slices.Sort(all)
	return slices.Compact(all)
}
