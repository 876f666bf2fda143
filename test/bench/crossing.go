package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/test/cluster"
	"github.com/weft-cni/weft/test/probe"
)

// absent are addresses of the tenant's network that no pod has: one that is asked
// for, and one whose Ethernet address the sender believes to know.
var absent = [2]netip.Addr{netip.MustParseAddr("192.168.255.1"), netip.MustParseAddr("192.168.255.2")}

// countCrossing counts, with pods on two of three nodes, the frames of their
// network that the third gets, and the requests for known neighbours that cross
// the underlay.
func (b segmentBench) countCrossing(ctx context.Context, r *report, c *cluster.Cluster, pods way) error {
	var tunnels []*probe.Tunnel
	for _, n := range c.Nodes() {
		t, err := probe.ListenTunnel(n, cluster.NICName, 1001)
		if err != nil {
			return err
		}
		tunnels = append(tunnels, t)
	}
	from := pods.ends[0]
	for range b.rounds {
		if err := from.Do(func() error { return sendToMany(ctx, pods.to) }); err != nil {
			return err
		}
		if err := reachable(ctx, pods); err != nil {
			return err
		}
	}
	asking, stop := context.WithTimeout(ctx, 200*time.Millisecond)
	defer stop()
	if _, err := probe.PingOnce(asking, from, absent[0]); err == nil {
		return fmt.Errorf("%s answers", absent[0])
	}
	var counts [3]int // frames on each node
	known, unknown := 0, 0
	for i, t := range tunnels {
		if i > 0 { // behind all that went before
			if _, err := probe.Ping(ctx, c.Node(1), c.Nodes()[i].Underlay()[0]); err != nil {
				return err
			}
		}
		frames, err := t.Frames()
		if err != nil {
			return err
		}
		counts[i] = len(frames)
		for _, f := range frames {
			switch f.Asks() {
			case pods.to:
				known++
			case absent[0]:
				unknown++
			}
		}
	}
	if counts[1] < 3*b.rounds || unknown == 0 {
		return fmt.Errorf("the member's node had %d frames of %d, and %d requests for a neighbour that is unknown", counts[1], 3*b.rounds, unknown)
	}
	r.figure("segment-bum-nonmember", float64(counts[2]))
	r.figure("segment-arp-crossing", float64(known))
	r.note("segment: %d frames reached the node of the other member, %d that of none; requests on the underlay: %d for a known neighbour in %d lookups, %d for one that isn't there",
		counts[1], counts[2], known, b.rounds, unknown)
	return nil
}

// sendToMany sends a broadcast, a multicast and an unknown unicast frame from the
// pod that it runs in, and has it forget its neighbour.
func sendToMany(ctx context.Context, neighbour netip.Addr) error {
	link, err := netlink.LinkByName("eth0")
	if err != nil {
		return err
	}
	gone := &netlink.Neigh{LinkIndex: link.Attrs().Index, IP: neighbour.AsSlice()}
	if err = netlink.NeighDel(gone); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	believed := &netlink.Neigh{
		LinkIndex: link.Attrs().Index, IP: absent[1].AsSlice(), State: netlink.NUD_PERMANENT,
		HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 0x99},
	}
	if err = netlink.NeighSet(believed); err != nil {
		return err
	}
	conn, err := (&net.ListenConfig{}).ListenPacket(ctx, "udp4", ":0")
	if err != nil {
		return err
	}
	defer conn.Close()
	if err = ipv4.NewPacketConn(conn).SetMulticastInterface(&net.Interface{Index: link.Attrs().Index}); err != nil {
		return err
	}
	for _, to := range []netip.Addr{netip.MustParseAddr("192.168.255.255"), netip.MustParseAddr("239.1.2.3"), absent[1]} {
		if _, err = conn.WriteTo([]byte("to many"), net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, 9))); err != nil {
			return err
		}
	}
	return nil
}
