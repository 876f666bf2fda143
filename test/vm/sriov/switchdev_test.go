//go:build vm

package sriov

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/netconf"
	"github.com/weft-cni/weft/pkg/sriov"
)

// simulated is a NIC of netdevsim: the kernel's VF settings of a PF, and its
// eSwitch with representors, are real. Its PF and VFs are on no PCI bus, so a
// tree puts them there, with VFs that vfio-pci has: netdevsim makes them no
// network devices.
type simulated struct {
	sysfs  sriov.Sysfs
	pf, vf string // PCI addresses; the VF is number 1
	dev    *netlink.DevlinkDevice
}

const simulator = "/sys/bus/netdevsim/"

func newSimulated(t *testing.T) *simulated {
	t.Helper()
	must(t, exec.Command("modprobe", "netdevsim").Run())
	must(t, os.WriteFile(simulator+"new_device", []byte("7 1"), 0))
	t.Cleanup(func() { must(t, os.WriteFile(simulator+"del_device", []byte("7"), 0)) })
	must(t, os.WriteFile(simulator+"devices/netdevsim7/sriov_numvfs", []byte("3"), 0))
	dev, err := netlink.DevLinkGetDeviceByName("netdevsim", "netdevsim7")
	must(t, err)
	s := &simulated{sysfs: sriov.Sysfs{Root: t.TempDir()}, pf: "0000:7f:00.0", vf: "0000:7f:00.2", dev: dev}
	for path, target := range map[string]string{
		"class":                 "/sys/class",
		s.pci(s.pf, "net"):      simulator + "devices/netdevsim7/net",
		s.pci(s.pf, "virtfn0"):  "../0000:7f:00.1",
		s.pci(s.pf, "virtfn1"):  "../" + s.vf,
		s.pci(s.vf, "physfn"):   "../" + s.pf,
		s.pci(s.vf, "driver"):   "../../../../drivers/vfio-pci",
		s.pci("0000:7f:00.1"):   s.pf, // only has to be there
		"bus/pci/drivers_probe": "/dev/null",
	} {
		path = filepath.Join(s.sysfs.Root, path)
		must(t, os.MkdirAll(filepath.Dir(path), 0o755))
		must(t, os.Symlink(target, path))
	}
	return s
}

func (s *simulated) pci(elem ...string) string {
	return filepath.Join(append([]string{"bus/pci/devices"}, elem...)...)
}

// view shows what the PF holds of the VF, and the representor.
func (s *simulated) view(t *testing.T) string {
	t.Helper()
	d, err := s.sysfs.Device(s.vf)
	must(t, err)
	h, err := netlink.NewHandle()
	must(t, err)
	defer h.Close()
	pf, err := h.LinkByName(d.PFLink)
	must(t, err)
	v := pf.Attrs().Vfs[d.Index]
	if v.Vlan == 0 {
		v.VlanProto = 0 // netdevsim's before the first VLAN, and 802.1Q after the last
	}
	text := fmt.Sprintf("vf mac %s vlan %d qos %d proto %#x spoofchk %t trust %d state %d rate %d to %d\n",
		v.Mac, v.Vlan, v.Qos, v.VlanProto, v.Spoofchk, v.Trust, v.LinkState, v.MinTxRate, v.MaxTxRate)
	name, err := s.sysfs.Representor(d)
	must(t, err)
	if name == "" {
		return text
	}
	link, err := h.LinkByName(name)
	must(t, err)
	a := link.Attrs()
	text += fmt.Sprintf("representor up %t in a bridge %t\n", a.RawFlags&unix.IFF_UP != 0, a.MasterIndex != 0)
	vlans, err := h.BridgeVlanList()
	must(t, err)
	for _, info := range vlans[int32(a.Index)] {
		text += fmt.Sprintf("vlan %d flags %d\n", info.Vid, info.Flags)
	}
	return text
}

// TestSimulated attaches a VF of a simulated NIC with all that igb refuses, and
// in switchdev mode with its representor in a bridge. CHECK tells what changes,
// and DEL gives back what was.
func TestSimulated(t *testing.T) {
	s := newSimulated(t)
	filtering := true
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "br0"
	bridge := &netlink.Bridge{LinkAttrs: attrs, VlanFiltering: &filtering}
	must(t, netlink.LinkAdd(bridge))
	t.Cleanup(func() { must(t, netlink.LinkDel(bridge)) })
	for _, c := range []struct {
		mode  string
		keys  []any
		want  []string
		drift string
		spoil func(d sriov.Device) error
	}{
		{
			"legacy",
			[]any{"vlan", 100, "vlanQoS", 3, "vlanProto", "802.1ad", "link_state", "disable", "min_tx_rate", 10, "max_tx_rate", 100, "spoofchk", "on", "trust", "on", "mac", "02:00:00:00:0a:01"},
			[]string{"mac 02:00:00:00:0a:01 vlan 100 qos 3 proto 0x88a8 spoofchk true trust 1 state 2 rate 10 to 100"},
			"vf: state enable, want state disable",
			func(d sriov.Device) error {
				pf, err := netlink.LinkByName(d.PFLink)
				if err != nil {
					return err
				}
				return netlink.LinkSetVfState(pf, d.Index, netlink.VF_LINK_STATE_ENABLE)
			},
		},
		{
			"switchdev",
			[]any{"vlan", 100, "bridge", "br0", "mac", "02:00:00:00:0a:01", "trust", "on"},
			[]string{"mac 02:00:00:00:0a:01 vlan 0", "trust 1", "representor up true in a bridge true\nvlan 100 flags 6\n"},
			"representor: ",
			func(d sriov.Device) error {
				name, err := s.sysfs.Representor(d)
				if err != nil {
					return err
				}
				link, err := netlink.LinkByName(name)
				if err != nil {
					return err
				}
				return netlink.LinkSetNoMaster(link)
			},
		},
	} {
		t.Run(c.mode, func(t *testing.T) {
			must(t, netlink.DevLinkSetEswitchMode(s.dev, c.mode))
			l, was := newLab(t), s.view(t)
			plugin := l.inside(s.sysfs)
			p := newPod(t, "a", vfConfig(s.vf, c.keys...))
			result, err := plugin.Attach(t.Context(), l.network(netconf.Add, p, nil))
			must(t, err)
			now := s.view(t)
			for _, want := range c.want {
				if !strings.Contains(now, want) {
					t.Errorf("%s is missing in\n%s", want, now)
				}
			}
			check := func() error {
				return plugin.Check(t.Context(), l.network(netconf.Check, p, map[string]any{"prevResult": json.RawMessage(result)}))
			}
			must(t, check())
			d, err := s.sysfs.Device(s.vf)
			must(t, err)
			must(t, c.spoil(d))
			if err := check(); err == nil || !strings.Contains(err.Error(), c.drift) {
				t.Errorf("CHECK: %v, not %s", err, c.drift)
			}
			must(t, plugin.Detach(t.Context(), l.network(netconf.Del, p, nil)))
			if now := s.view(t); now != was || l.files() != "" {
				t.Errorf("after DEL:\n%s%s\n--- want\n%s", now, l.files(), was)
			}
		})
	}
}
