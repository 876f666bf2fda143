package segment_test

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/segment"
	"github.com/weft-cni/weft/test/cluster"
	"github.com/weft-cni/weft/test/probe"
)

// Where a host outside the cluster has its VTEP, and what it is called on a
// segment: addresses that no pod gets.
var (
	vtep4 = netip.MustParseAddr("172.30.0.1")
	vtep6 = netip.MustParseAddr("fd30::1")
	host4 = netip.MustParsePrefix("192.168.7.200/24")
	host6 = netip.MustParsePrefix("fd00:7:0:0:1::c8/64")
)

// joined is a tenant's network that is found in another way, or by others too.
func joined(vni uint32, more string) []byte {
	return []byte(strings.Replace(string(tenant(vni, more)), `"gateway":"192.168.7.1"`, `"exclude":["192.168.7.192/26"]`, 1))
}

// outsider has a plain VXLAN device outside the cluster: nothing there but what
// Linux does by itself. Frames to many go to remotes, or to group.
func (l *lab) outsider(vni uint32, group netip.Addr, remotes ...netip.Addr) {
	l.t.Helper()
	name := fmt.Sprint("out", vni)
	err := l.Outside().Do(func() error {
		device := &netlink.Vxlan{
			LinkAttrs: netlink.LinkAttrs{Name: name, MTU: 1400}, VxlanId: int(vni), Port: 4789, Learning: true, UDPCSum: true,
		}
		if group.IsValid() {
			lower, err := linkWith(vtep4)
			if err != nil {
				return err
			}
			device.Group, device.VtepDevIndex = group.AsSlice(), lower.Attrs().Index
		} else {
			device.SrcAddr = vtep4.AsSlice()
			if remotes[0].Is6() {
				device.SrcAddr = vtep6.AsSlice()
			}
		}
		if err := netlink.LinkAdd(device); err != nil {
			return err
		}
		for _, p := range []netip.Prefix{host4, host6} {
			a := &netlink.Addr{
				IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}, Flags: unix.IFA_F_NODAD,
			}
			if err := netlink.AddrAdd(device, a); err != nil {
				return err
			}
		}
		for _, r := range remotes {
			err := netlink.NeighAppend(&netlink.Neigh{
				LinkIndex: device.Index, Family: unix.AF_BRIDGE, State: netlink.NUD_PERMANENT, Flags: netlink.NTF_SELF,
				HardwareAddr: make(net.HardwareAddr, 6), IP: r.AsSlice(),
			})
			if err != nil {
				return err
			}
		}
		return netlink.LinkSetUp(device)
	})
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() {
		err := l.Outside().Do(func() error {
			link, err := netlink.LinkByName(name)
			if err != nil {
				return err
			}
			return netlink.LinkDel(link)
		})
		if err != nil {
			l.t.Error(err)
		}
	})
}

// linkWith is the link that has an address.
func linkWith(addr netip.Addr) (netlink.Link, error) {
	all, err := netlink.AddrList(nil, unix.AF_UNSPEC)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(all, func(a netlink.Addr) bool { return a.IP.Equal(addr.AsSlice()) })
	if i < 0 {
		return nil, fmt.Errorf("nothing has %s", addr)
	}
	return netlink.LinkByIndex(all[i].LinkIndex)
}

// TestOutside: a host outside the cluster is on a tenant's network, by a list of
// VTEPs, by a multicast group, and beside members that objects tell of.
func TestOutside(t *testing.T) {
	all := newLab(t, 2)
	var nodes4, nodes6 []netip.Addr
	for _, n := range all.Nodes() {
		for _, a := range n.Underlay() {
			if a.Is4() {
				nodes4 = append(nodes4, a)
			} else {
				nodes6 = append(nodes6, a)
			}
		}
	}
	list := func(addrs ...netip.Addr) string { return strings.ReplaceAll(fmt.Sprintf("%q", addrs), " ", ",") }
	for i, c := range []struct {
		name, keys string
		group      netip.Addr
		remotes    []netip.Addr
	}{
		{"kubernetes", `,"vteps":["172.30.0.1"]`, netip.Addr{}, nodes4},
		{"static", `,"discovery":"static","vteps":` + list(append(nodes4, vtep4)...), netip.Addr{}, nodes4},
		{"static over IPv6", `,"discovery":"static","vteps":` + list(append(nodes6, vtep6)...), netip.Addr{}, nodes6},
		{"multicast", `,"discovery":"multicast","group":"239.7.7.7"`, netip.MustParseAddr("239.7.7.7"), nil},
		{"multicast over IPv6", `,"discovery":"multicast","group":"ff05::707"`, netip.MustParseAddr("ff05::707"), nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			vni := uint32(3000 + 2*i)
			l := &lab{t: t, Cluster: all.Cluster, api: all.api, daemons: all.daemons}
			l.outsider(vni, c.group, c.remotes...)
			a, b := l.attach(l.Node(1), fmt.Sprint("a", vni), joined(vni, c.keys)), l.attach(l.Node(2), fmt.Sprint("b", vni), joined(vni, c.keys))
			other := l.attach(l.Node(2), fmt.Sprint("other", vni), tenant(vni+1, ""))
			l.reach(a, b)
			l.withOutside(a, b)
			silent, at, from := l.wire(other, local), l.wire(b, local), l.wire(a, local)
			from.send(t, from.mac, everyone, local, []byte("to all of one segment"))
			at.hears(t, "to all of one segment")
			if got := silent.heard(t); got != nil {
				t.Errorf("another segment hears %q", got)
			}
			l.mended(vni, a)
			l.withOutside(a, b)
			for _, p := range []*cluster.Pod{a, b, other} {
				if err := p.Check(t.Context()); err != nil {
					t.Error(err)
				}
				if err := p.Detach(t.Context()); err != nil {
					t.Error(err)
				}
			}
			l.empty()
		})
	}
}

// withOutside: pods reach the host outside, and it reaches them.
func (l *lab) withOutside(pods ...*cluster.Pod) {
	l.t.Helper()
	for _, p := range pods {
		for _, host := range []netip.Prefix{host4, host6} {
			family := 4
			if host.Addr().Is6() {
				family = 6
			}
			if _, err := probe.Ping(within(l.t, 10*time.Second), p, host.Addr()); err != nil {
				l.t.Fatalf("%s to the host outside: %v", p.Name, err)
			}
			if _, err := probe.Ping(within(l.t, 10*time.Second), l.Outside(), p.IP(family)); err != nil {
				l.t.Fatalf("the host outside to %s: %v", p.Name, err)
			}
		}
	}
}

// made is what a node holds of segments, but for what frames made.
func (l *lab) made(n *cluster.Node) kernel.State {
	l.t.Helper()
	s := l.state(n)
	for k, o := range s {
		fdb, _ := o.(kernel.FDB)
		station, _ := o.(kernel.Station)
		neigh, _ := o.(kernel.Neigh)
		if fdb.Detail+station.Detail+neigh.Detail != "" {
			delete(s, k)
		}
	}
	return s
}

// mended takes away a node's tunnel, and then where it sends broadcasts to.
func (l *lab) mended(vni uint32, p *cluster.Pod) {
	l.t.Helper()
	want := l.made(p.Node)
	for _, breakIt := range []func(netlink.Link) error{
		netlink.LinkDel,
		func(tunnel netlink.Link) error {
			all, err := netlink.NeighList(tunnel.Attrs().Index, unix.AF_BRIDGE)
			if err != nil {
				return err
			}
			for _, e := range all {
				if e.HardwareAddr.String() == (kernel.MAC{}).String() {
					if err := netlink.NeighDel(&e); err != nil {
						return err
					}
				}
			}
			return nil
		},
	} {
		err := p.Node.Do(func() error {
			tunnel, err := netlink.LinkByName(segment.Tunnel(vni))
			if err != nil {
				return err
			}
			return breakIt(tunnel)
		})
		if err != nil {
			l.t.Fatal(err)
		}
		eventually(l.t, reachTime, func() error {
			if ops := kernel.Diff(want, l.made(p.Node), nil); len(ops) > 0 {
				return fmt.Errorf("%d operations, the first: %s", len(ops), ops[0])
			}
			return nil
		})
	}
}
