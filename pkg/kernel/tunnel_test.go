package kernel

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestDiffTunnel: what can't be changed in place takes the stations behind it.
func TestDiffTunnel(t *testing.T) {
	gre := Tunnel{
		Name: "t", Kind: GRETAP, VNI: 4096, Local: netip.MustParseAddr("192.0.2.1"), Remote: netip.MustParseAddr("192.0.2.2"),
		MAC: MAC{2, 1}, MTU: 1458, Bridge: "br",
	}
	geneve := gre
	geneve.Kind, geneve.Local, geneve.Port = Geneve, netip.Addr{}, 6081
	with := func(t Tunnel, change func(*Tunnel)) Tunnel {
		change(&t)
		return t
	}
	const (
		station    = "fdb 02:02:00:00:00:00 dev t master static\n"
		greText    = "link t type gretap key 0x100000 local 192.0.2.1 remote 192.0.2.2 address 02:01:00:00:00:00 mtu 1458 master br learning off neigh_suppress on up"
		geneveText = "link t type geneve id 4096 remote 192.0.2.2 dstport 6081 address 02:01:00:00:00:00 mtu 1458 master br learning off neigh_suppress on up"
	)
	for _, c := range []struct {
		name string
		have Object
		want Tunnel
		ops  string
	}{
		{"as it is", gre, gre, ""},
		{"another MTU, in place", with(gre, func(t *Tunnel) { t.MTU = 1400 }), gre, "~ " + greText + " [was: link t type gretap key 0x100000 local 192.0.2.1 remote 192.0.2.2 address 02:01:00:00:00:00 mtu 1400 master br learning off neigh_suppress on up]\n"},
		{
			"out of its bridge, whose entries went", with(gre, func(t *Tunnel) { t.Bridge, t.Learning = "", true }), gre,
			"~ " + greText + " [was: link t type gretap key 0x100000 local 192.0.2.1 remote 192.0.2.2 address 02:01:00:00:00:00 mtu 1458 learning on neigh_suppress on up]\n+ " + station,
		},
		{"another kind", geneve, gre, "! " + greText + " [was: " + geneveText + "]\n+ " + station},
		{"another VNI", with(geneve, func(t *Tunnel) { t.VNI = 1 }), geneve, "! " + geneveText + " [was: link t type geneve id 1 remote 192.0.2.2 dstport 6081 address 02:01:00:00:00:00 mtu 1458 master br learning off neigh_suppress on up]\n+ " + station},
		{"a stranger", ForeignLink{Name: "t", Detail: "type dummy"}, geneve, "! " + geneveText + " [was: link t (type dummy)]\n+ " + station},
	} {
		behind := Station{Link: "t", MAC: MAC{2, 2}}
		if d := cmp.Diff(c.ops, verbs(Diff(NewState(c.want, behind), NewState(c.have, behind), nil))); d != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, d)
		}
	}
}

// TestIncompatibleTunnel: the reason for which a tunnel is made anew.
func TestIncompatibleTunnel(t *testing.T) {
	a, b := netip.MustParseAddr("fd30::1"), netip.MustParseAddr("fd30::2")
	want := Tunnel{Name: "t", Kind: IP6GRETAP, VNI: 4096, Local: a, Remote: b, MAC: MAC{2}}
	for _, c := range []struct {
		change func(*Tunnel)
		reason string
	}{
		{func(t *Tunnel) {
			t.MAC, t.MTU, t.Bridge, t.Learning, t.Moving, t.Detail = MAC{4}, 1300, "br", true, true, "down"
		}, ""},
		{func(t *Tunnel) { t.Kind = Geneve }, "type geneve, not ip6gretap"},
		{func(t *Tunnel) { t.VNI = 1 }, "VNI 1, not 4096"},
		{func(t *Tunnel) { t.Local = b }, "from fd30::2 to fd30::2, not from fd30::1 to fd30::2"},
		{func(t *Tunnel) { t.Remote = a }, "from fd30::1 to fd30::1, not from fd30::1 to fd30::2"},
		{func(t *Tunnel) { t.Port = 6081 }, "UDP port 6081, not 0"},
	} {
		have := want
		c.change(&have)
		if got := want.Incompatible(have); got != c.reason {
			t.Errorf("%q, not %q", got, c.reason)
		}
	}
	if got := want.Incompatible(VXLAN{Name: "t"}); got != "not a tunnel of this form" {
		t.Error(got)
	}
}
