//go:build e2e

package kind

import (
	"context"
	"encoding/json"
	"net/netip"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

const secondNetwork = `
apiVersion: k8s.cni.cncf.io/v1
kind: NetworkAttachmentDefinition
metadata: {name: second, namespace: e2e}
spec:
  config: '{"cniVersion": "1.0.0", "name": "second", "type": "weft", "defaultRoute": false}'
`

// link is one of a pod's interfaces, as the program peer tells of it.
type link struct {
	MTU       int
	MAC       string
	Addresses []netip.Prefix
	Sent      int
}

func (c *cluster) interfaces(t *testing.T, p pod) map[string]link {
	t.Helper()
	out, err := p.peer(t.Context(), "interfaces")
	if err != nil {
		t.Fatal(err)
	}
	var links map[string]link
	if err := json.Unmarshal([]byte(out), &links); err != nil {
		t.Fatal(err)
	}
	return links
}

// secondAttachment gives a pod two interfaces on the cluster network, by way of
// Multus, which stays for the tenants' networks.
func secondAttachment(t *testing.T, c *cluster) {
	if *multus == "" {
		t.Fatal("-e2e.multus is not set")
	}
	for _, node := range c.nodes {
		load(t, node, *multus)
	}
	kubectl(t, "apply", "--server-side", "--filename", filepath.Join(manifest("components/multus"), "crd.yaml"))
	kubectl(t, "wait", "--for=condition=Established", "crd/network-attachment-definitions.k8s.cni.cncf.io", "--timeout=30s")
	kubectl(t, "apply", "--server-side", "--force-conflicts", "--kustomize", manifest("multus"))
	rolledOut(t, "kube-system", "daemonset/multus")
	for _, node := range c.nodes {
		eventually(t, 30*time.Second, func(ctx context.Context) error {
			_, err := output(ctx, "docker", "exec", node, "test", "-e", "/etc/cni/net.d/00-multus.conflist")
			return err
		})
	}
	apply(t, secondNetwork)

	twice, _ := c.attached(t, "twice", c.workers()[0], "second")
	links := c.interfaces(t, twice)
	second := links["net1"].Addresses
	if len(second) != len(c.families) || len(links["eth0"].Addresses) != len(c.families) {
		t.Fatalf("the pod has %+v", links)
	}
	for _, prefix := range second {
		answersBy(t, c, twice, prefix.Addr())
	}
	kubectl(t, "--namespace", namespace, "delete", "pod", "twice")
}

// answersBy asks the pod from all others by an address of its second interface,
// from where the answers have to leave: with that source, nothing else lets
// them pass.
func answersBy(t *testing.T, c *cluster, twice pod, ip netip.Addr) {
	t.Helper()
	before := c.interfaces(t, twice)["net1"].Sent
	all := c.peers(t)
	for _, p := range all {
		p.gets(t, url(ip, peerPort, "/hostname"), twice.name)
		eventually(t, 10*time.Second, func(ctx context.Context) error {
			_, err := p.peer(ctx, "ping", ip.String())
			return err
		})
		// And from there: what the pod sends with that address.
		twice.gets(t, url(in(ip, p.ips), peerPort, "/client"), ip.String(), "-from="+ip.String())
	}
	if sent := c.interfaces(t, twice)["net1"].Sent - before; sent < 5*len(all) {
		t.Errorf("answers from %s left the pod by another interface than net1, which sent %d packets", ip, sent)
	}
}

// load brings an archive of images to a node.
func load(t *testing.T, node, archive string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "sh", "-c", `docker exec --interactive "$0" ctr --namespace=k8s.io images import --digests - <"$1"`, node, archive)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("load %s on %s: %v: %s", archive, node, err, out)
	}
}

// removeMultus does what docs/multus.md says.
func removeMultus(t *testing.T, c *cluster) {
	t.Helper()
	kubectl(t, "--namespace", namespace, "delete", "network-attachment-definition", "--all")
	kubectl(t, "--namespace=kube-system", "delete", "daemonset", "multus")
	for _, node := range c.nodes {
		onNode(t, node, "rm", "-rf", "/etc/cni/net.d/00-multus.conflist", "/etc/cni/net.d/multus.d", "/etc/cni/multus", "/opt/cni/bin/multus")
	}
	kubectl(t, "delete", "--filename", filepath.Join(manifest("components/multus"), "rbac.yaml"))
	kubectl(t, "delete", "--filename", filepath.Join(manifest("components/multus"), "crd.yaml"))
}
