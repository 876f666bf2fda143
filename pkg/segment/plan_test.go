package segment_test

import (
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

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// TestPlan shows the plans of segments whose pods have options, on this node or
// on another.
func TestPlan(t *testing.T) {
	self := overlay.Self{Name: "n1", Underlay: []overlay.Underlay{{Addr: addr("172.30.0.11"), Link: "eth0", MTU: 1500}}}
	self.Inner, self.InnerPort = overlay.Underlay{Addr: overlay.InnerAddr("n1"), MTU: 1440}, 51824
	peer := overlay.Peer{Encryption: &overlay.Encryption{Port: 51820}, Name: "n2", Underlay: []netip.Addr{addr("172.30.0.12")}, Port: 4789}
	station := func(last byte, isolated bool) segment.Endpoint {
		return segment.Endpoint{
			MAC: kernel.MAC{2, 0, 0, 0, 0, last}, IPs: []netip.Addr{netip.AddrFrom4([4]byte{192, 168, 7, last})}, Isolated: isolated,
		}
	}
	port := func(o netconf.PortOptions) []segment.Port {
		return []segment.Port{{HostLink: "weft0", Endpoint: station(1, o.Isolated), Options: o}}
	}
	inVLAN := func(e segment.Endpoint, vlan uint16) segment.Endpoint {
		e.VLAN = vlan
		return e
	}
	vrrp := []kernel.MAC{{0, 0, 0x5e, 0, 1, 10}}
	member := []segment.Member{{Endpoints: []segment.Endpoint{station(2, false)}, Tunnels: netconf.Tunnels{VTEPs: []netip.Addr{addr("192.0.2.7")}, Port: 8472}}}
	var text strings.Builder
	for _, c := range []struct {
		name string
		in   segment.Segment
	}{
		{"ordinary", segment.Segment{Ports: port(netconf.PortOptions{})}},
		{"gateway", segment.Segment{Gateway: true, Ports: port(netconf.PortOptions{Gateway: true})}},
		{"multicast snooping", segment.Segment{Snooping: true, Ports: port(netconf.PortOptions{})}},
		{"allowed MACs", segment.Segment{Ports: port(netconf.PortOptions{MACs: vrrp})}},
		{"any MAC", segment.Segment{Ports: port(netconf.PortOptions{AnyMAC: true, MACs: vrrp})}},
		{"allowed addresses", segment.Segment{Ports: port(netconf.PortOptions{IPs: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("192.168.7.9/32")}})}},
		{"router and DHCP server", segment.Segment{Ports: port(netconf.PortOptions{Router: true, DHCPServer: true})}},
		{"isolated", segment.Segment{Ports: port(netconf.PortOptions{Isolated: true})}},
		{"a member has allowed MACs", segment.Segment{Ports: port(netconf.PortOptions{}), Members: []segment.Member{{Learn: true}}}},
		{"a member has isolated pods", segment.Segment{Members: []segment.Member{{Endpoints: []segment.Endpoint{station(2, true), station(3, false)}}}}},
		{"VTEPs outside", segment.Segment{Tunnels: netconf.Tunnels{VTEPs: []netip.Addr{addr("192.0.2.7")}, Port: 8472}, Members: member}},
		{"a list of VTEPs", segment.Segment{Tunnels: netconf.Tunnels{
			Discovery: netconf.DiscoverStatic, VTEPs: []netip.Addr{addr("172.30.0.11"), addr("192.0.2.7")},
		}}},
		{"encrypted", segment.Segment{Tunnels: netconf.Tunnels{Encrypt: true}, Members: []segment.Member{{
			Endpoints: []segment.Endpoint{station(2, false)}, Tunnels: netconf.Tunnels{Encrypt: true},
		}}}},
		{"a VLAN", segment.Segment{Tunnels: netconf.Tunnels{VLANs: true}, Ports: port(netconf.PortOptions{VLAN: 10}), Members: []segment.Member{{
			Tunnels: netconf.Tunnels{VLANs: true}, Endpoints: []segment.Endpoint{inVLAN(station(2, false), 10), inVLAN(station(3, true), 20)},
		}}}},
		{"a trunk", segment.Segment{Tunnels: netconf.Tunnels{VLANs: true}, Ports: port(netconf.PortOptions{Trunk: "20-29,40"})}},
		{"a trunk with a VLAN that has no tag", segment.Segment{Tunnels: netconf.Tunnels{VLANs: true}, Ports: port(netconf.PortOptions{VLAN: 10, Trunk: "20"})}},
		{"a member has a trunk", segment.Segment{Tunnels: netconf.Tunnels{VLANs: true}, Members: []segment.Member{{
			Tunnels: netconf.Tunnels{VLANs: true}, Learn: true, Endpoints: []segment.Endpoint{station(2, false)},
		}}}},
		{"VLANs in Geneve", segment.Segment{Tunnels: netconf.Tunnels{VLANs: true, Encapsulation: netconf.EncapGeneve}, Members: []segment.Member{{
			Tunnels: netconf.Tunnels{VLANs: true, Encapsulation: netconf.EncapGeneve}, Endpoints: []segment.Endpoint{inVLAN(station(2, false), 10), station(3, false)},
		}}}},
		{"a group", segment.Segment{Tunnels: netconf.Tunnels{Discovery: netconf.DiscoverMulticast, Group: addr("239.1.1.1")}}},
	} {
		c.in.VNI = 1001
		for i := range c.in.Members {
			c.in.Members[i].Peer, c.in.Members[i].Created = peer, time.Unix(0, 0)
		}
		s, err := segment.Plan(overlay.Config{VNI: 1, Port: 4789}, self, c.in)
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		text.WriteString("# " + c.name + "\n" + s.String() + "\n")
	}
	testns.Golden(t, "plan.golden", text.String())
}
