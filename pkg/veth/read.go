package veth

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/podns"
)

// Read gives what the kernel has in the places where Host and Pod say that
// the pair's objects should be, and all addresses of the pod's end but
// link-local ones. What others put beside that (routes of the pod's own,
// neighbours it learned) is left out. Where an end is missing so is
// everything on it.
func (n *Node) Read(pod *podns.NS, p Pair) (inHost, inPod kernel.State, err error) {
	ph, err := pod.Handle()
	if err != nil {
		return nil, nil, err
	}
	defer ph.Close()

	host, err := readEnd(n.h, p.HostLink)
	if err != nil {
		return nil, nil, err
	}
	peer, err := readEnd(ph, p.PodLink)
	if err != nil {
		return nil, nil, fmt.Errorf("in the pod: %w", err)
	}
	host.join(peer)
	if inHost, err = host.host(p.Host()); err != nil {
		return nil, nil, err
	}
	if inPod, err = peer.pod(p.Pod()); err != nil {
		return nil, nil, fmt.Errorf("in the pod: %w", err)
	}
	return inHost, inPod, nil
}

// reader reads one end. There is no link where the end is missing.
type reader struct {
	*netlink.Handle
	link netlink.Link
	peer string // name of the other end, if the two are connected
}

func readEnd(h *netlink.Handle, name string) (*reader, error) {
	link, err := h.LinkByName(name)
	if err != nil && !isNotFound(err) {
		return nil, fmt.Errorf("link %s: %w", name, err)
	}
	if isNotFound(err) {
		return &reader{Handle: h}, nil
	}
	return &reader{Handle: h, link: link}, nil
}

// join finds out whether two ends are those of one pair: each has the other's
// index as its lower link.
func (r *reader) join(o *reader) {
	if r.link == nil || o.link == nil {
		return
	}
	a, b := r.link.Attrs(), o.link.Attrs()
	if a.ParentIndex == b.Index && b.ParentIndex == a.Index && r.link.Type() == "veth" && o.link.Type() == "veth" {
		r.peer, o.peer = b.Name, a.Name
	}
}

// host reads the node's side of want.
func (r *reader) host(want kernel.State) (kernel.State, error) {
	return r.read(want, sysctls, r.addrs, r.neighs, r.hostRoutes)
}

// pod reads the pod's side of want.
func (r *reader) pod(want kernel.State) (kernel.State, error) {
	return r.read(want, r.addrs, r.neighs, r.routes, r.rules)
}

func (r *reader) read(want kernel.State, parts ...func(have, want kernel.State) error) (kernel.State, error) {
	have := make(kernel.State)
	if r.link == nil {
		return have, nil
	}
	a := r.link.Attrs()
	have.Put(Link{
		Name: a.Name, MAC: macOf(a.HardwareAddr), MTU: a.MTU, Up: a.Flags&net.FlagUp != 0, Peer: r.peer, Alias: a.Alias,
	})
	for _, part := range parts {
		if err := part(have, want); err != nil {
			return nil, err
		}
	}
	return have, nil
}

// putWanted adds what is asked for and leaves out what others made.
func putWanted(have, want kernel.State, o kernel.Object) {
	if _, ok := want[o.Key()]; ok {
		have.Put(o)
	}
}

// sysctls reads those that want has.
func sysctls(have, want kernel.State) error {
	for _, o := range want {
		s, ok := o.(kernel.Sysctl)
		if !ok {
			continue
		}
		value, err := os.ReadFile("/proc/sys/" + s.Name)
		if err != nil {
			return fmt.Errorf("sysctl: %w", err)
		}
		have.Put(kernel.Sysctl{Name: s.Name, Value: strings.TrimSpace(string(value))})
	}
	return nil
}

func (r *reader) addrs(have, _ kernel.State) error {
	addrs, err := r.AddrList(r.link, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("addresses of %s: %w", r.link.Attrs().Name, err)
	}
	for _, a := range addrs {
		if p := prefix(a.IPNet); !p.Addr().IsLinkLocalUnicast() || p.Addr().Is4() {
			have.Put(kernel.Addr{Link: r.link.Attrs().Name, Prefix: p})
		}
	}
	return nil
}

func (r *reader) neighs(have, want kernel.State) error {
	neighs, err := r.NeighList(r.link.Attrs().Index, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("neighbours on %s: %w", r.link.Attrs().Name, err)
	}
	for _, n := range neighs {
		ip, ok := netip.AddrFromSlice(n.IP)
		if !ok {
			continue
		}
		o := kernel.Neigh{Link: r.link.Attrs().Name, IP: ip.Unmap(), MAC: macOf(n.HardwareAddr)}
		if n.State != netlink.NUD_PERMANENT {
			o.Detail = fmt.Sprintf("state 0x%x", n.State)
		}
		putWanted(have, want, o)
	}
	return nil
}

func (r *reader) routes(have, want kernel.State) error {
	filter := &netlink.Route{LinkIndex: r.link.Attrs().Index, Table: unix.RT_TABLE_UNSPEC}
	routes, err := r.RouteListFiltered(netlink.FAMILY_ALL, filter, netlink.RT_FILTER_OIF|netlink.RT_FILTER_TABLE)
	if err != nil {
		return fmt.Errorf("routes on %s: %w", r.link.Attrs().Name, err)
	}
	for _, route := range routes {
		if route.Table != unix.RT_TABLE_LOCAL {
			putWanted(have, want, r.route(route))
		}
	}
	return nil
}

// ip6DefaultMetric is IP6_RT_PRIO_USER of linux/ipv6_route.h: what the kernel
// makes of metric 0.
const ip6DefaultMetric = 1024

func (r *reader) route(have netlink.Route) Route {
	o := Route{
		Link: r.link.Attrs().Name, Dst: prefix(have.Dst),
		MTU: have.MTU, AdvMSS: have.AdvMSS, Priority: have.Priority, Table: have.Table,
	}
	o.Via, _ = netip.AddrFromSlice(have.Gw)
	o.Via = o.Via.Unmap()
	if have.Family == netlink.FAMILY_V6 && o.Priority == ip6DefaultMetric {
		o.Priority = 0
	}
	if o.Table == unix.RT_TABLE_MAIN {
		o.Table = 0
	}
	return o
}

// hostRoutes reads the node's routes to the pod, wherever they lead.
func (r *reader) hostRoutes(have, want kernel.State) error {
	for _, o := range want {
		route, ok := o.(kernel.Route)
		if !ok {
			continue
		}
		link, err := routeLink(r.Handle, route.Dst.Addr())
		if err != nil {
			return err
		}
		if link != "" {
			have.Put(kernel.Route{Link: link, Dst: route.Dst})
		}
	}
	return nil
}

func (r *reader) rules(have, want kernel.State) error {
	rules, err := r.RuleList(netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("routing rules: %w", err)
	}
	for _, rule := range rules {
		if src := prefix(rule.Src); src.IsSingleIP() && rule.Protocol == kernel.RouteProtocol {
			putWanted(have, want, Rule{From: src.Addr(), Table: rule.Table})
		}
	}
	return nil
}

func prefix(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.Prefix{}
	}
	ip, ok := netip.AddrFromSlice(n.IP)
	if !ok {
		return netip.Prefix{}
	}
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(ip.Unmap(), bits)
}

func macOf(hw net.HardwareAddr) kernel.MAC {
	if len(hw) != len(kernel.MAC{}) {
		return kernel.MAC{}
	}
	return kernel.MAC(hw)
}
