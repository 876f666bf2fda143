// Package single is a node by itself, for tests of the plugin: a network
// namespace, directories, and the file that the daemon would write. What a
// whole cluster is for is in package cluster.
package single

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/weft-cni/weft/pkg/netconf"
	"github.com/weft-cni/weft/test/testns"
)

// Node is a node with the pod CIDRs 10.244.1.0/24 and fd00:10:244:1::/64 and
// an MTU of 1450 bytes.
type Node struct {
	*testns.NS
	Dir    string // all its files are below
	BootID string
}

// New makes a node and moves the test's goroutine into its network namespace.
func New(t testing.TB) *Node {
	t.Helper()
	n := &Node{NS: testns.Enter(t), Dir: t.TempDir()}
	var err error
	if n.BootID, err = netconf.BootID(netconf.BootIDFile); err != nil {
		t.Fatal(err)
	}
	n.Write(t, netconf.Node{
		Name: "node1", BootID: n.BootID, MTU: 1450,
		PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("fd00:10:244:1::/64")},
	})
	return n
}

// RunDir is the node's directory for what a reboot takes away.
func (n *Node) RunDir() string { return filepath.Join(n.Dir, "run") }

// DataDir is the node's directory for what a reboot leaves.
func (n *Node) DataDir() string { return filepath.Join(n.Dir, "data") }

// Write writes the node file.
func (n *Node) Write(t testing.TB, node netconf.Node) {
	t.Helper()
	if _, err := netconf.WriteNode(n.RunDir(), node); err != nil {
		t.Fatal(err)
	}
}

// Config is the configuration of network weft on this node in version 1.1.0,
// with further or other keys.
func (n *Node) Config(t testing.TB, more ...map[string]any) []byte {
	t.Helper()
	config := map[string]any{
		"cniVersion": "1.1.0", "name": "weft", "type": "weft", "runDir": n.RunDir(), "dataDir": n.DataDir(),
	}
	for _, m := range more {
		for k, v := range m {
			config[k] = v
		}
	}
	data, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// kept matches the files that are there without attachments, those of the
// host-local plugin included.
var kept = regexp.MustCompile(`^(run/(node.json|attach.lock|ipam/cluster/(lock|pool(.new)?/boot|pool/windows/[^/]+))|host-local/weft/(lock|last_reserved_ip.0))$`)

// Files lists what is kept of attachments, a line for each file.
func (n *Node) Files(t testing.TB) string {
	t.Helper()
	var list []string
	err := filepath.WalkDir(n.Dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(n.Dir, path)
		if !kept.MatchString(rel) {
			list = append(list, "file "+rel+"\n")
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(list)
	return strings.Join(list, "")
}

// Build builds the plugin into dir, under the name weft.
func Build(ctx context.Context, dir string) error {
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-X main.version=v1.2.3",
		"-o", filepath.Join(dir, "weft"), "github.com/weft-cni/weft/cmd/plugin")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("go build: %w\n%s", err, out)
	}
	return nil
}
