package kernel

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var (
	vx     = VXLAN{Name: "vx", VNI: 1, Port: 4789, Local: netip.MustParseAddr("192.0.2.1"), MAC: MAC{2, 1}, MTU: 1450}
	table  = Rules{Table: "inet t", Text: "set s { type ipv4_addr; flags interval; }\n"}
	addr   = Addr{Link: "vx", Prefix: netip.MustParsePrefix("10.0.0.1/32")}
	fdb    = FDB{Link: "vx", MAC: MAC{2, 2}, VTEP: netip.MustParseAddr("192.0.2.2")}
	neigh  = Neigh{Link: "vx", IP: netip.MustParseAddr("10.0.1.1"), MAC: MAC{2, 2}}
	route  = Route{Link: "vx", Dst: netip.MustParsePrefix("10.0.1.0/24"), Via: netip.MustParseAddr("10.0.1.1")}
	direct = Route{Link: "eth0", Dst: route.Dst, Via: netip.MustParseAddr("192.0.2.2")}
	elem   = Element{Table: "inet t", Set: "s", Prefix: netip.MustParsePrefix("10.0.1.0/24")}
	sysctl = Sysctl{Name: "net/ipv4/ip_forward", Value: "1"}
)

func verbs(ops []Op) string {
	text := ""
	for _, op := range ops {
		text += op.String() + "\n"
	}
	return text
}

func TestDiff(t *testing.T) {
	moved, relocated, longer := vx, vx, vx
	moved.Local, relocated.VNI, longer.MAC = netip.MustParseAddr("192.0.2.9"), 2, MAC{2, 9}
	rules2 := Rules{Table: "inet t", Text: table.Text + "# more\n"}
	off := Sysctl{Name: sysctl.Name, Value: "0"}
	full := NewState(vx, table, addr, fdb, neigh, route, elem, sysctl)
	for _, c := range []struct {
		name       string
		want, have State
		scope      Keys
		ops        string
	}{
		{"nothing to do", full, full, nil, ""},
		{"what is needed first comes first", full, State{}, nil, `+ sysctl net/ipv4/ip_forward = 1
+ table inet t {
	set s { type ipv4_addr; flags interval; }
}
+ element inet t s { 10.0.1.0/24 }
+ link vx type vxlan id 1 local 192.0.2.1 dstport 4789 nolearning address 02:01:00:00:00:00 mtu 1450 up
+ addr 10.0.0.1/32 dev vx
+ fdb 02:02:00:00:00:00 dev vx dst 192.0.2.2 self permanent
+ neigh 10.0.1.1 dev vx lladdr 02:02:00:00:00:00 permanent
+ route 10.0.1.0/24 via 10.0.1.1 onlink dev vx proto weft
`},
		{"and goes last, but for sysctls", State{}, full, nil, `- element inet t s { 10.0.1.0/24 }
- route 10.0.1.0/24 via 10.0.1.1 onlink dev vx proto weft
- neigh 10.0.1.1 dev vx lladdr 02:02:00:00:00:00 permanent
- fdb 02:02:00:00:00:00 dev vx dst 192.0.2.2 self permanent
- addr 10.0.0.1/32 dev vx
- link vx type vxlan id 1 local 192.0.2.1 dstport 4789 nolearning address 02:01:00:00:00:00 mtu 1450 up
- table inet t {
	set s { type ipv4_addr; flags interval; }
}
`},
		{"a new outer address in place", NewState(moved, route), NewState(vx, route), nil, `~ link vx type vxlan id 1 local 192.0.2.9 dstport 4789 nolearning address 02:01:00:00:00:00 mtu 1450 up [was: link vx type vxlan id 1 local 192.0.2.1 dstport 4789 nolearning address 02:01:00:00:00:00 mtu 1450 up]
`},
		{"a new VNI takes all that is on the link", NewState(relocated, fdb), NewState(vx, fdb, route), nil, `! link vx type vxlan id 2 local 192.0.2.1 dstport 4789 nolearning address 02:01:00:00:00:00 mtu 1450 up [was: link vx type vxlan id 1 local 192.0.2.1 dstport 4789 nolearning address 02:01:00:00:00:00 mtu 1450 up]
+ fdb 02:02:00:00:00:00 dev vx dst 192.0.2.2 self permanent
`},
		{"a new MAC takes the neighbours", NewState(longer, fdb, neigh), NewState(vx, fdb, neigh), nil, `~ link vx type vxlan id 1 local 192.0.2.1 dstport 4789 nolearning address 02:09:00:00:00:00 mtu 1450 up [was: link vx type vxlan id 1 local 192.0.2.1 dstport 4789 nolearning address 02:01:00:00:00:00 mtu 1450 up]
+ neigh 10.0.1.1 dev vx lladdr 02:02:00:00:00:00 permanent
`},
		{"new rules take the elements", NewState(rules2, elem), NewState(table, elem), nil, `! table inet t {
	set s { type ipv4_addr; flags interval; }
	# more
} [was: table inet t {
	set s { type ipv4_addr; flags interval; }
}]
+ element inet t s { 10.0.1.0/24 }
`},
		{"the new path before the old one goes", NewState(route), NewState(direct), nil, `+ route 10.0.1.0/24 via 10.0.1.1 onlink dev vx proto weft
- route 10.0.1.0/24 via 192.0.2.2 onlink dev eth0 proto weft
`},
		{"a scope hides the rest", NewState(fdb, sysctl), NewState(route, off), Keys{fdb.Key(): {}}, `+ fdb 02:02:00:00:00:00 dev vx dst 192.0.2.2 self permanent
`},
		{"a link in scope brings what is on it", NewState(vx, fdb, sysctl), NewState(vx, route, off), Keys{vx.Key(): {}}, `+ fdb 02:02:00:00:00:00 dev vx dst 192.0.2.2 self permanent
- route 10.0.1.0/24 via 10.0.1.1 onlink dev vx proto weft
`},
		{"a table in scope brings its elements", NewState(table, elem, fdb), NewState(table), Keys{table.Key(): {}}, `+ element inet t s { 10.0.1.0/24 }
`},
	} {
		t.Run(c.name, func(t *testing.T) {
			if d := cmp.Diff(c.ops, verbs(Diff(c.want, c.have, c.scope))); d != "" {
				t.Errorf("-want +got:\n%s", d)
			}
		})
	}
}

// modelApply does to a State what the kernel does, its side effects included.
func modelApply(s State, ops []Op) {
	for _, op := range ops {
		k := op.Key()
		if op.Verb == Delete || op.Verb == Recreate {
			gone := Keys{k: {}}
			maps.DeleteFunc(s, func(k Key, _ Object) bool { return gone.Covers(k) })
		}
		if op.Verb != Delete {
			if joins(op) { // what another bridge knew of it isn't known to this one
				maps.DeleteFunc(s, func(n Key, _ Object) bool { return n.Kind == KindStation && n.Name == k.Name })
			}
			if changesMAC(op) {
				maps.DeleteFunc(s, func(n Key, _ Object) bool { return n.Kind == KindNeigh && n.Name == k.Name })
			}
			s.Put(op.Want)
		}
	}
}

// TestApplyDiffMakesWant: Apply(Diff(a, b)) makes b, and a second diff is
// empty, for random states a and b.
func TestApplyDiffMakesWant(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	random := func() State {
		s := State{}
		maybe := func(o Object) {
			if r.IntN(3) > 0 {
				s.Put(o)
			}
		}
		ip := func() netip.Addr { return netip.AddrFrom4([4]byte{10, 0, byte(r.IntN(3)), 1}) }
		for i := range 2 {
			name := fmt.Sprintf("vx%d", i)
			bridge := []string{"", "br0"}[r.IntN(2)]
			maybe(VXLAN{Name: name, VNI: uint32(r.IntN(2)), Local: ip(), MAC: MAC{2, byte(r.IntN(2))}, Bridge: bridge})
			if r.IntN(3) == 0 {
				s.Put(Tunnel{Name: name, Kind: Geneve, VNI: uint32(r.IntN(2)), Remote: ip(), MAC: MAC{2, byte(r.IntN(2))}, Bridge: bridge, Learning: r.IntN(2) == 0})
			}
			if s[Key{Kind: KindLink, Name: name}] == nil {
				continue
			}
			for range 4 {
				if bridge != "" {
					maybe(Station{Link: name, MAC: MAC{2, byte(r.IntN(5))}})
				}
				maybe(FDB{Link: name, MAC: MAC{2, byte(r.IntN(5))}, VTEP: ip()})
				maybe(Neigh{Link: name, IP: ip(), MAC: MAC{2, byte(r.IntN(5))}})
				maybe(Route{Link: name, Dst: netip.PrefixFrom(ip(), 32), Via: ip()})
			}
		}
		if r.IntN(4) > 0 {
			s.Put(Rules{Table: "inet t", Text: fmt.Sprint(r.IntN(2))})
			maybe(Element{Table: "inet t", Set: "s", Prefix: netip.PrefixFrom(ip(), 32)})
		}
		return s
	}
	for range 5000 {
		want, have := random(), random()
		before := maps.Clone(have)
		ops := Diff(want, have, nil)
		modelApply(have, ops)
		if d := cmp.Diff(want.String(), have.String()); d != "" {
			t.Fatalf("from\n%s(-want +got):\n%s\nby\n%s", before, d, verbs(ops))
		}
		if again := Diff(want, have, nil); len(again) != 0 {
			t.Fatalf("second diff: %s", verbs(again))
		}
	}
}

func TestKinds(t *testing.T) {
	names := ""
	for _, k := range Kinds() {
		names += k.String() + " "
	}
	if names != "sysctl rules element link port addr fdb station neigh peer route policyrule " {
		t.Error(names)
	}
}

func TestParseMAC(t *testing.T) {
	for _, bad := range []string{"", "02:00", "02:00:5e:10:00:00:00:01", "zz:00:5e:10:00:01"} {
		if m, err := ParseMAC(bad); err == nil {
			t.Errorf("%q read as %s", bad, m)
		}
	}
	var m MAC
	if err := m.UnmarshalText([]byte("02-00-5E-10-00-01")); err != nil || m.String() != "02:00:5e:10:00:01" {
		t.Error(m, err)
	}
	if got := MACFromHash([]byte{0xff, 1, 2, 3, 4, 5, 6}); !got.IsUnicast() || got[0] != 0xfe {
		t.Error(got)
	}
}

func TestStateOnly(t *testing.T) {
	s := NewState(vx, fdb, route, direct, sysctl)
	got := s.Only(Keys{vx.Key(): {}})
	if d := cmp.Diff([]string{vx.String(), fdb.String(), route.String()}, lines(got)); d != "" {
		t.Error(d)
	}
}

func lines(s State) []string {
	var all []string
	for _, k := range slices.SortedFunc(maps.Keys(s), Key.Compare) {
		all = append(all, s[k].String())
	}
	return all
}
