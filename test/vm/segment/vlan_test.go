//go:build vm

package segment_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/kernel/rtnl"
	"github.com/weft-cni/weft/pkg/netconf"
	"github.com/weft-cni/weft/pkg/podns"
	"github.com/weft-cni/weft/pkg/segment"
	"github.com/weft-cni/weft/pkg/veth"
	"github.com/weft-cni/weft/test/probe"
	"github.com/weft-cni/weft/test/testns"
)

// station is a pod of a segment with VLANs, attached as the plugin does it.
type station struct {
	*testns.NS
	node *node
	port veth.Port
}

// vlanLab is two nodes with these pods, number i on the node i%2.
type vlanLab struct {
	t       *testing.T
	tunnels netconf.Tunnels
	nodes   []*node
	pods    []*station
}

func newVLANLab(t *testing.T, encapsulation netconf.Encapsulation, six bool, options ...netconf.PortOptions) *vlanLab {
	t.Helper()
	l := &vlanLab{t: t, tunnels: netconf.Tunnels{Encapsulation: encapsulation, VLANs: true}, nodes: newNodes(t, 2, six)}
	for i, o := range options {
		mtu, err := segment.MTU(l.nodes[i%2].self, l.tunnels)
		must(t, err)
		l.pods = append(l.pods, &station{NS: testns.New(t), node: l.nodes[i%2], port: veth.Port{
			HostLink: fmt.Sprintf("weft%d", i), PodLink: "net1", MAC: kernel.MAC{2, 0, 0, 0, 1, byte(i + 1)}, MTU: mtu, VNI: vni, Options: o,
			Addrs: []netip.Prefix{netip.PrefixFrom(l.addr(o.VLAN, i), 24)},
		}})
	}
	l.sync(nil)
	for _, p := range l.pods {
		p.with(t, func(n *veth.Node, pod *podns.NS) error { return n.CreatePort(pod, p.port) })
	}
	l.sync(l.pods)
	return l
}

// addr is the address of a pod in a VLAN.
func (l *vlanLab) addr(vlan uint16, pod int) netip.Addr {
	return netip.AddrFrom4([4]byte{192, 168, byte(vlan), byte(pod + 1)})
}

// with runs f as the plugin would.
func (p *station) with(t *testing.T, f func(n *veth.Node, pod *podns.NS) error) {
	t.Helper()
	must(t, p.node.Do(func() error {
		n, err := veth.Open()
		if err != nil {
			return err
		}
		defer n.Close()
		pod, err := podns.Open(p.Path)
		if err != nil {
			return err
		}
		defer pod.Close()
		return f(n, pod)
	}))
}

// sync gives the nodes what they should hold with these pods.
func (l *vlanLab) sync(pods []*station) {
	l.t.Helper()
	for i, n := range l.nodes {
		n.ports = nil
		other := l.nodes[1-i].member(l.tunnels)
		other.Endpoints = nil
		for _, p := range pods {
			o := p.port.Options
			e := segment.Endpoint{MAC: p.port.MAC, IPs: []netip.Addr{p.port.Addrs[0].Addr()}, VLAN: o.VLAN}
			if p.node == n {
				n.ports = append(n.ports, segment.Port{HostLink: p.port.HostLink, Endpoint: e, Options: o})
			} else {
				other.Endpoints, other.Learn = append(other.Endpoints, e), other.Learn || o.Learns()
			}
		}
		n.planned = n.plan(l.t, l.tunnels, other)
		n.sync(l.t, n.planned)
	}
}

// reaches reports whether one pod's ping to another's address in a VLAN is
// answered.
func (l *vlanLab) reaches(from int, vlan uint16, to int) {
	l.t.Helper()
	if _, err := probe.Ping(l.t.Context(), l.pods[from], l.addr(vlan, to)); err != nil {
		l.t.Fatalf("pod %d to %d in VLAN %d: %v", from, to, vlan, err)
	}
}

// subinterface gives a pod an interface in a VLAN, with its address there.
func (l *vlanLab) subinterface(pod int, vlan uint16) string {
	l.t.Helper()
	h := l.pods[pod].Handle
	parent, err := h.LinkByName("net1")
	must(l.t, err)
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.ParentIndex = fmt.Sprintf("net1.%d", vlan), parent.Attrs().Index
	link := &netlink.Vlan{LinkAttrs: attrs, VlanId: int(vlan)}
	must(l.t, h.LinkAdd(link))
	must(l.t, h.AddrAdd(link, &netlink.Addr{IPNet: &net.IPNet{IP: l.addr(vlan, pod).AsSlice(), Mask: net.CIDRMask(24, 32)}}))
	must(l.t, h.LinkSetUp(link))
	return attrs.Name
}

// tagged is a frame to all from a pod with these tags: EtherTypes and VLANs.
func (p *station) tagged(payload string, protocol uint16, tags ...[2]uint16) []byte {
	frame := slices.Concat(everyone[:], p.port.MAC[:])
	for _, tag := range tags {
		frame = binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(frame, tag[0]), tag[1])
	}
	return append(binary.BigEndian.AppendUint16(frame, protocol), payload...)
}

func (w *wire) raw(t *testing.T, frame []byte) {
	t.Helper()
	must(t, unix.Sendto(w.fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: w.index, Halen: 6}))
}

// until gives all frames up to one with this text.
func (w *wire) until(t *testing.T, last string) string {
	t.Helper()
	var heard strings.Builder
	buf := make([]byte, 4096)
	wait(t, func() error {
		for !strings.Contains(heard.String(), last) {
			n, _, err := unix.Recvfrom(w.fd, buf, 0)
			if errors.Is(err, unix.EAGAIN) {
				return fmt.Errorf("no %q", last)
			}
			if err != nil && !errors.Is(err, unix.EINTR) {
				return err
			}
			heard.Write(buf[:max(n, 0)])
		}
		return nil
	})
	return heard.String()
}

// networks are what the router's pod may send from.
func networks(vlans ...byte) (all []netip.Prefix) {
	for _, id := range vlans {
		all = append(all, netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, id, 0}), 24))
	}
	return all
}

// The pods of vlanLab in TestVLANs.
const (
	in10, also10 = 0, 1 // on different nodes
	in20, also20 = 2, 3
	router       = 4 // VLAN 10 without a tag, and 20 to 25 with one
	rest         = 5 // all but VLAN 10, by tags
)

var vlanPods = []netconf.PortOptions{
	{VLAN: 10},
	{VLAN: 10},
	{VLAN: 20},
	{VLAN: 20},
	{VLAN: 10, Trunk: "20-25", IPs: networks(20, 25)},
	{Trunk: "1-9,11-4094", IPs: networks(20, 25, 30)},
}

// TestVLANs: what is sent in a VLAN is heard in it on all nodes and nowhere else,
// and nothing is left afterwards.
func TestVLANs(t *testing.T) {
	for _, c := range []struct {
		encapsulation netconf.Encapsulation
		six           bool
	}{{"", false}, {"", true}, {netconf.EncapGeneve, true}, {netconf.EncapNVGRE, false}} {
		t.Run(fmt.Sprintf("%s IPv6 %v", c.encapsulation, c.six), func(t *testing.T) {
			l := newVLANLab(t, c.encapsulation, c.six, vlanPods...)
			for _, vlan := range []uint16{20, 25} {
				l.subinterface(router, vlan)
				l.subinterface(rest, vlan)
			}
			l.subinterface(rest, 30)
			l.reaches(in10, 10, also10)
			l.reaches(in20, 20, also20)
			for _, from := range []int{in10, also10} {
				l.reaches(from, 10, router)
			}
			for _, from := range []int{in20, also20, rest} {
				l.reaches(from, 20, router)
				l.reaches(router, 20, from)
			}
			l.reaches(rest, 25, router)
			l.apart()
			l.checked()
			l.whole()
			l.remove()
		})
	}
}

// apart sends frames that are for others, then one that is for the listener.
func (l *vlanLab) apart() {
	t := l.t
	const q, ad = unix.ETH_P_8021Q, unix.ETH_P_8021AD
	wires := make([]*wire, len(l.pods))
	for i, p := range l.pods {
		wires[i] = listen(t, p, "net1", unix.ETH_P_ALL)
	}
	send := func(from int, text string, tags ...[2]uint16) {
		wires[from].raw(t, l.pods[from].tagged(text, local, tags...))
	}
	router20, rest20 := listen(t, l.pods[router], "net1.20", unix.ETH_P_ALL), listen(t, l.pods[rest], "net1.20", unix.ETH_P_ALL)
	send(in10, "<of 10>")
	send(in10, "<10 by its tag>", [2]uint16{q, 10})
	send(in10, "<hop to 20>", [2]uint16{q, 20})
	send(in10, "<twice to 20>", [2]uint16{q, 10}, [2]uint16{q, 20})
	send(in10, "<by none to 20>", [2]uint16{q, 0}, [2]uint16{q, 20})
	send(in10, "<by S to 20>", [2]uint16{ad, 20})
	send(in10, "<by two S to 20>", [2]uint16{ad, 10}, [2]uint16{q, 20})
	send(in10, "<by S behind C>", [2]uint16{q, 10}, [2]uint16{ad, 20})
	send(router, "<router to 30>", [2]uint16{q, 30})
	send(rest, "<without a tag>")
	send(rest, "<to 10>", [2]uint16{q, 10})
	send(rest, "<of 30>", [2]uint16{q, 30})
	send(in20, "<of 20>")
	send(also10, "<end of 10>")
	for name, c := range map[string]struct {
		at         *wire
		last       string
		want, none []string
	}{
		"in10":   {wires[in10], "<end of 10>", nil, []string{"<of 20>", "<to 10>", "<of 30>", "<without"}},
		"also10": {wires[also10], "<10 by its tag>", []string{"<of 10>"}, []string{"<of 20>", "<to 10>", "<of 30>", "20>", "<without", "C>"}},
		"also20": {wires[also20], "<of 20>", nil, []string{"10>", "to 20>", "<of 30>", "<without", "tag>"}},
		"router": {router20, "<of 20>", nil, []string{"10>", "to 20>", "<of 30>", "C>"}},
		"rest":   {rest20, "<of 20>", nil, []string{"10>", "to 20>", "<of 30>", "C>"}},
	} {
		heard := c.at.until(t, c.last)
		for _, text := range c.want {
			if !strings.Contains(heard, text) {
				t.Errorf("%s didn't hear %s", name, text)
			}
		}
		for _, text := range c.none {
			if strings.Contains(heard, text) {
				t.Errorf("%s heard %s: %q", name, text, heard)
			}
		}
	}
}

// checked: a trunk's MAC and addresses are looked at behind its tags.
func (l *vlanLab) checked() {
	t := l.t
	from, at := listen(t, l.pods[router], "net1", local), listen(t, l.pods[also20], "net1", unix.ETH_P_ALL)
	tag := [2]uint16{unix.ETH_P_8021Q, 20}
	packet := func(src [4]byte, text string) string {
		b := append([]byte{0x45, 0, 0, byte(20 + len(text)), 0, 1, 0, 0, 9, 253, 0, 0}, src[:]...)
		b = append(b, 255, 255, 255, 255)
		sum := uint32(0)
		for i := 0; i < len(b); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(b[i:]))
		}
		for sum > 0xffff {
			sum = sum>>16 + sum&0xffff
		}
		binary.BigEndian.PutUint16(b[10:], ^uint16(sum))
		return string(b) + text
	}
	from.raw(t, l.pods[router].tagged(packet([4]byte{10, 9, 9, 9}, "<another's>"), unix.ETH_P_IP, tag))
	stranger := l.pods[router].tagged("<stranger>", local, tag)
	stranger[11]++ // the last byte of the source
	from.raw(t, stranger)
	from.raw(t, l.pods[router].tagged(packet([4]byte{192, 168, 20, 77}, "<allowed>"), unix.ETH_P_IP, tag))
	if heard := at.until(t, "<allowed>"); strings.Contains(heard, "<another's>") || strings.Contains(heard, "<stranger>") {
		t.Errorf("heard %q", heard)
	}
}

// whole: a frame as long as the MTU leaves in one piece, and CHECK sees nothing
// amiss.
func (l *vlanLab) whole() {
	l.t.Helper()
	from, at := listen(l.t, l.pods[in10], "net1", local), listen(l.t, l.pods[also10], "net1", unix.ETH_P_ALL)
	from.raw(l.t, l.pods[in10].tagged(strings.Repeat("x", l.pods[in10].port.MTU-len("<long>"))+"<long>", local))
	at.until(l.t, "<long>")
	if found := l.nodes[0].fragments(l.t); len(found) > 0 {
		l.t.Errorf("outer packets were fragmented: %v", found)
	}
	for _, p := range l.pods {
		p.with(l.t, func(n *veth.Node, pod *podns.NS) error {
			have, _, err := n.ReadPort(pod, p.port)
			if d := cmp.Diff(p.port.Host().String(), have.String()); d != "" {
				l.t.Errorf("%s (-want +have):\n%s", p.port.HostLink, d)
			}
			return err
		})
	}
}

// remove takes the pods away as DEL does, and what is left of the segment.
func (l *vlanLab) remove() {
	l.t.Helper()
	for _, p := range l.pods {
		p.with(l.t, func(n *veth.Node, _ *podns.NS) error { return n.RemovePort(p.port) })
	}
	l.sync(nil)
	for _, n := range l.nodes {
		n.ports = nil
		n.sync(l.t, kernel.State{})
		must(l.t, n.Do(func() error {
			links, err := netlink.LinkList()
			for _, link := range links {
				if strings.Contains(link.Attrs().Name, "weft") {
					l.t.Errorf("%s has link %s left", n.Name, link.Attrs().Name)
				}
			}
			return err
		}))
	}
}

// TestVLANFiltering: the kernel is asked without a trace.
func TestVLANFiltering(t *testing.T) {
	newNodes(t, 1, false)[0].with(t, func(h *rtnl.Handle) error {
		if has, err := h.HasVLANFiltering(); err != nil || !has {
			t.Errorf("%v, %v", has, err)
		}
		links, err := netlink.LinkList()
		for _, l := range links {
			if l.Type() == "bridge" {
				t.Errorf("link %s is left", l.Attrs().Name)
			}
		}
		return err
	})
}

// TestVLANDrift: what others change in the VLANs of a node is put right by what
// events tell of.
func TestVLANDrift(t *testing.T) {
	l := newVLANLab(t, "", false, vlanPods...)
	n := l.nodes[0]
	port, tunnel := l.pods[in10].port.HostLink, segment.Tunnel(vni)
	trunk := l.pods[router].port.HostLink
	for name, do := range map[string]func() error{
		"a port leaves its VLAN": vlanChange(port, netlink.BridgeVlanDel, 10, true),
		"a port joins another":   vlanChange(port, netlink.BridgeVlanAdd, 20, false),
		"a port's VLAN has tags": vlanChange(port, netlink.BridgeVlanAdd, 10, false),
		"a trunk leaves one":     vlanChange(trunk, netlink.BridgeVlanDel, 21, false),
		"a trunk's is untagged": vlanChange(trunk, func(l netlink.Link, id uint16, _, _, s, m bool) error {
			return netlink.BridgeVlanAdd(l, id, false, true, s, m)
		}, 22, false),
		"the tunnel leaves one":        vlanChange(tunnel, netlink.BridgeVlanDel, 10, false),
		"the tunnel's is without tags": vlanChange(tunnel, netlink.BridgeVlanAdd, 20, true),
		"no filtering":                 bridgeCommand("vlan_filtering", "0"),
		"ports join VLAN 7":            bridgeCommand("vlan_default_pvid", "7"),
		"a station deleted": func() error {
			link, err := netlink.LinkByName(port)
			if err != nil {
				return err
			}
			return netlink.NeighDel(&netlink.Neigh{
				LinkIndex: link.Attrs().Index, Family: unix.AF_BRIDGE, Flags: netlink.NTF_MASTER, Vlan: 10,
				HardwareAddr: l.pods[in10].port.MAC.HardwareAddr(),
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			n.with(t, func(h *rtnl.Handle) error {
				events, err := h.Watch(t.Context(), rtnl.Names(segment.Names))
				if err != nil {
					return err
				}
				if err = do(); err != nil {
					return err
				}
				have, err := n.read(h)
				if err != nil {
					return err
				}
				if len(kernel.Diff(n.planned, have, nil)) == 0 {
					t.Error("doesn't show")
				}
				return repair(h, n, n.planned, events)
			})
			if left := n.sync(t, n.planned); left > 0 {
				t.Errorf("%d operations are left", left)
			}
		})
	}
	l.reaches(in10, 10, also10)
	l.reaches(in20, 20, also20)
}

// vlanChange changes one VLAN of a bridge's port.
func vlanChange(link string, do func(l netlink.Link, id uint16, pvid, untagged, self, master bool) error, id uint16, native bool) func() error {
	return func() error {
		l, err := netlink.LinkByName(link)
		if err != nil {
			return err
		}
		return do(l, id, native, native, false, true)
	}
}

// bridgeCommand changes a setting of the segment's bridge.
func bridgeCommand(key, value string) func() error {
	return func() error {
		out, err := exec.Command("ip", "link", "set", segment.Bridge(vni), "type", "bridge", key, value).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}
}
