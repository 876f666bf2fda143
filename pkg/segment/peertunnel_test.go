package segment_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/netconf"
	"github.com/weft-cni/weft/pkg/overlay"
	"github.com/weft-cni/weft/pkg/segment"
	"github.com/weft-cni/weft/test/testns"
)

// node is what a node is for those that plan, over an IPv4 underlay or over IPv6.
func node(i int, six bool) (overlay.Self, overlay.Peer) {
	name, a := fmt.Sprintf("n%d", i), addr(fmt.Sprintf("172.30.0.1%d", i))
	if six {
		a = addr(fmt.Sprintf("fd30::1%d", i))
	}
	return overlay.Self{Name: name, Underlay: []overlay.Underlay{{Addr: a, Link: "eth0", MTU: 1500}}},
		overlay.Peer{Name: name, Underlay: []netip.Addr{a}, Port: 4789}
}

func member(i int, six bool, t netconf.Tunnels, endpoints ...segment.Endpoint) segment.Member {
	_, peer := node(i, six)
	return segment.Member{Peer: peer, Created: time.Unix(int64(i), 0), Tunnels: t, Endpoints: endpoints}
}

// TestPlanPeerTunnels shows the plans of segments whose tunnels lead to one VTEP
// each.
func TestPlanPeerTunnels(t *testing.T) {
	station := func(last byte, isolated bool) segment.Endpoint {
		return segment.Endpoint{
			MAC: kernel.MAC{2, 0, 0, 0, 0, last}, IPs: []netip.Addr{netip.AddrFrom4([4]byte{192, 168, 7, last})}, Isolated: isolated,
		}
	}
	geneve, nvgre := netconf.Tunnels{Encapsulation: netconf.EncapGeneve}, netconf.Tunnels{Encapsulation: netconf.EncapNVGRE}
	ported, outside := geneve, geneve
	ported.Port = 6082
	outside.VTEPs = []netip.Addr{addr("172.30.0.12"), addr("192.0.2.7")}
	listed := nvgre
	listed.Discovery, listed.VTEPs = netconf.DiscoverStatic, []netip.Addr{addr("172.30.0.11"), addr("172.30.0.12")}
	members := func(six bool, t netconf.Tunnels) []segment.Member {
		return []segment.Member{member(2, six, t, station(2, true), station(3, false)), member(3, six, t, station(4, false))}
	}
	learning := members(false, geneve)
	learning[0].Learn = true
	var text strings.Builder
	for _, c := range []struct {
		name string
		six  bool
		in   segment.Segment
	}{
		{"geneve", false, segment.Segment{Tunnels: geneve, Members: members(false, geneve)}},
		{"geneve over IPv6", true, segment.Segment{Tunnels: geneve, Members: members(true, geneve)}},
		{"geneve with a port, alone", false, segment.Segment{Tunnels: ported}},
		{"geneve and a member of another port", false, segment.Segment{Tunnels: ported, Members: members(false, geneve)}},
		{"geneve and a VXLAN member", false, segment.Segment{Tunnels: geneve, Members: members(false, netconf.Tunnels{})}},
		{"geneve and stations that move", false, segment.Segment{Tunnels: geneve, Members: learning}},
		{"geneve and VTEPs outside, one of them a member's", false, segment.Segment{Tunnels: outside, Members: members(false, outside)}},
		{"nvgre", false, segment.Segment{Tunnels: nvgre, Members: members(false, nvgre)}},
		{"nvgre over IPv6", true, segment.Segment{Tunnels: nvgre, Members: members(true, nvgre)}},
		{"nvgre, a list of VTEPs", false, segment.Segment{Tunnels: listed}},
	} {
		self, _ := node(1, c.six)
		c.in.VNI = 10001
		s, err := segment.Plan(overlay.Config{VNI: 1, Port: 4789}, self, c.in)
		fmt.Fprintf(&text, "# %s\n%s", c.name, s)
		if err != nil {
			fmt.Fprintf(&text, "but: %v\n", err)
		}
		text.WriteString("\n")
	}
	testns.Golden(t, "peertunnel.golden", text.String())
}

// TestNames: a device's name says which segment it is of, and fits.
func TestNames(t *testing.T) {
	for _, vni := range []uint32{1, 4096, 10001, segment.MaxVNI} {
		for _, name := range []string{segment.Bridge(vni), segment.Tunnel(vni), peerTunnel(t, vni, addr("fd30::12"))} {
			if got, ok := segment.VNIOf(name); !ok || got != vni || len(name) > 15 {
				t.Errorf("%s is of %d, %v", name, got, ok)
			}
		}
	}
	for _, name := range []string{"", "eth0", "t-weft", "t-weft00000000", "t-weft00000000w", "t-weftg00000000", "vx-weft16777216", "br-weft", "weft0"} {
		if vni, ok := segment.VNIOf(name); ok {
			t.Errorf("%q is of segment %d", name, vni)
		}
	}
}

// peerTunnel is the name of the only tunnel of a segment, to a VTEP.
func peerTunnel(t *testing.T, vni uint32, vtep netip.Addr) string {
	t.Helper()
	self, _ := node(1, vtep.Is6())
	s, err := segment.Plan(overlay.Config{}, self, segment.Segment{VNI: vni, Tunnels: netconf.Tunnels{
		Encapsulation: netconf.EncapGeneve, Discovery: netconf.DiscoverStatic, VTEPs: []netip.Addr{vtep},
	}})
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range s {
		if tunnel, is := o.(kernel.Tunnel); is {
			return tunnel.Name
		}
	}
	t.Fatal("no tunnel")
	return ""
}

// TestNamesDiffer: of 2,000 VTEPs, some of which would have the same name, each
// has its own.
func TestNamesDiffer(t *testing.T) {
	self, _ := node(1, false)
	tunnels := netconf.Tunnels{Encapsulation: netconf.EncapGeneve, Discovery: netconf.DiscoverStatic}
	alone := map[string]bool{}
	for i := range 2000 {
		vtep := netip.AddrFrom4([4]byte{10, 9, byte(i >> 8), byte(i)})
		tunnels.VTEPs = append(tunnels.VTEPs, vtep)
		alone[peerTunnel(t, 10001, vtep)] = true
	}
	if len(alone) == len(tunnels.VTEPs) {
		t.Error("no two of these have the same name: the test tests nothing")
	}
	s, err := segment.Plan(overlay.Config{}, self, segment.Segment{VNI: 10001, Tunnels: tunnels})
	if err != nil || len(s) != len(tunnels.VTEPs)+1 {
		t.Errorf("%d objects, %v", len(s), err)
	}
}
