package attach_test

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"

	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"

	"github.com/weft-cni/weft/pkg/attach"
	"github.com/weft-cni/weft/pkg/netconf"
	"github.com/weft-cni/weft/pkg/record"
	"github.com/weft-cni/weft/test/testns"
)

// drifted is an attached pod that something happens to.
type drifted struct {
	*testing.T
	n      *node
	p      pod
	result *types100.Result
}

func (d *drifted) host() netlink.Link { return link(d.T, d.n.NS, d.result.Interfaces[0].Name) }
func (d *drifted) eth0() netlink.Link { return link(d.T, d.p.NS, "eth0") }

func (d *drifted) must(err error) {
	d.Helper()
	must(d.T, err)
}

func (d *drifted) route(ns *testns.NS, family int, pick func(netlink.Route) bool) netlink.Route {
	d.Helper()
	routes, err := ns.Handle.RouteList(nil, family)
	d.must(err)
	for _, r := range routes {
		if pick(r) {
			return r
		}
	}
	d.Fatal("no such route")
	return netlink.Route{}
}

func isDefault(r netlink.Route) bool { return r.Gw != nil && r.Dst != nil && r.Dst.IP.IsUnspecified() }

func isPod4(r netlink.Route) bool { return r.Dst != nil && r.Dst.IP.Equal(net.IPv4(10, 244, 1, 2)) }

func isGateway(r netlink.Route) bool {
	return r.Dst != nil && r.Dst.IP.Equal(net.IPv4(169, 254, 1, 1))
}

func (d *drifted) rewriteRecord(change func(*record.Attachment)) {
	d.Helper()
	rec, err := d.n.store().Get(d.p.id, d.p.ifName)
	d.must(err)
	change(&rec)
	d.must(d.n.store().Put(rec))
}

// TestCheck: each kind of drift is named.
func TestCheck(t *testing.T) {
	for name, drift := range map[string]func(*drifted){
		"host-link-missing": func(d *drifted) { d.must(d.n.Handle.LinkDel(d.host())) },
		"host-link-down":    func(d *drifted) { d.must(d.n.Handle.LinkSetDown(d.host())) },
		"host-link-mtu":     func(d *drifted) { d.must(d.n.Handle.LinkSetMTU(d.host(), 1400)) },
		"host-link-mac": func(d *drifted) {
			d.must(d.n.Handle.LinkSetHardwareAddr(d.host(), net.HardwareAddr{2, 0, 0, 0, 0, 9}))
		},
		"host-link-alias": func(d *drifted) { d.must(d.n.Handle.LinkSetAlias(d.host(), "mine")) },
		"host-link-of-another-pair": func(d *drifted) {
			name := d.host().Attrs().Name
			d.must(d.n.Handle.LinkSetName(d.host(), "renamed"))
			attrs := netlink.NewLinkAttrs()
			attrs.Name, attrs.MTU = name, 1450
			attrs.HardwareAddr, _ = net.ParseMAC(netconf.HostMAC)
			other := netlink.NewVeth(attrs)
			other.PeerName = "peer"
			d.must(d.n.Handle.LinkAdd(other))
		},
		"host-route-missing": func(d *drifted) {
			r := d.route(d.n.NS, netlink.FAMILY_V4, isPod4)
			d.must(d.n.Handle.RouteDel(&r))
		},
		"host-route-elsewhere": func(d *drifted) {
			addDummy(d.T, d.n.NS, "elsewhere")
			r := d.route(d.n.NS, netlink.FAMILY_V4, isPod4)
			r.LinkIndex = link(d.T, d.n.NS, "elsewhere").Attrs().Index
			d.must(d.n.Handle.RouteReplace(&r))
		},
		"host-neighbour-missing": func(d *drifted) {
			d.must(d.n.Handle.NeighDel(&netlink.Neigh{LinkIndex: d.host().Attrs().Index, IP: net.IPv4(10, 244, 1, 2)}))
		},
		"host-neighbour-mac": func(d *drifted) {
			d.must(d.n.Handle.NeighSet(&netlink.Neigh{
				LinkIndex: d.host().Attrs().Index, IP: net.ParseIP("fd00:10:244:1::2"),
				State: netlink.NUD_PERMANENT, HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 9},
			}))
		},
		"host-neighbour-not-permanent": func(d *drifted) {
			mac, _ := net.ParseMAC(d.result.Interfaces[1].Mac)
			d.must(d.n.Handle.NeighSet(&netlink.Neigh{
				LinkIndex: d.host().Attrs().Index, IP: net.IPv4(10, 244, 1, 2), State: netlink.NUD_NOARP, HardwareAddr: mac,
			}))
		},
		"pod-link-missing": func(d *drifted) {
			d.must(d.p.Handle.LinkSetDown(d.eth0()))
			d.must(d.p.Handle.LinkSetName(d.eth0(), "renamed"))
		},
		"pod-link-down": func(d *drifted) { d.must(d.p.Handle.LinkSetDown(d.eth0())) },
		"pod-link-mtu":  func(d *drifted) { d.must(d.p.Handle.LinkSetMTU(d.eth0(), 1400)) },
		"pod-link-mac": func(d *drifted) {
			d.must(d.p.Handle.LinkSetHardwareAddr(d.eth0(), net.HardwareAddr{2, 0, 0, 0, 0, 9}))
		},
		"pod-address-missing": func(d *drifted) {
			a, err := netlink.ParseAddr("fd00:10:244:1::2/128")
			d.must(err)
			d.must(d.p.Handle.AddrDel(d.eth0(), a))
		},
		"pod-address-foreign": func(d *drifted) { addForeignAddr(d.T, d.p.NS, "eth0", "10.9.9.9/24", false) },
		"pod-default-route-missing": func(d *drifted) {
			r := d.route(d.p.NS, netlink.FAMILY_V4, isDefault)
			d.must(d.p.Handle.RouteDel(&r))
		},
		"pod-gateway-route-missing": func(d *drifted) {
			r := d.route(d.p.NS, netlink.FAMILY_V4, isGateway)
			d.must(d.p.Handle.RouteDel(&r))
		},
		"pod-gateway-neighbour-missing": func(d *drifted) {
			d.must(d.p.Handle.NeighDel(&netlink.Neigh{LinkIndex: d.eth0().Attrs().Index, IP: net.ParseIP("fe80::1")}))
		},
		"pod-gateway-neighbour-mac": func(d *drifted) {
			d.must(d.p.Handle.NeighSet(&netlink.Neigh{
				LinkIndex: d.eth0().Attrs().Index, IP: net.IPv4(169, 254, 1, 1),
				State: netlink.NUD_PERMANENT, HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 9},
			}))
		},
		"record-missing": func(d *drifted) { d.must(d.n.store().Delete(d.p.id, d.p.ifName)) },
		"record-unreadable": func(d *drifted) {
			d.must(os.WriteFile(filepath.Join(d.n.store().Dir, "a1b2c3:eth0"), []byte("{}"), 0o600))
		},
		"record-of-last-boot": func(d *drifted) {
			d.rewriteRecord(func(a *record.Attachment) { a.BootID = "another" })
		},
		"claim-missing": func(d *drifted) {
			d.must(os.Remove(filepath.Join(d.n.RunDir(), "ipam/cluster/pool/claims/10.244.1.2")))
		},
		"claim-of-another": func(d *drifted) {
			claim := filepath.Join(d.n.RunDir(), "ipam/cluster/pool/claims/10.244.1.2")
			d.must(os.Remove(claim))
			d.must(os.Symlink("other/eth0", claim))
		},
		"result-without-interface": func(d *drifted) {
			d.result.Interfaces = d.result.Interfaces[:1]
			d.result.IPs[0].Interface = nil
			d.result.IPs[1].Interface = nil
		},
		"result-without-host-link": func(d *drifted) { d.result.Interfaces[0].Name = "other" },
		"result-without-address":   func(d *drifted) { d.result.IPs = d.result.IPs[:1] },
		"result-mac":               func(d *drifted) { d.result.Interfaces[1].Mac = "02:00:00:00:00:09" },
		"result-sandbox":           func(d *drifted) { d.result.Interfaces[1].Sandbox = "/run/netns/other" },
		"several": func(d *drifted) {
			d.must(d.p.Handle.LinkSetMTU(d.eth0(), 1400))
			d.must(d.n.Handle.LinkSetDown(d.host()))
			d.result.IPs = d.result.IPs[:1]
		},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			d := &drifted{T: t, n: n, p: newPod(t, "a1b2c3", "")}
			d.result = n.attach(d.p)
			if err := n.check(d.p, d.result); err != nil {
				t.Fatalf("right after ADD: %v", err)
			}
			drift(d)
			err := n.check(d.p, d.result)
			if err == nil {
				t.Fatal("CHECK sees nothing")
			}
			testns.Golden(t, "check/"+name+".golden", n.hide(text(t, attach.Report(err)), d.p))
		})
	}
}

// TestCheckAllows: what later plugins of the list did and told of in the
// result, and what the pod did by itself, is no drift.
func TestCheckAllows(t *testing.T) {
	for name, change := range map[string]func(*drifted){
		"a route taken out of the result": func(d *drifted) {
			r := d.route(d.p.NS, netlink.FAMILY_V4, isDefault)
			d.must(d.p.Handle.RouteDel(&r))
			d.result.Routes = d.result.Routes[1:]
		},
		"an MTU that the result has": func(d *drifted) {
			d.must(d.p.Handle.LinkSetMTU(d.eth0(), 1300))
			d.result.Interfaces[1].Mtu = 1300
		},
		"an address that the result has": func(d *drifted) {
			addForeignAddr(d.T, d.p.NS, "eth0", "10.9.9.9/24", false)
			d.result.IPs = append(d.result.IPs, &types100.IPConfig{
				Interface: types100.Int(1), Address: net.IPNet{IP: net.IPv4(10, 9, 9, 9), Mask: net.CIDRMask(24, 32)},
			})
		},
		"the pod's own routes and neighbours": func(d *drifted) {
			addRoute(d.T, d.p.NS, "eth0", "192.0.2.0/24")
			d.must(d.p.Handle.NeighSet(&netlink.Neigh{
				LinkIndex: d.eth0().Attrs().Index, IP: net.IPv4(192, 0, 2, 1),
				State: netlink.NUD_PERMANENT, HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 9},
			}))
		},
		"no node file": func(d *drifted) { d.must(os.Remove(filepath.Join(d.n.RunDir(), netconf.NodeFile))) },
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			d := &drifted{T: t, n: n, p: newPod(t, "a1b2c3", "")}
			d.result = n.attach(d.p)
			change(d)
			if err := n.check(d.p, d.result); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestCheckNeedsThePrevResult(t *testing.T) {
	n := newNode(t)
	p := newPod(t, "a1b2c3", "")
	n.attach(p)
	err := n.plugin.Check(t.Context(), n.network(netconf.Check, p))
	if !errors.Is(err, netconf.ErrConfig) {
		t.Errorf("got %v", err)
	}
}
