package netconf_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/netconf"
)

// TestParseVLANs: the forms of the bridge plugin, and what they say of the port
// and of the segment.
func TestParseVLANs(t *testing.T) {
	for _, c := range []struct {
		keys, text string
		vlans      kernel.VLANs
	}{
		{``, "segment 1001", kernel.VLANs{}},
		{`,"vlan":10`, "segment 1001, vlan 10", kernel.VLANs{Native: 10}},
		{`,"vlan":4094,"trunk":null`, "segment 1001, vlan 4094", kernel.VLANs{Native: 4094}},
		{`,"trunk":[{"id":40},{"minID":20,"maxID":29}]`, "segment 1001, trunk 20-29,40", kernel.VLANs{Tagged: "20-29,40"}},
		{`,"trunk":[{"id":9,"minID":10,"maxID":19},{"id":15}]`, "segment 1001, trunk 9-19", kernel.VLANs{Tagged: "9-19"}},
		{`,"vlan":10,"trunk":[{"minID":1,"maxID":4094}]`, "segment 1001, vlan 10, trunk 1-9,11-4094", kernel.VLANs{Native: 10, Tagged: "1-9,11-4094"}},
	} {
		s := mustParse(t, conf(`"mode":"overlay","vni":1001`+c.keys), env(netconf.Add)).Segment
		if s.Port.VLANs() != c.vlans || s.Tunnels.VLANs != (c.vlans != kernel.VLANs{}) || s.String() != c.text {
			t.Errorf("%s: %s (%s), segment %v", c.keys, s, s.Port.VLANs(), s.Tunnels.VLANs)
		}
		if s.Port.Learns() != (c.vlans.Tagged != "") || s.Port.IsZero() != (c.vlans == kernel.VLANs{}) {
			t.Errorf("%s: learns %v, ordinary %v", c.keys, s.Port.Learns(), s.Port.IsZero())
		}
	}
}

// TestVLANGrants: a trunk, whose stations are learned, sends from its own MAC
// only, and on its own it has an entry in the VLAN without tags alone.
func TestVLANGrants(t *testing.T) {
	mac := kernel.MAC{2, 0, 0, 0, 0, 1}
	for _, c := range []struct {
		port     netconf.PortOptions
		sets     []string
		stations string
	}{
		{netconf.PortOptions{}, nil, "fdb 02:00:00:00:00:01 dev weft0 master static\n"},
		{netconf.PortOptions{VLAN: 10}, []string{netconf.SetVLANs}, "fdb 02:00:00:00:00:01 dev weft0 vlan 10 master static\n"},
		{netconf.PortOptions{Trunk: "20"}, []string{netconf.SetLearning, netconf.SetStations, netconf.SetVLANs}, ""},
		{netconf.PortOptions{VLAN: 10, Trunk: "20"}, []string{netconf.SetLearning, netconf.SetStations, netconf.SetVLANs}, "fdb 02:00:00:00:00:01 dev weft0 vlan 10 master static\n"},
		{netconf.PortOptions{AnyMAC: true, Trunk: "20"}, []string{netconf.SetNetworks6, netconf.SetVLANs}, ""},
	} {
		var sets []string
		for _, g := range netconf.Grants(mac, nil, c.port) {
			if !strings.HasPrefix(g.Set, "senders") {
				sets = append(sets, g.Set)
			}
		}
		if !slices.Equal(sets, c.sets) {
			t.Errorf("%+v: in %v, not %v", c.port, sets, c.sets)
		}
		if got := c.port.Station("weft0", mac).String(); got != c.stations {
			t.Errorf("%+v: %s", c.port, got)
		}
	}
}

// TestVLANsDisagree: a segment has VLANs for all, or for none.
func TestVLANsDisagree(t *testing.T) {
	with, without := netconf.Tunnels{VLANs: true}, netconf.Tunnels{}
	for _, c := range []struct {
		asked, has netconf.Tunnels
		want       string
	}{
		{without, with, "vlan is none; accepted: 1 to 4094, or trunk, as the segment has it on node b: all attachments to a segment have to agree"},
		{with, without, "vlan is 1 to 4094, or trunk; accepted: none, as the segment has it on node b: all attachments to a segment have to agree"},
	} {
		if err := c.asked.Agree(c.has, "on node b"); err == nil || !strings.HasSuffix(err.Error(), c.want) {
			t.Errorf("%v\nis not: %s", err, c.want)
		}
	}
	if err := with.Agree(with, "on node b"); err != nil {
		t.Error(err)
	}
}
