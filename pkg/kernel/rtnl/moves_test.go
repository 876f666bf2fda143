package rtnl_test

import (
	"net"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/kernel/rtnl"
	"github.com/weft-cni/weft/pkg/overlay"
	"github.com/weft-cni/weft/test/testns"
)

// TestNothingIsLostWhenRoutesMove sends a pod's packets through the node while
// their range goes from one peer to another and back, again and again: each
// packet leaves by the tunnel to one of the two.
func TestNothingIsLostWhenRoutesMove(t *testing.T) {
	const moves = 200
	h := inNamespace(t)
	pod := testns.New(t)
	must(t, netlink.LinkSetNsFd(link(t, "pod0"), pod.Fd()))
	a, b := peer(3), peer(3)
	b.Name, b.MAC, b.Underlay = "n4", peer(4).MAC, peer(4).Underlay
	for _, p := range []overlay.Peer{a, b} {
		must(t, netlink.NeighSet(&netlink.Neigh{
			LinkIndex: link(t, "eth0").Attrs().Index, IP: p.Underlay[0].AsSlice(),
			HardwareAddr: link(t, "switch").Attrs().HardwareAddr, State: netlink.NUD_PERMANENT,
		}))
	}
	states := []kernel.State{plan(t, config(), self(underlay4), a), plan(t, config(), self(underlay4), b)}
	apply(t, h, states[0])
	for _, family := range []struct{ own, gateway, to string }{
		{"10.244.1.2/24", "10.244.1.9/24", "10.128.3.9:9"}, {"fd44:1::2/64", "fd44:1::9/64", "[fd44:3::9]:9"},
	} {
		addAddr(t, "weft0", family.gateway)
		must(t, pod.Do(func() error { return ownEnd(family.own, family.gateway) }))
		before := link(t, overlay.Link).Attrs().Statistics.TxPackets
		stop, sent := make(chan struct{}), make(chan uint64)
		go func() {
			_ = pod.Do(func() error { sent <- flood(t, family.to, stop); return nil })
		}()
		for i := range moves {
			move(t, h, states[1-i%2])
		}
		close(stop)
		total, left := <-sent, uint64(0)
		for end := time.Now().Add(5 * time.Second); left < total && time.Now().Before(end); {
			left = link(t, overlay.Link).Attrs().Statistics.TxPackets - before
		}
		if left < total || total < moves {
			t.Errorf("%s: of %d packets %d left the node", family.to, total, left)
		}
	}
}

// ownEnd sets pod0 up as a pod's interface, with a default route.
func ownEnd(own, gateway string) error {
	l, err := netlink.LinkByName("pod0")
	if err != nil {
		return err
	}
	if err = netlink.LinkSetUp(l); err != nil {
		return err
	}
	addr, err := netlink.ParseAddr(own)
	if err != nil {
		return err
	}
	addr.Flags = unix.IFA_F_NODAD
	if err = netlink.AddrAdd(l, addr); err != nil {
		return err
	}
	gw, err := netlink.ParseIPNet(gateway)
	if err != nil {
		return err
	}
	return netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: gw.IP})
}

// flood sends packets until stop is closed, some ten thousand a second, so that
// some are on their way through the kernel at any moment, and gives their number.
func flood(t *testing.T, to string, stop <-chan struct{}) (n uint64) {
	c, err := net.Dial("udp", to)
	if err != nil {
		t.Error(err)
		return 0
	}
	defer c.Close()
	for {
		select {
		case <-stop:
			return n
		default:
		}
		if _, err := c.Write(make([]byte, 64)); err != nil {
			t.Error(err)
			return n
		}
		n++
		for until := time.Now().Add(20 * time.Microsecond); time.Now().Before(until); {
		}
	}
}

// move brings the kernel from one state to another.
func move(t *testing.T, h *rtnl.Handle, want kernel.State) {
	t.Helper()
	have, err := h.Read(rtnl.NamesOf(want))
	must(t, err)
	for _, failed := range h.Apply(kernel.Diff(want, have, nil)) {
		t.Errorf("apply: %v", failed)
	}
}
