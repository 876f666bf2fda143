//go:build vm

package wireguard_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weft-cni/weft/api/v1alpha1"
	"github.com/weft-cni/weft/pkg/encrypt"
	"github.com/weft-cni/weft/pkg/kernel/rtnl"
	"github.com/weft-cni/weft/test/cluster"
	"github.com/weft-cni/weft/test/probe"
)

// daemon starts weftd on a node, and waits until pods can be attached there.
func (a *api) daemon(t testing.TB, n *cluster.Node, url string) *cluster.Process {
	t.Helper()
	const kubeconfig = "/etc/weft/kubeconfig"
	must(t, n.WriteFile(kubeconfig, fmt.Appendf(nil, `{"apiVersion": "v1", "kind": "Config", "current-context": "c",
		"contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}], "users": [{"name": "u"}],
		"clusters": [{"name": "c", "cluster": {"server": %q}}]}`, url), 0o600))
	bin, err := cluster.BinDir()
	must(t, err)
	log, err := os.OpenFile(filepath.Join(t.TempDir(), n.Name), os.O_CREATE|os.O_WRONLY, 0o600)
	must(t, err)
	t.Cleanup(func() {
		must(t, log.Close())
		if text, readErr := os.ReadFile(log.Name()); t.Failed() && readErr == nil {
			t.Logf("weftd of %s:\n%s", n.Name, text)
		}
	})
	cmd := exec.CommandContext(t.Context(), filepath.Join(bin, "weftd"), "--kubeconfig="+kubeconfig, "--node-name="+n.Name,
		"--install-from="+bin, "--encryption=wireguard", "--wireguard-implementation=kernel", cluster.PodRanges)
	cmd.Stdout, cmd.Stderr = log, log
	d, err := n.Start(cmd)
	must(t, err)
	return d
}

// leads waits until routes to the other node's pods lead into a device.
func leads(t testing.TB, n, to *cluster.Node, device string) {
	t.Helper()
	wait(t, func() error {
		s, err := n.Kernel(rtnl.Names(encrypt.Names))
		if err != nil {
			return err
		}
	cidrs:
		for _, cidr := range to.PodCIDRs {
			for line := range strings.Lines(s.String()) {
				if strings.Contains(line, "route "+cidr.String()) && strings.Contains(line, "dev "+device) {
					continue cidrs
				}
			}
			return fmt.Errorf("no route to %s by %s on %s:\n%s", cidr, device, n.Name, s)
		}
		return nil
	})
}

// TestDaemons: pods of two nodes whose daemons use the kernel's WireGuard talk
// to each other while both nodes replace their keys, one of the daemons is
// killed in between, and the old devices go. No echo is lost.
func TestDaemons(t *testing.T) {
	c := cluster.New(t, cluster.Options{Nodes: 2, NoAPI: true})
	nodes := c.Nodes()
	a := newAPI(nodes)
	var (
		urls    []string
		daemons []*cluster.Process
		pods    []*cluster.Pod
		streams []*probe.Pings
	)
	for _, n := range nodes {
		urls = append(urls, a.serve(t, n))
		daemons = append(daemons, a.daemon(t, n, urls[len(urls)-1]))
	}
	for i, n := range nodes {
		leads(t, n, nodes[1-i], encrypt.Link(0, 0))
		pods = append(pods, n.Attach(t, fmt.Sprintf("p%d", i)))
	}
	// Two first handshakes that meet halfway cancel each other, and WireGuard
	// tries again after five seconds.
	for _, ip := range pods[1].IPs() {
		_, err := probe.Ping(t.Context(), pods[0], ip)
		must(t, err)
	}
	for i, p := range pods {
		for _, ip := range pods[1-i].IPs() {
			s, err := probe.StartPings(p, ip, 20*time.Millisecond)
			must(t, err)
			streams = append(streams, s)
		}
	}
	received(t, streams, 50)
	for _, n := range nodes {
		a.change(n.Name, func(v *v1alpha1.VTEP) {
			v.Annotations = map[string]string{"weft.dev/rotate-keys-before": time.Now().UTC().Format(time.RFC3339Nano)}
		})
	}
	wait(t, func() error { return a.has(nodes, 2) })
	daemons[0].Kill()
	a.daemon(t, nodes[0], urls[0])
	for i, n := range nodes {
		leads(t, n, nodes[1-i], encrypt.Link(1, 1))
	}
	received(t, streams, 50)
	start := time.Now()
	for a.has(nodes, 1) != nil && time.Since(start) < 3*time.Minute {
		received(t, streams, 10)
	}
	must(t, a.has(nodes, 1))
	received(t, streams, 50)
	for _, s := range streams {
		report := s.Stop()
		t.Log(report)
		if report.Lost() > 0 {
			t.Errorf("echoes got lost: %s", report)
		}
	}
}

// has checks that all nodes have published so many keys, of the kernel's
// WireGuard.
func (a *api) has(nodes []*cluster.Node, keys int) error {
	for _, n := range nodes {
		v, _ := a.vtep(n.Name)
		if w := v.Spec.WireGuard; w == nil || len(w.Keys) != keys || w.Implementation != string(encrypt.Kernel) {
			return fmt.Errorf("%s has published %+v, not %d keys", n.Name, w, keys)
		}
	}
	return nil
}
