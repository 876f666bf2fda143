//go:build e2e

package kind

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	// namespace admits pods by the strictest of the Pod Security Standards; in
	// hosts are those pods that want something of their node.
	namespace = "e2e"
	hosts     = "e2e-hosts"
	peerImage = "weft-e2e/peer:dev"
	peerPort  = 8080
)

// restricted is what the standard asks of a container.
const restricted = `{runAsNonRoot: true, runAsUser: 65532, allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}, seccompProfile: {type: RuntimeDefault}}`

// peers is a server on each node and its Services.
const peers = `
apiVersion: v1
kind: Namespace
metadata: {name: e2e, labels: {pod-security.kubernetes.io/enforce: restricted}}
---
apiVersion: v1
kind: Namespace
metadata: {name: e2e-hosts}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: peer, namespace: e2e}
spec:
  selector: {matchLabels: {app: peer}}
  template:
    metadata: {labels: {app: peer}}
    spec:
      tolerations: [{operator: Exists}]
      terminationGracePeriodSeconds: 1
      containers:
      - name: peer
        image: ` + peerImage + `
        args: [serve]
        readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}
        securityContext: ` + restricted + `
---
apiVersion: v1
kind: Service
metadata: {name: peer, namespace: e2e}
spec:
  type: NodePort
  ipFamilyPolicy: PreferDualStack
  selector: {app: peer}
  ports: [{port: 80, targetPort: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: headless, namespace: e2e}
spec:
  clusterIP: None
  ipFamilyPolicy: PreferDualStack
  selector: {app: peer}
  ports: [{port: 8080}]
`

// pod is a running pod with one container.
type pod struct {
	namespace, name, node string
	ips                   []netip.Addr
}

func newPod(p *corev1.Pod) pod {
	made := pod{namespace: p.Namespace, name: p.Name, node: p.Spec.NodeName}
	for _, ip := range p.Status.PodIPs {
		made.ips = append(made.ips, netip.MustParseAddr(ip.IP))
	}
	return made
}

// peer runs the program peer in the pod.
func (p pod) peer(ctx context.Context, args ...string) (string, error) {
	return output(ctx, "kubectl", append([]string{"--namespace", p.namespace, "exec", p.name, "--", "/peer"}, args...)...)
}

// gets asks for a URL, again until the answer is what is wanted: what a Service
// leads to takes a moment to get to all nodes.
func (p pod) gets(t *testing.T, url, want string, args ...string) {
	t.Helper()
	eventually(t, 15*time.Second, func(ctx context.Context) error {
		got, err := p.peer(ctx, append(append([]string{"get"}, args...), url)...)
		if err == nil && got != want {
			err = fmt.Errorf("%s from pod %s on %s: answer %q, not %q", url, p.name, p.node, got, want)
		}
		return err
	})
}

// peers gives the running pods of the DaemonSet peer, one for each node.
func (c *cluster) peers(t *testing.T) (all []pod) {
	t.Helper()
	for _, p := range c.onEachNode(t, "peer") {
		all = append(all, newPod(&p))
	}
	return all
}

// onEachNode waits for the pods of a DaemonSet to be ready.
func (c *cluster) onEachNode(t *testing.T, app string) (all []corev1.Pod) {
	t.Helper()
	eventually(t, 90*time.Second, func(ctx context.Context) error {
		list, err := c.api.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: "app=" + app})
		if err != nil {
			return err
		}
		all = list.Items
		ready := 0
		for i := range all {
			if isReady(&all[i]) {
				ready++
			}
		}
		if len(all) != len(c.nodes) || ready != len(c.nodes) {
			return fmt.Errorf("%d of %d pods of %s are ready", ready, len(all), app)
		}
		return nil
	})
	return all
}

func isReady(p *corev1.Pod) bool {
	if p.DeletionTimestamp != nil {
		return false
	}
	for _, condition := range p.Status.Conditions {
		if condition.Type == corev1.PodReady {
			return condition.Status == corev1.ConditionTrue
		}
	}
	return false
}

// await waits for a pod to be ready.
func (c *cluster) await(t *testing.T, namespace, name string) (ready pod) {
	t.Helper()
	eventually(t, time.Minute, func(ctx context.Context) error {
		p, err := c.api.CoreV1().Pods(namespace).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if !isReady(p) {
			return fmt.Errorf("pod %s is not ready: %s", name, p.Status.Phase)
		}
		ready = newPod(p)
		return nil
	})
	return ready
}

// start makes a pod of the program peer on a node. more are fields of its spec,
// container ones of its container, in YAML's flow style.
func (c *cluster) start(t *testing.T, namespace, name, node string, args []string, more, container string) pod {
	t.Helper()
	words, err := json.Marshal(args)
	if err != nil {
		t.Fatal(err)
	}
	apply(t, fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %s, namespace: %s, labels: {pod: %s}}
spec: {nodeName: %s, terminationGracePeriodSeconds: 1, %s containers: [
  {name: peer, image: %s, args: %s, %s securityContext: %s}]}`,
		name, namespace, name, node, more, peerImage, words, container, restricted))
	t.Cleanup(func() {
		if !t.Failed() { // the dump has to show it
			_, _ = output(context.Background(), "kubectl", "--namespace", namespace, "delete", "pod", name, "--wait=false")
		}
	})
	return c.await(t, namespace, name)
}

// url of a server.
func url(ip netip.Addr, port int, path string) string {
	return "http://" + netip.AddrPortFrom(ip, uint16(port)).String() + path
}

// in the family of ip.
func in(ip netip.Addr, ips []netip.Addr) netip.Addr {
	for _, other := range ips {
		if other.Is4() == ip.Is4() {
			return other
		}
	}
	return netip.Addr{}
}

func joined(ips []netip.Addr) string {
	var words []string
	for _, ip := range ips {
		words = append(words, ip.String())
	}
	return strings.Join(words, ", ")
}
