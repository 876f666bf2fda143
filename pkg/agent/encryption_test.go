package agent

import (
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/encrypt"
	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/kernel/rtnl"
	"github.com/weft-cni/weft/pkg/overlay"
)

// secretWorld is a world with encryption and one peer, whose sessions the test
// makes.
type secretWorld struct {
	*world
	dir      string
	peer     overlay.Peer
	sessions map[string]int64 // of devices: bytes received
}

func newSecretWorld(t *testing.T, mode encrypt.Mode) *secretWorld {
	w := &secretWorld{world: newWorld(t), dir: filepath.Join(t.TempDir(), encrypt.KeyDir), sessions: map[string]int64{}}
	w.peer = overlay.Peer{
		Name: "n2", MAC: overlay.VTEPMAC("n2"), Port: 4789, Underlay: []netip.Addr{netip.MustParseAddr("192.0.2.2")},
		PodCIDRs:   []netip.Prefix{netip.MustParsePrefix("10.244.2.0/24")},
		Encryption: &overlay.Encryption{Strict: mode == encrypt.WireGuard, Port: 51820, Keys: []overlay.SlotKey{{Public: kernel.PublicKey{9}}}},
	}
	w.peers["n2"] = claim{peer: &w.peer}
	w.boot(mode)
	return w
}

// boot starts a daemon that knows nothing.
func (w *secretWorld) boot(mode encrypt.Mode) {
	w.set.Encrypt.Mode = mode
	if w.set.Encrypt.ClusterCIDRs == nil {
		w.set.Encrypt.ClusterCIDRs = []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10:244::/48")}
	}
	w.start()
	w.runner.encryption.store.Dir = w.dir
	w.observe()
	w.list()
}

// observe has the kernel tell of the sessions, and the runner look.
func (w *secretWorld) observe() {
	w.kernel.traffic = nil
	for link, rx := range w.sessions {
		w.kernel.traffic = append(w.kernel.traffic, rtnl.PeerTraffic{Link: link, PublicKey: kernel.PublicKey{9}, Handshake: time.Now(), Rx: rx})
	}
	w.runner.inbox.put(func(work *work) { work.sessions = true })
	w.settle()
}

// pass lets time go by, with looks as the runner makes them.
func (w *secretWorld) pass(d time.Duration) {
	for end := time.Now().Add(d); time.Now().Before(end); {
		<-time.After(lastLook)
		w.observe()
	}
}

// route is the device that leads to the peer's pods.
func (w *secretWorld) route() string {
	for k := range w.kernel.state {
		if k.Kind == kernel.KindRoute && k.Dst == w.peer.PodCIDRs[0] {
			return k.Name
		}
	}
	return "none"
}

func (w *secretWorld) devices() (names []string) {
	for k := range w.kernel.state {
		if k.Kind == kernel.KindLink {
			names = append(names, k.Name)
		}
	}
	slices.Sort(names)
	return names
}

func (w *secretWorld) is(route string, devices ...string) {
	w.t.Helper()
	if got := w.route(); got != route {
		w.t.Errorf("the route is by %s, not %s", got, route)
	}
	if got := w.devices(); !slices.Equal(got, devices) {
		w.t.Errorf("devices are %v, not %v", got, devices)
	}
}

func (w *secretWorld) ask() {
	<-time.After(time.Second)
	now := time.Now()
	w.runner.inbox.put(func(work *work) { work.asked = &now })
	w.settle()
}

// TestKeyIsReplaced goes through a rotation, with a new daemon at every step.
func TestKeyIsReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newSecretWorld(t, encrypt.WireGuard)
		w.sessions["wg-weft0"] = 1
		step := func(route string, devices ...string) {
			t.Helper()
			w.observe()
			w.is(route, devices...)
			w.boot(encrypt.WireGuard)
			w.is(route, devices...)
		}
		step("wg-weft0", "wg-weft0", "wg-weft1")
		w.ask()
		four := []string{"wg-weft0", "wg-weft1", "wg-weft2", "wg-weft3"}
		step("wg-weft0", four...)
		w.pass(10 * time.Minute) // the peer hasn't heard of it: nothing moves by the clock
		step("wg-weft0", four...)
		w.sessions["wg-weft2"] = 1
		step("wg-weft2", four...)
		for range 30 { // the peer still sends by the old tunnel
			w.sessions["wg-weft0"]++
			w.pass(lastLook)
		}
		step("wg-weft2", four...)
		w.pass(quiet / 2)
		w.is("wg-weft2", four...)
		w.pass(quiet)
		step("wg-weft2", "wg-weft2", "wg-weft3")
		delete(w.sessions, "wg-weft0")
		w.pass(10 * time.Minute)
		step("wg-weft2", "wg-weft2", "wg-weft3")
		w.ask()
		w.sessions["wg-weft0"] = 1 // the slot is used again
		step("wg-weft0", four...)
	})
}

// TestKeysInARow: a slot's next key has none of the sessions that the one before
// had, however short ago.
func TestKeysInARow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newSecretWorld(t, encrypt.WireGuard)
		w.sessions["wg-weft0"] = 1
		w.observe()
		w.ask()
		w.sessions["wg-weft2"] = 1
		for end := time.Now().Add(3 * quiet); len(w.devices()) > 2 && time.Now().Before(end); {
			w.pass(lastLook)
		}
		w.is("wg-weft2", "wg-weft2", "wg-weft3")
		w.kernel.traffic = slices.DeleteFunc(w.kernel.traffic, func(t rtnl.PeerTraffic) bool { return t.Link == "wg-weft0" })
		w.ask()
		w.is("wg-weft2", "wg-weft0", "wg-weft1", "wg-weft2", "wg-weft3")
	})
}

// TestPeerThatComesBack: a peer that was gone has no session when it is made
// anew, whatever it had before.
func TestPeerThatComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newSecretWorld(t, encrypt.Permissive)
		w.sessions["wg-weft0"] = 1
		w.observe()
		w.tell("n2", claim{})
		w.settle()
		delete(w.sessions, "wg-weft0")
		w.tell("n2", claim{peer: &w.peer})
		w.settle()
		if got := w.route(); got != overlay.Link {
			t.Errorf("the route is by %s, where there is no session", got)
		}
	})
}

// TestDeadPeerHoldsNoKey: a peer without any session doesn't keep the old key.
func TestDeadPeerHoldsNoKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newSecretWorld(t, encrypt.WireGuard)
		w.ask()
		w.is("wg-weft0", "wg-weft0", "wg-weft1", "wg-weft2", "wg-weft3")
		w.pass(2 * quiet)
		w.is("wg-weft2", "wg-weft2", "wg-weft3")
	})
}

// TestScheduleReplacesKeys: a key is replaced at its age, without a word.
func TestScheduleReplacesKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newSecretWorld(t, encrypt.WireGuard)
		w.sessions["wg-weft0"] = 1
		<-time.After(6 * 24 * time.Hour)
		w.resync()
		w.is("wg-weft0", "wg-weft0", "wg-weft1")
		<-time.After(2 * 24 * time.Hour)
		w.resync()
		w.is("wg-weft0", "wg-weft0", "wg-weft1", "wg-weft2", "wg-weft3")
	})
}

// TestPermissive: the clear way is the last choice, and never one to a peer that
// takes nothing in clear.
func TestPermissive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newSecretWorld(t, encrypt.Permissive)
		all := []string{overlay.Link, "wg-weft0", "wg-weft1"}
		slices.Sort(all)
		w.is(overlay.Link, all...)
		w.sessions["wg-weft0"] = 1
		w.observe()
		w.is("wg-weft0", all...)
		delete(w.sessions, "wg-weft0")
		w.observe()
		w.is(overlay.Link, all...)
		strict := w.peer
		encryption := *w.peer.Encryption
		encryption.Strict, strict.Encryption = true, &encryption
		w.tell("n2", claim{peer: &strict})
		w.settle()
		w.is("wg-weft0", all...)
	})
}

// TestOffDrains: a node on which encryption was turned off takes what peers
// send by the tunnels as long as they do.
func TestOffDrains(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newSecretWorld(t, encrypt.Permissive)
		w.sessions["wg-weft0"] = 1
		w.observe()
		w.boot(encrypt.None)
		w.is(overlay.Link, overlay.Link, "wg-weft0", "wg-weft1")
		w.pass(10 * time.Minute)
		w.is(overlay.Link, overlay.Link, "wg-weft0", "wg-weft1")
		delete(w.sessions, "wg-weft0")
		w.observe()
		w.is(overlay.Link, overlay.Link)
	})
}

// TestPeerDrains: the tunnel to a peer that turns encryption off stays for what
// is under way by it, and is not used.
func TestPeerDrains(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newSecretWorld(t, encrypt.Permissive)
		w.sessions["wg-weft0"] = 1
		w.observe()
		drains := w.peer
		encryption := *w.peer.Encryption
		encryption.SegmentsOnly, drains.Encryption = true, &encryption
		w.tell("n2", claim{peer: &drains})
		w.settle()
		tunnel := kernel.PeerKey("wg-weft0", kernel.PublicKey{9})
		p, _ := w.kernel.state[tunnel].(kernel.WireGuardPeer)
		if w.route() != overlay.Link || !strings.Contains(string(p.AllowedIPs), "10.244.2.0/24") || p.Keepalive != 0 {
			t.Errorf("by %s, while the tunnel is %v", w.route(), p)
		}
		delete(w.sessions, "wg-weft0")
		w.observe()
		if _, still := w.kernel.state[tunnel]; still || w.route() != overlay.Link {
			t.Errorf("by %s, and the tunnel is there: %v", w.route(), still)
		}
	})
}

// TestEncryptionConditions: what an operator hears of, once for all peers.
func TestEncryptionConditions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newSecretWorld(t, encrypt.WireGuard)
		for _, name := range []string{"n3", "n4"} {
			p := w.peer
			p.Name, p.MAC, p.Encryption = name, overlay.VTEPMAC(name), nil
			p.Underlay = []netip.Addr{netip.AddrFrom4([4]byte{192, 0, 2, name[1]})}
			p.PodCIDRs = []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, name[1], 0}), 24)}
			w.tell(name, claim{peer: &p})
		}
		w.settle()
		heard := strings.Join(w.events, "\n")
		if strings.Count(heard, reasonPeerWithoutKey) != 1 || !strings.Contains(heard, "2 peers (n3, n4)") {
			t.Errorf("Events are\n%s", heard)
		}
		if err := w.runner.ready(); err != nil {
			t.Errorf("peers made the node unready: %v", err)
		}
		// The kernel lacks WireGuard that the settings ask for.
		w.kernel.noWireGuard, w.set.Encrypt.Implementation = true, encrypt.Kernel
		w.boot(encrypt.WireGuard)
		if err := w.runner.ready(); err == nil || !strings.Contains(strings.Join(w.events, "\n"), reasonNoWireGuard) {
			t.Errorf("readiness is %v, Events are %v", err, w.events)
		}
	})
}

// TestPodsOutsideOfClusterCIDRs: where the setting doesn't hold even this node's
// pods, a node isn't ready, and says why.
func TestPodsOutsideOfClusterCIDRs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newSecretWorld(t, encrypt.Permissive)
		w.set.Encrypt.ClusterCIDRs = []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16"), netip.MustParsePrefix("fd00:10:244::/48")}
		w.boot(encrypt.Permissive)
		if err := w.runner.ready(); err != nil {
			t.Errorf("it matters where packets may be in clear: %v", err)
		}
		w.boot(encrypt.WireGuard)
		err := w.runner.ready()
		if err == nil || !strings.Contains(err.Error(), "10.244.0.0/24") || !strings.Contains(err.Error(), "wireguard.clusterCIDRs") {
			t.Errorf("readiness is %v", err)
		}
		if heard := strings.Join(w.events, "\n"); !strings.Contains(heard, reasonOutside) {
			t.Errorf("Events are\n%s", heard)
		}
	})
}

// TestSilentPeer: a peer that leaves handshakes unanswered is told of, not at
// once, and no longer than it lasts.
func TestSilentPeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newSecretWorld(t, encrypt.WireGuard)
		say := func(tx int64) {
			w.kernel.traffic = []rtnl.PeerTraffic{{Link: "wg-weft0", PublicKey: kernel.PublicKey{9}, Tx: tx}}
			w.resync()
			<-time.After(time.Minute)
		}
		silent := func() bool { return w.runner.conditions.count(reasonPeerSilent) > 0 }
		say(0)
		say(148)
		if silent() {
			t.Error("told after one attempt")
		}
		say(296)
		if !silent() {
			t.Error("not told")
		}
		w.sessions["wg-weft0"] = 92
		w.observe()
		w.resync()
		if silent() {
			t.Error("told of a peer that answers")
		}
	})
}

// TestOnePeersChange: a change of one peer reads and writes what is that peer's
// only, not what the kernel tells of all peers together; after a failure, or
// when somebody else made a change, the kernel is asked.
func TestOnePeersChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newSecretWorld(t, encrypt.WireGuard)
		other := w.peer
		other.Name, other.MAC = "n3", overlay.VTEPMAC("n3")
		other.Underlay = []netip.Addr{netip.MustParseAddr("192.0.2.3")}
		other.PodCIDRs = []netip.Prefix{netip.MustParsePrefix("10.244.3.0/24")}
		other.Encryption = &overlay.Encryption{Strict: true, Port: 51820, Keys: []overlay.SlotKey{{Public: kernel.PublicKey{3}}}}
		move := func(to string) {
			t.Helper()
			w.kernel.applied, w.kernel.together = nil, 0
			moved := other
			moved.Underlay = []netip.Addr{netip.MustParseAddr(to)}
			w.tell("n3", claim{peer: &moved})
			w.settle()
		}
		asPlanned := func() {
			t.Helper()
			if ops := kernel.Diff(w.runner.plan.want, w.kernel.state, nil); len(ops) > 0 {
				t.Errorf("the kernel is not as planned; missing are\n%s", text(ops))
			}
		}
		for _, addr := range []string{"192.0.2.3", "192.0.2.4"} { // it comes, it moves
			move(addr)
			if w.kernel.together > 0 {
				t.Errorf("n3 at %s: %d keys were read together with those of all peers", addr, w.kernel.together)
			}
			for _, op := range w.kernel.applied {
				if line := op.String(); strings.Contains(line, "192.0.2.2") || strings.Contains(line, "10.244.2.0") {
					t.Errorf("n2 was touched: %s", line)
				}
			}
			asPlanned()
		}
		w.kernel.refuse = func(op kernel.Op) error {
			if op.Key().Kind == kernel.KindPeer {
				return unix.EIO
			}
			return nil
		}
		move("192.0.2.5")
		w.kernel.refuse = nil
		<-time.After(firstRetry)
		w.runner.pass(work{})
		if w.kernel.together == 0 {
			t.Error("the kernel wasn't asked after a failure")
		}
		asPlanned()
		gone := kernel.PeerKey("wg-weft0", kernel.PublicKey{3})
		w.kernel.remove(gone) // and told, as it is where a device loses its process
		move("192.0.2.6")
		asPlanned()
		if w.kernel.together == 0 {
			t.Error("the kernel wasn't asked after somebody's change")
		}
		w.tell("n3", claim{})
		w.settle()
		asPlanned()
	})
}
