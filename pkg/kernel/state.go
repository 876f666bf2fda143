// Package kernel describes a node's kernel state as data: what Weft wants
// there, what was read from there, and the operations that lead from one to
// the other. It is pure; package rtnl is the only code that talks to the
// kernel about it.
//
// A State maps a Key, which says where an object lives (a route's
// destination and link, a neighbour's address and link), to an Object, which
// says all of it. Objects are comparable structs, so "does the kernel hold
// what we want" is ==, written once for all kinds.
package kernel

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// Kind is a kind of kernel object.
type Kind uint8

// The kinds, in the order in which they are created: each may need those
// before it. They are deleted in the opposite order.
const (
	KindSysctl  Kind = iota
	KindRules        // a whole nftables table: chains and rules
	KindElement      // an element of one of that table's sets
	KindLink
	KindPort // of a bridge
	KindAddr
	KindFDB
	KindStation // in a bridge's FDB
	KindNeigh
	KindPeer // of a WireGuard device
	KindRoute
	KindRule // of the routing policy database
	kinds
)

var kindNames = [kinds]string{"sysctl", "rules", "element", "link", "port", "addr", "fdb", "station", "neigh", "peer", "route", "policyrule"}

// String gives the kind's name as logs and metrics show it.
func (k Kind) String() string {
	if k < kinds {
		return kindNames[k]
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}

// Kinds lists all kinds in creation order.
func Kinds() []Kind {
	all := make([]Kind, kinds)
	for i := range all {
		all[i] = Kind(i)
	}
	return all
}

// Key says where an object lives. Two objects with one Key can't exist side
// by side; which fields are set depends on the Kind.
type Key struct {
	Kind Kind
	// Name is a link's name, a sysctl's or a table's; for objects on a link
	// that link's name, for an element its table's and set's, for a WireGuard
	// peer its link's and its public key; empty for routes without a link.
	Name string
	// Dst is an address (as a full-length prefix), a route's destination, a
	// rule's source, a set element or a VTEP that is flooded to; zero for the
	// other kinds.
	Dst netip.Prefix
	// MAC is an FDB entry's address.
	MAC MAC
	// Metric is a route's, 0 for the family's default, or a rule's priority.
	Metric uint32
	// FIB is a route's table, 0 for the main table, or a rule's mark.
	FIB uint32
	// VLAN is an entry's of a bridge's FDB, 0 without VLAN filtering.
	VLAN uint16
}

// String names the object in the words of ip(8) and bridge(8).
func (k Key) String() string {
	switch k.Kind {
	case KindFDB:
		if k.Dst.IsValid() {
			return fmt.Sprintf("fdb %s dev %s dst %s", k.MAC, k.Name, k.Dst.Addr())
		}
		return fmt.Sprintf("fdb %s dev %s", k.MAC, k.Name)
	case KindStation:
		return fmt.Sprintf("fdb %s dev %s%s master", k.MAC, k.Name, inVLAN(k.VLAN))
	case KindPort:
		return "port " + k.Name
	case KindAddr:
		return fmt.Sprintf("addr %s dev %s", k.Dst, k.Name)
	case KindRoute:
		if k.Name == "" {
			return fmt.Sprintf("route unreachable %s%s", k.Dst, inTable(k.FIB))
		}
		return fmt.Sprintf("route %s dev %s%s", k.Dst, k.Name, inTable(k.FIB))
	case KindPeer:
		link, key, _ := strings.Cut(k.Name, " ")
		return fmt.Sprintf("peer %s dev %s", key, link)
	case KindRule:
		return fmt.Sprintf("rule %d: from %s fwmark %#x", k.Metric, k.Dst, k.FIB)
	case KindNeigh:
		return fmt.Sprintf("neigh %s dev %s", k.Dst.Addr(), k.Name)
	case KindElement:
		return fmt.Sprintf("element %s { %s }", k.Name, k.Dst)
	case KindLink, KindRules, KindSysctl:
		return fmt.Sprintf("%s %s", k.Kind, k.Name)
	}
	return fmt.Sprintf("%s %s %s %s", k.Kind, k.Name, k.Dst, k.MAC)
}

// Compare orders keys by kind (creation order), then by their fields.
func (k Key) Compare(o Key) int {
	return cmp.Or(
		cmp.Compare(k.Kind, o.Kind),
		strings.Compare(k.Name, o.Name),
		k.Dst.Addr().Compare(o.Dst.Addr()),
		cmp.Compare(k.Dst.Bits(), o.Dst.Bits()),
		slices.Compare(k.MAC[:], o.MAC[:]),
		cmp.Compare(k.Metric, o.Metric),
		cmp.Compare(k.FIB, o.FIB),
		cmp.Compare(k.VLAN, o.VLAN),
	)
}

// Object is one kernel object. Its dynamic types are the comparable structs
// of this package, so that == compares two of them whole.
type Object interface {
	Key() Key
	// String is one line in the words of ip(8), bridge(8), nft(8) or
	// sysctl(8); it shows every field, so equal texts mean equal objects.
	String() string
}

// State is a set of kernel objects.
type State map[Key]Object

// NewState makes a State of objects. A later object replaces an earlier one
// of the same Key.
func NewState(objects ...Object) State {
	s := make(State, len(objects))
	s.Put(objects...)
	return s
}

// Put adds objects, replacing those of the same Key.
func (s State) Put(objects ...Object) {
	for _, o := range objects {
		s[o.Key()] = o
	}
}

// Merge adds all of o's objects to s.
func (s State) Merge(o State) { maps.Copy(s, o) }

// Only gives the part of s that keys cover.
func (s State) Only(keys Keys) State {
	part := make(State, len(keys))
	if keys.holdsContainer() {
		for k, o := range s {
			if keys.Covers(k) {
				part[k] = o
			}
		}
		return part
	}
	for k := range keys {
		if o, ok := s[k]; ok {
			part[k] = o
		}
	}
	return part
}

// Keys gives the set of all keys of s.
func (s State) Keys() Keys {
	keys := make(Keys, len(s))
	for k := range s {
		keys[k] = struct{}{}
	}
	return keys
}

// String is the state as sorted text, an object a line. Golden files, logs
// and dry runs show it.
func (s State) String() string {
	var b strings.Builder
	for _, k := range slices.SortedFunc(maps.Keys(s), Key.Compare) {
		b.WriteString(s[k].String())
		b.WriteByte('\n')
	}
	return b.String()
}

// Keys is a set of keys: a scope that is read and repaired without looking at
// the rest. A link brings all that is on it, and a table all its elements,
// since they go with it.
type Keys map[Key]struct{}

// Add puts keys into the set.
func (s Keys) Add(keys ...Key) {
	for _, k := range keys {
		s[k] = struct{}{}
	}
}

// Covers reports whether k, or the link or table that holds it, is in the set.
func (s Keys) Covers(k Key) bool {
	if _, ok := s[k]; ok {
		return true
	}
	switch k.Kind {
	case KindPort, KindAddr, KindFDB, KindStation, KindNeigh, KindPeer, KindRoute:
		_, ok := s[Key{Kind: KindLink, Name: k.Link()}]
		return ok
	case KindElement:
		_, ok := s[Key{Kind: KindRules, Name: k.Table()}]
		return ok
	case KindSysctl, KindRules, KindLink, KindRule:
	}
	return false
}

// Link is the name of the link that an object is on, or that it is.
func (k Key) Link() string {
	if k.Kind == KindPeer {
		link, _, _ := strings.Cut(k.Name, " ")
		return link
	}
	return k.Name
}

// Table is the family and name of an element's table.
func (k Key) Table() string { return k.Name[:max(strings.LastIndexByte(k.Name, ' '), 0)] }

// Together reports whether the kernel tells of an object at k only together with
// all others of its kind on the same device, in the same set or table. Of an
// unreachable route by itself it tells no more than that one answers.
func (k Key) Together() bool {
	switch k.Kind {
	case KindPeer, KindElement, KindRule:
		return true
	case KindRoute:
		return k.FIB != 0 || k.Name == ""
	case KindSysctl, KindRules, KindLink, KindPort, KindAddr, KindFDB, KindStation, KindNeigh:
	}
	return false
}

// holds reports whether the objects at other keys go when that at k goes.
func (k Key) holds() bool { return k.Kind == KindLink || k.Kind == KindRules }

func (s Keys) holdsContainer() bool {
	for k := range s {
		if k.holds() {
			return true
		}
	}
	return false
}
