package wireguard_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/weft-cni/weft/pkg/encrypt"
	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/kernel/rtnl"
	"github.com/weft-cni/weft/pkg/overlay"
	"github.com/weft-cni/weft/test/cluster"
)

// TestRandomWalk leads a node's devices, of a process, from one plan to another
// by what is read of all, by what a change of peers reads, and after damage by
// others: the kernel is as planned each time, and a second comparison finds
// nothing to do.
func TestRandomWalk(t *testing.T) {
	c := cluster.New(t, cluster.Options{Nodes: 1, NoAPI: true})
	n := c.Node(1)
	n.WireGuard(t, userspace)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	err := n.Do(func() error {
		h, err := rtnl.Open()
		if err != nil {
			return err
		}
		defer h.Close()
		w := &walk{r: rand.New(rand.NewPCG(seed, 0)), handle: h, before: kernel.State{}}
		w.node.Self = overlay.Self{
			Name: "n1", MAC: overlay.VTEPMAC("n1"), MTU: 1440,
			PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("fd00:10:244:1::/64")},
		}
		w.node.Userspace = true
		for _, a := range n.Underlay() {
			w.node.Underlay = append(w.node.Underlay, overlay.Underlay{Addr: a, Link: cluster.NICName, Subnet: netip.PrefixFrom(a, a.BitLen()), MTU: 1500})
		}
		for i := range 60 {
			if err := w.step(); err != nil {
				return fmt.Errorf("step %d, %w", i, err)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// walk is the node, and what was planned for it last.
type walk struct {
	r      *rand.Rand
	handle *rtnl.Handle
	node   encrypt.Self
	before kernel.State
}

func (w *walk) step() error {
	want := w.plan()
	way := "all of it is read"
	var err error
	switch w.r.IntN(3) {
	case 0:
		way, err = "what differs is read", w.apply(want, w.differing(want))
	case 1:
		damage := damages[w.r.IntN(len(damages))]
		way = "after damage: " + damage.name
		if err = damage.do(); err == nil {
			err = w.converge(want)
		}
	default:
		err = w.converge(want)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", way, err)
	}
	have, err := w.handle.Read(rtnl.Names(encrypt.Names))
	if err != nil {
		return err
	}
	if ops := kernel.Diff(want, have, nil); len(ops) > 0 {
		return fmt.Errorf("%s: a second comparison finds %v", way, ops)
	}
	if d := cmp.Diff(text(want), text(have)); d != "" {
		return fmt.Errorf("%s: (-planned +kernel)\n%s", way, d)
	}
	w.before = want
	return nil
}

// text is a state without its sysctls, which are never taken back.
func text(s kernel.State) string {
	s = maps.Clone(s)
	maps.DeleteFunc(s, func(k kernel.Key, _ kernel.Object) bool { return k.Kind == kernel.KindSysctl })
	return s.String()
}

// converge compares all, until the process has made again what was deleted.
func (w *walk) converge(want kernel.State) (err error) {
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	for range 200 {
		have, readErr := w.handle.Read(rtnl.Names(encrypt.Names))
		if readErr != nil {
			return readErr
		}
		err = nil
		for _, failed := range w.handle.Apply(kernel.Diff(want, have, nil)) {
			err = failed
		}
		if err == nil {
			return nil
		}
		<-ticker.C
	}
	return err
}

// apply compares at keys alone, as the daemon does for a change of peers: what
// the kernel tells only together is as it was planned before.
func (w *walk) apply(want kernel.State, keys kernel.Keys) error {
	asked := maps.Clone(keys)
	maps.DeleteFunc(asked, func(k kernel.Key, _ struct{}) bool { return k.Together() })
	have, err := w.handle.ReadKeys(asked)
	if err != nil {
		return err
	}
	for k, o := range w.before.Only(keys) {
		if k.Together() {
			have[k] = o
		}
	}
	for _, failed := range w.handle.Apply(kernel.Diff(want, have, keys)) {
		return failed
	}
	return nil
}

func (w *walk) differing(want kernel.State) kernel.Keys {
	keys := kernel.Keys{}
	for k, o := range want {
		if w.before[k] != o {
			keys.Add(k)
		}
	}
	for k := range w.before {
		if _, still := want[k]; !still {
			keys.Add(k)
		}
	}
	return keys
}

// plan is for a node in any mode and any state of its keys, with any peers.
func (w *walk) plan() kernel.State {
	c := encrypt.Config{
		Mode: []encrypt.Mode{encrypt.None, encrypt.Permissive, encrypt.WireGuard, encrypt.WireGuard}[w.r.IntN(4)],
		Port: 51820, Keepalive: time.Duration(w.r.IntN(2)) * 25 * time.Second,
	}
	if w.r.IntN(2) == 0 {
		c.ClusterCIDRs = []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10:244::/48")}
	}
	o := overlay.Config{VNI: 1, Port: 4789, Masquerade: true}
	self := w.node
	self.Encrypted = c.Mode != encrypt.None
	for _, slot := range w.r.Perm(encrypt.Slots)[:1+w.r.IntN(encrypt.Slots)] {
		self.Keys = append(self.Keys, encrypt.Key{Slot: slot, Private: secret(1, slot, w.r.IntN(2))})
	}
	if w.r.IntN(2) == 0 {
		self.Preshared = []kernel.Secret{secret(0, 1, 0), secret(0, 2, 0)}
	}
	peers, sessions := w.peers(self)
	want := encrypt.PlanNode(c, o, self, sessions)
	for _, peer := range peers {
		planned, _ := encrypt.PlanPeer(c, o, self, peer, sessions) // an error is a peer that is refused
		want.Merge(planned.State)
	}
	return want
}

// peers are some, with the sessions that there are with them.
func (w *walk) peers(self encrypt.Self) (all []overlay.Peer, sessions encrypt.Sessions) {
	sessions = encrypt.Sessions{}
	for i := 2; i < 9; i++ {
		name := fmt.Sprintf("n%d", i)
		at := i + 100*w.r.IntN(2) // it may have moved
		peer := overlay.Peer{
			Name: name, MAC: overlay.VTEPMAC(name), Port: 4789,
			Underlay: []netip.Addr{netip.AddrFrom4([4]byte{192, 0, 2, byte(at)}), netip.MustParseAddr(fmt.Sprintf("2001:db8::%d", at))},
			PodCIDRs: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(i), 0}), 24), netip.MustParsePrefix(fmt.Sprintf("fd00:10:244:%d::/64", i))},
		}
		if w.r.IntN(5) > 0 {
			peer.Encryption = &overlay.Encryption{Strict: w.r.IntN(2) == 0, Port: 51820}
			for _, slot := range w.r.Perm(encrypt.Slots)[:1+w.r.IntN(encrypt.Slots)] {
				key := overlay.SlotKey{Slot: slot, Public: secret(i, slot, w.r.IntN(2)).Public()}
				peer.Encryption.Keys = append(peer.Encryption.Keys, key)
				for _, own := range self.Keys {
					if w.r.IntN(2) == 0 {
						sessions[encrypt.Session{Link: encrypt.Link(own.Slot, slot), Peer: key.Public}] = struct{}{}
					}
				}
			}
			if w.r.IntN(2) == 0 {
				peer.Encryption.PresharedKeyHash = secret(0, 1+w.r.IntN(3), 0).Hash()
			}
		}
		if w.r.IntN(3) > 0 {
			all = append(all, peer)
		}
	}
	return all, sessions
}

// secret is always the same for the same numbers.
func secret(numbers ...int) kernel.Secret {
	var b [32]byte
	for i, n := range numbers {
		b[i+1] = byte(n + 1)
	}
	b[31] = 64
	return kernel.SecretOf(b)
}

// damages are what somebody else does to the devices that there are.
var damages = []struct {
	name string
	do   func() error
}{
	{"devices deleted", eachDevice(netlink.LinkDel)},
	{"devices down", eachDevice(netlink.LinkSetDown)},
	{"MTU changed", eachDevice(func(l netlink.Link) error { return netlink.LinkSetMTU(l, 1300) })},
	{"peers removed", eachDevice(configure(wgtypes.Config{ReplacePeers: true}))},
	{"another key", eachDevice(configure(wgtypes.Config{PrivateKey: &wgtypes.Key{9}}))},
	{"a stranger with all addresses", eachDevice(configure(wgtypes.Config{Peers: []wgtypes.PeerConfig{{
		PublicKey:  wgtypes.Key(secret(77).Public()),
		AllowedIPs: nets("10.244.2.0/24", "10.244.3.0/24", "fd00:10:244:2::/64"),
	}}}))},
}

func eachDevice(do func(netlink.Link) error) func() error {
	return func() error {
		for _, name := range encrypt.Links() {
			link, err := netlink.LinkByName(name)
			if err == nil {
				err = do(link)
			}
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
		return nil
	}
}

func configure(c wgtypes.Config) func(netlink.Link) error {
	return func(l netlink.Link) error {
		w, err := wgctrl.New()
		if err != nil {
			return err
		}
		defer w.Close()
		return w.ConfigureDevice(l.Attrs().Name, c)
	}
}

func nets(texts ...string) (all []net.IPNet) {
	for _, text := range texts {
		if _, n, err := net.ParseCIDR(text); err == nil {
			all = append(all, *n)
		}
	}
	return all
}
