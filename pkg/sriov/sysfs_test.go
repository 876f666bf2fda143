package sriov_test

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/k8snetworkplumbingwg/sriovnet"
	utilfs "github.com/k8snetworkplumbingwg/sriovnet/pkg/utils/filesystem"

	"github.com/weft-cni/weft/pkg/sriov"
	"github.com/weft-cni/weft/test/testns"
)

// tree makes a sysfs tree of a recorded one: a line for each link, "path ->
// target", and for each file, "path: content".
func tree(t *testing.T, name string) sriov.Sysfs {
	t.Helper()
	f, err := os.Open(filepath.Join("testdata", name+".tree"))
	must(t, err)
	defer f.Close()
	s := sriov.Sysfs{Root: t.TempDir()}
	for lines := bufio.NewScanner(f); lines.Scan(); {
		path, target, isLink := strings.Cut(lines.Text(), " -> ")
		var content string
		if !isLink {
			// Content has no ": " of its own, and addresses have no space.
			path, content, _ = strings.Cut(lines.Text(), ": ")
		}
		path = filepath.Join(s.Root, path)
		must(t, os.MkdirAll(filepath.Dir(path), 0o755))
		if isLink {
			must(t, os.Symlink(target, path))
			continue
		}
		must(t, os.WriteFile(path, []byte(content+"\n"), 0o644))
	}
	return s
}

// TestDevices shows what is found in recorded trees, by address, and finds the
// same by name.
func TestDevices(t *testing.T) {
	for name, addresses := range map[string][]string{
		"igb":            {"0000:01:00.0", "0000:01:10.0", "0000:01:10.4", "0000:00:03.0"},
		"mlx5-switchdev": {"0000:03:00.0", "0000:03:00.2", "0000:03:00.3", "0000:03:08.2"},
		"cloud":          {"0000:00:05.0", "0000:00:06.0"},
	} {
		t.Run(name, func(t *testing.T) {
			s := tree(t, name)
			var b strings.Builder
			for _, address := range addresses {
				d, err := s.Device(address)
				must(t, err)
				representor, err := s.Representor(d)
				must(t, err)
				text, err := json.MarshalIndent(d, "", "  ")
				must(t, err)
				fmt.Fprintf(&b, "%s\n%s\nuserspace %t, vfio %q, representor %q\n\n", d, text, d.Userspace(), d.VFIO(), representor)
				if d.Link == "" {
					continue
				}
				if byName, err := s.Find(d.Link); err != nil || byName.Address != address {
					t.Errorf("by name %s: %v, %v", d.Link, byName, err)
				}
			}
			testns.Golden(t, name+".golden", b.String())
		})
	}
}

func TestVFs(t *testing.T) {
	all, err := tree(t, "igb").VFs("0000:01:00.0")
	must(t, err)
	for i, d := range all {
		if d.Index != i || d.PFLink != "eth0" {
			t.Errorf("VF %d: %+v", i, d)
		}
	}
	if len(all) != 3 {
		t.Errorf("%d VFs", len(all))
	}
}

func TestNoDevice(t *testing.T) {
	s := tree(t, "igb")
	for _, name := range []string{"0000:09:00.0", "eth99", "../etc", ""} {
		if d, err := s.Find(name); !errors.Is(err, sriov.ErrNoDevice) {
			t.Errorf("%q: %+v, %v", name, d, err)
		}
	}
	// A VF in a pod: its network device can't be seen from here.
	must(t, os.RemoveAll(filepath.Join(s.Root, "devices/pci0000:00/0000:00:01.0/0000:01:10.0/net")))
	if d, err := s.Device("0000:01:10.0"); err != nil || d.Link != "" || d.Index != 0 {
		t.Errorf("%+v, %v", d, err)
	}
	// A PF that was reset to no VFs in between.
	must(t, os.Remove(filepath.Join(s.Root, "devices/pci0000:00/0000:00:01.0/0000:01:00.0/virtfn0")))
	if _, err := s.Device("0000:01:10.0"); !errors.Is(err, sriov.ErrNoDevice) {
		t.Errorf("a VF that its PF doesn't know: %v", err)
	}
}

// rooted is sriovnet's view of a tree.
type rooted struct {
	utilfs.DefaultFs
	root string
}

func (r rooted) at(path string) string {
	return filepath.Join(r.root, strings.TrimPrefix(path, "/sys"))
}

func (r rooted) Stat(p string) (os.FileInfo, error)      { return os.Stat(r.at(p)) }
func (r rooted) Readlink(p string) (string, error)       { return os.Readlink(r.at(p)) }
func (r rooted) ReadFile(p string) ([]byte, error)       { return os.ReadFile(r.at(p)) }
func (r rooted) ReadDir(p string) ([]os.FileInfo, error) { return r.DefaultFs.ReadDir(r.at(p)) }

// TestAsSriovnet: sriovnet, which the plugin can't link, finds the same.
func TestAsSriovnet(t *testing.T) {
	was := utilfs.Fs
	t.Cleanup(func() { utilfs.Fs = was })
	for name, pfs := range map[string][]string{"igb": {"0000:01:00.0"}, "mlx5-switchdev": {"0000:03:00.0", "0000:03:00.1"}} {
		s := tree(t, name)
		utilfs.Fs = rooted{root: s.Root}
		for _, pf := range pfs {
			vfs, err := s.VFs(pf)
			must(t, err)
			for _, d := range vfs {
				compare(t, s, d)
			}
		}
	}
}

func compare(t *testing.T, s sriov.Sysfs, d sriov.Device) {
	t.Helper()
	pf, err := sriovnet.GetPfPciFromVfPci(d.Address)
	must(t, err)
	links, err := sriovnet.GetNetDevicesFromPci(d.Address)
	if d.Link != "" {
		must(t, err)
	}
	if pf != d.PF || strings.Join(links, " ") != d.Link || sriovnet.IsVfPciVfioBound(d.Address) != (d.Driver == "vfio-pci") {
		t.Errorf("sriovnet: PF %s, network devices %v; here: %+v", pf, links, d)
	}
	representor, err := s.Representor(d)
	must(t, err)
	if theirs, err := sriovnet.GetVfRepresentor(d.PFLink, d.Index); representor != "" && (err != nil || theirs != representor) {
		t.Errorf("representor of %s: %s, %v; here: %s", d, theirs, err, representor)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
