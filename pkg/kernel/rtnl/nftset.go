package rtnl

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/rtmsg"
)

// setTypes are the types of sets, by nft's words.
var setTypes = map[string]nftables.SetDatatype{
	"ipv4_addr": nftables.TypeIPAddr, "ipv6_addr": nftables.TypeIP6Addr,
	"ifname":              nftables.TypeIFName,
	"ifname . ipv4_addr":  nftables.MustConcatSetType(nftables.TypeIFName, nftables.TypeIPAddr),
	"ifname . ipv6_addr":  nftables.MustConcatSetType(nftables.TypeIFName, nftables.TypeIP6Addr),
	"ifname . ether_addr": nftables.MustConcatSetType(nftables.TypeIFName, nftables.TypeEtherAddr),
}

// compileSet reads "set NAME { type TYPE; }", with "flags interval;" or without.
func compileSet(table *nftables.Table, line string) (*nftables.Set, error) {
	name, rest, ok := strings.Cut(strings.TrimPrefix(line, "set "), " { type ")
	typ, flags, ok2 := strings.Cut(rest, ";")
	datatype, known := setTypes[typ]
	if !ok || !ok2 || !known || flags != " }" && flags != intervalFlag+" }" {
		return nil, fmt.Errorf("nft: unknown set %q", line)
	}
	return &nftables.Set{
		Table: table, Name: name, KeyType: datatype,
		Interval: flags != " }", Concatenation: strings.Contains(typ, " . "),
	}, nil
}

const intervalFlag = " flags interval;"

// printSet is the opposite of compileSet.
func printSet(set *nftables.Set) string {
	flags := ""
	if set.Interval {
		flags = intervalFlag
	}
	if set.Anonymous || set.IsMap || set.HasTimeout || set.Dynamic {
		flags += " # not ours"
	}
	return fmt.Sprintf("set %s { type %s;%s }\n", set.Name, set.KeyType.Name, flags)
}

// ofLinks reports whether a set's elements are kernel.Sources.
func ofLinks(set *nftables.Set) bool {
	return strings.HasPrefix(set.KeyType.Name, nftables.TypeIFName.Name)
}

// sourceElement is a kernel.Source as the kernel has it: the link's name filled
// up with zeros, and what stands beside it filled up to whole registers.
func sourceElement(s kernel.Source) nftables.SetElement {
	link := make([]byte, unix.IFNAMSIZ, unix.IFNAMSIZ+16)
	copy(link, s.Link)
	switch {
	case s.MAC != kernel.MAC{}:
		return nftables.SetElement{Key: append(append(link, s.MAC[:]...), 0, 0)}
	case !s.Prefix.IsValid():
		return nftables.SetElement{Key: link}
	}
	e := nftables.SetElement{Key: slices.Concat(link, s.Prefix.Addr().AsSlice())}
	if !s.Prefix.IsSingleIP() {
		e.KeyEnd = slices.Concat(link, lastAddr(s.Prefix).AsSlice())
	}
	return e
}

// source reads an element of a set of links.
func source(table, set string, e nftables.SetElement) (s kernel.Source, ok bool) {
	if len(e.Key) < unix.IFNAMSIZ {
		return s, false
	}
	s = kernel.Source{Table: table, Set: set, Link: rtmsg.String(e.Key[:unix.IFNAMSIZ])}
	value := e.Key[unix.IFNAMSIZ:]
	switch len(value) {
	case 0:
	case 8:
		copy(s.MAC[:], value)
	default:
		first := rtmsg.AddrOf(value)
		if !first.IsValid() {
			return s, false
		}
		end := first.Next()
		if len(e.KeyEnd) == len(e.Key) {
			end = rtmsg.AddrOf(e.KeyEnd[unix.IFNAMSIZ:]).Next()
		}
		// An interval that is no prefix stands under one that is none.
		s.Prefix, _ = prefixOf(first, end)
	}
	return s, true
}

// interval is a prefix as elements of an interval set: its first address, and
// the first behind it unless the address space ends there.
func interval(p netip.Prefix) []nftables.SetElement {
	elements := []nftables.SetElement{{Key: p.Masked().Addr().AsSlice()}}
	if behind := lastAddr(p).Next(); behind.IsValid() {
		elements = append(elements, nftables.SetElement{Key: behind.AsSlice(), IntervalEnd: true})
	}
	return elements
}

// prefixes pairs the elements of an interval set. Intervals that are no
// prefix are told as text.
func prefixes(elements []nftables.SetElement) (all []netip.Prefix, foreign string) {
	slices.SortFunc(elements, func(a, b nftables.SetElement) int {
		if c := bytes.Compare(a.Key, b.Key); c != 0 {
			return c
		}
		if a.IntervalEnd { // one interval ends where the next begins
			return -1
		}
		return 1
	})
	for i, e := range elements {
		if e.IntervalEnd {
			continue
		}
		first := rtmsg.AddrOf(e.Key)
		var end netip.Addr // the first address behind, if any
		if i+1 < len(elements) && elements[i+1].IntervalEnd {
			end = rtmsg.AddrOf(elements[i+1].Key)
		}
		if p, ok := prefixOf(first, end); ok {
			all = append(all, p)
		} else {
			foreign = fmt.Sprintf("%s-%s", first, end)
		}
	}
	return all, foreign
}

// prefixOf is the prefix that begins at first and ends before end.
func prefixOf(first, end netip.Addr) (netip.Prefix, bool) {
	for bits := 0; bits <= first.BitLen(); bits++ {
		p := netip.PrefixFrom(first, bits)
		if p.Masked().Addr() == first && lastAddr(p).Next() == end {
			return p, true
		}
	}
	return netip.Prefix{}, false
}

// lastAddr is the highest address of a prefix.
func lastAddr(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	return rtmsg.AddrOf(b)
}
