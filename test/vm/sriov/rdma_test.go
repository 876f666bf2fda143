//go:build vm

package sriov

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/netconf"
	"github.com/weft-cni/weft/pkg/sriov"
)

// withRDMA is the kernel's sysfs with an RDMA device below a VF that has none:
// the NICs here can't do RDMA, and the kernel's software device, rdma_rxe, is
// below none.
func withRDMA(t *testing.T, vf, rdma string) sriov.Sysfs {
	t.Helper()
	root := t.TempDir()
	const pci = "bus/pci"
	must(t, os.MkdirAll(filepath.Join(root, pci, "devices", vf, "infiniband", rdma), 0o755))
	link := func(path string) { must(t, os.Symlink(filepath.Join("/sys", path), filepath.Join(root, path))) }
	link("class")
	link(pci + "/drivers_probe")
	devices, err := os.ReadDir("/sys/" + pci + "/devices")
	must(t, err)
	for _, d := range devices {
		if d.Name() != vf {
			link(filepath.Join(pci, "devices", d.Name()))
		}
	}
	dir := filepath.Join(pci, "devices", vf)
	entries, err := os.ReadDir(filepath.Join("/sys", dir))
	must(t, err)
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if target, err := filepath.EvalSymlinks(filepath.Join("/sys", path)); e.Type()&os.ModeSymlink != 0 && err == nil {
			must(t, os.Symlink(target, filepath.Join(root, path)))
			continue
		}
		link(path)
	}
	return sriov.Sysfs{Root: root}
}

// TestRDMA uses the kernel's RDMA subsystem in exclusive mode, with a software
// device. It has to go into the pod with its VF; rdma_rxe can't, and the error
// says so, with the VF as it was.
func TestRDMA(t *testing.T) {
	const rdma = "rxe0"
	dummy(t, "dummy0")
	must(t, netlink.RdmaLinkAdd(rdma, "rxe", "dummy0"))
	t.Cleanup(func() { must(t, netlink.RdmaLinkDel(rdma)) })
	l, was := newLab(t), view(t, vfs[0])
	p := newPod(t, "a", vfConfig(vfs[0], "vlan", 100))
	_, err := l.inside(withRDMA(t, vfs[0], rdma)).Attach(t.Context(), l.network(netconf.Add, p, nil))
	if !errors.Is(err, unix.EOPNOTSUPP) || !strings.Contains(err.Error(), "rdma dev set netns pod") || !strings.Contains(err.Error(), vfs[0]) {
		t.Error(err)
	}
	l.back(vfs[0], was, "ADD that could not move the RDMA device")
	onNode, err := netlink.RdmaLinkList()
	must(t, err)
	var inPod []*netlink.RdmaLink
	must(t, p.Do(func() (err error) {
		inPod, err = netlink.RdmaLinkList()
		return err
	}))
	if len(onNode) != 1 || onNode[0].Attrs.Name != rdma || len(inPod) != 0 {
		t.Errorf("RDMA devices on the node %v, in the pod %v", onNode, inPod)
	}
}
