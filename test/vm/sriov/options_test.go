//go:build vm

package sriov

import (
	"fmt"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/weft-cni/weft/pkg/netconf"
	"github.com/weft-cni/weft/test/testns"
)

// TestOptions: each option that igb takes is set, CHECK is content, and DEL
// gives back what was.
func TestOptions(t *testing.T) {
	for _, c := range []struct {
		name string
		keys []any
		want []string // in the view of the VF while it is attached
	}{
		{"none", nil, nil},
		{"mac", []any{"mac", "02:00:00:00:0a:01"}, []string{"mac 02:00:00:00:0a:01"}},
		{"vlan", []any{"vlan", 100}, []string{"vlan 100 qos 0"}},
		{"vlan, qos", []any{"vlan", 100, "vlanQoS", 3, "vlanProto", "802.1Q"}, []string{"vlan 100 qos 3"}},
		{"spoofchk off", []any{"spoofchk", "off"}, []string{"spoofchk false"}},
		{"spoofchk on", []any{"spoofchk", "on"}, []string{"spoofchk true"}},
		{"trust on", []any{"trust", "on"}, []string{"trust 1"}},
		{"trust off", []any{"trust", "off"}, []string{"trust 0"}},
		{"max_tx_rate", []any{"max_tx_rate", 100}, []string{"rate 0 to 100"}},
		{"no min_tx_rate", []any{"min_tx_rate", 0, "max_tx_rate", 0}, []string{"rate 0 to 0"}},
		{"link_state auto", []any{"link_state", "auto"}, []string{"state 0"}},
		{"mtu", []any{"mtu", 1400}, nil},
		{"all", []any{
			"mac", "02:00:00:00:0a:02", "vlan", 200, "vlanQoS", 7, "spoofchk", "off", "trust", "on", "max_tx_rate", 500, "mtu", 1300,
		}, []string{"mac 02:00:00:00:0a:02", "vlan 200 qos 7", "spoofchk false", "trust 1", "rate 0 to 500"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			l, was := newLab(t), view(t, vfs[0])
			p := newPod(t, "a", vfConfig(vfs[0], c.keys...))
			r := l.add(p)
			now := view(t, vfs[0])
			for _, want := range c.want {
				if !strings.Contains(now, want) {
					t.Errorf("%s is missing in\n%s", want, now)
				}
			}
			link, err := p.Handle.LinkByName("net1")
			must(t, err)
			i := r.Interfaces[0]
			if len(r.Interfaces) != 1 || i.Name != "net1" || i.Mac != link.Attrs().HardwareAddr.String() || i.Mtu != link.Attrs().MTU ||
				i.Sandbox != p.Path || i.PciID != vfs[0] {
				t.Errorf("result: %+v; link %+v", i, link.Attrs())
			}
			if mac, ok := p.config["mac"]; ok && i.Mac != mac {
				t.Errorf("MAC is %s, want %s", i.Mac, mac)
			}
			if mtu, ok := p.config["mtu"]; ok && i.Mtu != mtu {
				t.Errorf("MTU is %d, want %d", i.Mtu, mtu)
			}
			l.must(netconf.Del, p, nil)
			l.must(netconf.Del, p, nil)
			l.back(vfs[0], was, "DEL")
		})
	}
}

// TestInterfaceTaken: the pod has an interface of the wanted name.
func TestInterfaceTaken(t *testing.T) {
	l, was := newLab(t), view(t, vfs[0])
	p := newPod(t, "a", vfConfig(vfs[0], "vlan", 100, "mac", "02:00:00:00:0a:01"))
	attrs := netlink.NewLinkAttrs()
	attrs.Name = p.ifName
	must(t, p.Handle.LinkAdd(&netlink.Dummy{LinkAttrs: attrs}))
	inPod := p.Dump(t)
	if _, err := l.do(netconf.Add, p, nil); err == nil || !strings.Contains(err.Error(), p.ifName+" in "+p.Path+": link exists") {
		t.Error(err)
	}
	l.back(vfs[0], was, "ADD with the name taken")
	if now := p.Dump(t); now != inPod {
		t.Errorf("the pod has\n%s--- before\n%s", now, inPod)
	}
}

// TestRefused: what igb or the node can't do is an error that names the PF,
// the VF, the option and the kernel's answer, and nothing has changed.
func TestRefused(t *testing.T) {
	var b strings.Builder
	for _, c := range []struct {
		name   string
		config map[string]any
	}{
		{"802.1ad", vfConfig(vfs[0], "vlan", 100, "vlanProto", "802.1ad")},
		{"802.1ad among others", vfConfig(vfs[0], "mac", "02:00:00:00:0a:01", "vlan", 100, "vlanProto", "802.1ad", "trust", "on")},
		{"link state", vfConfig(vfs[0], "link_state", "enable")},
		{"min_tx_rate", vfConfig(vfs[0], "min_tx_rate", 10)},
		{"max_tx_rate above the link's", vfConfig(vfs[0], "max_tx_rate", 100000)},
		{"mtu", vfConfig(vfs[0], "mtu", 60000)},
		{"bridge without switchdev", vfConfig(vfs[0], "bridge", "br0")},
		{"a PF that has VFs", vfConfig("eth0")},
		{"no such device", vfConfig("0000:0f:10.0")},
		{"no such name", vfConfig("eth99")},
		{"no PF: vlan", vfConfig("eth2", "vlan", 100)},
		{"no PF: spoofchk", vfConfig("eth2", "spoofchk", "on")},
		{"no PF: trust", vfConfig("eth2", "trust", "on")},
		{"no PF: link_state", vfConfig("eth2", "link_state", "auto")},
		{"no PF: max_tx_rate", vfConfig("eth2", "max_tx_rate", 10)},
	} {
		l, was := newLab(t), view(t, vfs[0])
		p := newPod(t, "a", c.config)
		_, err := l.do(netconf.Add, p, nil)
		if err == nil {
			t.Errorf("%s: accepted", c.name)
			l.must(netconf.Del, p, nil)
			continue
		}
		fmt.Fprintf(&b, "%s\n%v\n\n", c.name, err)
		l.back(vfs[0], was, c.name)
		if left := p.Dump(t); left != "" {
			t.Errorf("%s: left in the pod:\n%s", c.name, left)
		}
	}
	testns.Golden(t, "refused.golden", b.String())
}
