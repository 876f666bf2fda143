package leak_test

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/weft-cni/weft/pkg/leak"
	"github.com/weft-cni/weft/test/testns"
)

// TestCapture sends packets of each kind over a wire and counts them.
func TestCapture(t *testing.T) {
	testns.Enter(t)
	must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0", MTU: 1500}, PeerName: "wire"}))
	for _, name := range []string{"eth0", "wire"} {
		l, err := netlink.LinkByName(name)
		must(t, err)
		must(t, netlink.LinkSetUp(l))
	}
	eth0, err := netlink.LinkByName("eth0")
	must(t, err)
	must(t, netlink.AddrAdd(eth0, &netlink.Addr{IPNet: &net.IPNet{IP: net.IP{172, 30, 0, 11}, Mask: net.CIDRMask(24, 32)}}))
	for _, ip := range []net.IP{{172, 30, 0, 12}, {10, 244, 2, 2}} {
		must(t, netlink.NeighAdd(&netlink.Neigh{LinkIndex: eth0.Attrs().Index, IP: ip, HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 9}, State: netlink.NUD_PERMANENT}))
	}
	must(t, netlink.RouteAdd(&netlink.Route{LinkIndex: eth0.Attrs().Index, Dst: &net.IPNet{IP: net.IP{10, 244, 0, 0}, Mask: net.CIDRMask(16, 32)}, Scope: netlink.SCOPE_LINK}))

	names, err := leak.Interfaces(func(name string) bool { return name == "wire" })
	must(t, err)
	if len(names) != 1 || names[0] != "eth0" {
		t.Fatalf("interfaces: %v", names)
	}
	c, err := leak.Start(&leak.Net{Pods: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}, WireGuardPorts: []uint16{51820}}, names...)
	must(t, err)
	data := make([]byte, 1000)
	data[0] = 4
	send(t, "172.30.0.12:51820", data, 20) // WireGuard
	send(t, "10.244.2.2:7", data, 3)       // in clear
	send(t, "172.30.0.12:7", data, 5)      // a node's
	report, err := c.Stop()
	must(t, err)
	const size = 1000 + 8 + 20 + 14
	if got, want := report.Counts[leak.Encrypted], (leak.Count{Packets: 20, Bytes: 20 * size}); got != want {
		t.Errorf("encrypted: %+v, not %+v", got, want)
	}
	if got, want := report.Counts[leak.Clear], (leak.Count{Packets: 3, Bytes: 3 * size}); got != want {
		t.Errorf("in clear: %+v, not %+v", got, want)
	}
	if report.Leaks() != 3 || len(report.Examples) != 3 || report.Missed != 0 {
		t.Errorf("%+v", report)
	}
	for _, e := range report.Examples {
		if want := "on eth0, in clear: 172.30.0.11 to 10.244.2.2, protocol 17, 1042 bytes"; e.String() != want {
			t.Errorf("%q, not %q", e, want)
		}
	}
	if _, err := leak.Start(&leak.Net{}, "eth0", "nosuch"); err == nil {
		t.Error("an interface that isn't there is captured")
	}
}

func send(t *testing.T, to string, data []byte, times int) {
	t.Helper()
	c, err := net.Dial("udp", to)
	must(t, err)
	defer c.Close()
	must(t, c.SetDeadline(time.Now().Add(time.Minute)))
	for range times {
		_, err := c.Write(data)
		must(t, err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
