//go:build e2e

package kind

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// tunnels is a script that shows the routes to other nodes' pods.
const tunnels = `
for family in -4 -6; do ip -o $family route show proto 87 | grep -E ' dev (vxlan-weft|wg-weft)' || true; done
`

// attachments is a script that shows what pods' attachments are made of on a
// node, a line for each.
const attachments = `
ip -o link show type veth | sed 's/^[0-9]*: \([^@:]*\).*/link \1/'
ip -o route show proto 87 | sed -E 's/ dev (vxlan-weft|wg-weft).*/ tunnel/; s/^/route /'
ip -o -6 route show proto 87 | sed -E 's/ dev (vxlan-weft|wg-weft).*/ tunnel/; s/^/route /'
ip -o neigh show nud permanent | grep -v vxlan-weft | sed 's/^/neighbour /'
ls /run/netns | sed 's/^/namespace /'
find /run/weft /var/lib/weft -mindepth 1 -not -name '*.lock' | sed 's/^/file /'
ip -o link | grep -E 'br-weft|vx-weft' | sed 's/^[0-9]*: \([^@:]*\).*/link \1/'
bridge fdb show | grep weft | sed 's/^/fdb /'
`

// whole is a script that shows a node's network and files, as far as a network
// for pods may change them. Not the tables of kubelet, kube-proxy and the plugin
// portmap, which make them when they first need them, nor directories, which an
// uninstalled Weft leaves.
const whole = `
ip -o link | sed 's/^[0-9]*: \([^@:]*\).*/link \1/'
ip -o address | sed 's/^[0-9]*: *//; s/valid_lft.*//; s/^/address /'
ip -4 -o route show table all | sed 's/expires [^ ]*//; s/^/route /'
ip -6 -o route show table all | sed 's/expires [^ ]*//; s/^/route /'
ip rule | sed 's/^/rule /'
ip -6 rule | sed 's/^/rule6 /'
nft list tables | grep -vE ' (filter|mangle|nat|kube-proxy|cni_hostport)$'
find /etc/cni /opt/cni /run/weft /run/wireguard /var/lib/weft -not -type d 2>/dev/null | sed 's/^/file /'
ls /run/netns 2>/dev/null | sed 's/^/namespace /'
`

func wholeState(t *testing.T, node string) string { t.Helper(); return state(t, node, whole) }

func state(t *testing.T, node, script string) string {
	t.Helper()
	lines := strings.Split(onNode(t, node, "sh", "-c", script), "\n")
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// changed is nil where a node's state is what it was; both are sorted lines.
func changed(node, before, after string) error {
	was, is := strings.Split(before, "\n"), strings.Split(after, "\n")
	var lines []string
	for _, line := range is {
		if !slices.Contains(was, line) {
			lines = append(lines, "+ "+line)
		}
	}
	for _, line := range was {
		if !slices.Contains(is, line) {
			lines = append(lines, "- "+line)
		}
	}
	if len(lines) == 0 && len(was) == len(is) {
		return nil
	}
	return fmt.Errorf("%s is not as it was:\n%s", node, strings.Join(lines, "\n"))
}

// churn is that of pods with the cluster network alone.
func churn(t *testing.T, c *cluster) {
	pods, rounds := 100, 5
	if *short {
		pods, rounds = 20, 2
	}
	c.churn(t, pods, rounds, "")
}

// churn makes and deletes many pods on further networks, again and again, and
// compares what is left.
func (c *cluster) churn(t *testing.T, pods, rounds int, networks string) {
	t.Helper()
	before, objects := map[string]string{}, c.weftObjects(t)
	for _, node := range c.nodes {
		before[node] = state(t, node, attachments)
	}
	apply(t, fmt.Sprintf(manyPods, networks, peerImage, restricted))
	for round := range rounds {
		started := time.Now()
		c.scale(t, pods)
		made := time.Since(started)
		started = time.Now()
		c.scale(t, 0)
		t.Logf("round %d: %d pods ready in %.1f s, gone in %.1f s", round+1, pods, made.Seconds(), time.Since(started).Seconds())
	}
	kubectl(t, "--namespace", namespace, "delete", "deployment", "many")
	for _, node := range c.nodes {
		// Objects go before kubelet has taken all down.
		eventually(t, 3*time.Minute, func(context.Context) error {
			return changed(node, before[node], state(t, node, attachments))
		})
	}
	eventually(t, time.Minute, func(context.Context) error {
		if diff := cmp.Diff(objects, c.weftObjects(t)); diff != "" {
			return fmt.Errorf("objects: %s", diff)
		}
		return nil
	})
}

const manyPods = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: many, namespace: e2e}
spec:
  replicas: 0
  selector: {matchLabels: {app: many}}
  template:
    metadata: {labels: {app: many}, annotations: {k8s.v1.cni.cncf.io/networks: '%s'}}
    spec: {terminationGracePeriodSeconds: 1, containers: [{name: peer, image: %s, args: [serve], securityContext: %s}]}
`

// scale waits until the Deployment many has as many ready pods, and no others.
func (c *cluster) scale(t *testing.T, pods int) {
	t.Helper()
	kubectl(t, "--namespace", namespace, "scale", "deployment/many", fmt.Sprintf("--replicas=%d", pods))
	eventually(t, 5*time.Minute, func(ctx context.Context) error {
		list, err := c.api.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: "app=many", ResourceVersion: "0"})
		if err != nil {
			return err
		}
		ready := 0
		for _, p := range list.Items {
			if isReady(&p) {
				ready++
			}
		}
		if ready != pods || len(list.Items) != pods {
			return fmt.Errorf("%d of %d pods are ready, %d are there", ready, pods, len(list.Items))
		}
		return nil
	})
}

// weftObjects are all objects of Weft's own kinds, a line for each.
func (c *cluster) weftObjects(t *testing.T) (names []string) {
	t.Helper()
	vteps, err := c.weft.WeftV1alpha1().VTEPs().List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range vteps.Items {
		names = append(names, "vtep "+v.Name)
	}
	segments, err := c.segmentObjects(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(names)
	return append(names, segments...)
}

// uninstall takes the steps of docs/install.md and compares the nodes with what
// was found.
func uninstall(t *testing.T, c *cluster) {
	kubectl(t, "delete", "namespace", namespace, hosts)
	for _, namespace := range []string{"kube-system", "local-path-storage"} {
		_, _ = output(t.Context(), "kubectl", "--namespace", namespace, "scale", "deployment", "--all", "--replicas=0") // not every image has the second
	}
	for _, node := range c.nodes {
		eventually(t, time.Minute, func(ctx context.Context) error {
			links, err := output(ctx, "docker", "exec", node, "ip", "-o", "link", "show", "type", "veth")
			if err == nil && strings.Contains(links, "weft") {
				err = fmt.Errorf("pods are still attached on %s: %s", node, links)
			}
			return err
		})
	}
	started := time.Now()
	for name := range daemonSets() {
		kubectl(t, "--namespace=kube-system", "delete", "daemonset", name)
	}
	kubectl(t, "apply", "--server-side", "--filename", manifest("cleanup.yaml"))
	rolledOut(t, "kube-system", "daemonset/weft-cleanup")
	t.Logf("removed:\n%s", kubectl(t, "--namespace=kube-system", "logs", "--container=cleanup", "--selector=app.kubernetes.io/name=weft-cleanup", "--prefix"))
	kubectl(t, "delete", "--filename", manifest("cleanup.yaml"))
	kubectl(t, "delete", "--filename", variant(), "--ignore-not-found")
	t.Logf("uninstalled in %.1f s", time.Since(started).Seconds())
	for _, node := range c.nodes {
		eventually(t, 30*time.Second, func(context.Context) error {
			return changed(node, c.found[node], wholeState(t, node))
		})
	}
	if out := kubectl(t, "get", "crd,clusterrole,clusterrolebinding,validatingadmissionpolicy", "--output=name"); strings.Contains(out, "weft") {
		t.Errorf("left in the API: %s", out)
	}
}
