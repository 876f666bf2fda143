//go:build vm

package segment_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/kernel/rtnl"
	"github.com/weft-cni/weft/pkg/netconf"
	"github.com/weft-cni/weft/pkg/segment"
)

var (
	geneve = netconf.Tunnels{Encapsulation: netconf.EncapGeneve}
	nvgre  = netconf.Tunnels{Encapsulation: netconf.EncapNVGRE}
)

// each runs a test with each encapsulation over each family.
func each(t *testing.T, f func(t *testing.T, tunnels netconf.Tunnels, six bool)) {
	for _, tunnels := range []netconf.Tunnels{geneve, nvgre} {
		for _, six := range []bool{false, true} {
			family := map[bool]string{false: "IPv4", true: "IPv6"}[six]
			t.Run(fmt.Sprintf("%s over %s", tunnels.Encapsulation, family), func(t *testing.T) { f(t, tunnels, six) })
		}
	}
}

// tunnelTo is the name of a node's tunnel to another.
func tunnelTo(t *testing.T, plan kernel.State, to *node) string {
	t.Helper()
	for _, o := range plan {
		if tunnel, is := o.(kernel.Tunnel); is && tunnel.Remote == to.self.Underlay[0].Addr {
			return tunnel.Name
		}
	}
	t.Fatalf("no tunnel to %s in\n%s", to.Name, plan)
	return ""
}

// TestKernelHas: the kernel is asked without a trace.
func TestKernelHas(t *testing.T) {
	n := newNodes(t, 1, false)[0]
	n.with(t, func(h *rtnl.Handle) error {
		for kind, has := range map[kernel.TunnelKind]bool{kernel.Geneve: true, kernel.GRETAP: true, kernel.IP6GRETAP: true, "tin-can": false} {
			if got, err := h.HasTunnel(kind); err != nil || got != has {
				t.Errorf("%s: %v, %v", kind, got, err)
			}
		}
		links, err := netlink.LinkList()
		for _, l := range links { // that the module itself makes are not asked for
			if name := l.Attrs().Name; l.Type() == "geneve" || strings.HasSuffix(l.Type(), "gretap") && name != "gretap0" && name != "ip6gre0" {
				t.Errorf("link %s of type %s is left", name, l.Type())
			}
		}
		return err
	})
}

// TestSegment: pods on three nodes reach each other, frames of any kind pass, one
// to all comes to each once, and nothing is left afterwards.
func TestSegment(t *testing.T) {
	each(t, func(t *testing.T, tunnels netconf.Tunnels, six bool) {
		nodes := newNodes(t, 3, six)
		plans := together(t, nodes, tunnels)
		asked := listen(t, nodes[2].pod, "net1", unix.ETH_P_ARP)
		a, b, c := listen(t, nodes[0].pod, "net1", local), listen(t, nodes[1].pod, "net1", local), listen(t, nodes[2].pod, "net1", local)
		between := listen(t, nodes[1], tunnelTo(t, plans[1], nodes[2]), unix.ETH_P_ALL)
		reach(t, nodes)
		if asked.arp(t) {
			t.Error("ARP for a pod that is known crossed the underlay")
		}

		a.send(t, nodes[0].port.MAC, everyone, []byte("to all"))
		a.send(t, nodes[0].port.MAC, nodes[1].port.MAC, []byte("to one"))
		a.send(t, nodes[0].port.MAC, everyone, []byte("to all again"))
		for _, text := range []string{"to all", "to one", "to all again"} {
			b.hears(t, []byte(text))
			if text != "to one" {
				c.hears(t, []byte(text))
			}
		}
		if got := between.next(t); got != nil {
			t.Errorf("%q went from one tunnel to another", got)
		}

		// Nothing else than the rule keeps frames from doing so.
		nodes[1].with(t, func(h *rtnl.Handle) error {
			table := segment.PlanTable()
			for _, failed := range h.Apply(kernel.Diff(nil, table, nil)) {
				return failed
			}
			return nil
		})
		a.send(t, nodes[0].port.MAC, everyone, []byte("without the rule"))
		for range 2 {
			c.hears(t, []byte("without the rule"))
		}
		b.hears(t, []byte("without the rule"))
		nodes[1].sync(t, plans[1])

		// A frame as long as the MTU leaves in one piece.
		mtu, err := segment.MTU(nodes[0].self, tunnels)
		must(t, err)
		long := bytes.Repeat([]byte("x"), mtu)
		a.send(t, nodes[0].port.MAC, nodes[1].port.MAC, long)
		b.hears(t, long)
		if found := nodes[0].fragments(t); len(found) > 0 {
			t.Errorf("outer packets were fragmented: %v", found)
		}

		for _, n := range nodes {
			must(t, n.Do(func() error {
				l, err := netlink.LinkByName(n.port.HostLink)
				if err != nil {
					return err
				}
				return netlink.LinkDel(l)
			}))
			n.sync(t, kernel.State{})
			must(t, n.Do(func() error {
				links, err := netlink.LinkList()
				for _, l := range links {
					if strings.Contains(l.Attrs().Name, "weft") {
						t.Errorf("%s has link %s left", n.Name, l.Attrs().Name)
					}
				}
				return err
			}))
		}
	})
}

// arp reports whether an ARP request has been heard.
func (w *wire) arp(t *testing.T) bool {
	t.Helper()
	buf := make([]byte, 4096)
	for {
		n, _, err := unix.Recvfrom(w.fd, buf, 0)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return false
		case errors.Is(err, unix.EINTR):
		case err != nil:
			t.Fatal(err)
		case n >= 22 && buf[21] == 1 && kernel.MAC(buf[:6]) == everyone:
			return true
		}
	}
}

// TestListed: members of a list learn where stations are from frames.
func TestListed(t *testing.T) {
	each(t, func(t *testing.T, tunnels netconf.Tunnels, six bool) {
		nodes := newNodes(t, 3, six)
		tunnels.Discovery = netconf.DiscoverStatic
		for _, n := range nodes {
			tunnels.VTEPs = append(tunnels.VTEPs, n.self.Underlay[0].Addr)
		}
		together(t, nodes, tunnels)
		reach(t, nodes)
		a, b, c := listen(t, nodes[0].pod, "net1", local), listen(t, nodes[1].pod, "net1", local), listen(t, nodes[2].pod, "net1", local)
		b.send(t, nodes[1].port.MAC, everyone, []byte("here"))
		a.hears(t, []byte("here"))
		c.hears(t, []byte("here"))
		a.send(t, nodes[0].port.MAC, nodes[1].port.MAC, []byte("to one"))
		a.send(t, nodes[0].port.MAC, everyone, []byte("to all"))
		b.hears(t, []byte("to one"))
		b.hears(t, []byte("to all"))
		c.hears(t, []byte("to all"))
	})
}

// TestIsolated: isolated pods hear nothing of each other across tunnels, and all
// of those that aren't.
func TestIsolated(t *testing.T) {
	each(t, func(t *testing.T, tunnels netconf.Tunnels, six bool) {
		nodes := newNodes(t, 3, six)
		for _, n := range nodes[:2] {
			n.port.Isolated, n.port.Options.Isolated = true, true
			n.ports = []segment.Port{n.port}
		}
		together(t, nodes, tunnels)
		a, b, c := listen(t, nodes[0].pod, "net1", local), listen(t, nodes[1].pod, "net1", local), listen(t, nodes[2].pod, "net1", local)
		a.send(t, nodes[0].port.MAC, everyone, []byte("to all"))
		a.send(t, nodes[0].port.MAC, nodes[1].port.MAC, []byte("to one"))
		a.send(t, nodes[0].port.MAC, nodes[2].port.MAC, []byte("to the other"))
		c.hears(t, []byte("to all"))
		c.hears(t, []byte("to the other"))
		c.send(t, nodes[2].port.MAC, everyone, []byte("from the other"))
		b.hears(t, []byte("from the other"))
		a.hears(t, []byte("from the other"))
	})
}

// damage is what a hand or another program does to a node's tunnel.
var damage = []struct {
	name string
	do   func(l netlink.Link, station kernel.MAC) error
}{
	{"deleted", func(l netlink.Link, _ kernel.MAC) error { return netlink.LinkDel(l) }},
	{"down", func(l netlink.Link, _ kernel.MAC) error { return netlink.LinkSetDown(l) }},
	{"renamed", func(l netlink.Link, _ kernel.MAC) error {
		return errors.Join(netlink.LinkSetDown(l), netlink.LinkSetName(l, "stolen"))
	}},
	{"another MTU", func(l netlink.Link, _ kernel.MAC) error { return netlink.LinkSetMTU(l, 1300) }},
	{"another MAC", func(l netlink.Link, _ kernel.MAC) error {
		return netlink.LinkSetHardwareAddr(l, net.HardwareAddr{2, 0, 0, 0, 0, 99})
	}},
	{"out of the bridge", func(l netlink.Link, _ kernel.MAC) error { return netlink.LinkSetNoMaster(l) }},
	{"learning", func(l netlink.Link, _ kernel.MAC) error { return netlink.LinkSetLearning(l, true) }},
	{"answers nobody", func(l netlink.Link, _ kernel.MAC) error { return netlink.LinkSetBrNeighSuppress(l, false) }},
	{"of another kind", func(l netlink.Link, _ kernel.MAC) error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = l.Attrs().Name
		return errors.Join(netlink.LinkDel(l), netlink.LinkAdd(&netlink.Dummy{LinkAttrs: attrs}))
	}},
	{"to another VTEP", func(l netlink.Link, _ kernel.MAC) error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = l.Attrs().Name
		return errors.Join(netlink.LinkDel(l), netlink.LinkAdd(&netlink.Geneve{LinkAttrs: attrs, ID: vni, Dport: 6081, Remote: net.IPv4(192, 0, 2, 99)}))
	}},
	{"a station deleted", func(l netlink.Link, station kernel.MAC) error {
		return netlink.NeighDel(&netlink.Neigh{
			LinkIndex: l.Attrs().Index, Family: unix.AF_BRIDGE, Flags: netlink.NTF_MASTER, HardwareAddr: station.HardwareAddr(),
		})
	}},
	{"a stranger's station", func(l netlink.Link, _ kernel.MAC) error {
		return netlink.NeighSet(&netlink.Neigh{
			LinkIndex: l.Attrs().Index, Family: unix.AF_BRIDGE, Flags: netlink.NTF_MASTER, State: unix.NUD_NOARP,
			HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 98},
		})
	}},
}

// TestDrift: each kind of damage shows, and is repaired by what events tell of.
func TestDrift(t *testing.T) {
	each(t, func(t *testing.T, tunnels netconf.Tunnels, six bool) {
		nodes := newNodes(t, 2, six)
		plan := together(t, nodes, tunnels)[0]
		name := tunnelTo(t, plan, nodes[1])
		for _, d := range damage {
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			nodes[0].with(t, func(h *rtnl.Handle) error {
				events, err := h.Watch(ctx, rtnl.Names(segment.Names))
				if err != nil {
					return err
				}
				l, err := netlink.LinkByName(name)
				if err != nil {
					return err
				}
				if err = d.do(l, nodes[1].port.MAC); err != nil {
					return err
				}
				have, err := nodes[0].read(h)
				if err != nil {
					return err
				}
				if len(kernel.Diff(plan, have, nil)) == 0 {
					t.Errorf("%s: doesn't show", d.name)
				}
				return repair(h, nodes[0], plan, events)
			})
			cancel()
			if t.Failed() {
				t.Fatalf("%s", d.name)
			}
			if left := nodes[0].sync(t, plan); left > 0 {
				t.Errorf("%s: %d operations are left", d.name, left)
			}
			must(t, nodes[0].Do(func() error {
				if l, err := netlink.LinkByName("stolen"); err == nil {
					return fmt.Errorf("%s: %s is there beside ours", d.name, l.Attrs().Name)
				}
				return nil
			}))
		}
		must(t, nodes[0].Do(func() error { // and all of the bridge's ports leave it
			bridge, err := netlink.LinkByName(segment.Bridge(vni))
			if err != nil {
				return err
			}
			return netlink.LinkDel(bridge)
		}))
		if repaired := nodes[0].sync(t, plan); repaired == 0 {
			t.Error("the bridge's absence doesn't show")
		}
		reach(t, nodes)
	})
}

// repair puts right what events tell of until the node is as planned.
func repair(h *rtnl.Handle, n *node, plan kernel.State, events <-chan kernel.Event) error {
	for {
		have, err := n.read(h)
		if err != nil {
			return err
		}
		if len(kernel.Diff(plan, have, nil)) == 0 {
			return nil
		}
		e, open := <-events
		if !open {
			return errors.New("no event led to the repair")
		}
		if e.Lost || e.Underlay || e.Object != nil && e.Object == plan[e.Key] {
			continue
		}
		keys := kernel.Keys{e.Key: {}}
		part, err := h.ReadKeys(keys)
		if err != nil {
			return err
		}
		for _, failed := range h.Apply(kernel.Diff(plan, part, keys)) {
			if !errors.Is(failed, unix.ENODEV) { // what was on a link is told before the link itself
				return failed
			}
		}
	}
}

// TestWalk goes from state to state in random order over one kernel: what a state
// leaves behind doesn't show in the next.
func TestWalk(t *testing.T) {
	t.Run("without VLANs", func(t *testing.T) { walk(t, false) })
	t.Run("with VLANs", func(t *testing.T) { walk(t, true) })
}

func walk(t *testing.T, vlans bool) {
	n := newNodes(t, 1, false)[0]
	n.attach(t, 1500) // a bridge that a port with less joins takes less, too
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	ported := geneve
	ported.Port = 6082
	outside := geneve
	outside.VTEPs = []netip.Addr{netip.MustParseAddr("172.30.0.77")}
	// Devices of two would have the same name: it is that of the older.
	var vteps []netip.Addr
	for _, a := range []string{"10.9.2.159", "10.9.4.142", "10.9.2.70", "10.9.6.104", "10.9.1.1", "10.9.1.2"} {
		vteps = append(vteps, netip.MustParseAddr(a))
	}
	own := n.self.Underlay[0]
	for range 60 {
		tunnels := []netconf.Tunnels{{}, geneve, ported, outside, nvgre}[r.IntN(5)]
		tunnels.VLANs = vlans
		n.self.Underlay[0].MTU = 1500 - 100*r.IntN(2)
		n.self.Underlay[0].Addr = own.Addr
		if r.IntN(4) == 0 {
			n.self.Underlay[0].Addr = netip.MustParseAddr("172.30.0.78")
		}
		n.ports[0].Options = netconf.PortOptions{AnyMAC: r.IntN(4) == 0}
		if vlans {
			n.ports[0].Options.VLAN = uint16(10 * r.IntN(3))
			n.ports[0].Options.Trunk = []kernel.VLANList{"", "30-39,41"}[r.IntN(2)]
			if n.ports[0].Options.VLANs() == (kernel.VLANs{}) {
				n.ports[0].Options.Trunk = kernel.AllVLANs
			}
		}
		var members []segment.Member
		for i := range 6 {
			if r.IntN(3) == 0 {
				continue
			}
			m := (&node{Node: n.Node, self: n.self, port: n.port}).member(tunnels)
			m.Peer.Name = fmt.Sprint("peer", i)
			m.Peer.Underlay = []netip.Addr{vteps[i]}
			m.Created = time.Unix(int64(r.IntN(10)), 0)
			m.Learn = r.IntN(6) == 0
			m.Endpoints = nil
			for j := range r.IntN(3) {
				last := byte(10*i + j + 10)
				m.Endpoints = append(m.Endpoints, segment.Endpoint{
					MAC: kernel.MAC{2, 0, 0, 0, 1, last}, IPs: []netip.Addr{netip.AddrFrom4([4]byte{192, 168, 8, last})}, Isolated: r.IntN(2) == 0,
				})
				if vlans {
					m.Endpoints[j].VLAN = uint16(10 * r.IntN(3))
				}
			}
			members = append(members, m)
		}
		n.sync(t, n.plan(t, tunnels, members...))
	}
}
