package veth

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/netconf"
	"github.com/weft-cni/weft/pkg/podns"
	"github.com/weft-cni/weft/pkg/rtmsg"
)

// Remove deletes the pair with the host end hostLink, and with it all
// addresses, routes and neighbours on either end. It does nothing where there
// is no such link, and it returns when the link is gone from both namespaces.
func (n *Node) Remove(hostLink string) error { return remove(n.h, hostLink) }

func remove(host *netlink.Handle, name string) error {
	link, err := host.LinkByName(name)
	if isNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("link %s: %w", name, err)
	}
	if link.Type() != "veth" {
		return fmt.Errorf("link %s is a %s link, not Weft's", name, link.Type())
	}
	if err := host.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
		return &KernelError{Object: "delete link " + name, Err: err}
	}
	return nil
}

// RemoveRules deletes the routing rules that a pair of addrs without a
// default route has in the pod. They are the only part of a pair that doesn't
// go with its links.
func RemoveRules(pod *podns.NS, addrs []netip.Addr) error {
	conn, err := dialIn(pod)
	if err != nil {
		return err
	}
	defer conn.Close()
	var requests []rtmsg.Request
	for _, a := range addrs {
		requests = append(requests, Rule{From: a}.request(true))
	}
	var errs []error
	for i, err := range conn.Execute(requests) {
		if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EAFNOSUPPORT) {
			errs = append(errs, &KernelError{Object: fmt.Sprintf("delete rule from %s", addrs[i]), Err: err})
		}
	}
	return errors.Join(errs...)
}

// HostEnd is the host end of a pair, as List finds it.
type HostEnd struct {
	Name    string
	Network string // that its alias names; empty where it has none
}

// listTries is how often links are listed where others change them meanwhile.
const listTries = 5

// List gives the host ends of all pairs on the node. A dump that is interrupted
// again and again is an error: what it shows may lack links.
func (n *Node) List() ([]HostEnd, error) {
	links, err := n.h.LinkList()
	for try := 1; errors.Is(err, netlink.ErrDumpInterrupted) && try < listTries; try++ {
		links, err = n.h.LinkList()
	}
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	var ends []HostEnd
	for _, l := range links {
		a := l.Attrs()
		if l.Type() != "veth" || !strings.HasPrefix(a.Name, netconf.LinkStart) || len(a.Name) != hostLinkLen {
			continue
		}
		network, _ := aliasNetwork(a.Alias)
		ends = append(ends, HostEnd{Name: a.Name, Network: network})
	}
	return ends, nil
}
