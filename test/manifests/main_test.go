// Package manifests_test runs what manifests/ asks for: it applies them to a
// real API server, and starts the daemon as a container runtime would, with no
// more than its pod has.
package manifests_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/weft-cni/weft/test/cluster"
)

// Files made by make generate, and what they are made of.
const (
	weftYAML    = "../../manifests/weft.yaml"
	cleanupYAML = "../../manifests/cleanup.yaml"
)

func TestMain(m *testing.M) {
	if spec := os.Getenv(containerEnv); spec != "" {
		fmt.Fprintln(os.Stderr, "container:", becomeContainer(spec)) // it returns on failure only
		os.Exit(125)
	}
	cluster.Main(m)
}

// eventually waits until check gives no error, for at most d.
func eventually(t testing.TB, d time.Duration, check func() error) {
	t.Helper()
	deadline := time.Now().Add(d)
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for err := check(); err != nil; err = check() {
		if time.Now().After(deadline) {
			t.Fatalf("after %v: %v", d, err)
		}
		<-ticker.C
	}
}

// kustomize builds a kustomization below manifests/.
func kustomize(t testing.TB, name string) []byte {
	t.Helper()
	return goCommand(t, nil, "tool", "-modfile=hack/tools/go.mod", "kustomize", "build", "manifests/"+name)
}

// goCommand runs the go command at the top of the sources.
func goCommand(t testing.TB, input []byte, args ...string) []byte {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", args...)
	cmd.Dir = "../.."
	// The flags that make generate has, so that tools are compiled once.
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS="+os.Getenv("GOFLAGS")+" -trimpath")
	cmd.Stdin = bytes.NewReader(input)
	out, err := cmd.Output()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		err = fmt.Errorf("%w: %s", err, exit.Stderr)
	}
	if err != nil {
		t.Fatalf("go %s: %v", strings.Join(args, " "), err)
	}
	return out
}

// moduleDir is the directory of a module of others, which is downloaded where
// it isn't there.
func moduleDir(t testing.TB, module string) string {
	t.Helper()
	var downloaded struct{ Dir string }
	if err := json.Unmarshal(goCommand(t, nil, "mod", "download", "-json", module), &downloaded); err != nil {
		t.Fatal(err)
	}
	return downloaded.Dir
}
