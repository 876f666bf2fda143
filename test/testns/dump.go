package testns

import (
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Dump is all that people or programs put into the namespace, in the words of
// ip(8), a line each: links but the loopback interface, addresses, routes of
// all tables but the kernel's own local one, permanent neighbours, and
// routing rules. Link-local IPv6 addresses and what the kernel derives from
// them are left out.
func (ns *NS) Dump(t testing.TB) string {
	t.Helper()
	d := &dump{h: ns.Handle, names: map[int]string{}}
	for _, read := range []func() error{d.links, d.addrs, d.neighs, d.routes, d.rules} {
		start := len(d.lines)
		if err := read(); err != nil {
			t.Fatalf("dump network namespace: %v", err)
		}
		slices.Sort(d.lines[start:])
	}
	var b strings.Builder
	for _, line := range d.lines {
		b.WriteString(line + "\n")
	}
	return b.String()
}

type dump struct {
	h     *netlink.Handle
	names map[int]string
	lines []string
}

func (d *dump) add(format string, args ...any) {
	d.lines = append(d.lines, strings.TrimRight(fmt.Sprintf(format, args...), " "))
}

func (d *dump) links() error {
	links, err := d.h.LinkList()
	for _, l := range links {
		a := l.Attrs()
		d.names[a.Index] = a.Name
		if a.Name == "lo" {
			continue
		}
		flags := "down"
		if a.Flags&net.FlagUp != 0 {
			flags = "up"
		}
		d.add("link %s type %s address %s mtu %d %s %s", a.Name, l.Type(), a.HardwareAddr, a.MTU, flags, a.Alias)
	}
	return err
}

func (d *dump) addrs() error {
	addrs, err := d.h.AddrList(nil, netlink.FAMILY_ALL)
	for _, a := range addrs {
		name := d.names[a.LinkIndex]
		if name == "lo" || a.IP.To4() == nil && a.IP.IsLinkLocalUnicast() {
			continue
		}
		flags := ""
		if a.Flags&unix.IFA_F_TENTATIVE != 0 {
			flags = "tentative"
		}
		d.add("addr %s dev %s %s", a.IPNet, name, flags)
	}
	return err
}

func (d *dump) neighs() error {
	neighs, err := d.h.NeighList(0, netlink.FAMILY_ALL)
	for _, n := range neighs {
		if n.State == netlink.NUD_PERMANENT {
			d.add("neigh %s dev %s lladdr %s permanent", n.IP, d.names[n.LinkIndex], n.HardwareAddr)
		}
	}
	return err
}

func (d *dump) routes() error {
	all := &netlink.Route{Table: unix.RT_TABLE_UNSPEC}
	routes, err := d.h.RouteListFiltered(netlink.FAMILY_ALL, all, netlink.RT_FILTER_TABLE)
	for _, r := range routes {
		if r.Table == unix.RT_TABLE_LOCAL || r.Dst != nil && r.Dst.IP.To4() == nil && r.Protocol == unix.RTPROT_KERNEL {
			continue
		}
		var via, table, flags string
		if r.Gw != nil {
			via = " via " + r.Gw.String()
		}
		if r.Table != unix.RT_TABLE_MAIN {
			table = fmt.Sprintf(" table %d", r.Table)
		}
		if r.Flags&int(netlink.FLAG_ONLINK) != 0 {
			flags = " onlink"
		}
		if r.Family == netlink.FAMILY_V4 {
			flags += " scope " + r.Scope.String()
		}
		if r.MTU != 0 {
			flags += fmt.Sprintf(" mtu %d", r.MTU)
		}
		if r.AdvMSS != 0 {
			flags += fmt.Sprintf(" advmss %d", r.AdvMSS)
		}
		d.add("route %s%s dev %s%s proto %d metric %d%s", r.Dst, via, d.names[r.LinkIndex], table, r.Protocol, r.Priority, flags)
	}
	return err
}

func (d *dump) rules() error {
	rules, err := d.h.RuleList(netlink.FAMILY_ALL)
	for _, r := range rules {
		if r.Protocol != unix.RTPROT_KERNEL {
			d.add("rule %d from %s lookup %d proto %d", r.Priority, r.Src, r.Table, r.Protocol)
		}
	}
	return err
}
