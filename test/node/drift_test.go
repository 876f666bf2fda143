package node_test

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/overlay"
	"github.com/weft-cni/weft/test/cluster"
	"github.com/weft-cni/weft/test/probe"
)

// TestDrift lets somebody with root's rights change each kind of what Weft has
// in the kernel, and expects it to be as before within a second, with the
// metric that counts repairs moved.
func TestDrift(t *testing.T) {
	c := cluster.New(t, cluster.Options{Nodes: 3, Manifests: []string{manifests}})
	// A resync in the middle of the test would hide a repair that no event
	// leads to.
	daemon := ready(t, c, "--resync=1h")[0]
	n := c.Node(1)
	want := state(t, n)
	cases := []struct {
		name   string
		change func(vxlan netlink.Link) error
	}{
		{"link deleted", netlink.LinkDel},
		{"link down", netlink.LinkSetDown},
		{"link MTU", func(l netlink.Link) error { return netlink.LinkSetMTU(l, 1400) }},
		{"link MAC", func(l netlink.Link) error {
			return netlink.LinkSetHardwareAddr(l, net.HardwareAddr{2, 0, 0, 0, 0, 1})
		}},
		{"IPv4 address deleted", deleteAddr(unix.AF_INET)},
		{"IPv6 address deleted", deleteAddr(unix.AF_INET6)},
		{"stranger's address", func(l netlink.Link) error {
			return netlink.AddrAdd(l, &netlink.Addr{IPNet: ipNet("198.51.100.1/32")})
		}},
		{"FDB entry deleted", changeNeighs(unix.AF_BRIDGE, netlink.NeighDel)},
		{"FDB entry altered", changeNeighs(unix.AF_BRIDGE, func(f *netlink.Neigh) error {
			f.IP = net.IPv4(198, 51, 100, 1)
			return netlink.NeighSet(f)
		})},
		{"stranger's FDB entry", func(l netlink.Link) error {
			return netlink.NeighAppend(&netlink.Neigh{
				LinkIndex: l.Attrs().Index, Family: unix.AF_BRIDGE, State: netlink.NUD_PERMANENT, Flags: netlink.NTF_SELF,
				HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 2}, IP: net.IPv4(198, 51, 100, 1),
			})
		}},
		{"IPv4 neighbour deleted", changeNeighs(unix.AF_INET, netlink.NeighDel)},
		{"IPv6 neighbour deleted", changeNeighs(unix.AF_INET6, netlink.NeighDel)},
		{"neighbour altered", changeNeighs(unix.AF_INET, func(f *netlink.Neigh) error {
			f.HardwareAddr = net.HardwareAddr{2, 0, 0, 0, 0, 3}
			return netlink.NeighSet(f)
		})},
		{"neighbour no longer permanent", changeNeighs(unix.AF_INET, func(f *netlink.Neigh) error {
			f.State = netlink.NUD_STALE
			return netlink.NeighSet(f)
		})},
		{"stranger's neighbour", func(l netlink.Link) error {
			return netlink.NeighSet(&netlink.Neigh{
				LinkIndex: l.Attrs().Index, Family: unix.AF_INET, State: netlink.NUD_PERMANENT,
				HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 2}, IP: net.IPv4(10, 244, 99, 1),
			})
		}},
		{"IPv4 route deleted", changeRoutes(unix.AF_INET, netlink.RouteDel)},
		{"IPv6 route deleted", changeRoutes(unix.AF_INET6, netlink.RouteDel)},
		{"route altered", changeRoutes(unix.AF_INET, func(r *netlink.Route) error {
			r.Gw = net.IPv4(10, 244, 99, 1)
			return netlink.RouteReplace(r)
		})},
		{"route taken by another protocol", changeRoutes(unix.AF_INET, func(r *netlink.Route) error {
			r.Protocol = unix.RTPROT_STATIC
			return netlink.RouteReplace(r)
		})},
		{"stranger's route", func(l netlink.Link) error {
			return netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: ipNet("198.51.100.0/24"), Scope: netlink.SCOPE_LINK})
		}},
		{"table deleted", func(netlink.Link) error {
			return nft(func(conn *nftables.Conn, table *nftables.Table) { conn.DelTable(table) })
		}},
		{"rules flushed", func(netlink.Link) error {
			return nft(func(conn *nftables.Conn, table *nftables.Table) { conn.FlushTable(table) })
		}},
		{"stranger's chain in the table", func(netlink.Link) error {
			return nft(func(conn *nftables.Conn, table *nftables.Table) {
				conn.AddChain(&nftables.Chain{Name: "stranger", Table: table})
			})
		}},
		{"IPv4 forwarding off", func(netlink.Link) error { return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("0"), 0) }},
		{"IPv6 forwarding off", func(netlink.Link) error {
			return os.WriteFile("/proc/sys/net/ipv6/conf/all/forwarding", []byte("0"), 0)
		}},
		{"link renamed", func(l netlink.Link) error { return netlink.LinkSetName(l, "stolen") }},
	}
	for _, test := range cases {
		t.Run(test.name, func(t *testing.T) {
			before := metric(t, daemon, "weft_drift_repairs_total")
			err := n.Do(func() error {
				l, err := netlink.LinkByName(overlay.Link)
				if err != nil {
					return err
				}
				return test.change(l)
			})
			if err != nil {
				t.Fatal(err)
			}
			took := eventually(t, repairTime, func() error {
				if after := metric(t, daemon, "weft_drift_repairs_total"); after == before {
					return fmt.Errorf("no repair was counted")
				}
				return is(t, n, want)()
			})
			t.Logf("as before after %v", took)
		})
	}
	told(t, c, n, "DriftRepaired")
}

// TestDriftOfAPod is the same for the host's side of a pod. An attachment is
// the plugin's for the first seconds of its life, so the first repair takes
// longer.
func TestDriftOfAPod(t *testing.T) {
	c := cluster.New(t, cluster.Options{Nodes: 2, Manifests: []string{manifests}})
	ready(t, c, "--resync=1h")
	a, b := c.Node(1).Attach(t, "a"), c.Node(2).Attach(t, "b")
	changes := []struct {
		name   string
		change func(netip.Addr) error
	}{
		{"route", func(ip netip.Addr) error { return deleteRouteTo(netip.PrefixFrom(ip, ip.BitLen())) }},
		{"neighbour", deleteNeighOf},
	}
	limit := 10 * time.Second
	for _, family := range []int{4, 6} {
		for _, test := range changes {
			if err := c.Node(1).Do(func() error { return test.change(a.IP(family)) }); err != nil {
				t.Fatalf("IPv%d %s: %v", family, test.name, err)
			}
			// A ping would not show it: the kernel finds a neighbour by itself.
			took := eventually(t, limit, func() error { return a.Check(t.Context()) })
			t.Logf("IPv%d %s: back after %v", family, test.name, took)
			if _, err := probe.Ping(within(t, repairTime), b, a.IP(family)); err != nil {
				t.Errorf("IPv%d %s deleted and back: %v", family, test.name, err)
			}
			limit = 2 * repairTime
		}
	}
}

func deleteNeighOf(ip netip.Addr) error {
	neighs, err := netlink.NeighList(0, netlink.FAMILY_ALL)
	if err != nil {
		return err
	}
	for _, n := range neighs {
		if n.IP.Equal(ip.AsSlice()) {
			return netlink.NeighDel(&n)
		}
	}
	return fmt.Errorf("no neighbour %s", ip)
}

func deleteRouteTo(dst netip.Prefix) error {
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Dst: ipNet(dst.String())}, netlink.RT_FILTER_DST)
	if err != nil || len(routes) == 0 {
		return fmt.Errorf("%d routes to %s: %w", len(routes), dst, err)
	}
	for _, r := range routes {
		if err := netlink.RouteDel(&r); err != nil {
			return err
		}
	}
	return nil
}

func deleteAddr(family int) func(netlink.Link) error {
	return func(l netlink.Link) error {
		addrs, err := netlink.AddrList(l, family)
		if err != nil || len(addrs) == 0 {
			return fmt.Errorf("%d addresses: %w", len(addrs), err)
		}
		return netlink.AddrDel(l, &addrs[0])
	}
}

func changeNeighs(family int, change func(*netlink.Neigh) error) func(netlink.Link) error {
	return func(l netlink.Link) error {
		neighs, err := netlink.NeighList(l.Attrs().Index, family)
		// The kernel makes others itself, for multicast.
		i := slices.IndexFunc(neighs, func(n netlink.Neigh) bool { return n.State&netlink.NUD_PERMANENT != 0 })
		if err != nil || i < 0 {
			return fmt.Errorf("none of %d neighbours is permanent: %w", len(neighs), err)
		}
		return change(&neighs[i])
	}
}

func changeRoutes(family int, change func(*netlink.Route) error) func(netlink.Link) error {
	return func(l netlink.Link) error {
		routes, err := netlink.RouteListFiltered(family, &netlink.Route{LinkIndex: l.Attrs().Index, Protocol: 87},
			netlink.RT_FILTER_OIF|netlink.RT_FILTER_PROTOCOL)
		if err != nil || len(routes) == 0 {
			return fmt.Errorf("%d routes: %w", len(routes), err)
		}
		return change(&routes[0])
	}
}

func writeFile(path, text string) error { return os.WriteFile(path, []byte(text), 0o600) }

func nft(change func(*nftables.Conn, *nftables.Table)) error {
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	change(conn, &nftables.Table{Name: "weft", Family: nftables.TableFamilyINet})
	return conn.Flush()
}

func ipNet(text string) *net.IPNet {
	p := netip.MustParsePrefix(text)
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
