//go:build e2e

package kind

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// controlPlaneRestart kills the API server and stops a worker's kubelet while
// traffic goes on, and starts a pod afterwards.
func controlPlaneRestart(t *testing.T, c *cluster) {
	c.underLoad(t, func() {
		before := apiServer(t, c)
		onNode(t, c.nodes[0], "crictl", "stop", before)
		started := time.Now()
		eventually(t, 100*time.Second, func(ctx context.Context) error {
			_, err := output(ctx, "kubectl", "get", "--raw=/readyz")
			if err == nil && apiServer(t, c) == before {
				err = fmt.Errorf("the API server was not restarted")
			}
			return err
		})
		t.Logf("the API server was away for %.1f s", time.Since(started).Seconds())
		for _, node := range c.workers() {
			onNode(t, node, "systemctl", "restart", "kubelet", "containerd")
		}
		eventually(t, time.Minute, c.ready)
		c.start(t, namespace, "after", c.workers()[1], []string{"serve"}, "", "")
		c.mesh(t)
	})
}

// apiServer is the ID of its container.
func apiServer(t *testing.T, c *cluster) string {
	t.Helper()
	return onNode(t, c.nodes[0], "crictl", "ps", "--name=kube-apiserver", "--state=Running", "--quiet")
}

// nodeReplaced takes a node out of the cluster, and in again as a new Node,
// which may get other pod CIDRs.
func nodeReplaced(t *testing.T, c *cluster) {
	node, others := c.workers()[1], []string{c.nodes[0], c.workers()[0]}
	gone, err := c.api.CoreV1().Nodes().Get(t.Context(), node, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	kubectl(t, "drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=90s")
	onNode(t, node, "systemctl", "stop", "kubelet")
	kubectl(t, "delete", "node", node)
	started := time.Now()
	for _, other := range others {
		eventually(t, 30*time.Second, func(ctx context.Context) error { return knows(ctx, other, gone.Spec.PodCIDRs, 0) })
	}
	if _, err = c.weft.WeftV1alpha1().VTEPs().Get(t.Context(), node, metav1.GetOptions{}); err == nil {
		t.Errorf("the VTEP of %s is still there", node)
	}
	t.Logf("the other nodes forgot %s in %.1f s", node, time.Since(started).Seconds())
	c.noSegments(t, " on "+node+":")

	// Its pods go with it, after a while. What is on its disk stays, and so do
	// their containers, until its kubelet comes back.
	eventually(t, 110*time.Second, func(ctx context.Context) error {
		pods, listed := c.api.CoreV1().Pods("").List(ctx, metav1.ListOptions{FieldSelector: "spec.nodeName=" + node})
		if listed == nil && len(pods.Items) > 0 {
			return fmt.Errorf("%d pods of %s are still there", len(pods.Items), node)
		}
		return listed
	})
	onNode(t, node, "systemctl", "start", "kubelet")
	started = time.Now()
	eventually(t, 100*time.Second, func(ctx context.Context) error {
		_, there := c.api.CoreV1().Nodes().Get(ctx, node, metav1.GetOptions{})
		return there
	})
	eventually(t, 100*time.Second, c.ready)
	now, err := c.api.CoreV1().Nodes().Get(t.Context(), node, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, other := range others {
		eventually(t, 30*time.Second, func(ctx context.Context) error { return knows(ctx, other, now.Spec.PodCIDRs, len(c.families)) })
	}
	t.Logf("%s is back after %.1f s; its pods had %v and have %v", node, time.Since(started).Seconds(), gone.Spec.PodCIDRs, now.Spec.PodCIDRs)
	eventually(t, 10*time.Second, c.eachVTEP)
	c.mesh(t)
	c.tenantsReach(t)
}

// knows is nil where a node has as many routes to a peer's pod CIDRs.
func knows(ctx context.Context, node string, cidrs []string, routes int) error {
	out, err := output(ctx, "docker", "exec", node, "sh", "-c", tunnels)
	if err != nil {
		return err
	}
	found := 0
	for _, cidr := range cidrs {
		if strings.Contains(out, cidr+" ") {
			found++
		}
	}
	if found != routes {
		return fmt.Errorf("%s has %d routes to %v, not %d", node, found, cidrs, routes)
	}
	return nil
}

// nodeReboots restarts a worker while its daemon has no rights: it must not be
// ready on the strength of what is left on its disk.
func nodeReboots(t *testing.T, c *cluster) {
	node := c.workers()[0]
	kubectl(t, "delete", "clusterrolebinding", "weftd")
	must(t, "docker", "restart", node)
	eventually(t, 90*time.Second, func(ctx context.Context) error {
		_, err := output(ctx, "docker", "exec", node, "pidof", "weftd")
		return err
	})
	eventually(t, 2*time.Minute, func(ctx context.Context) error {
		n, err := c.api.CoreV1().Nodes().Get(ctx, node, metav1.GetOptions{})
		// What the plugin tells the container runtime (STATUS), and that kubelet.
		if err == nil && !strings.Contains(readiness(*n).Message, "first sync") {
			err = fmt.Errorf("%s does not wait for its first sync: %s", node, readiness(*n).Message)
		}
		return err
	})
	started := time.Now()
	kubectl(t, "apply", "--server-side", "--filename", variant())
	eventually(t, 2*time.Minute, c.ready)
	t.Logf("%s is ready %.1f s after its daemon got its rights", node, time.Since(started).Seconds())
	c.mesh(t)
}
