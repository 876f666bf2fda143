package overlay

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weft-cni/weft/api/v1alpha1"
	"github.com/weft-cni/weft/pkg/kernel"
)

var update = flag.Bool("update", false, "write the golden files")

func golden(t *testing.T, file, got string) {
	t.Helper()
	path := filepath.Join("testdata", file)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Errorf("%s (-want +got):\n%s", path, d)
	}
}

func prefixList(texts ...string) []netip.Prefix {
	var all []netip.Prefix
	for _, s := range texts {
		all = append(all, netip.MustParsePrefix(s))
	}
	return all
}

func underlayOn(addr, subnet string) Underlay {
	return Underlay{Addr: netip.MustParseAddr(addr), Link: "eth0", Subnet: netip.MustParsePrefix(subnet), MTU: 1500}
}

func testSelf(cidrs ...string) Self {
	u := underlayOn("172.30.0.11", "172.30.0.0/24")
	return Self{Name: "n1", MAC: VTEPMAC("n1"), PodCIDRs: prefixList(cidrs...), Underlay: []Underlay{u}, MTU: MTU(u)}
}

func vtep(name string, change func(*v1alpha1.VTEPSpec)) *v1alpha1.VTEP {
	v := &v1alpha1.VTEP{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: v1alpha1.VTEPSpec{
			NodeUID: "7c1d", Underlay: []string{"172.30.0.12", "fd30::12"}, MAC: "02:00:5e:10:00:01", Port: 4789, MTU: 1500,
			PodCIDRs: []string{"10.244.2.0/24", "fd44:2::/64"},
		},
	}
	if change != nil {
		change(&v.Spec)
	}
	return v
}

// TestPlans shows the whole plan for a node and a peer in each combination of
// families and settings.
func TestPlans(t *testing.T) {
	config := Config{VNI: 1, Port: 4789, Masquerade: true}
	direct := config
	direct.DirectRouting = true
	excluded := direct
	excluded.NoMasquerade = prefixList("10.0.0.0/8", "10.1.0.0/16", "192.0.2.0/24", "192.0.2.0/24")
	v6 := testSelf("fd44:1::/64")
	v6.Underlay = []Underlay{underlayOn("fd30::11", "fd30::/64")}
	v6.Underlay[0].AcceptRA = true
	v6.MTU = MTU(v6.Underlay[0])
	both := testSelf("10.244.1.0/24", "10.245.1.0/24", "fd44:1::/64")
	both.Underlay = append(both.Underlay, underlayOn("fd30::11", "fd30::/64"))
	for _, c := range []struct {
		name   string
		config Config
		self   Self
		change func(*v1alpha1.VTEPSpec)
	}{
		{"ipv4", config, testSelf("10.244.1.0/24"), nil},
		{"ipv6", config, v6, nil},
		{"dual", config, both, func(s *v1alpha1.VTEPSpec) { s.PodCIDRs = append(s.PodCIDRs, "10.245.2.0/24") }},
		{"direct", direct, both, nil},
		{"direct-excluded", excluded, both, nil},
		{"direct-elsewhere", direct, both, func(s *v1alpha1.VTEPSpec) { s.Underlay = []string{"172.31.0.12"} }},
		{"other-port", config, testSelf("10.244.1.0/24"), func(s *v1alpha1.VTEPSpec) { s.Port = 8472 }},
	} {
		t.Run(c.name, func(t *testing.T) {
			peer, err := ParseVTEP(vtep("n2", c.change))
			if err != nil {
				t.Fatal(err)
			}
			objects, err := PlanPeer(c.config, c.self, peer)
			if err != nil {
				t.Fatal(err)
			}
			golden(t, c.name+".golden", PlanNode(c.config, c.self).String()+"\n"+objects.String())
		})
	}
}

// TestUnreachablePeers: a peer that can't be reached from here is told why.
func TestUnreachablePeers(t *testing.T) {
	var text string
	for _, change := range []func(*v1alpha1.VTEPSpec){
		func(s *v1alpha1.VTEPSpec) { s.Underlay = []string{"fd30::12"} },
		func(s *v1alpha1.VTEPSpec) { s.Underlay = []string{"172.30.0.11"} },
		func(s *v1alpha1.VTEPSpec) { s.PodCIDRs = []string{"172.30.0.8/29"}; s.Underlay[0] = "172.30.0.200" },
	} {
		peer, err := ParseVTEP(vtep("n2", change))
		if err != nil {
			t.Fatal(err)
		}
		_, err = PlanPeer(Config{Port: 4789}, testSelf("10.244.1.0/24"), peer)
		text += fmt.Sprintln(err)
	}
	golden(t, "unreachable.golden", text)
}

var malformed = []struct {
	name   string
	change func(*v1alpha1.VTEPSpec)
}{
	{"no MAC", func(s *v1alpha1.VTEPSpec) { s.MAC = "" }},
	{"MAC too long", func(s *v1alpha1.VTEPSpec) { s.MAC = "02:00:5e:10:00:00:00:01" }},
	{"multicast MAC", func(s *v1alpha1.VTEPSpec) { s.MAC = "01:00:5e:10:00:01" }},
	{"zero MAC", func(s *v1alpha1.VTEPSpec) { s.MAC = "00:00:00:00:00:00" }},
	{"no port", func(s *v1alpha1.VTEPSpec) { s.Port = 0 }},
	{"port too high", func(s *v1alpha1.VTEPSpec) { s.Port = 65536 }},
	{"negative MTU", func(s *v1alpha1.VTEPSpec) { s.MTU = -1 }},
	{"no underlay", func(s *v1alpha1.VTEPSpec) { s.Underlay = nil }},
	{"three underlays", func(s *v1alpha1.VTEPSpec) { s.Underlay = []string{"192.0.2.1", "fd30::1", "192.0.2.2"} }},
	{"two of one family", func(s *v1alpha1.VTEPSpec) { s.Underlay = []string{"192.0.2.1", "192.0.2.2"} }},
	{"underlay is a name", func(s *v1alpha1.VTEPSpec) { s.Underlay = []string{"node-2; reboot"} }},
	{"loopback underlay", func(s *v1alpha1.VTEPSpec) { s.Underlay = []string{"127.0.0.1"} }},
	{"link-local underlay", func(s *v1alpha1.VTEPSpec) { s.Underlay = []string{"fe80::1%eth0"} }},
	{"mapped underlay", func(s *v1alpha1.VTEPSpec) { s.Underlay = []string{"::ffff:192.0.2.1"} }},
	{"no pod CIDR", func(s *v1alpha1.VTEPSpec) { s.PodCIDRs = nil }},
	{"pod CIDR is an address", func(s *v1alpha1.VTEPSpec) { s.PodCIDRs = []string{"10.244.2.0"} }},
	{"host bits set", func(s *v1alpha1.VTEPSpec) { s.PodCIDRs = []string{"10.244.2.1/24"} }},
	{"default route", func(s *v1alpha1.VTEPSpec) { s.PodCIDRs = []string{"0.0.0.0/0"} }},
	{"all of IPv6", func(s *v1alpha1.VTEPSpec) { s.PodCIDRs = []string{"::/0"} }},
	{"no room", func(s *v1alpha1.VTEPSpec) { s.PodCIDRs = []string{"10.244.2.2/31"} }},
	{"multicast range", func(s *v1alpha1.VTEPSpec) { s.PodCIDRs = []string{"224.0.0.0/8"} }},
	{"overlapping", func(s *v1alpha1.VTEPSpec) { s.PodCIDRs = []string{"10.244.0.0/16", "10.244.2.0/24"} }},
	{"holds the underlay", func(s *v1alpha1.VTEPSpec) { s.PodCIDRs = []string{"172.30.0.0/16"} }},
}

func TestMalformedVTEPs(t *testing.T) {
	var text string
	for _, c := range malformed {
		_, err := ParseVTEP(vtep("n2", c.change))
		if err == nil {
			t.Errorf("%s: accepted", c.name)
			continue
		}
		text += fmt.Sprintf("%s:\n\t%v\n", c.name, err)
	}
	golden(t, "malformed.golden", text)
}

// FuzzVTEP: whatever a VTEP holds, it is refused or its plan is sound - no
// panic, nothing planned outside the peer's own claims.
func FuzzVTEP(f *testing.F) {
	f.Add("02:00:5e:10:00:01", int32(4789), "172.30.0.12", "fd30::12", "10.244.2.0/24", "fd44:2::/64")
	f.Add("ff:ff:ff:ff:ff:ff", int32(0), "0.0.0.0", "::", "0.0.0.0/0", "::/0")
	f.Add("02:00:5e:10:00:01", int32(1), "fe80::1%a", "::ffff:1.2.3.4", "255.255.255.0/24", "ffff::/16")
	self := testSelf("10.244.1.0/24", "fd44:1::/64")
	f.Fuzz(func(t *testing.T, mac string, port int32, u1, u2, c1, c2 string) {
		peer, err := ParseVTEP(vtep("n2", func(s *v1alpha1.VTEPSpec) {
			s.MAC, s.Port, s.Underlay, s.PodCIDRs = mac, port, []string{u1, u2}, []string{c1, c2}
		}))
		if err != nil {
			return
		}
		state, err := PlanPeer(Config{Port: 4789, DirectRouting: true}, self, peer)
		if err != nil {
			return
		}
		for k, o := range state {
			if k.Kind == kernel.KindRoute && !slices.Contains(peer.PodCIDRs, k.Dst) {
				t.Errorf("%v planned for %v", o, peer)
			}
			if o.Key() != k {
				t.Errorf("%v stands at %v", o, k)
			}
		}
	})
}

func TestVTEPMACIsStable(t *testing.T) {
	// The value is in peers' kernels: it may never change.
	if got := VTEPMAC("worker-1").String(); got != "1a:48:76:fb:c8:21" {
		t.Errorf("VTEPMAC(worker-1) = %s", got)
	}
	if !VTEPMAC("worker-2").IsUnicast() || VTEPMAC("worker-2") == VTEPMAC("worker-1") {
		t.Error("not a unicast address of its own")
	}
}

func peerWith(name string, age int, cidrs ...string) Peer {
	return Peer{
		Name: name, Created: time.Unix(int64(age), 0), MAC: VTEPMAC(name), Port: 4789,
		Underlay: []netip.Addr{netip.MustParseAddr("172.30.0.12")}, PodCIDRs: prefixList(cidrs...),
	}
}

func TestConflicts(t *testing.T) {
	peers := NewPeers(testSelf("10.244.1.0/24"))
	peers.Set(peerWith("old", 1, "10.244.2.0/24"))
	affected := peers.Set(peerWith("young", 2, "10.244.2.0/24", "fd44:2::/64"))
	if d := cmp.Diff([]string{"old", "young"}, affected); d != "" {
		t.Error(d)
	}
	peers.Set(peerWith("wide", 3, "10.244.0.0/16"))
	peers.Set(peerWith("apart", 4, "10.245.0.0/24"))
	thief := peerWith("thief", 5, "10.246.0.0/24")
	thief.MAC = VTEPMAC("apart")
	peers.Set(thief)
	mirror := peerWith("mirror", 6, "10.247.0.0/24")
	mirror.MAC = VTEPMAC("n1")
	peers.Set(mirror)
	var text string
	for _, name := range peers.Names() {
		if c, yields := peers.Conflict(name); yields {
			text += c.Error() + "\n"
		} else {
			text += name + " is programmed\n"
		}
	}
	golden(t, "conflicts.golden", text)
	if d := cmp.Diff([]string{"old", "wide", "young"}, peers.Delete("old")); d != "" {
		t.Error(d)
	}
	if _, yields := peers.Conflict("young"); yields {
		t.Error("the younger still yields when the older has gone")
	}
}

// TestPeersProperty: after any sequence of changes the index answers as a
// fresh one of the same peers does, and every peer whose answer changed was
// named as affected.
func TestPeersProperty(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	self := testSelf("10.244.1.0/24")
	peers, model := NewPeers(self), map[string]Peer{}
	answers := func(p *Peers) map[string]string {
		all := map[string]string{}
		for name := range model {
			c, yields := p.Conflict(name)
			all[name] = fmt.Sprint(yields, c.Claim != "")
		}
		return all
	}
	before := answers(peers)
	for range 2000 {
		name := fmt.Sprintf("p%d", r.IntN(12))
		var affected []string
		if r.IntN(3) == 0 {
			delete(model, name)
			affected = peers.Delete(name)
		} else {
			bits := []int{16, 22, 24, 26}[r.IntN(4)]
			cidr := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(r.IntN(8)), byte(r.IntN(4) * 64)}), bits).Masked()
			p := peerWith(name, r.IntN(5), cidr.String())
			if r.IntN(4) == 0 {
				p.MAC = VTEPMAC(fmt.Sprintf("p%d", r.IntN(12)))
			}
			model[name] = p
			affected = peers.Set(p)
		}
		fresh := NewPeers(self)
		for _, p := range model {
			fresh.Set(p)
		}
		after := answers(peers)
		if d := cmp.Diff(answers(fresh), after); d != "" {
			t.Fatalf("after a change of %s (-fresh +index):\n%s", name, d)
		}
		for n := range model {
			if before[n] != after[n] && !slices.Contains(affected, n) {
				t.Fatalf("%s changed and is not among %v", n, affected)
			}
		}
		before = after
	}
}
