package segment_test

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/netconf"
	"github.com/weft-cni/weft/pkg/segment"
	"github.com/weft-cni/weft/test/cluster"
	"github.com/weft-cni/weft/test/probe"
)

// wayOut is a network whose gateway is the node, of the same ranges for all.
func wayOut(vni uint32) []byte {
	return fmt.Appendf(nil, `{"cniVersion":"1.1.0","name":"out%d","plugins":[{"type":"weft","mode":"overlay","vni":%d,
		"capabilities":{"ips":true},"gateway":"node","defaultRoute":true,
		"ipam":{"type":"weft","ranges":[{"subnet":"192.168.7.0/24","gateway":"192.168.7.1"},{"subnet":"fd00:7::/64","gateway":"fd00:7::1"}]}}]}`, vni, vni)
}

// TestGateway: two tenants' pods on a node, with the same addresses and the same
// ports, talk to the same server outside of the cluster. Each hears its own
// answers; they reach neither each other, nor the node, nor the cluster's pods.
// Strict reverse path filtering is on.
func TestGateway(t *testing.T) {
	l := newLab(t, 2)
	n := l.Node(1)
	err := n.Do(func() error { return os.WriteFile("/proc/sys/net/ipv4/conf/all/rp_filter", []byte("1"), 0o644) })
	if err != nil {
		t.Fatal(err)
	}
	attach := func(name string, conf []byte, ips ...string) *cluster.Pod {
		p, err := n.AttachPod(within(t, 30*time.Second), name, cluster.PodOptions{
			ConfList: conf, IfName: "net1", NoRetry: true,
			CapabilityArgs: map[string]any{"ips": ips},
		})
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	// The segment is there before it has a way out.
	closed := attach("closed", tenant(1001, `,"capabilities":{"ips":true}`), "192.168.7.9/24", "fd00:7::9/64")
	same := []string{"192.168.7.10/24", "fd00:7::a/64"}
	red, blue := attach("red", wayOut(1001), same...), attach("blue", wayOut(1002), same...)
	far := l.attach(l.Node(2), "far", wayOut(1001))
	servers := []netip.AddrPort{echo(t, l.Outside(), cluster.Outside4), echo(t, l.Outside(), cluster.Outside6)}
	l.reach(red, far)
	l.reach(red, closed)
	outside(t, servers, map[string]*cluster.Pod{"red": red, "blue": blue, "far": far})

	t.Run("no way in", func(t *testing.T) { apart(t, l, red, blue, closed) })
	t.Run("nodes don't hear each other's", func(t *testing.T) { oneGateway(t, l, red, far) })
	t.Run("drift", func(t *testing.T) { gatewayRepaired(t, l, red) })
	t.Run("without daemon and API server", func(t *testing.T) {
		l.API.Stop()
		if err := l.daemons[0].Terminate(within(t, 10*time.Second)); err != nil {
			t.Fatal(err)
		}
		late := l.attach(n, "late", wayOut(1002))
		outside(t, servers, map[string]*cluster.Pod{"red": red, "blue": blue, "late": late})
		if err := late.Detach(t.Context()); err != nil {
			t.Error(err)
		}
		if err := l.API.Start(within(t, time.Minute)); err != nil {
			t.Fatal(err)
		}
		l.daemons[0] = n.Weftd(t)
		outside(t, servers, map[string]*cluster.Pod{"red": red, "blue": blue})
	})
	for _, p := range []*cluster.Pod{red, blue, far, closed} {
		if err := p.Check(t.Context()); err != nil {
			t.Error(err)
		}
		if err := p.Detach(t.Context()); err != nil {
			t.Error(err)
		}
	}
	l.empty()
}

// echo answers datagrams with whom they came from, and what they said.
func echo(t *testing.T, at cluster.Place, addr netip.Addr) netip.AddrPort {
	t.Helper()
	var c *net.UDPConn
	err := at.Do(func() (err error) {
		c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, 0)))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	go func() {
		buf := make([]byte, 128)
		for {
			size, from, err := c.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			_, _ = c.WriteToUDPAddrPort(fmt.Appendf(nil, "%s %s", from.Addr().Unmap(), buf[:size]), from)
		}
	}()
	return netip.MustParseAddrPort(c.LocalAddr().String())
}

// outside has pods talk to servers in turns, all from the same port. A server
// sees the node, and each pod hears what it said itself.
func outside(t *testing.T, servers []netip.AddrPort, pods map[string]*cluster.Pod) {
	t.Helper()
	for _, server := range servers {
		family := 4
		if server.Addr().Is6() {
			family = 6
		}
		talk(t, server, pods, func(p *cluster.Pod) netip.Addr { return underlayOf(p.Node, family) })
	}
}

func talk(t *testing.T, server netip.AddrPort, pods map[string]*cluster.Pod, as func(*cluster.Pod) netip.Addr) {
	t.Helper()
	const port = 40000
	conns := map[string]*net.UDPConn{}
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	for name, p := range pods {
		err := p.Do(func() (err error) {
			conns[name], err = net.DialUDP("udp", &net.UDPAddr{Port: port}, net.UDPAddrFromAddrPort(server))
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for round := range 10 {
		for name, c := range conns {
			said := fmt.Sprint(name, round)
			eventually(t, 5*time.Second, func() error { return answers(c, said, fmt.Sprintf("%s %s", as(pods[name]), said)) })
		}
	}
}

// answers says something until it is answered: the first packets may be lost.
func answers(c *net.UDPConn, said, want string) error {
	if _, err := c.Write([]byte(said)); err != nil {
		return err
	}
	if err := c.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
		return err
	}
	buf := make([]byte, 128)
	for {
		n, err := c.Read(buf)
		if err != nil {
			return err
		}
		if got := string(buf[:n]); got == want {
			return nil
		} else if strings.HasSuffix(got, said) || !strings.HasSuffix(strings.TrimRight(got, "0123456789"), strings.TrimRight(said, "0123456789")) {
			return fmt.Errorf("%q, not %q", got, want)
		} // else an answer of an earlier round
	}
}

func underlayOf(n *cluster.Node, family int) netip.Addr {
	for _, a := range n.Underlay() {
		if a.Is4() == (family == 4) {
			return a
		}
	}
	return netip.Addr{}
}

// apart: what a pod with a way out doesn't reach, and who doesn't reach it.
func apart(t *testing.T, l *lab, red, blue, closed *cluster.Pod) {
	var plain []*cluster.Pod
	defer func() {
		for _, p := range plain {
			if err := p.Detach(t.Context()); err != nil {
				t.Error(err)
			}
		}
	}()
	for i, n := range l.Nodes() {
		p, err := n.AttachPod(within(t, 30*time.Second), fmt.Sprint("plain", i), cluster.PodOptions{})
		if err != nil {
			t.Fatal(err)
		}
		plain = append(plain, p)
	}
	l.reach(plain[0], plain[1])
	for _, family := range []int{4, 6} {
		if _, err := probe.Ping(within(t, 10*time.Second), red, underlayOf(l.Node(2), family)); err != nil {
			t.Errorf("another node, which is outside: %v", err)
		}
		for what, to := range map[string]netip.Addr{
			"the node": underlayOf(red.Node, family), "a pod there": plain[0].IP(family), "a pod elsewhere": plain[1].IP(family),
		} {
			silent(t, what, red, to)
		}
		silent(t, "a tenant's pod from the cluster network", plain[0], blue.IP(family))
		silent(t, "a tenant's pod from the node", red.Node, blue.IP(family))
	}
	service := netip.MustParseAddr("203.0.113.7")
	if err := red.Node.Do(func() error { return serve(service, cluster.Outside4) }); err != nil {
		t.Fatal(err)
	}
	if _, err := probe.Ping(within(t, 10*time.Second), plain[0], service); err != nil {
		t.Errorf("a pod to a service: %v", err)
	}
	silent(t, "a service", red, service)
	// A pod without the key takes the gateway's MAC and sends all the same.
	through(t, closed, cluster.Outside4, netip.MustParseAddr("192.168.7.1"))
	silent(t, "outside, without gateway", closed, cluster.Outside4)
}

// serve leads a service's address elsewhere, as kube-proxy does.
func serve(service, endpoint netip.Addr) error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "services"})
	chain := c.AddChain(&nftables.Chain{
		Name: "services", Table: table, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityNATDest,
	})
	c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 4},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: service.AsSlice()},
		&expr.Immediate{Register: 1, Data: endpoint.AsSlice()},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: 1},
	}})
	return c.Flush()
}

func silent(t *testing.T, what string, from cluster.Place, to netip.Addr) {
	t.Helper()
	if _, err := probe.PingOnce(within(t, 300*time.Millisecond), from, to); err == nil {
		t.Errorf("%s (%s) answers", what, to)
	}
}

// through leads a pod's way to dst by a gateway that has GatewayMAC.
func through(t *testing.T, p *cluster.Pod, dst, gateway netip.Addr) {
	t.Helper()
	err := p.Do(func() error {
		link, err := netlink.LinkByName("net1")
		if err != nil {
			return err
		}
		err = netlink.NeighSet(&netlink.Neigh{
			LinkIndex: link.Attrs().Index, IP: gateway.AsSlice(), HardwareAddr: netconf.GatewayMAC.HardwareAddr(), State: netlink.NUD_PERMANENT,
		})
		to := &net.IPNet{IP: dst.AsSlice(), Mask: net.CIDRMask(32, 32)}
		return errors.Join(err, netlink.RouteReplace(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: to, Gw: gateway.AsSlice()}))
	})
	if err != nil {
		t.Fatal(err)
	}
}

// oneGateway has a node's gateway ask for somebody: its own pods hear it, and
// those on another node don't.
func oneGateway(t *testing.T, l *lab, here, there *cluster.Pod) {
	nobody := netip.MustParseAddr("192.168.7.77")
	through(t, here, nobody, netip.MustParseAddr("192.168.7.1"))
	near, far := l.wire(here, unix.ETH_P_ARP), l.wire(there, unix.ETH_P_ARP)
	silent(t, "nobody", here, nobody)
	near.hears(t, string([]byte{0, 1, 8, 0, 6, 4, 0, 1})+string(netconf.GatewayMAC[:]))
	marker, behind := l.wire(here, local), l.wire(there, local)
	marker.send(t, marker.mac, everyone, local, []byte("behind"))
	behind.hears(t, "behind")
	for got := far.heard(t); got != nil; got = far.heard(t) {
		if bytes.Contains(got, netconf.GatewayMAC[:]) {
			t.Errorf("another node hears %x", got)
		}
	}
}

// gatewayRepaired takes parts of the way away, which come back.
func gatewayRepaired(t *testing.T, l *lab, p *cluster.Pod) {
	want := l.made(p.Node)
	for name, breakIt := range map[string]func() error{
		"table": func() error {
			c, err := nftables.New()
			if err != nil {
				return err
			}
			c.DelTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "weft-gateway"})
			return c.Flush()
		},
		"rule": func() error {
			rules, err := netlink.RuleList(netlink.FAMILY_V4)
			for i := range rules {
				if kernel.OfGateway(rules[i].Mark) {
					err = errors.Join(err, netlink.RuleDel(&rules[i]))
				}
			}
			return err
		},
		"bridge": func() error {
			bridge, err := netlink.LinkByName(segment.Bridge(1001))
			if err != nil {
				return err
			}
			return netlink.LinkDel(bridge)
		},
	} {
		if err := p.Node.Do(breakIt); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		eventually(t, reachTime, func() error {
			if ops := kernel.Diff(want, l.made(p.Node), nil); len(ops) > 0 {
				return fmt.Errorf("%s: %d operations, the first: %s", name, len(ops), ops[0])
			}
			return nil
		})
		for _, to := range []netip.Addr{cluster.Outside4, cluster.Outside6} {
			if _, err := probe.Ping(within(t, 10*time.Second), p, to); err != nil {
				t.Errorf("after %s: %v", name, err)
			}
		}
	}
}
