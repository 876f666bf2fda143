package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/overlay"
	"github.com/weft-cni/weft/test/cluster"
)

// counts are numbers of entries on a node's VXLAN device.
type counts struct{ fdb, neighbours, routes int }

// peerCounts are what one dual-stack peer takes.
var peerCounts = counts{fdb: 1, neighbours: 2, routes: 2}

func (c counts) cells() []string {
	return []string{strconv.Itoa(c.fdb), strconv.Itoa(c.neighbours), strconv.Itoa(c.routes)}
}

func (c counts) String() string {
	return fmt.Sprintf("%d FDB entries, %d neighbours, %d routes", c.fdb, c.neighbours, c.routes)
}

// countFor counts what a node's kernel holds for a peer. It looks for itself,
// and not by Weft's own reading.
func countFor(n, peer *cluster.Node) (counts, error) {
	mac := overlay.VTEPMAC(peer.Name).HardwareAddr()
	return count(n, func(hw net.HardwareAddr) bool { return bytes.Equal(hw, mac) }, func(dst *net.IPNet) bool {
		for _, cidr := range peer.PodCIDRs {
			if dst.String() == cidr.String() {
				return true
			}
		}
		return false
	})
}

// countAll counts what a node's kernel holds for all peers.
func countAll(n *cluster.Node) (counts, error) {
	return count(n, func(net.HardwareAddr) bool { return true }, func(*net.IPNet) bool { return true })
}

func count(n *cluster.Node, mac func(net.HardwareAddr) bool, route func(*net.IPNet) bool) (counts, error) {
	var c counts
	err := n.Do(func() error {
		link, err := netlink.LinkByName(overlay.Link)
		if err != nil {
			return err
		}
		index := link.Attrs().Index
		if c.fdb, err = countNeighbours(index, unix.AF_BRIDGE, mac); err != nil {
			return err
		}
		for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
			more, failed := countNeighbours(index, family, mac)
			if failed != nil {
				return failed
			}
			c.neighbours += more
		}
		c.routes, err = countRoutes(index, route)
		return err
	})
	return c, err
}

func countNeighbours(link, family int, mac func(net.HardwareAddr) bool) (int, error) {
	entries, err := netlink.NeighList(link, family)
	n := 0
	for _, e := range entries {
		if e.State&netlink.NUD_PERMANENT != 0 && mac(e.HardwareAddr) {
			n++
		}
	}
	return n, err
}

func countRoutes(link int, dst func(*net.IPNet) bool) (int, error) {
	filter := &netlink.Route{LinkIndex: link, Protocol: kernel.RouteProtocol}
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, filter, netlink.RT_FILTER_OIF|netlink.RT_FILTER_PROTOCOL)
	n := 0
	for _, r := range routes {
		if r.Dst != nil && dst(r.Dst) {
			n++
		}
	}
	return n, err
}

// waitCounts waits until what a node holds for a peer is as wanted.
func waitCounts(ctx context.Context, n, peer *cluster.Node, want func(counts) bool) error {
	ticker := time.NewTicker(time.Millisecond)
	defer ticker.Stop()
	for {
		c, err := countFor(n, peer)
		if err == nil && want(c) {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("%s: %w", c, ctx.Err()), err)
		case <-ticker.C:
		}
	}
}

// deleteFDB deletes a node's FDB entry for a peer.
func deleteFDB(n, peer *cluster.Node) error {
	mac := overlay.VTEPMAC(peer.Name).HardwareAddr()
	return n.Do(func() error {
		link, err := netlink.LinkByName(overlay.Link)
		if err != nil {
			return err
		}
		entries, err := netlink.NeighList(link.Attrs().Index, unix.AF_BRIDGE)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if bytes.Equal(e.HardwareAddr, mac) {
				return netlink.NeighDel(&e)
			}
		}
		return fmt.Errorf("%s has no FDB entry for %s", n.Name, peer.Name)
	})
}

// deleteLink deletes a node's VXLAN device, and with it all that is on it.
func deleteLink(n *cluster.Node) error {
	return n.Do(func() error {
		link, err := netlink.LinkByName(overlay.Link)
		if err != nil {
			return err
		}
		return netlink.LinkDel(link)
	})
}
