package manifests_test

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/weft-cni/weft/pkg/encrypt"
	"github.com/weft-cni/weft/pkg/leak"
	"github.com/weft-cni/weft/test/cluster"
	"github.com/weft-cni/weft/test/probe"
)

const encryptionYAML = "../../manifests/encryption.yaml"

// TestEncryption runs both DaemonSets of the variant with what their pods are
// given and no more, and updates both under traffic.
func TestEncryption(t *testing.T) {
	c := cluster.New(t, cluster.Options{Nodes: 2})
	manifest := objectsIn(t, readFile(t, encryptionYAML))
	apply(t, c, manifest)
	weft, wireguard := newKubelet(t, c, manifest, "weftd"), newKubelet(t, c, manifest, "weft-wireguard")
	daemon, process := &weft.set.Spec.Template.Spec.Containers[0], &wireguard.set.Spec.Template.Spec.Containers[0]
	var daemons, processes []*running
	for _, n := range c.Nodes() {
		processes = append(processes, served(t, wireguard, n, process))
		daemons = append(daemons, weft.start(t, n, daemon))
	}
	for i := range daemons {
		eventually(t, 30*time.Second, func() error { return daemons[i].probe(t, daemon.ReadinessProbe) })
		confined(t, daemons[i])
		confinedProcess(t, processes[i])
	}
	a, b := c.Node(1).Attach(t, "a"), c.Node(2).Attach(t, "b")
	for _, ip := range b.IPs() {
		eventually(t, 20*time.Second, func() error {
			_, err := probe.Ping(t.Context(), a, ip)
			return err
		})
	}
	capture := captureOn(t, c.Node(1), c.Node(1).PodCIDRs)
	for i, n := range c.Nodes() {
		lossless(t, "update of weft-wireguard on "+n.Name, a, b.IPs(), func() {
			next := served(t, wireguard, n, process)
			processes[i].Kill() // once the new pod was ready for a while
			processes[i] = next
		})
		lossless(t, "update of weftd on "+n.Name, a, b.IPs(), func() {
			daemons[i].Kill()
			daemons[i] = weft.start(t, n, daemon)
			eventually(t, 30*time.Second, func() error { return daemons[i].probe(t, daemon.ReadinessProbe) })
		})
	}
	report, err := capture.Stop()
	if err != nil || report.Leaks() > 0 || report.Encrypted() == 0 {
		t.Errorf("on the wire: %v\n%s", err, report)
	}
	refusedNothing(t, daemons)
	for _, pod := range []*cluster.Pod{a, b} {
		if err := pod.Detach(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	for _, r := range append(daemons, processes...) {
		r.Kill()
	}
	cleanup(t, c)
	for _, n := range c.Nodes() {
		if left, err := filesOn(n, "/run/weft", "/run/wireguard", "/var/lib/weft"); err != nil || len(left) > 0 {
			t.Errorf("left on %s: %v %v", n.Name, slices.Collect(maps.Keys(left)), err)
		}
	}
}

// served starts the process and waits until it has its devices, from the pod
// before where there was one.
func served(t *testing.T, k *kubelet, n *cluster.Node, spec *corev1.Container) *running {
	t.Helper()
	r := k.start(t, n, spec)
	eventually(t, 30*time.Second, func() error {
		select {
		case <-r.Done():
			t.Fatalf("weft-wireguard on %s ended: %v\n%s", n.Name, r.Wait(), r.output(t))
		default:
		}
		if !strings.Contains(r.output(t), "userspace WireGuard is ready") {
			return errors.New("not ready: " + r.output(t))
		}
		return nil
	})
	return r
}

// confinedProcess checks what the process is left with, and that it is enough.
func confinedProcess(t *testing.T, r *running) {
	t.Helper()
	want := fmt.Sprintf("%016x", 1<<capabilities["NET_ADMIN"])
	if got := r.status(t, "CapEff"); got != want {
		t.Errorf("CapEff of weft-wireguard on %s is %s, not %s", r.node.Name, got, want)
	}
	if out := r.output(t); strings.Contains(out, "not permitted") || strings.Contains(out, "level=ERROR") {
		t.Errorf("weft-wireguard on %s:\n%s", r.node.Name, out)
	}
	t.Logf("weft-wireguard on %s: resident %s", r.node.Name, r.status(t, "VmRSS"))
}

// lossless does something under an echo each millisecond, and none is lost.
func lossless(t *testing.T, what string, from *cluster.Pod, to []netip.Addr, do func()) {
	t.Helper()
	var running []*probe.Pings
	for _, ip := range to {
		p, err := probe.StartPings(from, ip, time.Millisecond)
		if err != nil {
			t.Fatal(err)
		}
		running = append(running, p)
	}
	do()
	for _, p := range running {
		want := p.Received() + 200
		eventually(t, 20*time.Second, func() error {
			if p.Received() < want {
				return errors.New("too few replies")
			}
			return nil
		})
	}
	for i, p := range running {
		report := p.Stop()
		t.Logf("%s, %s: %s", what, to[i], report)
		if report.Lost() > 0 {
			t.Errorf("%s, %s: %s", what, to[i], report)
		}
	}
}

func captureOn(t *testing.T, n *cluster.Node, pods []netip.Prefix) (c *leak.Capture) {
	t.Helper()
	network := &leak.Net{Pods: pods}
	for i := range uint16(encrypt.Ports) {
		network.WireGuardPorts = append(network.WireGuardPorts, 51820+i)
	}
	err := n.Do(func() (err error) {
		c, err = leak.Start(network, cluster.NICName)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestWireGuardNeedsItsCapability takes it away.
func TestWireGuardNeedsItsCapability(t *testing.T) {
	c := cluster.New(t, cluster.Options{Nodes: 1})
	manifest := objectsIn(t, readFile(t, encryptionYAML))
	apply(t, c, manifest)
	k := newKubelet(t, c, manifest, "weft-wireguard")
	spec := &k.set.Spec.Template.Spec.Containers[0]
	spec.SecurityContext.Capabilities.Add = nil
	r := k.start(t, c.Node(1), spec)
	eventually(t, 20*time.Second, func() error {
		if out := r.output(t); !strings.Contains(out, "not permitted") {
			return errors.New("it misses nothing: " + out)
		}
		return nil
	})
}
