package rtnl

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/rtmsg"
)

// Read gives all that is ours: the named links with every address,
// neighbour, FDB entry and route on them, whoever made it; the routes of our
// protocol on any link but pods' own; the table; and the named sysctls.
// errors.Is rtmsg.ErrInterrupted when the kernel changed too fast to be read.
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
		if !names.hasLink(l.name) {
			continue
		}
		if err = h.readLink(s, l); err != nil {
			return nil, err
		}
	}
	if err = h.readRules(s); err != nil {
		return nil, err
	}
	err = h.readRoutes(s, rtmsgFilter{proto: kernel.RouteProtocol}, func(_ kernel.Route, index int) (string, bool) {
		name := all[index].name
		return name, name != "" && !isPodLink(name)
	})
	maps.DeleteFunc(s, func(k kernel.Key, _ kernel.Object) bool { return !names.hasFIB(k) })
	return s, err
}

// readLink reads a link with all that is on it.
func (h *Handle) readLink(s kernel.State, l link) error {
	if isWireGuard(l) {
		if err := h.readWireGuard(s, l); err != nil {
			return err
		}
		return h.readOn(s, l)
	}
	master := h.linkAt(l.master)
	if err := h.readVLANs(&l, master); err != nil {
		return err
	}
	o := l.object(func(index int) string {
		if index == l.master {
			return master.name
		}
		return h.nameOf(index)
	})
	if v, ok := o.(kernel.VXLAN); ok && v.Bridge == "" && v.Detail == "" {
		v.Detail = h.strict(l.name)
		o = v
	}
	s.Put(o)
	return h.readOn(s, l)
}

// readOn reads all that is on one link.
func (h *Handle) readOn(s kernel.State, l link) error {
	for _, fam := range []uint8{unix.AF_INET, unix.AF_INET6} {
		filter := rtmsg.Addr(fam, 0, l.index)
		err := h.collect(s, rtmsg.Request{Type: unix.RTM_GETADDR, Body: filter}, func(b []byte) kernel.Object {
			if a, index, ok := decodeAddr(b, l.name); ok && index == l.index {
				return a
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("read addresses of %s: %w", l.name, err)
		}
		neighs := rtmsg.AttrUint32(rtmsg.Neigh(fam, 0, 0, 0), unix.NDA_IFINDEX, uint32(l.index))
		if err := h.collect(s, rtmsg.Request{Type: unix.RTM_GETNEIGH, Body: neighs}, neighOn(l)); err != nil {
			return fmt.Errorf("read neighbours of %s: %w", l.name, err)
		}
	}
	if err := h.readFDB(s, l); err != nil {
		return err
	}
	return h.readRoutes(s, rtmsgFilter{index: l.index}, func(_ kernel.Route, index int) (string, bool) {
		return l.name, index == l.index
	})
}

// readFDB reads a VXLAN device's FDB and, where it or another tunnel's device is
// a bridge's port, what that bridge has behind it.
func (h *Handle) readFDB(s kernel.State, l link) error {
	if l.kind != "vxlan" && !l.isTunnel() {
		return nil
	}
	fdb := rtmsg.Neigh(unix.AF_BRIDGE, l.index, 0, 0)
	if err := h.collect(s, rtmsg.Request{Type: unix.RTM_GETNEIGH, Body: fdb}, neighOn(l)); err != nil {
		return fmt.Errorf("read FDB of %s: %w", l.name, err)
	}
	return nil
}

func neighOn(l link) func([]byte) kernel.Object {
	return func(b []byte) kernel.Object {
		if o, index := decodeNeigh(b, l.name); index == l.index && !inNoVLAN(o, l.filtered) {
			return o
		}
		return nil
	}
}

// rtmsgFilter is what the kernel filters a route dump by; zero is any.
type rtmsgFilter struct {
	proto uint8
	index int
	table uint32
}

func (h *Handle) readRoutes(s kernel.State, f rtmsgFilter, nameOf func(kernel.Route, int) (string, bool)) error {
	for _, fam := range []uint8{unix.AF_INET, unix.AF_INET6} {
		body := rtmsg.Route(fam, 0, f.proto, 0, 0)
		body[7] = unix.RTN_UNSPEC // any type
		if f.index != 0 {
			body = rtmsg.AttrUint32(body, unix.RTA_OIF, uint32(f.index))
		}
		body = rtmsg.IntoTable(body, f.table)
		if f.table == 0 {
			body[4] = unix.RT_TABLE_UNSPEC
		}
		err := h.collect(s, rtmsg.Request{Type: unix.RTM_GETROUTE, Body: body}, func(b []byte) kernel.Object {
			return decodeRoute(b, nameOf)
		})
		if err != nil && !(f.table != 0 && errors.Is(err, unix.ENOENT)) { // no such table
			return fmt.Errorf("read routes: %w", err)
		}
	}
	return nil
}

// collect puts the objects of a dump into s, all or none.
func (h *Handle) collect(s kernel.State, r rtmsg.Request, decode func([]byte) kernel.Object) error {
	var found []kernel.Object
	err := retryDump(func() error {
		found = found[:0]
		return h.conn.Dump(r, func(b []byte) {
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
// whole link or table where the key is that of one. What the kernel gives only
// all together (kernel.Key's Together) is read once, and kept where keys cover
// it.
func (h *Handle) ReadKeys(keys kernel.Keys) (kernel.State, error) {
	s := kernel.State{}
	r := keyReader{Handle: h, keys: keys, links: map[string]link{}, whole: map[kernel.Key]bool{}}
	for k := range keys {
		if isSource(k) {
			r.sources++
		}
	}
	for k := range keys {
		if err := r.read(s, k); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// keyReader is one call of ReadKeys.
type keyReader struct {
	*Handle
	keys  kernel.Keys
	links map[string]link     // by name; index 0: there is none
	whole map[kernel.Key]bool // what was read all together
	// sources is how many elements of sets of links keys has.
	sources int
}

func (r *keyReader) read(s kernel.State, k kernel.Key) error {
	switch k.Kind {
	case kernel.KindSysctl:
		return r.readSysctls(s, []string{k.Name})
	case kernel.KindRules:
		return r.readTable(s, k.Name)
	case kernel.KindElement:
		if r.keys.Covers(kernel.Key{Kind: kernel.KindRules, Name: k.Table()}) {
			return nil
		}
		if isSource(k) && r.sources <= singly {
			return r.readSource(s, k)
		}
		return r.together(s, kernel.Key{Kind: kernel.KindElement, Name: k.Table()}, func(s kernel.State) error {
			return r.readTable(s, k.Table())
		})
	case kernel.KindRule:
		return r.together(s, kernel.Key{Kind: kernel.KindRule}, r.readRules)
	case kernel.KindLink, kernel.KindPort, kernel.KindAddr, kernel.KindFDB, kernel.KindStation, kernel.KindNeigh, kernel.KindPeer, kernel.KindRoute:
	}
	if k.FIB != 0 || k.Name == "" {
		return r.together(s, kernel.Key{Kind: kernel.KindRoute, FIB: k.FIB}, func(s kernel.State) error { return r.readFIB(s, k.FIB) })
	}
	l, err := r.named(k.Link())
	if err != nil || l.index == 0 {
		return err
	}
	if k.Kind == kernel.KindPeer {
		if !isWireGuard(l) {
			return nil
		}
		return r.together(s, kernel.Key{Kind: kernel.KindPeer, Name: l.name}, func(s kernel.State) error {
			return r.readWireGuard(s, l)
		})
	}
	if k.Kind == kernel.KindFDB && k.Dst.IsValid() { // one of several with a MAC
		return r.together(s, kernel.Key{Kind: kernel.KindFDB, Name: l.name}, func(s kernel.State) error {
			return r.readFDB(s, l)
		})
	}
	return r.readKey(s, l, k)
}

// together reads what can't be read one by one, once, and keeps what is asked
// for.
func (r *keyReader) together(s kernel.State, what kernel.Key, read func(kernel.State) error) error {
	if r.whole[what] {
		return nil
	}
	r.whole[what] = true
	all := kernel.State{}
	if err := read(all); err != nil {
		return err
	}
	s.Merge(all.Only(r.keys))
	return nil
}

func (r *keyReader) named(name string) (link, error) {
	if l, ok := r.links[name]; ok {
		return l, nil
	}
	l, err := r.link(name)
	if errors.Is(err, unix.ENODEV) {
		err = nil
	}
	r.links[name] = l
	return l, err
}

// readFIB reads our routes of a table, 0 for the main one, on those links that
// keys are about, and the unreachable ones.
func (r *keyReader) readFIB(s kernel.State, table uint32) error {
	names := map[int]string{}
	for k := range r.keys {
		if k.Kind != kernel.KindRoute || k.FIB != table || k.Name == "" {
			continue
		}
		l, err := r.named(k.Name)
		if err != nil {
			return err
		}
		names[l.index] = l.name
	}
	return r.readRoutes(s, rtmsgFilter{proto: kernel.RouteProtocol, table: table}, func(_ kernel.Route, index int) (string, bool) {
		name, ok := names[index]
		return name, ok && index != 0
	})
}

// readKey reads the object at k, which is l or on l.
func (h *Handle) readKey(s kernel.State, l link, k kernel.Key) error {
	var r rtmsg.Request
	switch k.Kind {
	case kernel.KindLink:
		return h.readLink(s, l)
	case kernel.KindPort:
		return h.readPort(s, l)
	case kernel.KindStation:
		return h.readStation(s, l, k)
	case kernel.KindAddr:
		part := kernel.State{}
		if err := h.readOn(part, l); err != nil {
			return err
		}
		s.Merge(part.Only(kernel.Keys{k: {}}))
		return nil
	case kernel.KindFDB:
		r = rtmsg.Request{Type: unix.RTM_GETNEIGH, Body: rtmsg.Attr(rtmsg.Neigh(unix.AF_BRIDGE, l.index, 0, unix.NTF_SELF), unix.NDA_LLADDR, k.MAC[:])}
	case kernel.KindNeigh:
		r = rtmsg.Request{Type: unix.RTM_GETNEIGH, Body: rtmsg.AttrAddr(rtmsg.Neigh(rtmsg.Family(k.Dst.Addr()), l.index, 0, 0), unix.NDA_DST, k.Dst.Addr())}
	case kernel.KindRoute:
		return h.readRoute(s, l, k)
	case kernel.KindSysctl, kernel.KindRules, kernel.KindElement, kernel.KindPeer, kernel.KindRule:
		return fmt.Errorf("%s is not read by itself", k)
	}
	b, err := h.conn.Get(r)
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
	body := rtmsg.Route(rtmsg.Family(dst), dst.BitLen(), 0, 0, flags)
	body[4], body[7] = 0, 0
	b, err := h.conn.Get(rtmsg.Request{Type: unix.RTM_GETROUTE, Body: rtmsg.AttrAddr(body, unix.RTA_DST, dst)})
	switch {
	case errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.EACCES), errors.Is(err, unix.EINVAL):
		return nil // none, or unreachable, prohibit, blackhole
	case err != nil:
		return fmt.Errorf("read %s: %w", k, err)
	}
	o := decodeRoute(b, func(_ kernel.Route, index int) (string, bool) { return l.name, index == l.index && index != 0 })
	if o != nil && o.Key() == k {
		s.Put(o)
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
		if own.hasLink(l.name) || isPodLink(l.name) {
			delete(all, index)
		}
	}
	var found []HostAddr
	for _, fam := range []uint8{unix.AF_INET, unix.AF_INET6} {
		start := len(found)
		err := retryDump(func() error {
			found = found[:start]
			return h.conn.Dump(rtmsg.Request{Type: unix.RTM_GETADDR, Body: rtmsg.Addr(fam, 0, 0)}, func(b []byte) {
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
