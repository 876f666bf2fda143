package rtnl

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/rtmsg"
)

// watchBuffer is a socket buffer that holds the events of some 10,000
// entries: those of a whole node's set-up.
const watchBuffer = 8 << 20

// Watch sends an event for everything that changes on our links, in our
// table, in our routes and sysctls, and, marked as such, for changes of other
// interfaces and addresses. It subscribes before it returns, so a Read that
// follows misses nothing. The channel closes when ctx ends or a socket fails;
// dropped events are told by Event.Lost. The receiver should keep up: events
// wait in the socket meanwhile.
func (h *Handle) Watch(ctx context.Context, names Names) (<-chan kernel.Event, error) {
	route, err := subscribe(unix.NETLINK_ROUTE,
		unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
		unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV4_NETCONF, unix.RTNLGRP_IPV6_NETCONF,
		unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE, unix.RTNLGRP_BRVLAN)
	if err != nil {
		return nil, fmt.Errorf("watch rtnetlink: %w", err)
	}
	nft, err := subscribe(unix.NETLINK_NETFILTER, unix.NFNLGRP_NFTABLES)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("watch nf_tables: %w", err), route.Close())
	}
	w := &watcher{
		names: names, links: map[int]string{}, others: map[int]string{}, checked: map[int]bool{}, filtering: map[int]bool{},
		elements: map[elementChange][]nftables.SetElement{},
		events:   make(chan kernel.Event, 64), ctx: ctx,
	}
	all, err := h.links()
	if err != nil {
		return nil, errors.Join(err, route.Close(), nft.Close())
	}
	for _, l := range all {
		w.note(l)
	}
	ctx, cancel := context.WithCancel(ctx)
	context.AfterFunc(ctx, func() { _ = route.Close(); _ = nft.Close() })
	nftDone := make(chan struct{})
	go func() {
		defer close(nftDone)
		defer cancel()
		receive(nft, w.tables, w.nftMessage)
	}()
	go func() {
		defer close(w.events)
		defer func() { <-nftDone }()
		defer cancel()
		receive(route, func() { w.send(kernel.Event{Lost: true}) }, w.routeMessage)
	}()
	return w.events, nil
}

// watcher turns netlink messages into events. Only the rtnetlink receiver
// touches links and others.
type watcher struct {
	names  Names
	links  map[int]string // ours and pods', by index
	others map[int]string
	// checked are those whose check of sources is a setting of ours: pods' and
	// WireGuard devices.
	checked map[int]bool
	// filtering are bridges of ours with VLAN filtering.
	filtering map[int]bool
	// elements are those that the transaction told of so far has put into sets,
	// or taken out. Only the nf_tables receiver touches them.
	elements map[elementChange][]nftables.SetElement
	events   chan kernel.Event
	ctx      context.Context //nolint:containedctx // of one Watch call
}

func (w *watcher) send(e kernel.Event) {
	select {
	case w.events <- e:
	case <-w.ctx.Done():
	}
}

// tables tells that any of the tables may have changed.
func (w *watcher) tables() {
	for _, table := range w.names.Tables {
		w.send(kernel.Event{Key: kernel.Key{Kind: kernel.KindRules, Name: table}})
	}
}

func (w *watcher) routeMessage(h unix.NlMsghdr, b []byte) {
	switch h.Type {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		w.linkMessage(h.Type == unix.RTM_DELLINK, b)
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		a, index, ok := decodeAddr(b, "")
		name, known := w.links[index]
		switch {
		case !ok:
		case !known:
			w.send(kernel.Event{Underlay: true})
		case isPodLink(name):
		case h.Type == unix.RTM_DELADDR:
			// Routes with this source go as well, before Linux 6.6 in silence.
			w.send(kernel.Event{Key: kernel.Key{Kind: kernel.KindLink, Name: name}})
		default:
			a.Link = name
			w.object(a, false)
		}
	case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
		if len(b) < unix.SizeofNdMsg {
			return
		}
		name, known := w.links[int(binary.NativeEndian.Uint32(b[4:]))]
		if o, _ := decodeNeigh(b, name); known && o != nil && !inNoVLAN(o, w.filtering[masterOf(b)]) {
			w.object(o, h.Type == unix.RTM_DELNEIGH)
		}
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		o := decodeRoute(b, func(r kernel.Route, index int) (string, bool) {
			name, known := w.links[index]
			if !known && r.Detail == "" { // our protocol: a direct route
				name, known = w.others[index]
			}
			return name, known
		})
		if o != nil {
			w.object(o, h.Type == unix.RTM_DELROUTE)
		}
	case unix.RTM_NEWRULE, unix.RTM_DELRULE:
		if r, ok := decodeRule(b); ok {
			w.object(r, h.Type == unix.RTM_DELRULE)
		}
	case unix.RTM_NEWVLAN, unix.RTM_DELVLAN:
		w.vlanMessage(rtmsg.VLANPort(b))
	case unix.RTM_NEWNETCONF:
		w.netconfMessage(b)
	}
}

// Of linux/netconf.h: the attribute with an interface's index, and the index
// that stands for all of them.
const (
	netconfIndex = 1
	netconfAll   = -1
)

// netconfMessage looks at whose setting changed: that of all interfaces (what
// the node forwards and checks) or that of a link of ours or a pod's.
func (w *watcher) netconfMessage(b []byte) {
	const header = 4 // struct netconfmsg with padding
	if len(b) < header {
		return
	}
	for typ, v := range rtmsg.Attrs(b[header:]) {
		if typ != netconfIndex {
			continue
		}
		index := int(int32(u32(v)))
		if name := w.links[index]; w.checked[index] {
			w.send(kernel.Event{Key: kernel.Key{Kind: kernel.KindLink, Name: name}})
		}
		if index != netconfAll {
			continue
		}
		for _, name := range w.names.Sysctls {
			w.send(kernel.Event{Key: kernel.Key{Kind: kernel.KindSysctl, Name: name}})
		}
		w.send(kernel.Event{Underlay: true})
	}
}

func (w *watcher) linkMessage(gone bool, b []byte) {
	l, ok := decodeLink(b)
	switch {
	case !ok:
		return
	case b[0] == unix.AF_BRIDGE && isPodLink(l.name): // as a bridge's port
		w.send(kernel.Event{Key: kernel.Key{Kind: kernel.KindPort, Name: l.name}})
		return
	case b[0] == unix.AF_BRIDGE:
		if w.names.hasLink(l.name) { // what it is as a port isn't in the message
			w.send(kernel.Event{Key: kernel.Key{Kind: kernel.KindLink, Name: l.name}})
		}
		return
	}
	old, known := w.links[l.index]
	ours := w.names.hasLink(l.name)
	delete(w.links, l.index)
	delete(w.others, l.index)
	delete(w.checked, l.index)
	delete(w.filtering, l.index)
	if !gone {
		w.note(l)
	}
	switch {
	case ours && gone:
		w.object(kernel.ForeignLink{Name: l.name}, true)
	case ours && (isWireGuard(l) || w.filtering[l.master]): // half of it isn't in the message
		w.send(kernel.Event{Key: kernel.Key{Kind: kernel.KindLink, Name: l.name}})
	case ours:
		w.object(l.object(w.nameOf), false)
	case known && old != l.name && !isPodLink(old): // renamed away
		w.object(kernel.ForeignLink{Name: old}, true)
	case !isPodLink(l.name):
		w.send(kernel.Event{Underlay: true})
	}
}

// note keeps what a link is.
func (w *watcher) note(l link) {
	ours := w.names.hasLink(l.name)
	w.checked[l.index] = isPodLink(l.name) || ours && isWireGuard(l)
	w.filtering[l.index] = ours && l.bridge.filtering
	if ours || isPodLink(l.name) {
		w.links[l.index] = l.name
	} else {
		w.others[l.index] = l.name
	}
}

// nameOf names a link that has been noted.
func (w *watcher) nameOf(index int) string { return cmp.Or(w.links[index], w.others[index]) }

func (w *watcher) object(o kernel.Object, gone bool) {
	e := kernel.Event{Key: o.Key()}
	if !w.names.hasFIB(e.Key) {
		return
	}
	if !gone {
		e.Object = o
	}
	w.send(e)
}

// subscribe opens a socket that the runtime's poller waits on.
func subscribe(protocol int, groups ...int) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	f := os.NewFile(uintptr(fd), "netlink")
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, watchBuffer) != nil {
		// Without CAP_NET_ADMIN in the first user namespace: what is allowed.
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, watchBuffer); err != nil {
			return nil, errors.Join(os.NewSyscallError("setsockopt", err), f.Close())
		}
	}
	// Unbound, a socket has the port number that broadcasts leave out.
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, errors.Join(os.NewSyscallError("bind", err), f.Close())
	}
	for _, g := range groups {
		if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, g); err != nil {
			return nil, errors.Join(os.NewSyscallError("setsockopt", err), f.Close())
		}
	}
	return f, nil
}

// receive calls each for every message until the socket closes or fails, and
// lost where the kernel dropped some.
func receive(f *os.File, lost func(), each func(unix.NlMsghdr, []byte)) {
	buf := make([]byte, 64<<10)
	for {
		n, err := f.Read(buf)
		switch {
		case errors.Is(err, unix.ENOBUFS):
			lost()
		case err != nil:
			return
		default:
			err := rtmsg.Messages(buf[:n], func(h unix.NlMsghdr, b []byte) error { each(h, b); return nil })
			if err != nil {
				lost()
			}
		}
	}
}
