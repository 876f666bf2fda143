package node_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/overlay"
	"github.com/weft-cni/weft/test/cluster"
)

// TestPodsSendFromTheirOwnAddresses: what a pod sends under another pod's
// address, or under none of the cluster's, arrives nowhere, in either family,
// also where the node's rp_filter is loose and so no help.
func TestPodsSendFromTheirOwnAddresses(t *testing.T) {
	c := cluster.New(t, cluster.Options{Nodes: 2, Manifests: []string{manifests}})
	ready(t, c)
	n := c.Node(1)
	a, neighbour, b := n.Attach(t, "a"), n.Attach(t, "neighbour"), c.Node(2).Attach(t, "b")
	check := func(t *testing.T) {
		for _, family := range []int{4, 6} {
			for _, from := range []netip.Addr{neighbour.IP(family), stranger(family)} {
				heard, err := whoIsHeard(a, b, []netip.Addr{from, a.IP(family)}, b.IP(family))
				if err != nil {
					t.Fatalf("from %s: %v", from, err)
				}
				if heard != a.IP(family) {
					t.Errorf("pod a was heard as %s", heard)
				}
			}
		}
	}
	t.Run("strict", check)
	t.Run("loose", func(t *testing.T) {
		setAll := func(value string) {
			if err := n.WriteFile("/proc/sys/"+overlay.ReversePathFilter, []byte(value), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		setAll("2")
		took := eventually(t, repairTime, func() error {
			if !strings.Contains(state(t, n).String(), "table ip weft {") {
				return errors.New("no table for the IPv4 source check")
			}
			return nil
		})
		t.Logf("the check was in place %v after rp_filter had become loose", took)
		check(t)
		setAll("0")
		eventually(t, repairTime, func() error {
			if strings.Contains(state(t, n).String(), "table ip weft {") {
				return errors.New("the table stays")
			}
			return nil
		})
	})
	t.Run("pod's own filter off", func(t *testing.T) {
		var off string
		err := n.Do(func() error {
			paths, err := os.ReadDir("/proc/sys/net/ipv4/conf")
			for _, p := range paths {
				if strings.HasPrefix(p.Name(), "weft") {
					off = "/proc/sys/net/ipv4/conf/" + p.Name() + "/rp_filter"
					err = errors.Join(err, os.WriteFile(off, []byte("0"), 0o644))
				}
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		// An attachment's first seconds are its own: see the agent's podGrowth.
		eventually(t, 10*time.Second, func() error {
			if text, err := n.ReadFile(off); err != nil || strings.TrimSpace(string(text)) != "1" {
				return fmt.Errorf("%s is %q: %w", off, text, err)
			}
			return nil
		})
		check(t)
	})
}

func stranger(family int) netip.Addr {
	if family == 4 {
		return netip.MustParseAddr("198.51.100.7")
	}
	return netip.MustParseAddr("2001:db8:7::7")
}

// whoIsHeard sends a datagram under each address in turn, over one path and
// so in order, and gives the source of the first that arrives.
func whoIsHeard(from, to *cluster.Pod, as []netip.Addr, dst netip.Addr) (netip.Addr, error) {
	var server *net.UDPConn
	err := to.Do(func() (err error) {
		server, err = net.ListenUDP("udp", &net.UDPAddr{IP: dst.AsSlice()})
		return err
	})
	if err != nil {
		return netip.Addr{}, err
	}
	defer server.Close()
	if err = server.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return netip.Addr{}, err
	}
	target := net.UDPAddrFromAddrPort(netip.AddrPortFrom(dst, server.LocalAddr().(*net.UDPAddr).AddrPort().Port())) //nolint:errcheck // it is one
	for _, source := range as {
		if err = from.Do(func() error { return sendAs(source, target) }); err != nil {
			return netip.Addr{}, err
		}
	}
	_, heard, err := server.ReadFromUDPAddrPort(make([]byte, 16))
	return heard.Addr().Unmap(), err
}

// sendAs sends a datagram under any source address, as whoever has the
// pod's own CAP_NET_RAW or CAP_NET_ADMIN can.
func sendAs(source netip.Addr, target *net.UDPAddr) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	addr := &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(source, source.BitLen()).String()), Flags: unix.IFA_F_NODAD}
	if netlink.AddrAdd(lo, addr) == nil {
		defer func() { _ = netlink.AddrDel(lo, addr) }()
	}
	conn, err := net.DialUDP("udp", &net.UDPAddr{IP: source.AsSlice()}, target)
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = conn.Write([]byte("hello"))
	return err
}
