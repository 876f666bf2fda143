package rtnl

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/kernel"
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
		unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV4_NETCONF, unix.RTNLGRP_IPV6_NETCONF)
	if err != nil {
		return nil, fmt.Errorf("watch rtnetlink: %w", err)
	}
	nft, err := subscribe(unix.NETLINK_NETFILTER, unix.NFNLGRP_NFTABLES)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("watch nf_tables: %w", err), route.Close())
	}
	w := &watcher{
		names: names, links: map[int]string{}, others: map[int]string{},
		events: make(chan kernel.Event, 64), ctx: ctx,
	}
	all, err := h.links()
	if err != nil {
		return nil, errors.Join(err, route.Close(), nft.Close())
	}
	for index, l := range all {
		w.note(index, l.name)
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
	events chan kernel.Event
	ctx    context.Context //nolint:containedctx // of one Watch call
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
		if o, _ := decodeNeigh(b, name); known && o != nil {
			w.object(o, h.Type == unix.RTM_DELNEIGH)
		}
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		if r, index, ok := decodeRoute(b); ok {
			name, known := w.links[index]
			if !known && r.Detail == "" { // our protocol: a direct route
				name, known = w.others[index]
			}
			if r.Link = name; known {
				w.object(r, h.Type == unix.RTM_DELROUTE)
			}
		}
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
// the node forwards and checks) or that of a pod's.
func (w *watcher) netconfMessage(b []byte) {
	const header = 4 // struct netconfmsg with padding
	if len(b) < header {
		return
	}
	for typ, v := range attrs(b[header:]) {
		if typ != netconfIndex {
			continue
		}
		index := int(int32(u32(v)))
		if name := w.links[index]; isPodLink(name) {
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
	if !ok || b[0] == unix.AF_BRIDGE {
		return
	}
	old, known := w.links[l.index]
	ours := slices.Contains(w.names.Links, l.name)
	delete(w.links, l.index)
	delete(w.others, l.index)
	if !gone {
		w.note(l.index, l.name)
	}
	switch {
	case ours && gone:
		w.object(kernel.ForeignLink{Name: l.name}, true)
	case ours:
		w.object(l.object(), false)
	case known && old != l.name && !isPodLink(old): // renamed away
		w.object(kernel.ForeignLink{Name: old}, true)
	case !isPodLink(l.name):
		w.send(kernel.Event{Underlay: true})
	}
}

// note keeps a link's name.
func (w *watcher) note(index int, name string) {
	if isPodLink(name) || slices.Contains(w.names.Links, name) {
		w.links[index] = name
	} else {
		w.others[index] = name
	}
}

func (w *watcher) object(o kernel.Object, gone bool) {
	e := kernel.Event{Key: o.Key()}
	if !gone {
		e.Object = o
	}
	w.send(e)
}

// nftMessage looks at the table's name, which is attribute 1 of all messages
// that have one (NFTA_TABLE_NAME, NFTA_CHAIN_TABLE, NFTA_RULE_TABLE, ...).
func (w *watcher) nftMessage(h unix.NlMsghdr, b []byte) {
	const header = 4 // struct nfgenmsg
	if h.Type>>8 != unix.NFNL_SUBSYS_NFTABLES || h.Type&0xff == unix.NFT_MSG_NEWGEN || len(b) < header {
		return
	}
	for typ, v := range attrs(b[header:]) {
		if typ != 1 {
			continue
		}
		for name, family := range families {
			if table := name + " " + cString(v); byte(family) == b[0] && slices.Contains(w.names.Tables, table) {
				w.send(kernel.Event{Key: kernel.Key{Kind: kernel.KindRules, Name: table}})
			}
		}
	}
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
			err := messages(buf[:n], func(h unix.NlMsghdr, b []byte) error { each(h, b); return nil })
			if err != nil {
				lost()
			}
		}
	}
}
