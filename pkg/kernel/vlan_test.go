package kernel

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestVLANList: one set is one text, whatever it is made of.
func TestVLANList(t *testing.T) {
	for _, c := range []struct {
		ranges [][2]uint16
		but    uint16
		want   VLANList
	}{
		{nil, 0, ""},
		{[][2]uint16{{10, 10}}, 0, "10"},
		{[][2]uint16{{10, 10}}, 10, ""},
		{[][2]uint16{{30, 40}, {10, 10}, {35, 50}, {11, 11}}, 0, "10-11,30-50"},
		{[][2]uint16{{1, 4094}}, 0, AllVLANs},
		{[][2]uint16{{0, 65535}}, 0, AllVLANs},
		{[][2]uint16{{1, 4094}}, 10, "1-9,11-4094"},
		{[][2]uint16{{20, 10}}, 0, ""},
	} {
		got := NewVLANList(c.ranges, c.but)
		if got != c.want {
			t.Errorf("%v but %d: %q, not %q", c.ranges, c.but, got, c.want)
		}
		if again := NewVLANList(got.Ranges(), 0); again != got {
			t.Errorf("%q comes back as %q", got, again)
		}
	}
}

// TestOtherVLANs: a port is in each VLAN or out of it.
func TestOtherVLANs(t *testing.T) {
	for _, c := range []struct {
		vlans VLANs
		want  [][2]uint16
	}{
		{VLANs{}, [][2]uint16{{1, 4094}}},
		{VLANs{Native: 10}, [][2]uint16{{1, 9}, {11, 4094}}},
		{VLANs{Native: 10, Tagged: "1-9,11-4094"}, nil},
		{VLANs{Tagged: "1,4094"}, [][2]uint16{{2, 4093}}},
	} {
		if got := c.vlans.Others(); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, not %v", c.vlans, got, c.want)
		}
	}
}

// TestDiffVLANs: what a bridge and its ports are in changes in place; a station
// of one VLAN isn't that of another.
func TestDiffVLANs(t *testing.T) {
	bridge, port := Bridge{Name: "br", VLANs: true}, BridgePort{Link: "p", Bridge: "br", VLANs: VLANs{Native: 10}}
	tunnel := VXLAN{Name: "vx", VNI: 1, Local: netip.MustParseAddr("192.0.2.1"), Bridge: "br", VLANs: VLANs{Tagged: AllVLANs}}
	station := Station{Link: "p", MAC: MAC{2}, VLAN: 10}
	want := NewState(bridge, port, tunnel, station)
	bridge.VLANs, port.VLANs, tunnel.VLANs, station.VLAN = false, VLANs{Native: 10, Tagged: "20-29"}, VLANs{}, 20
	const text = `~ link br type bridge stp_state 0 mcast_snooping 0 address 00:00:00:00:00:00 mtu 0 vlan_filtering 1 up [was: link br type bridge stp_state 0 mcast_snooping 0 address 00:00:00:00:00:00 mtu 0 up]
~ link vx type vxlan id 1 local 192.0.2.1 dstport 0 nolearning address 00:00:00:00:00:00 mtu 0 master br neigh_suppress on vlans 1-4094 up [was: link vx type vxlan id 1 local 192.0.2.1 dstport 0 nolearning address 00:00:00:00:00:00 mtu 0 master br neigh_suppress on up]
~ port p master br learning off flood off locked on isolated off vlans 10 pvid untagged [was: port p master br learning off flood off locked on isolated off vlans 10 pvid untagged 20-29]
+ fdb 02:00:00:00:00:00 dev p vlan 10 master static
- fdb 02:00:00:00:00:00 dev p vlan 20 master static
`
	if d := cmp.Diff(text, verbs(Diff(want, NewState(bridge, port, tunnel, station), nil))); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}
