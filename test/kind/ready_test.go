//go:build e2e

package kind

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// becomeReady applies the flat manifest to nodes that wait for a network.
func becomeReady(t *testing.T, c *cluster) {
	c.found = map[string]string{}
	for _, n := range c.listNodes(t) {
		condition := readiness(n)
		if condition.Status == corev1.ConditionTrue {
			t.Fatalf("node %s is ready without a network", n.Name)
		}
		c.found[n.Name] = wholeState(t, n.Name)
	}
	started := time.Now()
	kubectl(t, "apply", "--server-side", "--filename", variant())
	eventually(t, time.Minute, c.ready)
	t.Logf("%.1f s from kubectl apply to %d ready nodes", time.Since(started).Seconds(), len(c.nodes))
	for _, node := range c.nodes {
		readyAfterSync(t, c, node)
	}
	for name := range daemonSets() {
		rolledOut(t, "kube-system", "daemonset/"+name)
	}
	rolledOut(t, "kube-system", "deployment/coredns")
}

// readyAfterSync compares what kubelet says with the files that the daemon
// writes: the container runtime has no network before the second of them.
func readyAfterSync(t *testing.T, c *cluster, name string) {
	t.Helper()
	node, err := c.api.CoreV1().Nodes().Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	// The state that the daemon tells the plugin is written when the kernel has
	// it, the runtime's configuration after that.
	synced, configured := modified(t, name, "/run/weft/node.json"), modified(t, name, "/etc/cni/net.d/10-weft.conflist")
	ready := readiness(*node).LastTransitionTime.Time // whole seconds
	if configured.Before(synced) || ready.Add(time.Second).Before(configured) {
		t.Errorf("%s: first sync at %s, configuration at %s, ready at %s", name, synced, configured, ready)
	}
	// The first of nodes that start together has no peer yet.
	eventually(t, 10*time.Second, func(ctx context.Context) error {
		out, err := output(ctx, "docker", "exec", name, "sh", "-c", tunnels)
		if err == nil && out == "" {
			err = fmt.Errorf("%s is ready and knows no peer", name)
		}
		return err
	})
}

func modified(t *testing.T, node, file string) time.Time {
	t.Helper()
	seconds, err := strconv.ParseFloat(onNode(t, node, "stat", "--format=%.9Y", file), 64)
	if err != nil {
		t.Fatal(err)
	}
	return time.UnixMicro(int64(seconds * 1e6))
}

// confined looks at the daemon as the kernel does: the manifest's restrictions
// are in force only where a real runtime has made them so.
func confined(t *testing.T, c *cluster) {
	for _, node := range c.nodes {
		pids := strings.Fields(onNode(t, node, "pidof", "weftd"))
		if len(pids) != len(daemonSets()) {
			t.Errorf("%s: processes %v", node, pids)
		}
		for _, pid := range pids {
			confinedProcess(t, node, pid)
		}
	}
}

func confinedProcess(t *testing.T, node, pid string) {
	t.Helper()
	const netAdmin = "0000000000001000" // CAP_NET_ADMIN is 12
	status := map[string]string{}
	for line := range strings.Lines(onNode(t, node, "cat", "/proc/"+pid+"/status")) {
		key, value, _ := strings.Cut(line, ":")
		status[key] = strings.TrimSpace(value)
	}
	for key, want := range map[string]string{
		"CapEff": netAdmin, "CapPrm": netAdmin, "CapBnd": netAdmin,
		"NoNewPrivs": "1",
		"Seccomp":    "2", // filtered
	} {
		if status[key] != want {
			t.Errorf("%s: weftd has %s %s, not %s", node, key, status[key], want)
		}
	}
	if root := onNode(t, node, "sh", "-c", "grep ' / / ' /proc/"+pid+"/mountinfo"); !strings.Contains(root, " ro,") {
		t.Errorf("%s: the daemon's root can be written to: %s", node, root)
	}
}

// eachVTEP is nil where there is one VTEP for each node.
func (c *cluster) eachVTEP(ctx context.Context) error {
	vteps, err := c.weft.WeftV1alpha1().VTEPs().List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	owners := map[string]bool{}
	for _, v := range vteps.Items {
		owners[v.Name] = true
	}
	for _, node := range c.nodes {
		if !owners[node] {
			return fmt.Errorf("node %s has no VTEP", node)
		}
	}
	if len(owners) != len(c.nodes) {
		return errors.New("there are more VTEPs than nodes")
	}
	return nil
}
