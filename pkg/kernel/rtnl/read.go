package rtnl

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/kernel"
)

// Read gives all that is ours: the named links with every address,
// neighbour, FDB entry and route on them, whoever made it; the routes of our
// protocol on any link but pods' own; the table; and the named sysctls.
// errors.Is ErrInterrupted when the kernel changed too fast to be read.
func (h *Handle) Read(names Names) (kernel.State, error) {
	s := kernel.State{}
	if err := h.readSysctls(s, names.Sysctls); err != nil {
		return nil, err
	}
	for _, table := range names.Tables {
		if err := h.readTable(s, table); err != nil {
			return nil, err
		}
	}
	all, err := h.links()
	if err != nil {
		return nil, err
	}
	for _, l := range all {
		for _, name := range names.Links {
			if l.name != name {
				continue
			}
			s.Put(l.object())
			if err = h.readOn(s, l); err != nil {
				return nil, err
			}
		}
	}
	err = h.readRoutes(s, rtmsgFilter{proto: kernel.RouteProtocol}, func(index int) (string, bool) {
		name := all[index].name
		return name, name != "" && !isPodLink(name)
	})
	return s, err
}

// readOn reads all that is on one link.
func (h *Handle) readOn(s kernel.State, l link) error {
	for _, fam := range []uint8{unix.AF_INET, unix.AF_INET6} {
		filter := binaryIndex([]byte{fam, 0, 0, 0}, l.index)
		err := h.collect(s, request{typ: unix.RTM_GETADDR, body: filter}, func(b []byte) kernel.Object {
			if a, index, ok := decodeAddr(b, l.name); ok && index == l.index {
				return a
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("read addresses of %s: %w", l.name, err)
		}
		neighs := attr32(ndmsg(fam, 0, 0, 0), unix.NDA_IFINDEX, uint32(l.index))
		if err := h.collect(s, request{typ: unix.RTM_GETNEIGH, body: neighs}, neighOn(l)); err != nil {
			return fmt.Errorf("read neighbours of %s: %w", l.name, err)
		}
	}
	if l.kind == "vxlan" {
		fdb := ndmsg(unix.AF_BRIDGE, l.index, 0, 0)
		if err := h.collect(s, request{typ: unix.RTM_GETNEIGH, body: fdb}, neighOn(l)); err != nil {
			return fmt.Errorf("read FDB of %s: %w", l.name, err)
		}
	}
	return h.readRoutes(s, rtmsgFilter{index: l.index}, func(index int) (string, bool) {
		return l.name, index == l.index
	})
}

func neighOn(l link) func([]byte) kernel.Object {
	return func(b []byte) kernel.Object {
		if o, index := decodeNeigh(b, l.name); index == l.index {
			return o
		}
		return nil
	}
}

// rtmsgFilter is what the kernel filters a route dump by; zero is any.
type rtmsgFilter struct {
	proto uint8
	index int
}

func (h *Handle) readRoutes(s kernel.State, f rtmsgFilter, nameOf func(index int) (string, bool)) error {
	for _, fam := range []uint8{unix.AF_INET, unix.AF_INET6} {
		body := rtmsg(fam, 0, f.proto, 0, 0)
		body[7] = unix.RTN_UNSPEC // any type
		if f.index != 0 {
			body = attr32(body, unix.RTA_OIF, uint32(f.index))
		}
		err := h.collect(s, request{typ: unix.RTM_GETROUTE, body: body}, func(b []byte) kernel.Object {
			r, index, ok := decodeRoute(b)
			if !ok {
				return nil
			}
			if r.Link, ok = nameOf(index); !ok {
				return nil
			}
			return r
		})
		if err != nil {
			return fmt.Errorf("read routes: %w", err)
		}
	}
	return nil
}

// collect puts the objects of a dump into s, all or none.
func (h *Handle) collect(s kernel.State, r request, decode func([]byte) kernel.Object) error {
	var found []kernel.Object
	err := retryDump(func() error {
		found = found[:0]
		return h.conn.dump(r, func(b []byte) {
			if o := decode(b); o != nil {
				found = append(found, o)
			}
		})
	})
	if err != nil {
		return err
	}
	s.Put(found...)
	return nil
}

// ReadKeys reads what keys cover and nothing else: an object at a time, or a
// whole link or table where the key is that of one.
func (h *Handle) ReadKeys(keys kernel.Keys) (kernel.State, error) {
	s := kernel.State{}
	found := map[string]link{} // by name; index 0: there is none
	named := func(name string) (link, error) {
		if l, ok := found[name]; ok {
			return l, nil
		}
		l, err := h.link(name)
		if errors.Is(err, unix.ENODEV) {
			err = nil
		}
		found[name] = l
		return l, err
	}
	for k := range keys {
		var err error
		switch k.Kind {
		case kernel.KindSysctl:
			err = h.readSysctls(s, []string{k.Name})
		case kernel.KindRules:
			err = h.readTable(s, k.Name)
		case kernel.KindElement:
			if !keys.Covers(kernel.Key{Kind: kernel.KindRules, Name: k.Table()}) {
				err = h.readElement(s, k)
			}
		case kernel.KindLink, kernel.KindAddr, kernel.KindFDB, kernel.KindNeigh, kernel.KindRoute:
			var l link
			if l, err = named(k.Name); err == nil && l.index != 0 {
				err = h.readKey(s, l, k)
			}
		}
		if err != nil {
			return nil, err
		}
	}
	return s, nil
}

// readKey reads the object at k, which is l or on l.
func (h *Handle) readKey(s kernel.State, l link, k kernel.Key) error {
	var r request
	switch k.Kind {
	case kernel.KindLink:
		s.Put(l.object())
		return h.readOn(s, l)
	case kernel.KindAddr:
		part := kernel.State{}
		if err := h.readOn(part, l); err != nil {
			return err
		}
		s.Merge(part.Only(kernel.Keys{k: {}}))
		return nil
	case kernel.KindFDB:
		r = request{typ: unix.RTM_GETNEIGH, body: attr(ndmsg(unix.AF_BRIDGE, l.index, 0, unix.NTF_SELF), unix.NDA_LLADDR, k.MAC[:])}
	case kernel.KindNeigh:
		r = request{typ: unix.RTM_GETNEIGH, body: attrAddr(ndmsg(family(k.Dst.Addr()), l.index, 0, 0), unix.NDA_DST, k.Dst.Addr())}
	case kernel.KindRoute:
		return h.readRoute(s, l, k)
	case kernel.KindSysctl, kernel.KindRules, kernel.KindElement:
		return fmt.Errorf("%s is not on a link", k)
	}
	b, err := h.conn.get(r)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.EOPNOTSUPP) && l.kind != "vxlan":
		return nil
	case err != nil:
		return fmt.Errorf("read %s: %w", k, err)
	}
	if o, _ := decodeNeigh(b, l.name); o != nil {
		s.Put(o)
	}
	return nil
}

// readRoute reads the route for exactly k's destination by looking its first
// address up (RTM_F_FIB_MATCH). Where a longer or other route answers, the
// one asked for is taken to be absent: putting it again does no harm.
func (h *Handle) readRoute(s kernel.State, l link, k kernel.Key) error {
	dst := k.Dst.Addr()
	flags := uint32(unix.RTM_F_FIB_MATCH)
	if dst.Is4() {
		flags |= unix.RTM_F_LOOKUP_TABLE // IPv6 always tells the true table
	}
	body := rtmsg(family(dst), dst.BitLen(), 0, 0, flags)
	body[4], body[7] = 0, 0
	b, err := h.conn.get(request{typ: unix.RTM_GETROUTE, body: attrAddr(body, unix.RTA_DST, dst)})
	switch {
	case errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.EACCES), errors.Is(err, unix.EINVAL):
		return nil // none, or unreachable, prohibit, blackhole
	case err != nil:
		return fmt.Errorf("read %s: %w", k, err)
	}
	if r, index, ok := decodeRoute(b); ok && index == l.index {
		if r.Link = l.name; r.Key() == k {
			s.Put(r)
		}
	}
	return nil
}

// readSysctls puts those sysctls that exist.
func (h *Handle) readSysctls(s kernel.State, names []string) error {
	for _, name := range names {
		b, err := os.ReadFile(filepath.Join(h.sysctls, name))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("read sysctl %s: %w", name, err)
		}
		s.Put(kernel.Sysctl{Name: name, Value: strings.TrimSpace(string(b))})
	}
	return nil
}

// HostAddr is an address of the node, with what the choice of an underlay
// needs to know of its interface.
type HostAddr struct {
	Prefix   netip.Prefix // the address with its subnet's length
	Link     string
	Up       bool
	MTU      int // bytes
	AcceptRA bool
}

// HostAddrs lists the node's unicast addresses on interfaces that aren't
// ours, in the kernel's order.
func (h *Handle) HostAddrs(own Names) ([]HostAddr, error) {
	all, err := h.links()
	if err != nil {
		return nil, err
	}
	for index, l := range all {
		for _, name := range own.Links {
			if l.name == name || isPodLink(l.name) {
				delete(all, index)
			}
		}
	}
	var found []HostAddr
	for _, fam := range []uint8{unix.AF_INET, unix.AF_INET6} {
		start := len(found)
		err := retryDump(func() error {
			found = found[:start]
			return h.conn.dump(request{typ: unix.RTM_GETADDR, body: binaryIndex([]byte{fam, 0, 0, 0}, 0)}, func(b []byte) {
				a, index, ok := decodeAddr(b, "")
				if l, known := all[index]; ok && known && a.Prefix.Addr().IsGlobalUnicast() {
					found = append(found, HostAddr{Prefix: a.Prefix, Link: l.name, Up: l.up, MTU: l.mtu})
				}
			})
		})
		if err != nil {
			return nil, fmt.Errorf("list addresses: %w", err)
		}
	}
	for i := range found {
		found[i].AcceptRA = found[i].Prefix.Addr().Is6() && h.acceptsRA(found[i].Link)
	}
	return found, nil
}

// acceptsRA reports whether router advertisements on the link have an effect
// (accept_ra 1 has none once forwarding is on: ip-sysctl.rst).
func (h *Handle) acceptsRA(link string) bool {
	accept, err := os.ReadFile(filepath.Join(h.sysctls, "net/ipv6/conf", link, "accept_ra"))
	if err != nil {
		return false
	}
	forwarding, err := os.ReadFile(filepath.Join(h.sysctls, "net/ipv6/conf/all/forwarding"))
	if err != nil {
		return false
	}
	switch strings.TrimSpace(string(accept)) {
	case "2":
		return true
	case "1":
		return strings.TrimSpace(string(forwarding)) == "0"
	}
	return false
}
