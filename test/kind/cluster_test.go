//go:build e2e

package kind

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	weft "github.com/weft-cni/weft/pkg/client/versioned"
)

// cluster is a kind cluster, by its API and by the containers that its nodes
// are.
type cluster struct {
	api      kubernetes.Interface
	weft     weft.Interface
	families []corev1.IPFamily
	nodes    []string // the control plane first
	found    map[string]string
}

func (c *cluster) workers() []string { return c.nodes[1:] }

// connect uses the cluster of $KUBECONFIG.
func connect(t *testing.T) *cluster {
	t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", os.Getenv("KUBECONFIG"))
	if err != nil {
		t.Fatal(err)
	}
	config.QPS = -1
	c := &cluster{}
	if c.api, err = kubernetes.NewForConfig(config); err != nil {
		t.Fatal(err)
	}
	if c.weft, err = weft.NewForConfig(config); err != nil {
		t.Fatal(err)
	}
	service, err := c.api.CoreV1().Services("default").Get(t.Context(), "kubernetes", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	c.families = service.Spec.IPFamilies
	// The API server's own Service has one family in a cluster of both.
	for _, n := range c.listNodes(t) {
		if strings.HasSuffix(n.Name, "-control-plane") {
			c.nodes = append([]string{n.Name}, c.nodes...)
		} else {
			c.nodes = append(c.nodes, n.Name)
		}
		if len(n.Spec.PodCIDRs) > 1 {
			c.families = []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol}
		}
	}
	return c
}

func (c *cluster) listNodes(t *testing.T) []corev1.Node {
	t.Helper()
	nodes, err := c.api.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return nodes.Items
}

// nodeIPs are the InternalIPs of a node in the families of the pods.
func (c *cluster) nodeIPs(t *testing.T, name string) (ips []netip.Addr) {
	t.Helper()
	node, err := c.api.CoreV1().Nodes().Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range node.Status.Addresses {
		if a.Type == corev1.NodeInternalIP {
			ips = append(ips, netip.MustParseAddr(a.Address))
		}
	}
	return ips
}

// output runs a program for at most five minutes.
func output(ctx context.Context, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	var out, problems bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = &out, &problems
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(problems.String()))
	}
	return strings.TrimSpace(out.String()), nil
}

func must(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := output(t.Context(), name, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func kubectl(t *testing.T, args ...string) string {
	t.Helper()
	return must(t, "kubectl", args...)
}

// onNode runs a program in a node's container.
func onNode(t *testing.T, node string, args ...string) string {
	t.Helper()
	return must(t, "docker", append([]string{"exec", node}, args...)...)
}

// apply is kubectl apply of YAML.
func apply(t *testing.T, yaml string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "kubectl", "apply", "--server-side", "--filename=-")
	cmd.Stdin = strings.NewReader(yaml)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("kubectl apply: %v: %s", err, out)
	}
}

// variant is the manifest that the cluster is made with.
func variant() string {
	if *encrypted {
		return manifest("encryption.yaml")
	}
	return manifest("weft.yaml")
}

// daemonSets are those of the variant, with the names of their containers.
func daemonSets() map[string]string {
	all := map[string]string{"weftd": "weftd"}
	if *encrypted {
		all["weft-wireguard"] = "wireguard"
	}
	return all
}

// manifest is a path in manifests/.
func manifest(name string) string { return filepath.Join("..", "..", "manifests", name) }

// eventually polls until f gives nil.
func eventually(t *testing.T, within time.Duration, f func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	ticker := time.NewTicker(200 * time.Millisecond)
	defer ticker.Stop()
	var last error
	for {
		err := f(ctx)
		if err == nil {
			return
		}
		if ctx.Err() == nil || last == nil {
			last = err // not that time was up
		}
		select {
		case <-ctx.Done():
			t.Fatalf("after %s: %v", within, last)
		case <-ticker.C:
		}
	}
}

// ready is nil where all nodes are.
func (c *cluster) ready(ctx context.Context) error {
	nodes, err := c.api.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	if len(nodes.Items) != len(c.nodes) {
		return fmt.Errorf("%d nodes", len(nodes.Items))
	}
	var missing error
	for _, n := range nodes.Items {
		condition := readiness(n)
		if condition.Status != corev1.ConditionTrue {
			missing = errors.Join(missing, fmt.Errorf("node %s is not ready: %s", n.Name, condition.Message))
		}
	}
	return missing
}

func readiness(n corev1.Node) corev1.NodeCondition {
	for _, condition := range n.Status.Conditions {
		if condition.Type == corev1.NodeReady {
			return condition
		}
	}
	return corev1.NodeCondition{}
}

// rolledOut waits for a DaemonSet or Deployment, given as kind/name.
func rolledOut(t *testing.T, namespace, name string) {
	t.Helper()
	kubectl(t, "--namespace", namespace, "rollout", "status", name, "--timeout=280s")
}

// dump writes what the cluster looks like.
func (c *cluster) dump(t *testing.T) {
	t.Helper()
	if *dumpDir == "" {
		return
	}
	if err := os.MkdirAll(*dumpDir, 0o755); err != nil {
		t.Error(err)
		return
	}
	write := func(file, name string, args ...string) {
		out, err := output(context.WithoutCancel(t.Context()), name, args...)
		if err != nil {
			out += "\n" + err.Error()
		}
		if err := os.WriteFile(filepath.Join(*dumpDir, file), []byte(out+"\n"), 0o644); err != nil {
			t.Error(err)
		}
	}
	write("objects.txt", "kubectl", "get", "nodes,vteps,segmentmembers,ipblocks,pods,services,endpointslices,events", "--all-namespaces", "--output=wide")
	write("pods.txt", "kubectl", "describe", "pods", "--all-namespaces")
	for name := range daemonSets() {
		write(name+".txt", "kubectl", "--namespace=kube-system", "logs", "--selector=app.kubernetes.io/name="+name, "--prefix", "--tail=-1")
	}
	for _, node := range c.nodes {
		for _, what := range []string{
			"ip -d address", "ip route show table all", "ip -6 route show table all", "ip neigh", "bridge fdb", "nft list ruleset",
			"find /etc/cni /opt/cni /run/weft /var/lib/weft", "journalctl --unit kubelet --lines 2000", "journalctl --unit containerd --lines 2000",
		} {
			file := node + "-" + strings.ReplaceAll(strings.ReplaceAll(what, "/", ""), " ", "-") + ".txt"
			write(file, "docker", append([]string{"exec", node}, strings.Fields(what)...)...)
		}
	}
	t.Logf("what the cluster looks like is in %s", *dumpDir)
}
