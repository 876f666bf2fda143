//go:build e2e

package kind

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// counts are what became of a stream of requests, as the program peer tells.
type counts struct {
	Answered, Lost int
	Slowest        time.Duration
	Errors         []string
}

// underLoad runs change while pods send a request each 10 ms, in each family,
// and nothing may be lost: HTTP with a connection each and echoes to a pod on
// another node, HTTP to a Service.
func (c *cluster) underLoad(t *testing.T, change func()) {
	t.Helper()
	server := c.start(t, namespace, "load-server", c.workers()[1], []string{"serve"}, "", "")
	apply(t, loadService)
	service, err := c.api.CoreV1().Services(namespace).Get(t.Context(), "load", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	args := []string{"load", "-every=10ms"}
	for _, ip := range server.ips {
		args = append(args, url(ip, peerPort, "/hostname"), "ping://"+ip.String())
	}
	for _, ip := range service.Spec.ClusterIPs {
		u := url(netip.MustParseAddr(ip), 80, "/hostname")
		args = append(args, u)
		for _, p := range c.peers(t) {
			p.gets(t, u, server.name) // it takes kube-proxy a moment
		}
	}
	client := c.start(t, namespace, "load-client", c.workers()[0], args, "", "")

	started := time.Now()
	change()
	out, err := client.peer(t.Context(), "get", "http://localhost:8080/stop")
	if err != nil {
		t.Fatal(err)
	}
	var report map[string]counts
	if err := json.Unmarshal([]byte(out), &report); err != nil {
		t.Fatal(err)
	}
	t.Logf("a request each 10 ms for %.1f s:", time.Since(started).Seconds())
	for _, target := range slices.Sorted(maps.Keys(report)) {
		n := report[target]
		t.Logf("  %5d answered, %d lost, slowest %.1f ms: %s", n.Answered, n.Lost, float64(n.Slowest.Microseconds())/1000, target)
		if n.Lost > 0 || n.Answered == 0 {
			t.Errorf("%s: %d requests lost: %v", target, n.Lost, n.Errors)
		}
	}
	kubectl(t, "--namespace", namespace, "delete", "pod", client.name, server.name, "--wait=true")
	kubectl(t, "--namespace", namespace, "delete", "service", "load")
}

const loadService = `
apiVersion: v1
kind: Service
metadata: {name: load, namespace: e2e}
spec:
  ipFamilyPolicy: PreferDualStack
  selector: {pod: load-server}
  ports: [{port: 80, targetPort: 8080}]
`

// upgrade rolls the DaemonSets to another image and back, under load.
func upgrade(t *testing.T, c *cluster) {
	if *next == "" {
		t.Fatal("-e2e.next is not set")
	}
	before := c.versions(t)
	c.underLoad(t, func() {
		started := time.Now()
		for name, container := range daemonSets() {
			kubectl(t, "--namespace=kube-system", "set", "image", "daemonset/"+name, container+"="+*next)
			rolledOut(t, "kube-system", "daemonset/"+name)
		}
		t.Logf("upgraded %d nodes in %.1f s", len(c.nodes), time.Since(started).Seconds())
		if after := c.versions(t); after == before {
			t.Errorf("the nodes still have %s", after)
		}
		c.mesh(t)

		started = time.Now()
		for name := range daemonSets() {
			kubectl(t, "--namespace=kube-system", "rollout", "undo", "daemonset/"+name)
			rolledOut(t, "kube-system", "daemonset/"+name)
		}
		t.Logf("rolled back in %.1f s", time.Since(started).Seconds())
		if after := c.versions(t); after != before {
			t.Errorf("the nodes have %s, not %s", after, before)
		}
		c.mesh(t)
	})
}

// versions are those of the plugins on the nodes.
func (c *cluster) versions(t *testing.T) (all string) {
	t.Helper()
	for _, node := range c.nodes {
		all += fmt.Sprintf("%s: %s; ", node, onNode(t, node, "sha256sum", "/opt/cni/bin/weft"))
	}
	return all
}
