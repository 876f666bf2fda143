package netconf_test

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/weft-cni/weft/pkg/netconf"
)

func exampleNode() netconf.Node {
	return netconf.Node{
		Name:     "node-1",
		BootID:   "6ff1e2a2-5b0c-4d2c-9a39-6a2d8cbd3a11",
		PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("fd00:10:244:1::/64")},
		MTU:      1450,
	}
}

func TestNodeFile(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run", "weft")
	node := exampleNode()
	if _, err := netconf.ReadNode(dir, node.BootID); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("before it is written: %v", err)
	}
	if changed, err := netconf.WriteNode(dir, node); err != nil || !changed {
		t.Fatalf("first write: %v, %v", changed, err)
	}
	got, err := netconf.ReadNode(dir, node.BootID)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(node, got, byValue); d != "" {
		t.Error(d)
	}
	if _, err := netconf.ReadNode(dir, "another boot"); !errors.Is(err, netconf.ErrStale) {
		t.Errorf("after a reboot: %v", err)
	}
}

func TestWriteNodeOnlyWhenDifferent(t *testing.T) {
	dir := t.TempDir()
	node := exampleNode()
	path := filepath.Join(dir, netconf.NodeFile)
	write := func() (os.FileInfo, bool) {
		t.Helper()
		changed, err := netconf.WriteNode(dir, node)
		if err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return info, changed
	}
	first, _ := write()
	if second, changed := write(); changed || !os.SameFile(first, second) {
		t.Errorf("the same node was written again (changed: %v)", changed)
	}
	node.MTU = 1400
	if third, changed := write(); !changed || os.SameFile(first, third) {
		t.Errorf("another node was not written by a rename (changed: %v)", changed)
	}
	// What a daemon that was killed while it wrote leaves, and a hand.
	for _, name := range []string{path, path + ".new"} {
		if err := os.WriteFile(name, []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, changed := write(); !changed {
		t.Error("a damaged file was left")
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("left in the directory: %v, %v", entries, err)
	}
}

func TestWriteNodeRefusesWhatReadWould(t *testing.T) {
	dir := t.TempDir()
	if _, err := netconf.WriteNode(dir, netconf.Node{Name: "node-1"}); !errors.Is(err, netconf.ErrNode) {
		t.Errorf("got %v", err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("left in the directory: %v, %v", entries, err)
	}
}

func TestBootID(t *testing.T) {
	file := filepath.Join(t.TempDir(), "boot_id")
	if _, err := netconf.BootID(file); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	if err := os.WriteFile(file, []byte("b-1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if id, err := netconf.BootID(file); err != nil || id != "b-1" {
		t.Errorf("got %q, %v", id, err)
	}
	if id, err := netconf.BootID(netconf.BootIDFile); err != nil || len(id) != 36 {
		t.Errorf("this machine's: %q, %v", id, err)
	}
}
