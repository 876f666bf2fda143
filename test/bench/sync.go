package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/kernel/rtnl"
	"github.com/weft-cni/weft/pkg/overlay"
)

// syncBench compares a first full pass - plan, read, diff and apply, from
// known peers to a kernel that holds all of them - with the bare cost of
// writing the same entries.
type syncBench struct {
	peers  int
	rounds int
}

func (b syncBench) run(_ context.Context, r *report) error {
	r.progress("a first pass over %d peers", b.peers)
	var ours, bare []time.Duration
	for range b.rounds {
		for _, turn := range []struct {
			times *[]time.Duration
			run   func() (time.Duration, error)
		}{{&ours, b.sync}, {&bare, b.bare}} {
			runtime.GC()
			took, err := inNode(turn.run)
			if err != nil {
				return err
			}
			*turn.times = append(*turn.times, took)
		}
	}
	r.figure("sync-5000/bare-netlink", ratio(median(ours), median(bare)))
	r.note("plan, read, diff and apply for %d peers %.0f ms; bare netlink %.0f ms (medians of %d)",
		b.peers, ms(median(ours)), ms(median(bare)), b.rounds)
	return nil
}

// inNode runs f in a new network namespace with one underlay link, eth0.
func inNode(f func() (time.Duration, error)) (took time.Duration, err error) {
	ns, err := newSpace()
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, ns.close()) }()
	err = ns.do(func() error {
		eth0 := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "switch"}
		if err = netlink.LinkAdd(eth0); err != nil {
			return fmt.Errorf("add eth0: %w", err)
		}
		addr := &netlink.Addr{IPNet: &net.IPNet{IP: b4(192, 0, 2, 1).AsSlice(), Mask: net.CIDRMask(24, 32)}}
		if err = netlink.AddrAdd(eth0, addr); err != nil {
			return fmt.Errorf("address eth0: %w", err)
		}
		if err = netlink.LinkSetUp(eth0); err != nil {
			return fmt.Errorf("set eth0 up: %w", err)
		}
		took, err = f()
		return err
	})
	return took, err
}

// sync is what weftd does once its caches have synced.
func (b syncBench) sync() (time.Duration, error) {
	h, err := rtnl.Open()
	if err != nil {
		return 0, err
	}
	defer h.Close()
	peers := benchPeers(b.peers)
	start := time.Now()
	want, err := b.plan(peers)
	if err != nil {
		return 0, err
	}
	have, err := h.Read(rtnl.NamesOf(want))
	if err != nil {
		return 0, err
	}
	for _, failed := range h.Apply(kernel.Diff(want, have, nil)) {
		return 0, failed
	}
	took := time.Since(start)
	if have, err = h.Read(rtnl.NamesOf(want)); err != nil {
		return 0, err
	}
	if left := kernel.Diff(want, have, nil); len(left) > 0 {
		return 0, fmt.Errorf("%d operations are left after a full pass, first: %s", len(left), left[0])
	}
	return took, nil
}

// bare writes the peers' entries of the same plan one by one.
func (b syncBench) bare() (time.Duration, error) {
	h, err := rtnl.Open()
	if err != nil {
		return 0, err
	}
	defer h.Close()
	want, err := b.plan(benchPeers(b.peers))
	if err != nil {
		return 0, err
	}
	node := overlay.PlanNode(benchConfig, benchSelf)
	for _, failed := range h.Apply(kernel.Diff(node, nil, nil)) {
		return 0, failed
	}
	link, err := netlink.LinkByName(overlay.Link)
	if err != nil {
		return 0, err
	}
	entries, err := newBare(want, link.Attrs().Index)
	if err != nil {
		return 0, err
	}
	defer entries.close()
	runtime.GC()
	start := time.Now()
	err = entries.write()
	return time.Since(start), err
}

func (b syncBench) plan(peers []overlay.Peer) (kernel.State, error) {
	want := overlay.PlanNode(benchConfig, benchSelf)
	for _, peer := range peers {
		part, err := overlay.PlanPeer(benchConfig, benchSelf, peer)
		if err != nil {
			return nil, err
		}
		want.Merge(part)
	}
	return want, nil
}

var (
	benchConfig = overlay.Config{VNI: 1, Port: 4789, Masquerade: true}
	benchSelf   = overlay.Self{
		Name: "self", MAC: overlay.VTEPMAC("self"), MTU: 1450,
		PodCIDRs: []netip.Prefix{podCIDR(0)},
		Underlay: []overlay.Underlay{{
			Addr: b4(192, 0, 2, 1), Link: "eth0", Subnet: netip.PrefixFrom(b4(192, 0, 2, 0), 24), MTU: 1500,
		}},
	}
)

// benchPeers are nodes with one IPv4 range each: three entries a peer.
func benchPeers(n int) []overlay.Peer {
	peers := make([]overlay.Peer, n)
	for i := range peers {
		name := peerName(i + 1)
		peers[i] = overlay.Peer{
			Name: name, MAC: overlay.VTEPMAC(name), Port: 4789, MTU: 1500,
			Underlay: []netip.Addr{underlayOf(i + 1)},
			PodCIDRs: []netip.Prefix{podCIDR(i + 1)},
		}
	}
	return peers
}

func peerName(i int) string { return fmt.Sprintf("peer-%05d", i) }

// podCIDR is the i-th /24 of 10.128.0.0/9.
func podCIDR(i int) netip.Prefix {
	return netip.PrefixFrom(b4(10, 128+byte(i>>8), byte(i), 0), 24)
}

// underlayOf is the i-th address of 172.16.0.0/12.
func underlayOf(i int) netip.Addr { return b4(172, 16+byte(i>>16), byte(i>>8), byte(i)) }

func b4(a, b, c, d byte) netip.Addr { return netip.AddrFrom4([4]byte{a, b, c, d}) }
