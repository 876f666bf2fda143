package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"runtime"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/weft-cni/weft/pkg/encrypt"
	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/kernel/rtnl"
	"github.com/weft-cni/weft/pkg/overlay"
	"github.com/weft-cni/weft/test/cluster"
)

// wgSyncBench compares a first full pass with encryption - plan, read, diff and
// apply: device, peers, routes, rules, sets - with one call of wgctrl that
// writes the same peers, and one peer's change with a call for that peer.
type wgSyncBench struct {
	peers  int
	rounds int
}

func (b wgSyncBench) run(ctx context.Context, r *report) (err error) {
	r.progress("a first pass over %d peers with encryption", b.peers)
	c, err := cluster.Start(ctx, cluster.Options{Nodes: 1, NoAPI: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	w, err := c.Node(1).StartWireGuard()
	if err != nil {
		return err
	}
	if err = w.WaitReady(ctx); err != nil {
		return err
	}
	var ours, bare, change []time.Duration
	for range b.rounds {
		err := c.Node(1).Do(func() error {
			s := wgSync{self: encrypt.Self{Self: benchSelf}, peers: wgPeers(b.peers)}
			s.self.Encrypted, s.self.MTU, s.self.Keys = true, 1440, []encrypt.Key{{Private: kernel.NewPrivateKey()}}
			h, err := rtnl.Open()
			if err != nil {
				return err
			}
			defer h.Close()
			has, err := h.HasWireGuard()
			if err != nil {
				return err
			}
			s.handle, s.self.Userspace = h, !has
			for _, turn := range []struct {
				times *[]time.Duration
				run   func() (time.Duration, error)
			}{{&ours, s.full}, {&change, s.change}, {nil, s.clear}, {&bare, s.bare}, {nil, s.clear}} {
				runtime.GC()
				took, err := turn.run()
				if err != nil {
					return err
				}
				if turn.times != nil {
					*turn.times = append(*turn.times, took)
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	r.figure("wg-sync-1000/bare-wgctrl", ratio(median(ours), median(bare)))
	r.note("with encryption: plan, read, diff and apply for %d peers %.1f ms, bare wgctrl %.1f ms; one peer's change among them %.1f ms (medians of %d)",
		b.peers, ms(median(ours)), ms(median(bare)), ms(median(change)), b.rounds)
	return nil
}

// wgSync is one round.
type wgSync struct {
	handle *rtnl.Handle
	self   encrypt.Self
	peers  []overlay.Peer
}

var benchEncrypt = encrypt.Config{Mode: encrypt.WireGuard, Port: 51820}

// full is what weftd does once its caches have synced.
func (s *wgSync) full() (time.Duration, error) {
	start := time.Now()
	want, err := s.plan()
	if err != nil {
		return 0, err
	}
	names := rtnl.Names(encrypt.Names)
	have, err := s.handle.Read(names)
	if err != nil {
		return 0, err
	}
	for _, failed := range s.handle.Apply(kernel.Diff(want, have, nil)) {
		return 0, failed
	}
	took := time.Since(start)
	if have, err = s.handle.Read(names); err != nil {
		return 0, err
	}
	if left := kernel.Diff(want, have, nil); len(left) > 0 {
		return 0, fmt.Errorf("%d operations are left after a full pass, first: %s", len(left), left[0])
	}
	return took, nil
}

// change gives one peer a new address.
func (s *wgSync) change() (time.Duration, error) {
	peer := s.peers[len(s.peers)/2]
	before, err := encrypt.PlanPeer(benchEncrypt, benchConfig, s.self, peer, nil)
	if err != nil {
		return 0, err
	}
	start := time.Now()
	peer.Underlay = []netip.Addr{b4(198, 51, 100, 1)}
	after, err := encrypt.PlanPeer(benchEncrypt, benchConfig, s.self, peer, nil)
	if err != nil {
		return 0, err
	}
	keys := before.State.Keys()
	for k := range after.State {
		keys.Add(k)
	}
	// As the daemon does it: what the kernel tells only for all peers together is
	// as it was planned before.
	asked := maps.Clone(keys)
	maps.DeleteFunc(asked, func(k kernel.Key, _ struct{}) bool { return k.Together() })
	have, err := s.handle.ReadKeys(asked)
	if err != nil {
		return 0, err
	}
	for k, o := range before.State {
		if k.Together() {
			have[k] = o
		}
	}
	for _, failed := range s.handle.Apply(kernel.Diff(after.State, have, keys)) {
		return 0, failed
	}
	return time.Since(start), nil
}

// clear takes all of it away.
func (s *wgSync) clear() (time.Duration, error) {
	have, err := s.handle.Read(rtnl.Names(encrypt.Names))
	if err != nil {
		return 0, err
	}
	for _, failed := range s.handle.Apply(kernel.Diff(nil, have, nil)) {
		return 0, failed
	}
	return 0, nil
}

// bare writes the same peers to a device that is ready.
func (s *wgSync) bare() (time.Duration, error) {
	for _, failed := range s.handle.Apply(kernel.Diff(encrypt.PlanNode(benchEncrypt, benchConfig, s.self, nil), nil, nil)) {
		return 0, failed
	}
	var c wgtypes.Config
	for _, p := range s.peers {
		c.Peers = append(c.Peers, wgtypes.PeerConfig{
			PublicKey: wgtypes.Key(p.Encryption.Keys[0].Public), ReplaceAllowedIPs: true,
			Endpoint: net.UDPAddrFromAddrPort(netip.AddrPortFrom(p.Underlay[0], p.Encryption.Port)),
			AllowedIPs: []net.IPNet{
				{IP: p.PodCIDRs[0].Addr().AsSlice(), Mask: net.CIDRMask(24, 32)},
				{IP: p.Underlay[0].AsSlice(), Mask: net.CIDRMask(32, 32)},
			},
		})
	}
	start := time.Now()
	w, err := wgctrl.New()
	if err != nil {
		return 0, err
	}
	if err := errors.Join(w.ConfigureDevice(encrypt.Link(0, 0), c), w.Close()); err != nil {
		return 0, err
	}
	return time.Since(start), nil
}

func (s *wgSync) plan() (kernel.State, error) {
	want := encrypt.PlanNode(benchEncrypt, benchConfig, s.self, nil)
	for _, peer := range s.peers {
		p, err := encrypt.PlanPeer(benchEncrypt, benchConfig, s.self, peer, nil)
		if err != nil {
			return nil, err
		}
		want.Merge(p.State)
	}
	return want, nil
}

// wgPeers are benchPeers with a key each.
func wgPeers(n int) []overlay.Peer {
	peers := benchPeers(n)
	for i := range peers {
		var b [32]byte
		binary.BigEndian.PutUint64(b[:], uint64(i+1))
		peers[i].Encryption = &overlay.Encryption{
			Strict: true, Port: 51820, Keys: []overlay.SlotKey{{Public: kernel.SecretOf(b).Public()}},
		}
	}
	return peers
}
