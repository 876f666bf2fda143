// Package rtnl reads a kernel.State from the kernel and applies operations to
// it: rtnetlink for links, addresses, neighbours, FDB entries and routes,
// nf_tables netlink for the table, /proc/sys for sysctls. With the plugin's
// veth calls it is the only code that talks to the kernel about networking.
//
// Open and all calls belong in one network namespace: the process's, or that
// of a locked thread.
package rtnl

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/netconf"
	"github.com/weft-cni/weft/pkg/rtmsg"
)

// Names says which objects are ours by name: Read finds all that is on these
// links and in these tables.
//
// A link's name that ends in an asterisk stands for all that begin so.
type Names struct {
	Links   []string
	Tables  []string // family and name: "inet weft"
	Sysctls []string
}

// NamesOf gives the names that a state uses.
func NamesOf(s kernel.State) Names {
	var n Names
	for k := range s {
		switch k.Kind {
		case kernel.KindLink:
			n.Links = append(n.Links, k.Name)
		case kernel.KindRules:
			n.Tables = append(n.Tables, k.Name)
		case kernel.KindSysctl:
			n.Sysctls = append(n.Sysctls, k.Name)
		case kernel.KindElement, kernel.KindPort, kernel.KindAddr, kernel.KindFDB, kernel.KindStation, kernel.KindNeigh, kernel.KindPeer, kernel.KindRoute, kernel.KindRule:
		}
	}
	return n
}

// hasLink reports whether a link is ours by name.
func (n Names) hasLink(name string) bool {
	return slices.ContainsFunc(n.Links, func(own string) bool {
		start, isStart := strings.CutSuffix(own, "*")
		return own == name || isStart && strings.HasPrefix(name, start)
	})
}

// hasFIB reports whether a routing rule or a route, if it is one, is ours:
// segments' gateways have theirs with the bridges.
func (n Names) hasFIB(k kernel.Key) bool {
	isFIB := k.Kind == kernel.KindRoute || k.Kind == kernel.KindRule
	return !isFIB || !kernel.OfGateway(k.FIB) || n.hasLink(netconf.BridgeStart)
}

// Handle talks to one network namespace. Safe for concurrent use, but two
// concurrent Apply calls may interleave.
type Handle struct {
	conn *rtmsg.Conn
	nft  *rtmsg.Conn // to nf_tables
	// sysctls is the root of the sysctl tree.
	sysctls string
}

// ProcSys is where the kernel shows its sysctls.
const ProcSys = "/proc/sys"

// Open makes a Handle for the calling thread's network namespace.
func Open() (*Handle, error) { return OpenAt(ProcSys) }

// OpenAt is Open with the sysctls in another place than ProcSys, which is
// read-only in a container.
func OpenAt(procSys string) (*Handle, error) {
	c, err := rtmsg.Dial()
	if err != nil {
		return nil, fmt.Errorf("open rtnetlink: %w", err)
	}
	nft, err := rtmsg.DialProtocol(unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open nf_tables: %w", err), c.Close())
	}
	return &Handle{conn: c, nft: nft, sysctls: procSys}, nil
}

// Close frees the sockets.
func (h *Handle) Close() error { return errors.Join(h.conn.Close(), h.nft.Close()) }

// isPodLink reports whether the plugin made this link: the host end of a
// pod's veth, which Read leaves to the plugin.
func isPodLink(name string) bool { return strings.HasPrefix(name, netconf.LinkStart) }

// links lists all interfaces by index.
func (h *Handle) links() (map[int]link, error) {
	all := map[int]link{}
	err := retryDump(func() error {
		clear(all)
		return h.conn.Dump(rtmsg.Request{Type: unix.RTM_GETLINK, Body: rtmsg.Link(0, 0, 0)}, func(b []byte) {
			if l, ok := decodeLink(b); ok {
				all[l.index] = l
			}
		})
	})
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	return all, nil
}

// link finds an interface by name; errors.Is unix.ENODEV when there is none.
func (h *Handle) link(name string) (link, error) {
	b, err := h.conn.Get(rtmsg.Request{Type: unix.RTM_GETLINK, Body: rtmsg.AttrString(rtmsg.Link(0, 0, 0), unix.IFLA_IFNAME, name)})
	if err != nil {
		return link{}, fmt.Errorf("link %s: %w", name, err)
	}
	l, ok := decodeLink(b)
	if !ok {
		return link{}, fmt.Errorf("link %s: unreadable answer", name)
	}
	return l, nil
}

// HasLink reports whether there is a link of that name.
func (h *Handle) HasLink(name string) (bool, error) {
	_, err := h.conn.Index(name)
	if errors.Is(err, unix.ENODEV) {
		return false, nil
	}
	return err == nil, err
}

// dumpAttempts is how often an interrupted dump is begun again before Read
// gives up; whoever changes the kernel without pause is stronger than we are.
const dumpAttempts = 5

func retryDump(dump func() error) (err error) {
	for range dumpAttempts {
		if err = dump(); !errors.Is(err, rtmsg.ErrInterrupted) {
			return err
		}
	}
	return err
}

// PodLinks lists the names of the host ends of pods' veths.
func (h *Handle) PodLinks() ([]string, error) {
	all, err := h.links()
	if err != nil {
		return nil, err
	}
	var names []string
	for _, l := range all {
		if isPodLink(l.name) {
			names = append(names, l.name)
		}
	}
	return names, nil
}
