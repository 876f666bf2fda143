package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// WireGuard is a running `weftd wireguard`, the process for userspace
// WireGuard.
type WireGuard struct {
	*Process
	node    *Node
	log     string // name
	readied int    // how often processes before had got ready
}

// wireGuardReady is what it logs once it serves its devices.
const wireGuardReady = "userspace WireGuard is ready"

// StartWireGuard starts the process on the node, with what args add to its
// flags. Where one runs already the new one takes over. It doesn't wait.
func (n *Node) StartWireGuard(args ...string) (*WireGuard, error) {
	bin, err := BinDir()
	if err != nil {
		return nil, err
	}
	w := &WireGuard{node: n, log: "wireguard-" + n.Name}
	log, err := n.cluster.logFile(w.log)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	before, err := w.Log()
	if err != nil {
		return nil, err
	}
	w.readied = bytes.Count(before, []byte(wireGuardReady))
	cmd := exec.Command(filepath.Join(bin, "weftd"), append([]string{"wireguard", "--log-level=debug"}, args...)...) //nolint:noctx // it ends with the node
	cmd.Stdout, cmd.Stderr = log, log
	w.Process, err = n.Start(cmd)
	return w, err
}

// WaitReady waits until the process serves its devices, and has them from the
// one before. The error of a process that ends holds the end of its log.
func (w *WireGuard) WaitReady(ctx context.Context) error {
	var failed error
	err := poll(ctx, 10*time.Millisecond, func() bool {
		var log []byte
		log, failed = w.Log()
		return failed != nil || w.ended() || bytes.Count(log, []byte(wireGuardReady)) > w.readied
	})
	switch {
	case w.ended():
		return fmt.Errorf("weftd wireguard on %s ended: %w\n%s", w.node.Name, w.err, w.node.cluster.logTail(w.log))
	case err != nil || failed != nil:
		return fmt.Errorf("wait for weftd wireguard on %s: %w\n%s", w.node.Name, errors.Join(err, failed), w.node.cluster.logTail(w.log))
	}
	return nil
}

// Log is all that these processes on the node have logged.
func (w *WireGuard) Log() ([]byte, error) {
	return os.ReadFile(filepath.Join(w.node.cluster.dir, "log", w.log+".log"))
}

// WireGuard is StartWireGuard and WaitReady for a test.
func (n *Node) WireGuard(t testing.TB, args ...string) *WireGuard {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	w, err := n.StartWireGuard(args...)
	if err == nil {
		err = w.WaitReady(ctx)
	}
	if err != nil {
		t.Fatal(err)
	}
	return w
}
