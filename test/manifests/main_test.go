// Package manifests_test runs what manifests/ asks for: it applies them to a
// real API server, and starts the daemon as a container runtime would, with no
// more than its pod has.
package manifests_test

import (
	"context"
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

// within is a context for what has to be done in time.
func within(t testing.TB, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
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

// tool runs a tool that hack/tools pins, at the top of the sources.
func tool(t testing.TB, name string, args ...string) []byte {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", append([]string{"tool", "-modfile=hack/tools/go.mod", name}, args...)...)
	cmd.Dir = "../.."
	out, err := cmd.Output()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		err = fmt.Errorf("%w: %s", err, exit.Stderr)
	}
	if err != nil {
		t.Fatalf("%s %s: %v", name, strings.Join(args, " "), err)
	}
	return out
}
