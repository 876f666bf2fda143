// Package imports holds the rules of who may import what, as tests over what
// the go command says of the product's packages.
package imports

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const (
	product = "github.com/weft-cni/weft"
	root    = "../.."
)

// netlink is every way to the kernel's networking.
var netlink = []string{
	"github.com/vishvananda/netlink", "github.com/vishvananda/netns",
	"github.com/google/nftables", "github.com/mdlayher/netlink", "golang.zx2c4.com/wireguard",
}

// A rule is about everything that a package pulls in, by whatever way.
type rule struct {
	packages []string // of the product; a trailing /... takes those below
	never    []string // packages, and all below them
	why      string
}

var rules = []rule{
	{
		packages: []string{"cmd/plugin"},
		never: []string{
			"k8s.io", "sigs.k8s.io", "github.com/prometheus", "github.com/spf13", "github.com/google/nftables",
			"github.com/mdlayher/netlink", "go.opentelemetry.io", "net/http", "crypto/tls",
		},
		why: "the plugin is started for every pod: it has to be there in milliseconds, and needs no API server",
	},
	{
		packages: []string{"pkg/kernel", "pkg/overlay", "pkg/segment", "pkg/encrypt", "pkg/sriov"},
		never:    append([]string{"k8s.io/client-go"}, netlink...),
		why:      "planners are pure",
	},
	{
		packages: []string{"pkg/netconf", "pkg/record", "pkg/ipam", "pkg/settings"},
		never:    append([]string{"k8s.io/client-go"}, netlink...),
		why:      "they parse and keep files",
	},
	{
		packages: []string{"cmd/...", "pkg/...", "api/..."},
		never:    []string{"testing", product + "/test"},
		why:      "tests are no part of the product",
	},
	{
		packages: []string{"pkg/kernel/...", "pkg/veth", "pkg/vf", "pkg/sriov", "pkg/podns", "pkg/overlay", "pkg/encrypt", "pkg/attach", "pkg/ipam", "pkg/record"},
		never:    []string{product + "/pkg/agent", product + "/cmd", "github.com/prometheus"},
		why:      "the daemon stands on them, not they on it",
	},
}

// A pkg is what `go list -json` says of a package.
type pkg struct {
	ImportPath string
	Imports    []string
	Deps       []string
	Module     *struct{ Path string }
	ForTest    string
}

func TestRules(t *testing.T) {
	packages := list(t, "./...")
	for _, r := range rules {
		for _, p := range packages {
			if !slices.ContainsFunc(r.packages, func(pattern string) bool { return matches(pattern, p.ImportPath) }) {
				continue
			}
			for _, dep := range p.Deps {
				for _, never := range r.never {
					if dep == never || strings.HasPrefix(dep, never+"/") {
						t.Errorf("%s pulls in %s: %s", p.ImportPath, dep, r.why)
					}
				}
			}
		}
	}
}

// TestDoorsToTheKernel says which packages write to the kernel's networking.
func TestDoorsToTheKernel(t *testing.T) {
	doors := []string{"pkg/kernel/rtnl", "pkg/veth", "pkg/vf", "pkg/podns", "pkg/wguser"}
	for _, p := range list(t, "./cmd/...", "./pkg/...", "./api/...") {
		name := strings.TrimPrefix(p.ImportPath, product+"/")
		if slices.Contains(doors, name) {
			continue
		}
		for _, imported := range p.Imports {
			for _, n := range netlink {
				if imported == n || strings.HasPrefix(imported, n+"/") {
					t.Errorf("%s imports %s; only %s do", name, imported, strings.Join(doors, ", "))
				}
			}
		}
	}
}

// TestDependenciesAreExplained compares docs/dependencies.md with the modules
// that our packages and their tests import.
func TestDependenciesAreExplained(t *testing.T) {
	module := map[string]string{} // of each package
	all := list(t, "-deps", "-test", "./...")
	for _, p := range all {
		if p.Module != nil {
			module[p.ImportPath] = p.Module.Path
		}
	}
	direct := map[string]bool{}
	for _, p := range all {
		if p.Module == nil || p.Module.Path != product {
			continue
		}
		for _, imported := range p.Imports {
			imported, _, _ = strings.Cut(imported, " [") // a package built for a test
			if m := module[imported]; m != "" && m != product {
				direct[m] = true
			}
		}
	}
	doc, err := os.ReadFile(root + "/docs/dependencies.md")
	if err != nil {
		t.Fatal(err)
	}
	section, _, _ := strings.Cut(string(doc), "\n## Tools")
	explained := map[string]bool{}
	for _, match := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\|").FindAllStringSubmatch(section, -1) {
		explained[match[1]] = true
	}
	if diff := cmp.Diff(slices.Sorted(maps.Keys(direct)), slices.Sorted(maps.Keys(explained))); diff != "" {
		t.Errorf("modules that are imported (-), and explained in docs/dependencies.md (+):\n%s", diff)
	}
}

func matches(pattern, path string) bool {
	path = strings.TrimPrefix(path, product+"/")
	if below, ok := strings.CutSuffix(pattern, "/..."); ok {
		return path == below || strings.HasPrefix(path, below+"/")
	}
	return path == pattern
}

// list runs `go list -json` in the product's module.
func list(t *testing.T, args ...string) []pkg {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", append([]string{"list", "-json=ImportPath,Imports,Deps,Module,ForTest"}, args...)...)
	cmd.Dir = root
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.Bytes())
	}
	var packages []pkg
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		err := d.Decode(&p)
		if errors.Is(err, io.EOF) {
			return packages
		}
		if err != nil {
			t.Fatal(err)
		}
		packages = append(packages, p)
	}
}
