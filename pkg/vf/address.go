package vf

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/netconf"
	"github.com/weft-cni/weft/pkg/sriov"
)

// Addresses are what an IPAM plugin gave a network device.
type Addresses struct {
	Prefixes []netip.Prefix
	Routes   []netconf.Route // next hops filled in; invalid ones are on the link
}

// Address gives the network device, in its pod, addresses and routes. The
// kernel looks for duplicates of an IPv6 address, which takes it a second, and
// announces it then (RFC 4861 section 7.2.6). A route that the pod has is left as it is: of several interfaces
// the first wins.
func (v *VF) Address(name string, a Addresses) error {
	c, at, err := v.locate(sriov.Pod)
	if err != nil {
		return err
	}
	refused := func(what string, err error) error {
		return &RefusedError{Device: v.Device, Change: what, Err: err}
	}
	if err := c.ns.Do(func() error { return announceItself(name) }); err != nil {
		return refused("sysctls of "+name, err)
	}
	link := &netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Index: at.index, Name: name}}
	for _, p := range a.Prefixes {
		addr := &netlink.Addr{IPNet: ipNet(p)}
		err := c.AddrAdd(link, addr)
		if err != nil && p.Addr().Is6() && c.enableIPv6(name) {
			err = c.AddrAdd(link, addr)
		}
		if err != nil {
			return refused(fmt.Sprintf("addr add %s", p), err)
		}
	}
	for _, r := range a.Routes {
		err := c.RouteAdd(route(at.index, r))
		if errors.Is(err, unix.EEXIST) {
			v.node.Log.Warn("the pod has such a route already", "route", r.Dst, "device", v.Device.Address)
			continue
		}
		if err != nil {
			return refused(fmt.Sprintf("route add %s via %s", r.Dst, r.GW), err)
		}
	}
	return nil
}

// announceItself lets the kernel tell neighbours of a MAC that changes, and of
// IPv6 addresses that turned out to be unique.
func announceItself(name string) error {
	for path, value := range map[string]string{
		"ipv4/conf/" + name + "/arp_notify":   "1",
		"ipv6/conf/" + name + "/ndisc_notify": "1",
	} {
		err := os.WriteFile("/proc/sys/net/"+path, []byte(value), 0)
		if err != nil && !errors.Is(err, os.ErrNotExist) { // a kernel without IPv6
			return err
		}
	}
	return nil
}

// enableIPv6 turns IPv6 on for one interface of a namespace that has it off by
// default, and reports whether it was off.
func (c *conn) enableIPv6(name string) (wasOff bool) {
	path := "/proc/sys/net/ipv6/conf/" + name + "/disable_ipv6"
	err := c.ns.Do(func() error {
		value, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		wasOff = strings.TrimSpace(string(value)) != "0"
		return os.WriteFile(path, []byte("0"), 0)
	})
	return wasOff && err == nil
}

func route(index int, r netconf.Route) *netlink.Route {
	route := &netlink.Route{
		LinkIndex: index, Dst: ipNet(r.Dst), MTU: r.MTU, AdvMSS: r.AdvMSS, Priority: r.Priority, Table: r.Table,
	}
	if r.GW.IsValid() {
		route.Gw = r.GW.AsSlice()
	} else {
		route.Scope = netlink.SCOPE_LINK
	}
	return route
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// Missing says which of a device's addresses and routes its pod hasn't, and
// which addresses another host has as well.
func (v *VF) Missing(a Addresses) ([]string, error) {
	c, at, err := v.locate(sriov.Pod)
	if err != nil {
		return nil, err
	}
	link := &netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Index: at.index}}
	have, err := c.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("addresses of %s: %w", v.Device, err)
	}
	flags := map[netip.Prefix]int{}
	for _, h := range have {
		if p, ok := prefixOf(h.IPNet); ok {
			flags[p] = h.Flags
		}
	}
	var lines []string
	for _, p := range a.Prefixes {
		f, ok := flags[p]
		switch {
		case !ok:
			lines = append(lines, fmt.Sprintf("addr %s is missing", p))
		case f&unix.IFA_F_DADFAILED != 0:
			lines = append(lines, fmt.Sprintf("addr %s: another host has it as well", p))
		}
	}
	for _, r := range a.Routes {
		filter := &netlink.Route{LinkIndex: at.index, Dst: ipNet(r.Dst), Table: r.Table}
		mask := netlink.RT_FILTER_OIF | netlink.RT_FILTER_DST
		if r.Table != 0 {
			mask |= netlink.RT_FILTER_TABLE
		}
		family := netlink.FAMILY_V6
		if r.Dst.Addr().Is4() {
			family = netlink.FAMILY_V4
		}
		found, err := c.RouteListFiltered(family, filter, mask)
		if err != nil {
			return nil, fmt.Errorf("routes of %s: %w", v.Device, err)
		}
		if len(found) == 0 {
			lines = append(lines, fmt.Sprintf("route %s is missing", r.Dst))
		}
	}
	return lines, nil
}

func prefixOf(n *net.IPNet) (netip.Prefix, bool) {
	addr, ok := netip.AddrFromSlice(n.IP)
	ones, _ := n.Mask.Size()
	return netip.PrefixFrom(addr.Unmap(), ones), ok
}
