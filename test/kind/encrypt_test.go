//go:build e2e

package kind

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// listener runs weftd leak-test on a node, with the rights that it asks for.
const listener = `
apiVersion: v1
kind: Pod
metadata: {name: %[1]s, namespace: %[2]s}
spec:
  nodeName: %[3]s
  hostNetwork: true
  restartPolicy: Never
  tolerations: [{operator: Exists}]
  containers:
  - name: weftd
    image: %[4]s
    args: [leak-test, --run-dir=/host/run/weft, --duration=20s]
    securityContext: {runAsUser: 0, runAsGroup: 0, allowPrivilegeEscalation: false, capabilities: {drop: [ALL], add: [NET_RAW]}}
    volumeMounts: [{name: run, mountPath: /host/run/weft, readOnly: true}]
  volumes: [{name: run, hostPath: {path: /run/weft}}]
`

// sealed has all pods talk while each node listens to what is on its wire.
func sealed(t *testing.T, c *cluster) {
	if !*encrypted {
		t.Log("without encryption there is something to be read")
		return
	}
	image := kubectl(t, "--namespace=kube-system", "get", "daemonset", "weftd", "--output=jsonpath={.spec.template.spec.containers[0].image}")
	var names []string
	for i, node := range c.nodes {
		name := fmt.Sprintf("leak-test-%d", i)
		apply(t, fmt.Sprintf(listener, name, hosts, node, image))
		names = append(names, name)
	}
	for _, name := range names {
		eventually(t, time.Minute, func(ctx context.Context) error {
			logs, err := output(ctx, "kubectl", "--namespace", hosts, "logs", name)
			if err == nil && !strings.Contains(logs, "Listening for") {
				err = fmt.Errorf("%s doesn't listen yet: %s", name, logs)
			}
			return err
		})
	}
	c.mesh(t)
	for i, name := range names {
		var phase corev1.PodPhase
		eventually(t, time.Minute, func(ctx context.Context) error {
			p, err := c.api.CoreV1().Pods(hosts).Get(ctx, name, metav1.GetOptions{})
			if err != nil {
				return err
			}
			if phase = p.Status.Phase; phase != corev1.PodSucceeded && phase != corev1.PodFailed {
				return fmt.Errorf("%s is %s", name, phase)
			}
			return nil
		})
		report := kubectl(t, "--namespace", hosts, "logs", name)
		t.Logf("%s:\n%s", c.nodes[i], report)
		if phase != corev1.PodSucceeded || strings.Contains(report, "None of WireGuard's was seen") {
			t.Errorf("the leak test on %s: %s", c.nodes[i], phase)
		}
		kubectl(t, "--namespace", hosts, "delete", "pod", name, "--wait=false")
	}
}

// offAndOn takes the steps of docs/encryption.md on the running cluster, under
// load: off, and on again.
func offAndOn(t *testing.T, c *cluster) {
	if !*encrypted {
		t.Log("the manifests are those without encryption")
		return
	}
	var askers []pod
	for i, node := range c.nodes {
		askers = append(askers, c.start(t, hosts, fmt.Sprintf("metrics-%d", i), node, []string{"serve", "-port=18082"}, "hostNetwork: true, tolerations: [{operator: Exists}],", ""))
	}
	c.underLoad(t, func() {
		for _, mode := range []string{"permissive", "none", "permissive", "wireguard"} {
			started := time.Now()
			c.encrypt(t, mode)
			for _, asker := range askers {
				eventually(t, time.Minute, func(ctx context.Context) error { return isIn(ctx, asker, mode) })
			}
			c.mesh(t)
			t.Logf("%s on all nodes after %.1f s", mode, time.Since(started).Seconds())
		}
	})
}

// encrypt changes the setting and rolls it out.
func (c *cluster) encrypt(t *testing.T, mode string) {
	t.Helper()
	settings, err := c.api.CoreV1().ConfigMaps("kube-system").Get(t.Context(), "weft", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	settings.Data["weftd.yaml"] = regexp.MustCompile(`(?m)^encryption:.*$`).ReplaceAllString(settings.Data["weftd.yaml"], "encryption: "+mode)
	if _, err = c.api.CoreV1().ConfigMaps("kube-system").Update(t.Context(), settings, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	kubectl(t, "--namespace=kube-system", "rollout", "restart", "daemonset/weftd")
	rolledOut(t, "kube-system", "daemonset/weftd")
}

// otherwise is the series of a peer to which nothing is encrypted.
var otherwise = regexp.MustCompile(`^weft_wireguard_peer_state\{.*state="(clear|unreachable)"`)

// isIn is nil where the asker's node is in that mode, and, where it encrypts,
// does so to all peers.
func isIn(ctx context.Context, asker pod, mode string) error {
	metrics, err := asker.peer(ctx, "get", "http://127.0.0.1:9447/metrics")
	if err != nil {
		return err
	}
	for _, other := range []string{"permissive", "wireguard"} {
		if strings.Contains(metrics, `mode="`+other+`"`) != (other == mode) {
			return fmt.Errorf("%s is not in mode %s", asker.node, mode)
		}
	}
	for line := range strings.Lines(metrics) {
		if mode != "none" && otherwise.MatchString(line) {
			return fmt.Errorf("%s: %s: %s", asker.node, mode, line)
		}
	}
	return nil
}
