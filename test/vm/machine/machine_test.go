//go:build vm

// Package machine checks what the other tests take for granted of the virtual
// machine: NICs with virtual functions, the kernel's kinds of tunnel, an IOMMU.
package machine

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/weft-cni/weft/test/testns"
)

// TestKinds makes one link of each kind that the product or its tests use.
func TestKinds(t *testing.T) {
	ns := testns.New(t)
	attrs := func(name string) netlink.LinkAttrs {
		a := netlink.NewLinkAttrs()
		a.Name = name
		return a
	}
	pair := netlink.NewVeth(attrs("pair0"))
	pair.PeerName = "pair1"
	must(t, ns.Handle.LinkAdd(pair))
	lower, err := ns.Handle.LinkByName("pair0")
	must(t, err)
	tagged := attrs("vlan0")
	tagged.ParentIndex = lower.Attrs().Index
	for _, l := range []netlink.Link{
		&netlink.Bridge{LinkAttrs: attrs("bridge0")},
		&netlink.Vlan{LinkAttrs: tagged, VlanId: 100},
		&netlink.Vxlan{LinkAttrs: attrs("vxlan0"), VxlanId: 1, Port: 4789},
		&netlink.Geneve{LinkAttrs: attrs("geneve0"), ID: 1, Remote: net.IPv4(192, 0, 2, 1)},
		&netlink.Gretap{LinkAttrs: attrs("tunnel0"), Local: net.IPv4(192, 0, 2, 1), Remote: net.IPv4(192, 0, 2, 2)},
		&netlink.Wireguard{LinkAttrs: attrs("wg0")},
		&netlink.Dummy{LinkAttrs: attrs("dummy0")},
		&netlink.Vrf{LinkAttrs: attrs("vrf0"), Table: 100},
	} {
		if err := ns.Handle.LinkAdd(l); err != nil {
			t.Errorf("%s: %v", l.Type(), err)
		}
	}
}

// TestNICs: two NICs with seven virtual functions each, by igb, and one
// without, by virtio.
func TestNICs(t *testing.T) {
	var igb, virtio []string
	links, err := os.ReadDir("/sys/class/net")
	must(t, err)
	for _, l := range links {
		device := filepath.Join("/sys/class/net", l.Name(), "device")
		switch driver, _ := os.Readlink(filepath.Join(device, "driver")); filepath.Base(driver) {
		case "igb":
			igb = append(igb, l.Name())
			if total := read(t, filepath.Join(device, "sriov_totalvfs")); total != "7" {
				t.Errorf("%s can have %s VFs", l.Name(), total)
			}
		case "virtio_net":
			virtio = append(virtio, l.Name())
		}
	}
	if len(igb) != 2 || len(virtio) != 1 {
		t.Errorf("NICs: igb %v, virtio %v", igb, virtio)
	}
}

// TestIOMMU: devices are in groups, so vfio-pci can have them.
func TestIOMMU(t *testing.T) {
	groups, err := os.ReadDir("/sys/kernel/iommu_groups")
	must(t, err)
	if len(groups) == 0 {
		t.Error("no IOMMU groups")
	}
	if out, err := exec.Command("modprobe", "vfio-pci").CombinedOutput(); err != nil {
		t.Errorf("modprobe vfio-pci: %v: %s", err, out)
	}
	if _, err := os.Stat("/sys/bus/pci/drivers/vfio-pci"); err != nil {
		t.Error(err)
	}
}

// TestFiles: the host's files can be read, and what is written is lost, or
// else every test would be a danger to the machine that runs it.
func TestFiles(t *testing.T) {
	if _, err := os.Stat("/etc/os-release"); err != nil {
		t.Error(err)
	}
	must(t, os.WriteFile("/etc/weft-vm-test", []byte("x"), 0o600))
	if init := read(t, "/proc/1/cmdline"); !strings.Contains(init, "/guest\x00") {
		t.Errorf("process 1 is %q: this is no VM of hack/vm", init)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	must(t, err)
	return strings.TrimSpace(string(text))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
