package veth

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/kernel"
)

// ErrExists says that a link of one of the pair's names is there already.
var ErrExists = errors.New("link exists")

// KernelError is an object that the kernel refused.
type KernelError struct {
	Object string // in the words of ip(8)
	Err    error  // mostly a syscall.Errno
}

func (e *KernelError) Error() string { return e.Object + ": " + e.Err.Error() }

func (e *KernelError) Unwrap() error { return e.Err }

// InUseError is a host route to one of a pair's addresses that leads
// elsewhere.
type InUseError struct {
	Addr netip.Addr
	Link string // where it leads; empty for an unreachable, prohibit or blackhole route
}

func (e *InUseError) Error() string {
	if e.Link == "" {
		return fmt.Sprintf("address %s: a route to it leads nowhere", e.Addr)
	}
	return fmt.Sprintf("address %s: a route to it leads to link %s", e.Addr, e.Link)
}

// Create makes the pair between the node's network namespace and pod, with
// all that Host and Pod say. After an error nothing of it is left, unless the
// error says that too.
//
// The error is ErrExists where one of the names is taken, an *InUseError
// where a route to one of the addresses is there, and else a *KernelError.
func (n *Node) Create(pod *Netns, p Pair) error {
	inPod, err := pod.handle()
	if err != nil {
		return err
	}
	defer inPod.Close()

	link, err := p.add(n.h, inPod, pod)
	if errors.Is(err, ErrExists) {
		return err
	}
	if err == nil {
		err = p.configure(
			&end{Handle: n.h, name: p.HostLink, link: link, do: func(f func() error) error { return f() }},
			&end{Handle: inPod, name: p.PodLink, do: pod.do},
		)
	}
	if err != nil {
		// Also where the message that makes the pair has failed: perhaps only
		// its answer was lost.
		if undo := p.undo(n.h, inPod); undo != nil {
			err = fmt.Errorf("%w; then, to remove the pair: %w", err, undo)
		}
	}
	return err
}

func (p Pair) undo(host, inPod *netlink.Handle) error {
	err := remove(host, p.HostLink)
	if !p.DefaultRoute {
		err = errors.Join(err, removeRules(inPod, p.Addrs))
	}
	return err
}

// add makes both ends in one message, each in its namespace, under its name,
// with its address and MTU, so that there is never half a pair. It returns the
// host end.
func (p Pair) add(host, inPod *netlink.Handle, pod *Netns) (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = p.HostLink
	attrs.HardwareAddr = hostMAC.HardwareAddr()
	attrs.MTU = p.MTU
	pair := netlink.NewVeth(attrs)
	pair.PeerName = p.PodLink
	pair.PeerNamespace = netlink.NsFd(pod.fd)
	pair.PeerHardwareAddr = p.MAC.HardwareAddr()
	pair.PeerMTU = uint32(p.MTU)
	err := host.LinkAdd(pair)
	if errors.Is(err, unix.EEXIST) {
		if _, notThere := inPod.LinkByName(p.PodLink); notThere == nil {
			return nil, fmt.Errorf("%s in %s: %w", p.PodLink, pod.path, ErrExists)
		}
		return nil, fmt.Errorf("%s: %w", p.HostLink, ErrExists)
	}
	if err == nil && pair.Index == 0 {
		err = errNoIndex
	}
	if err != nil {
		return nil, &KernelError{Object: fmt.Sprintf("veth pair of %s and %s", p.HostLink, p.PodLink), Err: err}
	}
	return pair, nil
}

// errNoIndex says that LinkAdd, which ignores this, didn't learn the index of
// what it made.
var errNoIndex = errors.New("its index can't be read")

// configure does what the kernel doesn't take with the message that makes the
// pair.
func (p Pair) configure(host, pod *end) error {
	if err := pod.find(); err != nil {
		return err
	}
	// The host end needs no address of its own: pods know it by its permanent
	// neighbour entry. Without IPv6 in the kernel there is nothing to set.
	err := host.LinkSetIP6AddrGenMode(host.link, addrGenModeNone)
	if err != nil && !errors.Is(err, unix.EAFNOSUPPORT) {
		return &KernelError{Object: "addrgenmode of " + host.name, Err: err}
	}
	if err := host.LinkSetAlias(host.link, p.Alias); err != nil {
		return &KernelError{Object: "alias of " + host.name, Err: err}
	}
	for _, e := range []*end{host, pod} {
		if err := e.LinkSetUp(e.link); err != nil {
			return &KernelError{Object: "link " + e.name + " up", Err: err}
		}
	}
	if err := pod.put(p.Pod()); err != nil {
		return fmt.Errorf("in the pod: %w", err)
	}
	return host.put(p.Host())
}

// addrGenModeNone is IN6_ADDR_GEN_MODE_NONE of linux/if_link.h: the kernel
// makes no link-local address.
const addrGenModeNone = 1

// end is one end of a pair in its namespace.
type end struct {
	*netlink.Handle
	name string
	link netlink.Link
	do   func(func() error) error // runs a function in the namespace
}

func (e *end) find() (err error) {
	if e.link, err = e.LinkByName(e.name); err != nil {
		return &KernelError{Object: "link " + e.name, Err: err}
	}
	return nil
}

// put makes all objects of s but the links.
func (e *end) put(s kernel.State) error {
	for _, k := range slices.SortedFunc(maps.Keys(s), kernel.Key.Compare) {
		if k.Kind == kernel.KindLink {
			continue
		}
		err := e.add(s[k])
		if err != nil && k.Dst.Addr().Is6() && e.enableIPv6() {
			err = e.add(s[k])
		}
		if inUse := (*InUseError)(nil); errors.As(err, &inUse) {
			return err
		}
		if err != nil {
			return &KernelError{Object: s[k].String(), Err: err}
		}
	}
	return nil
}

func (e *end) add(o kernel.Object) error {
	index := e.link.Attrs().Index
	switch o := o.(type) {
	case kernel.Sysctl:
		return e.do(func() error { return os.WriteFile("/proc/sys/"+o.Name, []byte(o.Value), 0) })
	case kernel.Addr:
		return e.AddrAdd(e.link, &netlink.Addr{IPNet: ipNet(o.Prefix), Flags: unix.IFA_F_NODAD})
	case kernel.Neigh:
		return e.NeighSet(&netlink.Neigh{
			LinkIndex: index, State: netlink.NUD_PERMANENT, IP: o.IP.AsSlice(), HardwareAddr: o.MAC.HardwareAddr(),
		})
	case kernel.Route:
		return e.addHostRoute(o)
	case Route:
		return e.addPodRoute(o)
	case Rule:
		return e.RuleAdd(o.netlink())
	}
	return fmt.Errorf("%T is no object of a pair", o)
}

// addHostRoute takes the place of no other route: one that is there belongs
// to somebody, and is not this package's to judge.
func (e *end) addHostRoute(r kernel.Route) error {
	err := e.RouteAdd(&netlink.Route{
		LinkIndex: e.link.Attrs().Index,
		Dst:       ipNet(r.Dst),
		Scope:     netlink.SCOPE_LINK,
		Protocol:  kernel.RouteProtocol,
	})
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	link, err := routeLink(e.Handle, r.Dst.Addr())
	if err != nil {
		return err
	}
	if link == e.name {
		return nil // the daemon, which knows the record, was quicker
	}
	return &InUseError{Addr: r.Dst.Addr(), Link: link}
}

func (e *end) addPodRoute(r Route) error {
	route := &netlink.Route{
		LinkIndex: e.link.Attrs().Index,
		Dst:       ipNet(r.Dst),
		Protocol:  kernel.RouteProtocol,
		MTU:       r.MTU,
		AdvMSS:    r.AdvMSS,
		Priority:  r.Priority,
		Table:     r.Table,
	}
	if !r.Via.IsValid() {
		// Each interface of a pod has this route to the same gateway.
		route.Scope = netlink.SCOPE_LINK
		return e.RouteAppend(route)
	}
	route.Gw = r.Via.AsSlice()
	route.Flags = int(netlink.FLAG_ONLINK)
	err := e.RouteAdd(route)
	if errors.Is(err, unix.EEXIST) && r.Dst.Bits() == 0 {
		err = fmt.Errorf(`%w, through another interface of the pod; "defaultRoute": false leaves it out here`, err)
	}
	return err
}

// enableIPv6 turns IPv6 on for this one interface and reports whether it was
// off: where the namespace has it off by default, the interface gets it all
// the same because the network gives it an IPv6 address.
func (e *end) enableIPv6() bool {
	changed := false
	err := e.do(func() error {
		path := "/proc/sys/net/ipv6/conf/" + e.name + "/disable_ipv6"
		value, err := os.ReadFile(path)
		if err != nil || strings.TrimSpace(string(value)) == "0" {
			return err
		}
		changed = true
		return os.WriteFile(path, []byte("0"), 0)
	})
	return changed && err == nil
}

// rulePriority is before the main table's 32766 and after what most others
// choose.
const rulePriority = 32000

func (r Rule) netlink() *netlink.Rule {
	rule := netlink.NewRule()
	rule.Family = netlink.FAMILY_V4
	if r.From.Is6() {
		rule.Family = netlink.FAMILY_V6
	}
	rule.Src = ipNet(full(r.From))
	rule.Table = r.Table
	rule.Priority = rulePriority
	rule.Protocol = kernel.RouteProtocol
	return rule
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// routeLink names the link that the node's route to exactly ip leads to. It is
// empty where there is no such route, or one that leads nowhere.
func routeLink(h *netlink.Handle, ip netip.Addr) (string, error) {
	routes, err := h.RouteGetWithOptions(ip.AsSlice(), &netlink.RouteGetOptions{FIBMatch: true})
	for _, none := range []error{unix.ENETUNREACH, unix.EHOSTUNREACH, unix.EACCES, unix.EINVAL} {
		if errors.Is(err, none) {
			return "", nil // the answers for no route, unreachable, prohibit and blackhole
		}
	}
	if err != nil {
		return "", fmt.Errorf("route to %s: %w", ip, err)
	}
	for _, r := range routes {
		if prefix(r.Dst) != full(ip) {
			continue
		}
		if link, err := h.LinkByIndex(r.LinkIndex); err == nil {
			return link.Attrs().Name, nil
		}
	}
	return "", nil
}
