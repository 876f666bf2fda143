//go:build vm

package sriov

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/k8snetworkplumbingwg/sriovnet"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/netconf"
)

// TestNamespaceGone: a pod's namespace goes before DEL, and the name that the
// VF comes back with is taken or not.
func TestNamespaceGone(t *testing.T) {
	for _, taken := range []bool{false, true} {
		l, was := newLab(t), view(t, vfs[0])
		p := newPod(t, "a", vfConfig(vfs[0], "vlan", 100, "mac", "02:00:00:00:0a:01", "mtu", 1400))
		l.add(p)
		if taken {
			dummy(t, "net1")
		}
		p.Close()
		l.must(netconf.Del, p, nil)
		l.back(vfs[0], was, fmt.Sprintf("namespace gone, name taken %t", taken))
	}
}

// dummy makes a link of the node's for as long as the test runs.
func dummy(t *testing.T, name string) {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	link := &netlink.Dummy{LinkAttrs: attrs}
	must(t, netlink.LinkAdd(link))
	t.Cleanup(func() { must(t, netlink.LinkDel(link)) })
}

// TestPodChangesAll: whatever a pod does to its VF, CHECK tells, and DEL gives
// back what was.
func TestPodChangesAll(t *testing.T) {
	l, was := newLab(t), view(t, vfs[0])
	p := newPod(t, "a", vfConfig(vfs[0], "trust", "on"))
	result := l.must(netconf.Add, p, nil)
	link, err := p.Handle.LinkByName("net1")
	must(t, err)
	for _, change := range []error{
		p.Handle.LinkSetDown(link), p.Handle.LinkSetMTU(link, 1300), p.Handle.LinkSetAlias(link, "mine"),
		p.Handle.LinkSetHardwareAddr(link, []byte{2, 0, 0, 0, 9, 9}), p.Handle.LinkAddAltName(link, "other"),
		p.Handle.SetPromiscOn(link), p.Handle.LinkSetName(link, "renamed"),
	} {
		must(t, change)
	}
	_, err = l.do(netconf.Check, p, map[string]any{"prevResult": json.RawMessage(result)})
	for _, want := range []string{"104:", "name renamed", "mtu 1300", "alias", "address 02:00:00:00:09:09", "promisc on", "down"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("CHECK tells nothing of %s: %v", want, err)
		}
	}
	l.must(netconf.Del, p, nil)
	l.back(vfs[0], was, "a pod that changed all it could")
}

// TestAltNames are kept, in the pod as on the node.
func TestAltNames(t *testing.T) {
	d, err := sysfs.Device(vfs[0])
	must(t, err)
	link, err := netlink.LinkByName(d.Link)
	must(t, err)
	must(t, netlink.LinkAddAltName(link, "enp1s16"))
	l, was := newLab(t), view(t, vfs[0])
	p := newPod(t, "a", vfConfig(vfs[0]))
	l.add(p)
	inPod, err := p.Handle.LinkByName("net1")
	must(t, err)
	if names := inPod.Attrs().AltNames; len(names) != 1 || names[0] != "enp1s16" {
		t.Errorf("alternative names in the pod: %v", names)
	}
	l.must(netconf.Del, p, nil)
	l.back(vfs[0], was, "DEL")
	d, err = sysfs.Device(vfs[0])
	must(t, err)
	link, err = netlink.LinkByName(d.Link)
	must(t, err)
	must(t, netlink.LinkDelAltName(link, "enp1s16"))
}

// TestRace: of two ADDs for one VF, exactly one wins.
func TestRace(t *testing.T) {
	l, was := newLab(t), view(t, vfs[0])
	for round := range 5 {
		pods := []pod{newPod(t, "a", vfConfig(vfs[0])), newPod(t, "b", vfConfig(vfs[0]))}
		errs := make([]error, len(pods))
		var both sync.WaitGroup
		for i := range pods {
			both.Go(func() { _, errs[i] = l.do(netconf.Add, pods[i], nil) })
		}
		both.Wait()
		won := 0
		for _, err := range errs {
			switch {
			case err == nil:
				won++
			case !strings.HasPrefix(err.Error(), "108: ") || !strings.Contains(err.Error(), "device is in use by"):
				t.Errorf("round %d: %v", round, err)
			}
		}
		if won != 1 {
			t.Errorf("round %d: %d won: %v", round, won, errs)
		}
		for _, p := range pods {
			l.must(netconf.Del, p, nil)
		}
		l.back(vfs[0], was, "race")
	}
}

// TestWholeNIC: a NIC without a PF is attached by name, and given back.
func TestWholeNIC(t *testing.T) {
	d, err := sysfs.Find("eth2")
	must(t, err)
	l, was := newLab(t), view(t, d.Address)
	p := newPod(t, "a", vfConfig("eth2", "mac", "02:00:00:00:0c:01", "mtu", 1400, "ipam", static("10.9.1.1/24")))
	r := l.add(p)
	if i := r.Interfaces[0]; i.Mac != "02:00:00:00:0c:01" || i.Mtu != 1400 || i.PciID != d.Address {
		t.Errorf("result: %+v", i)
	}
	l.must(netconf.Del, p, nil)
	l.back(d.Address, was, "DEL")
}

// TestVFIO: a VF that vfio-pci has is configured through its PF, and described.
func TestVFIO(t *testing.T) {
	must(t, exec.Command("modprobe", "vfio-pci").Run())
	address := vfs[2]
	own, err := sysfs.Device(address)
	must(t, err)
	renamed(t, address, own.Link) // again at the end
	bind(t, address, "vfio-pci")
	t.Cleanup(func() { bind(t, address, "") })
	l, was := newLab(t), view(t, address)
	d, err := sysfs.Device(address)
	must(t, err)
	info := filepath.Join(l.dir, "info.json")
	p := newPod(t, "a", vfConfig(address, "vlan", 100, "mac", "02:00:00:00:0d:01", "ipam", static("10.9.2.1/24"),
		"runtimeConfig", map[string]any{"CNIDeviceInfoFile": info}))
	r := l.add(p)
	if i := r.Interfaces[0]; i.Mac != "02:00:00:00:0d:01" || i.PciID != address || len(r.IPs) != 1 || p.Dump(t) != "" {
		t.Errorf("result %+v, in the pod %q", r, p.Dump(t))
	}
	if now := view(t, address); !strings.Contains(now, "mac 02:00:00:00:0d:01 vlan 100") {
		t.Error(now)
	}
	text, err := os.ReadFile(info)
	must(t, err)
	var told struct {
		Type, Version string
		PCI           map[string]string
	}
	must(t, json.Unmarshal(text, &told))
	if told.Type != "pci" || told.Version != "1.1.0" || told.PCI["pci-address"] != address || told.PCI["pf-pci-address"] != d.PF ||
		told.PCI["vfio-device"] != "/dev/vfio/"+d.IOMMUGroup {
		t.Errorf("device-info: %s", text)
	}
	if _, err := os.Stat(told.PCI["vfio-device"]); err != nil {
		t.Error(err)
	}
	l.must(netconf.Del, p, nil)
	l.back(address, was, "DEL")
}

// bind gives a VF to a driver, or to its own.
func bind(t *testing.T, address, driver string) {
	t.Helper()
	dir := "/sys/bus/pci/devices/" + address
	must(t, os.WriteFile(dir+"/driver/unbind", []byte(address), 0))
	must(t, os.WriteFile(dir+"/driver_override", []byte(driver+"\n"), 0))
	must(t, os.WriteFile("/sys/bus/pci/drivers_probe", []byte(address), 0))
	eventually(t, func() error {
		d, err := sysfs.Device(address)
		if err == nil && d.Link == "" && driver == "" {
			err = fmt.Errorf("%s has no network device", d)
		}
		return err
	})
}

// TestCollected: GC gives back the devices of pods that are gone.
func TestCollected(t *testing.T) {
	l, was := newLab(t), view(t, vfs[0])
	p := newPod(t, "a", vfConfig(vfs[0], "vlan", 100))
	l.add(p)
	p.Close()
	l.must(netconf.GC, pod{NS: p.NS}, nil)
	l.back(vfs[0], was, "GC")
}

// TestAsSriovnet: sriovnet finds the same here as pkg/sriov.
func TestAsSriovnet(t *testing.T) {
	for _, address := range vfs {
		d, err := sysfs.Device(address)
		must(t, err)
		pf, err := sriovnet.GetPfPciFromVfPci(address)
		must(t, err)
		index, err := sriovnet.GetVfIndexByPciAddress(address)
		must(t, err)
		links, err := sriovnet.GetNetDevicesFromPci(address)
		must(t, err)
		if pf != d.PF || index != d.Index || len(links) != 1 || links[0] != d.Link {
			t.Errorf("sriovnet: PF %s, VF %d, %v; here %+v", pf, index, links, d)
		}
	}
}

// TestCycles attaches and detaches many times, on several VFs at once: nothing
// is left, and no device has moved on. The VFs have names that the kernel would
// give to others, as on nodes that leave them to it.
func TestCycles(t *testing.T) {
	const cycles, workers = 200, 4
	for i, address := range vfs[:workers] {
		renamed(t, address, fmt.Sprintf("eth%d", 3+i))
	}
	links, err := netlink.LinkList()
	must(t, err)
	start := time.Now()
	t.Run("VFs", func(t *testing.T) {
		for i, address := range vfs[:workers] {
			t.Run(strconv.Itoa(i), func(t *testing.T) {
				t.Parallel()
				l, was := newLab(t), view(t, address)
				p := newPod(t, "a", vfConfig(address, "vlan", 100, "mac", fmt.Sprintf("02:00:00:00:0a:%02x", i)))
				for range cycles / workers {
					l.must(netconf.Add, p, nil)
					l.must(netconf.Del, p, nil)
				}
				l.back(address, was, "cycles")
				if left := p.Dump(t); left != "" {
					t.Errorf("left in the pod:\n%s", left)
				}
			})
		}
	})
	t.Logf("%d cycles in %s", cycles, time.Since(start).Round(time.Second))
	after, err := netlink.LinkList()
	must(t, err)
	if len(after) != len(links) {
		t.Errorf("%d links, and %d before", len(after), len(links))
	}
}

// renamed gives a VF's network device another name for as long as the test
// runs.
func renamed(t *testing.T, address, name string) {
	t.Helper()
	d, err := sysfs.Device(address)
	must(t, err)
	must(t, rename(d.Link, name))
	t.Cleanup(func() {
		now, err := sysfs.Device(address)
		must(t, err)
		must(t, rename(now.Link, d.Link))
	})
}

// TestNameTaken: while a pod has a VF, somebody else takes its name for good.
// It comes back with another, all else as it was.
func TestNameTaken(t *testing.T) {
	l, was := newLab(t), view(t, vfs[0])
	d, err := sysfs.Device(vfs[0])
	must(t, err)
	renamed(t, vfs[0], d.Link) // again at the end, when the other has gone
	p := newPod(t, "a", vfConfig(vfs[0], "vlan", 100, "mtu", 1400))
	l.add(p)
	dummy(t, d.Link)
	l.must(netconf.Del, p, nil)
	now, err := sysfs.Device(vfs[0])
	must(t, err)
	l.back(vfs[0], strings.Replace(was, "link "+d.Link+" ", "link "+now.Link+" ", 1), "DEL with the name taken")
}

// TestLostInside: the pod hid its VF in a namespace of its own.
func TestLostInside(t *testing.T) {
	l, was := newLab(t), view(t, vfs[0])
	p := newPod(t, "a", vfConfig(vfs[0]))
	l.add(p)
	inner := newPod(t, "inner", nil)
	link, err := p.Handle.LinkByName("net1")
	must(t, err)
	fd, err := unix.Open(inner.Path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(fd)
	must(t, p.Handle.LinkSetNsFd(link, fd))
	l.must(netconf.Del, p, nil)
	l.back(vfs[0], was, "DEL of a VF in a namespace that nobody knows")
}
