//go:build e2e

package kind

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// clientsOnly lets the peers be reached by clients only.
const clientsOnly = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: clients-only, namespace: e2e}
spec:
  podSelector: {matchLabels: {app: peer}}
  policyTypes: [Ingress]
  ingress: [{from: [{podSelector: {matchLabels: {role: client}}}]}]
`

// policies runs the policy engine of manifests/network-policy.yaml, and takes
// it away again.
func policies(t *testing.T, c *cluster) {
	if *policy == "" {
		t.Fatal("-e2e.policy is not set")
	}
	for _, node := range c.nodes {
		load(t, node, *policy)
		loadRules(t, node)
	}
	kubectl(t, "apply", "--server-side", "--filename", manifest("network-policy.yaml"))
	rolledOut(t, "kube-system", "daemonset/kube-network-policies")
	client, stranger := c.asker(t, "client"), c.asker(t, "stranger")
	peers := c.peers(t)
	for _, p := range peers {
		for _, ip := range p.ips {
			stranger.gets(t, url(ip, peerPort, "/client"), in(ip, stranger.ips).String())
		}
	}

	apply(t, clientsOnly)
	for _, p := range peers {
		for _, ip := range p.ips {
			stranger.isRefused(t, url(ip, peerPort, "/hostname"))
			client.gets(t, url(ip, peerPort, "/client"), in(ip, client.ips).String())
		}
	}
	service := "http://peer.e2e.svc.cluster.local/hostname"
	stranger.isRefused(t, service)
	if _, err := client.peer(t.Context(), "get", service); err != nil {
		t.Error(err)
	}
	c.peers(t) // kubelet's probes still get through

	kubectl(t, "--namespace", namespace, "delete", "networkpolicy", "clients-only")
	for _, p := range peers {
		stranger.gets(t, url(p.ips[0], peerPort, "/hostname"), p.name)
	}
	kubectl(t, "--namespace", namespace, "delete", "pod", client.name, stranger.name)
	kubectl(t, "delete", "--wait", "--filename", manifest("network-policy.yaml"))
	for _, node := range c.nodes {
		onNode(t, node, "nft", "delete", "table", "inet", "kube-network-policies")
		if *policyRules != "" {
			onNode(t, node, "nft", "delete", "table", "inet", "policy-labels")
		}
	}
}

// loadRules gives a node what its kernel lacks for the policy engine.
func loadRules(t *testing.T, node string) {
	t.Helper()
	if *policyRules == "" {
		return
	}
	rules, err := os.Open(*policyRules)
	if err != nil {
		t.Fatal(err)
	}
	defer rules.Close()
	cmd := exec.CommandContext(t.Context(), "docker", "exec", "--interactive", node, "nft", "--file", "-")
	cmd.Stdin = rules
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("rules on %s: %v: %s", node, err, out)
	}
}

// asker is a pod on the first worker with a label role.
func (c *cluster) asker(t *testing.T, role string) pod {
	t.Helper()
	apply(t, fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %[1]s, namespace: e2e, labels: {role: %[1]s}}
spec: {nodeName: %s, terminationGracePeriodSeconds: 1, containers: [{name: peer, image: %s, args: [serve], securityContext: %s}]}`,
		role, c.workers()[0], peerImage, restricted))
	return c.await(t, namespace, role)
}

// isRefused waits until nobody answers.
func (p pod) isRefused(t *testing.T, url string) {
	t.Helper()
	eventually(t, 30*time.Second, func(ctx context.Context) error {
		_, err := p.peer(ctx, "get", url)
		if err == nil || !strings.Contains(err.Error(), "deadline exceeded") {
			return fmt.Errorf("pod %s gets %s: %w", p.name, url, err)
		}
		return nil
	})
}
