package encrypt_test

import (
	"encoding/base64"
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
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
	corev1 "k8s.io/api/core/v1"

	"github.com/weft-cni/weft/api/v1alpha1"
	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/test/cluster"
	"github.com/weft-cni/weft/test/probe"
)

// TestReboot: a node keeps its key over a reboot, and nodes that reboot all at
// once come back by themselves.
func TestReboot(t *testing.T) {
	l := newLab(t, cluster.Options{Nodes: 3})
	l.all(wireguard)
	before := map[string]string{}
	for _, n := range l.Nodes() {
		before[n.Name] = l.published(n.Name, time.Second, keys(1)).Spec.WireGuard.Keys[0].PublicKey
	}
	for _, n := range l.Nodes() {
		must(t, n.Reboot())
	}
	var pods []*cluster.Pod
	for i, n := range l.Nodes() {
		n.WireGuard(t)
		l.daemons[i] = n.Weftd(t, wireguard)
		pods = append(pods, n.Attach(t, "pod-"+n.Name))
	}
	talk(t, pods...)
	for _, n := range l.Nodes() {
		if after := l.published(n.Name, time.Second, keys(1)).Spec.WireGuard.Keys[0].PublicKey; after != before[n.Name] {
			t.Errorf("the key of %s was %s and is %s", n.Name, before[n.Name], after)
		}
	}
}

const pskFile = "/etc/weft/preshared-key"

// TestPresharedKey changes the preshared key of a running cluster, one node
// after the other, and makes mistakes.
func TestPresharedKey(t *testing.T) {
	l := newLab(t, cluster.Options{Nodes: 2})
	write := func(n *cluster.Node, text string) {
		t.Helper()
		must(t, n.WriteFile(pskFile, []byte(text), 0o600))
	}
	var texts []string
	for range 2 {
		raw := kernel.NewPrivateKey().Reveal()
		texts = append(texts, base64.StdEncoding.EncodeToString(raw[:])+"\n")
	}
	for _, n := range l.Nodes() {
		write(n, texts[0])
	}
	args := []string{wireguard, "--wireguard-preshared-key-file=" + pskFile}
	l.all(args...)
	a, b := l.Node(1).Attach(t, "a"), l.Node(2).Attach(t, "b")
	talk(t, a, b)
	hash := func(i int) string {
		key, err := kernel.ParseSecret(texts[i])
		must(t, err)
		return "preshared-key-hash " + key.Hash()
	}
	for _, n := range l.Nodes() {
		must(t, has(t, n, "peer ", hash(0))())
	}
	all := stream(t, a, b)
	write(l.Node(1), texts[1])
	l.told(l.Node(2), "PresharedKeyDiffers")
	if err := has(t, l.Node(1), "peer ", hash(0))(); err != nil { // as long as the peer has no other
		t.Error(err)
	}
	all.more(t, 200)
	write(l.Node(2), texts[1])
	for _, n := range l.Nodes() {
		eventually(t, 10*time.Second, has(t, n, "peer ", hash(1)))
	}
	all.more(t, 200)
	write(l.Node(1), "c2hvcnQ=\n")
	event := l.told(l.Node(1), "PresharedKeyInvalid")
	if !strings.Contains(event.Message, pskFile) {
		t.Errorf("the Event doesn't name the file: %s", event.Message)
	}
	if got := metric(t, l.daemons[0], `weft_conditions{reason="PresharedKeyInvalid"}`); got != 1 {
		t.Errorf("the metric is %v", got)
	}
	all.more(t, 200)
	all.complete(t)
	// A new daemon has no key from before, and leaves the kernel as it is.
	l.daemons[0].Kill()
	d, err := l.Node(1).StartWeftd(within(t, time.Minute), args...)
	must(t, err)
	l.daemons[0] = d
	eventually(t, 15*time.Second, func() error {
		log, err := d.Log()
		if err == nil && !strings.Contains(string(log), "this node is not in order") && !strings.Contains(string(log), "attention needed") {
			err = errors.New("nothing in the log")
		}
		return err
	})
	if _, err := d.Get(t.Context(), "/readyz"); err == nil {
		t.Error("ready without a preshared key")
	}
	must(t, has(t, l.Node(1), "peer ", hash(1))())
	write(l.Node(1), texts[1])
	must(t, d.WaitReady(within(t, 10*time.Second)))
	talk(t, a, b)
	l.secrets()
}

// TestBehindNAT has a node that others can't reach unless it began, and whose
// way changes: they learn where it is from its packets, and keep that.
func TestBehindNAT(t *testing.T) {
	l := newLab(t, cluster.Options{Nodes: 2, Families: cluster.IPv4Only})
	n := l.Node(2)
	private := netip.MustParsePrefix("10.99.0.2/24")
	gateway := netip.MustParseAddr("10.99.0.1")
	must(t, n.Unplug(cluster.NICName))
	must(t, n.PlugIn(cluster.NIC{MTU: 1500, Addrs: []netip.Prefix{private}, Gateways: nil}))
	must(t, n.Do(func() error {
		link, err := netlink.LinkByName(cluster.NICName)
		if err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: gateway.AsSlice()})
	}))
	must(t, l.Outside().Do(func() error { return masquerade(gateway, private) }))
	node, err := l.API.Client.CoreV1().Nodes().Get(t.Context(), n.Name, getOptions)
	must(t, err)
	node.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: private.Addr().String()}}
	_, err = l.API.Client.CoreV1().Nodes().UpdateStatus(t.Context(), node, updateOptions)
	must(t, err)
	l.all(wireguard, "--resync=1s", "--wireguard-persistent-keepalive=1s")
	a, b := l.Node(1).Attach(t, "a"), n.Attach(t, "b")
	talk(t, a, b)
	must(t, has(t, l.Node(1), "peer ", "endpoint 172.30.0.1:", "(learned)")())
	all := stream(t, a, b)
	all.more(t, 3000) // over several comparisons of everything
	all.complete(t)
	must(t, has(t, l.Node(1), "peer ", "endpoint 172.30.0.1:", "(learned)")())
	if repairs := metric(t, l.daemons[0], "weft_drift_repairs_total"); repairs != 0 {
		t.Errorf("%v repairs", repairs)
	}
	// A new address in the VTEP counts at once.
	must(t, n.Unplug(cluster.NICName))
	must(t, n.PlugIn(n.DefaultNIC()))
	node, err = l.API.Client.CoreV1().Nodes().Get(t.Context(), n.Name, getOptions)
	must(t, err)
	node.Status.Addresses[0].Address = n.Underlay()[0].String()
	_, err = l.API.Client.CoreV1().Nodes().UpdateStatus(t.Context(), node, updateOptions)
	must(t, err)
	l.published(n.Name, 15*time.Second, func(v *v1alpha1.VTEP) bool { return v.Spec.Underlay[0] == n.Underlay()[0].String() })
	eventually(t, 5*time.Second, has(t, l.Node(1), "peer ", "endpoint "+n.Underlay()[0].String()+":"))
	talk(t, a, b)
}

// masquerade makes the switch a router that gives what comes from a network its
// own address, and lets nothing in there that wasn't asked for.
func masquerade(gateway netip.Addr, network netip.Prefix) error {
	link, err := netlink.LinkByName("switch")
	if err != nil {
		return err
	}
	addr, err := netlink.ParseAddr(netip.PrefixFrom(gateway, network.Bits()).String())
	if err != nil {
		return err
	}
	if err = netlink.AddrAdd(link, addr); err != nil {
		return err
	}
	c, err := nftables.New()
	if err != nil {
		return err
	}
	table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "nat"})
	in := network.Masked().Addr().AsSlice()[:3]
	post := c.AddChain(&nftables.Chain{Name: "post", Table: table, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource})
	c.AddRule(&nftables.Rule{Table: table, Chain: post, Exprs: []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 3},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: in},
		&expr.Masq{},
	}})
	forward := c.AddChain(&nftables.Chain{Name: "forward", Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter})
	c.AddRule(&nftables.Rule{Table: table, Chain: forward, Exprs: []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 3},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: in},
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: []byte{byte(expr.CtStateBitNEW), 0, 0, 0}, Xor: []byte{0, 0, 0, 0}},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte{0, 0, 0, 0}},
		&expr.Verdict{Kind: expr.VerdictDrop},
	}})
	return c.Flush()
}

// TestDrift lets somebody with root's rights change each kind of what
// encryption has in the kernel. What netlink tells of is repaired at once; of
// WireGuard's own settings nothing tells, so the next comparison does.
func TestDrift(t *testing.T) {
	l := newLab(t, cluster.Options{Nodes: 3})
	l.all(wireguard, "--resync=1s")
	n := l.Node(1)
	a, b := n.Attach(t, "a"), l.Node(2).Attach(t, "b")
	talk(t, a, b)
	settled := func() string { return strings.ReplaceAll(state(t, n).String(), " (learned)", "") }
	want := settled()
	set := func(c wgtypes.Config) func() error {
		return func() error {
			w, err := wgctrl.New()
			if err != nil {
				return err
			}
			return errors.Join(w.ConfigureDevice("wg-weft0", c), w.Close())
		}
	}
	onLink := func(do func(netlink.Link) error) func() error {
		return func() error {
			link, err := netlink.LinkByName("wg-weft0")
			if err != nil {
				return err
			}
			return do(link)
		}
	}
	peer := peerOf(t, n)
	stranger, err := wgtypes.GeneratePrivateKey()
	must(t, err)
	port, keepalive := 12345, 7*time.Second
	for _, c := range []struct {
		name   string
		change func() error
	}{
		{"peer removed", set(wgtypes.Config{Peers: []wgtypes.PeerConfig{{PublicKey: peer.PublicKey, Remove: true}}})},
		{"all peers removed", set(wgtypes.Config{ReplacePeers: true})},
		{"stranger's peer", set(wgtypes.Config{Peers: []wgtypes.PeerConfig{{PublicKey: stranger.PublicKey()}}})},
		{"addresses taken", set(wgtypes.Config{Peers: []wgtypes.PeerConfig{{PublicKey: stranger.PublicKey(), AllowedIPs: peer.AllowedIPs}}})},
		{"addresses removed", set(wgtypes.Config{Peers: []wgtypes.PeerConfig{{PublicKey: peer.PublicKey, ReplaceAllowedIPs: true}}})},
		{"keepalive", set(wgtypes.Config{Peers: []wgtypes.PeerConfig{{PublicKey: peer.PublicKey, PersistentKeepaliveInterval: &keepalive}}})},
		{"preshared key", set(wgtypes.Config{Peers: []wgtypes.PeerConfig{{PublicKey: peer.PublicKey, PresharedKey: &stranger}}})},
		{"private key", set(wgtypes.Config{PrivateKey: &stranger})},
		{"port", set(wgtypes.Config{ListenPort: &port})},
		{"MTU", onLink(func(l netlink.Link) error { return netlink.LinkSetMTU(l, 1300) })},
		{"down", onLink(netlink.LinkSetDown)},
		{"device deleted", onLink(netlink.LinkDel)},
		{"reverse path filter", func() error {
			return os.WriteFile("/proc/sys/net/ipv4/conf/wg-weft0/rp_filter", []byte("1"), 0)
		}},
		{"address", onLink(func(l netlink.Link) error {
			addrs, err := netlink.AddrList(l, unix.AF_INET)
			if err != nil || len(addrs) == 0 {
				return fmt.Errorf("%d addresses: %w", len(addrs), err)
			}
			return netlink.AddrDel(l, &addrs[0])
		})},
		{"rule deleted", func() error { return eachRule(netlink.RuleDel) }},
		{"stranger's rule", func() error {
			r := netlink.NewRule()
			r.Priority, r.Table, r.Protocol, r.Src = 8701, 87, 87, ipNet("10.1.0.0/16")
			return netlink.RuleAdd(r)
		}},
		{"routes deleted", func() error {
			routes, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: 87}, netlink.RT_FILTER_TABLE)
			for _, r := range routes {
				err = errors.Join(err, netlink.RouteDel(&r))
			}
			return err
		}},
		{"route made unreachable", func() error {
			return netlink.RouteReplace(&netlink.Route{Dst: ipNet(l.Node(2).PodCIDRs[0].String()), Type: unix.RTN_UNREACHABLE, Protocol: 87})
		}},
		{"drops deleted", func() error {
			c, err := nftables.New()
			if err != nil {
				return err
			}
			c.FlushChain(&nftables.Chain{Name: "leak", Table: &nftables.Table{Family: nftables.TableFamilyINet, Name: "weft"}})
			return c.Flush()
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := metric(t, l.daemons[0], "weft_drift_repairs_total")
			must(t, n.Do(c.change))
			if c.name == "device deleted" {
				talk(t, a, b) // it is not as before that
			}
			eventually(t, 10*time.Second, func() error {
				if metric(t, l.daemons[0], "weft_drift_repairs_total") == before {
					return errors.New("no repair was counted")
				}
				if now := settled(); now != want {
					return fmt.Errorf("it is\n%snot\n%s", now, want)
				}
				return nil
			})
		})
	}
	talk(t, a, b)
	if _, err := probe.Ping(within(t, 5*time.Second), a, l.Node(2).Underlay()[0]); err != nil {
		t.Error(err)
	}
}

func ipNet(text string) *net.IPNet {
	p := netip.MustParsePrefix(text)
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func eachRule(do func(*netlink.Rule) error) error {
	rules, err := netlink.RuleList(netlink.FAMILY_ALL)
	for _, r := range rules {
		if r.Protocol == 87 {
			err = errors.Join(err, do(&r))
		}
	}
	return err
}

// peerOf is a peer of the node's first device, as wgctrl tells it.
func peerOf(t *testing.T, n *cluster.Node) (p wgtypes.Peer) {
	t.Helper()
	must(t, n.Do(func() error {
		w, err := wgctrl.New()
		if err != nil {
			return err
		}
		defer w.Close()
		d, err := w.Device("wg-weft0")
		if err == nil {
			p = d.Peers[0]
		}
		return err
	}))
	return p
}
