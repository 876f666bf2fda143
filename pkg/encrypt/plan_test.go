package encrypt

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/overlay"
	"github.com/weft-cni/weft/test/testns"
)

func prefixList(texts ...string) (all []netip.Prefix) {
	for _, s := range texts {
		all = append(all, netip.MustParsePrefix(s))
	}
	return all
}

// secret is a key of a number.
func secret(n uint64) kernel.Secret {
	var b [32]byte
	binary.BigEndian.PutUint64(b[:], n)
	return kernel.SecretOf(b)
}

func key(slot int, age time.Duration) Key {
	return Key{Slot: slot, Created: t0.Add(-age), Private: secret(uint64(1 + slot))}
}

func selfOf(keys []Key, underlay string, cidrs ...string) Self {
	u := overlay.Underlay{Addr: netip.MustParseAddr(underlay), Link: "eth0", MTU: 1500}
	u.Subnet, _ = u.Addr.Prefix(24)
	s := Self{Self: overlay.Self{
		Name: "n1", MAC: overlay.VTEPMAC("n1"), PodCIDRs: prefixList(cidrs...), Underlay: []overlay.Underlay{u}, MTU: MTU(u),
		Encrypted: true,
	}, Keys: keys}
	s.PublicKeys = PublicKeys(keys)
	return s
}

func peerOf(slots ...int) overlay.Peer {
	p := overlay.Peer{
		Name: "n2", MAC: overlay.VTEPMAC("n2"), Port: 4789, MTU: 1500, PodCIDRs: prefixList("10.244.2.0/24", "fd44:2::/64"),
		Underlay: []netip.Addr{netip.MustParseAddr("172.30.0.12"), netip.MustParseAddr("fd30::12")},
	}
	if len(slots) > 0 {
		p.Encryption = &overlay.Encryption{Strict: true, Port: 51900}
	}
	for _, s := range slots {
		p.Encryption.Keys = append(p.Encryption.Keys, overlay.SlotKey{Slot: s, Public: secret(uint64(11 + s)).Public()})
	}
	return p
}

func session(own, peer int) Session {
	return Session{Link: Link(own, peer), Peer: secret(uint64(11 + peer)).Public()}
}

func up(sessions ...Session) Sessions {
	all := Sessions{}
	for _, s := range sessions {
		all[s] = struct{}{}
	}
	return all
}

// TestPlans shows whole plans for a node and a peer.
func TestPlans(t *testing.T) {
	strict := Config{Mode: WireGuard, Port: 51820}
	permissive, none, psk, cluster := strict, strict, strict, strict
	permissive.Mode, none.Mode = Permissive, None
	psk.Keepalive = 20 * time.Second
	cluster.ClusterCIDRs = prefixList("10.244.0.0/16", "fd44::/32")
	one, two := []Key{key(0, 0)}, []Key{key(1, 0), key(0, time.Hour)}
	soft := peerOf(0)
	soft.Encryption.Strict = false
	shared := peerOf(0)
	shared.Encryption.PresharedKeyHash = secret(99).Hash()
	withPSK := selfOf(one, "172.30.0.11", "10.244.1.0/24")
	withPSK.Preshared = []kernel.Secret{secret(98), secret(99)}
	sealed := func(keys []Key) Self {
		s := selfOf(keys, "172.30.0.11", "10.244.1.0/24")
		s.Inner, s.InnerPort = InnerUnderlay(s.Self), overlay.InnerPort(51820)
		return s
	}
	segments := peerOf(0)
	segments.Encryption.Strict, segments.Encryption.SegmentsOnly = false, true
	rotating := peerOf(1, 0)
	rotating.Encryption.Strict, rotating.Encryption.SegmentsOnly = false, true
	dual := func(keys []Key) Self { return selfOf(keys, "172.30.0.11", "10.244.1.0/24", "fd44:1::/64") }
	for _, c := range []struct {
		name     string
		config   Config
		self     Self
		peer     overlay.Peer
		sessions Sessions
	}{
		{"ipv4", strict, selfOf(one, "172.30.0.11", "10.244.1.0/24"), peerOf(0), nil},
		{"ipv6", strict, selfOf(one, "fd30::11", "fd44:1::/64"), peerOf(1), nil},
		{"dual", strict, dual(one), peerOf(0), nil},
		{"without-key", strict, dual(one), peerOf(), nil},
		{"cluster-cidrs", cluster, dual(one), peerOf(0), nil},
		{"preshared", psk, withPSK, shared, nil},
		{"peer-rotates", strict, dual(one), peerOf(1, 0), nil},
		{"peer-rotated", strict, dual(one), peerOf(1, 0), up(session(0, 1), session(0, 0))},
		{"both-rotate", strict, dual(two), peerOf(1, 0), up(session(0, 0), session(1, 0))},
		{"both-rotated", strict, dual(two), peerOf(1, 0), up(session(1, 1), session(0, 0))},
		{"permissive", permissive, dual(one), soft, nil},
		{"permissive-session", permissive, dual(one), soft, up(session(0, 0))},
		{"permissive-to-strict", permissive, dual(one), peerOf(0), nil},
		{"permissive-to-none", permissive, dual(one), peerOf(), nil},
		{"none-to-strict", none, dual(nil), peerOf(0), nil},
		{"segments", none, sealed(one), segments, nil},
		{"segments-without-keys", none, sealed(nil), segments, nil},
		{"segments-peer-rotates", none, sealed(one), rotating, nil},
		{"segments-peer-rotated", none, sealed(one), rotating, up(session(0, 1), session(0, 0))},
		{"segments-to-without-key", none, sealed(one), peerOf(), nil},
		{"segments-to-permissive", none, sealed(one), soft, nil},
		{"segments-to-strict", none, sealed(one), peerOf(0), nil},
		{"strict-to-segments", strict, sealed(one), segments, nil},
		{"strict-with-segments", strict, sealed(one), peerOf(0), nil},
		{"strict-without-segments", strict, selfOf(one, "172.30.0.11", "10.244.1.0/24"), segments, nil},
		{"permissive-with-segments", permissive, sealed(one), soft, nil},
		{"permissive-to-segments", permissive, sealed(one), segments, up(session(0, 0))},
		{"permissive-drains", permissive, dual(one), segments, up(session(0, 0))},
		{"permissive-drained", permissive, dual(one), segments, nil},
		{"none-drains", none, dual(one), soft, up(session(0, 0))},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := overlay.Config{VNI: 1, Port: 4789}
			p, err := PlanPeer(c.config, o, c.self, c.peer, c.sessions)
			text := PlanNode(c.config, o, c.self, c.sessions).String() +
				fmt.Sprintf("\n%slink %q, choice %v, other preshared key %v, error %v\n", p.State, p.Link, p.Choice, p.OtherPresharedKey, err)
			testns.Golden(t, c.name+".golden", text)
		})
	}
}

// TestTunnelsMeet: whatever keys two nodes have, each tunnel of one has its
// other end at the other, at the port where the first expects it; and each node
// sends by a tunnel that the other takes packets from.
func TestTunnelsMeet(t *testing.T) {
	r := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 0))
	keysOf := func(base uint64) []Key {
		all := []Key{{Slot: 0, Private: secret(base)}, {Slot: 1, Private: secret(base + 1)}}
		r.Shuffle(2, func(i, j int) { all[i], all[j] = all[j], all[i] })
		return all[:1+r.IntN(2)]
	}
	seen := func(s Self, name, underlay, cidr string) overlay.Peer {
		p := overlay.Peer{
			Name: name, MAC: overlay.VTEPMAC(name), Port: 4789, PodCIDRs: prefixList(cidr), Underlay: []netip.Addr{netip.MustParseAddr(underlay)},
			Encryption: &overlay.Encryption{Strict: true, Port: 51820},
		}
		for _, k := range s.Keys {
			p.Encryption.Keys = append(p.Encryption.Keys, overlay.SlotKey{Slot: k.Slot, Public: k.Private.Public()})
		}
		return p
	}
	c := Config{Mode: WireGuard, Port: 51820}
	for range 50 {
		a, b := selfOf(keysOf(1), "172.30.0.11", "10.244.1.0/24"), selfOf(keysOf(11), "172.30.0.12", "10.244.2.0/24")
		asPeer, bsPeer := seen(b, "b", "172.30.0.12", "10.244.2.0/24"), seen(a, "a", "172.30.0.11", "10.244.1.0/24")
		sessions := map[string]Sessions{"a": {}, "b": {}}
		for _, ka := range a.Keys {
			for _, kb := range b.Keys {
				if r.IntN(2) == 0 {
					sessions["a"][Session{Link(ka.Slot, kb.Slot), kb.Private.Public()}] = struct{}{}
					sessions["b"][Session{Link(kb.Slot, ka.Slot), ka.Private.Public()}] = struct{}{}
				}
			}
		}
		fromA, err := PlanPeer(c, overlay.Config{Port: 4789}, a, asPeer, sessions["a"])
		if err != nil {
			t.Fatal(err)
		}
		fromB, err := PlanPeer(c, overlay.Config{Port: 4789}, b, bsPeer, sessions["b"])
		if err != nil {
			t.Fatal(err)
		}
		meet(t, a, fromA, b, fromB)
		meet(t, b, fromB, a, fromA)
		if len(sessions["a"]) > 0 {
			i := slices.IndexFunc(fromA.Tunnels, func(t Tunnel) bool { return t.Link == fromA.Link })
			if _, up := sessions["a"][fromA.Tunnels[i].Session]; !up {
				t.Fatal("it sends by a tunnel without a session where another has one")
			}
		}
	}
}

// meet checks that each tunnel of one plan is expected by the other.
func meet(t *testing.T, a Self, from PeerPlan, b Self, to PeerPlan) {
	t.Helper()
	devices := PlanNode(Config{Mode: WireGuard, Port: 51820}, overlay.Config{Port: 4789}, b, nil)
	for _, tunnel := range from.Tunnels {
		peer, _ := from.State[kernel.PeerKey(tunnel.Link, tunnel.Peer)].(kernel.WireGuardPeer)
		i := slices.IndexFunc(b.Keys, func(k Key) bool { return k.Private.Public() == tunnel.Peer })
		j := slices.IndexFunc(a.Keys, func(k Key) bool { return k.Slot == tunnel.OwnSlot })
		other := Link(b.Keys[i].Slot, tunnel.OwnSlot)
		device, _ := devices[kernel.Key{Kind: kernel.KindLink, Name: other}].(kernel.WireGuard)
		if device.Private != b.Keys[i].Private || device.Port != peer.Endpoint.Port() {
			t.Fatalf("%v leads to %v", peer, device)
		}
		back, ok := to.State[kernel.PeerKey(other, a.Keys[j].Private.Public())].(kernel.WireGuardPeer)
		if !ok || !strings.Contains(string(back.AllowedIPs), a.PodCIDRs[0].String()) {
			t.Fatalf("%s has no way back for %v: %v", other, peer, back)
		}
	}
}
