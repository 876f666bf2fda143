package encrypt_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weft-cni/weft/api/v1alpha1"
	"github.com/weft-cni/weft/test/cluster"
	"github.com/weft-cni/weft/test/probe"
)

// streams are echoes, one each millisecond, in each direction and family.
type streams []*probe.Pings

func stream(t testing.TB, pods ...*cluster.Pod) (all streams) {
	t.Helper()
	for _, from := range pods {
		for _, to := range pods {
			if from == to {
				continue
			}
			for _, ip := range to.IPs() {
				s, err := probe.StartPings(from, ip, time.Millisecond)
				must(t, err)
				all = append(all, s)
			}
		}
	}
	return all
}

// more waits until each stream has had n more replies.
func (all streams) more(t testing.TB, n int) {
	t.Helper()
	for _, s := range all {
		until := s.Received() + n
		eventually(t, 20*time.Second, func() error {
			if s.Received() < until {
				return errors.New("no more replies")
			}
			return nil
		})
	}
}

// complete ends the streams, of which nothing may be lost.
func (all streams) complete(t testing.TB) {
	t.Helper()
	for _, s := range all {
		if report := s.Stop(); report.Lost() > 0 {
			t.Errorf("echoes got lost: %s", report)
		} else {
			t.Log(report)
		}
	}
}

// rotate asks a node for a new key.
func (l *lab) rotate(name string) {
	l.t.Helper()
	eventually(l.t, 5*time.Second, func() error {
		v, err := l.vteps().Get(l.t.Context(), name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		v.Annotations = map[string]string{"weft.dev/rotate-keys-before": time.Now().UTC().Format(time.RFC3339Nano)}
		_, err = l.vteps().Update(l.t.Context(), v, metav1.UpdateOptions{})
		return err
	})
}

func keys(n int) func(*v1alpha1.VTEP) bool {
	return func(v *v1alpha1.VTEP) bool { return v.Spec.WireGuard != nil && len(v.Spec.WireGuard.Keys) == n }
}

// bulkRate, in bits per second, leaves the queues of a busy machine room: what
// overflows is not lost to a rotation.
const bulkRate = 100e6

// TestRotation replaces the keys of both ends at the same time, twice, under
// load, and kills the daemons in the middle of the second.
func TestRotation(t *testing.T) {
	l := newLab(t, cluster.Options{Nodes: 2})
	l.all(wireguard)
	a, b := l.Node(1).Attach(t, "a"), l.Node(2).Attach(t, "b")
	talk(t, a, b)
	first := l.published("n1", time.Second, keys(1)).Spec.WireGuard.Keys[0]
	all := stream(t, a, b)
	all.more(t, 200)
	ctx, stop := context.WithCancel(t.Context())
	bulk := make(chan error, 1)
	go func() { bulk <- probe.Stream(ctx, a, b, b.IPs()[0], bulkRate) }()
	for _, device := range []string{"wg-weft3", "wg-weft0"} {
		start := time.Now()
		l.rotate("n1")
		l.rotate("n2")
		for _, n := range []string{"n1", "n2"} {
			l.published(n, 10*time.Second, keys(2))
		}
		if device == "wg-weft0" {
			l.daemon(1, wireguard)
			l.daemon(2, wireguard)
		}
		for i, n := range l.Nodes() {
			for _, cidr := range l.Node(2 - i).PodCIDRs {
				eventually(t, 20*time.Second, has(t, n, "route "+cidr.String(), "dev "+device))
			}
		}
		t.Logf("both ends use the new keys after %v", time.Since(start))
		all.more(t, 200)
		for _, n := range []string{"n1", "n2"} {
			l.published(n, 2*time.Minute, keys(1))
		}
		t.Logf("the old keys are gone after %v", time.Since(start))
		all.more(t, 200)
	}
	stop()
	if err := <-bulk; err != nil {
		t.Errorf("TCP stream: %v", err)
	}
	all.complete(t)
	if t.Failed() {
		for _, pod := range []*cluster.Pod{a, b} {
			must(t, pod.Do(func() error { t.Logf("%s: %s", pod.Name, drops()); return nil }))
		}
	}
	if v := l.published("n1", time.Second, keys(1)); v.Spec.WireGuard.Keys[0].PublicKey == first.PublicKey || v.Spec.WireGuard.Keys[0].Slot != first.Slot {
		t.Errorf("after two rotations the key is %+v, before it was %+v", v.Spec.WireGuard.Keys, first)
	}
}

// TestTrafficOutlivesTheDaemon kills a daemon again and again.
func TestTrafficOutlivesTheDaemon(t *testing.T) {
	l := newLab(t, cluster.Options{Nodes: 2})
	l.all(wireguard)
	a, b := l.Node(1).Attach(t, "a"), l.Node(2).Attach(t, "b")
	talk(t, a, b)
	before := state(t, l.Node(1)).String()
	all := stream(t, a, b)
	for range 3 {
		l.daemons[0].Kill()
		all.more(t, 200)
		l.daemon(1, wireguard)
		all.more(t, 200)
	}
	all.complete(t)
	if after := state(t, l.Node(1)).String(); after != before {
		t.Errorf("before:\n%safter:\n%s", before, after)
	}
	if repairs := metric(t, l.daemons[0], "weft_drift_repairs_total"); repairs != 0 {
		t.Errorf("a new daemon repaired %v objects of the old one", repairs)
	}
}

// TestOnAndOff turns encryption on a running cluster, node by node, and off
// again, as docs/encryption.md says, on nodes that filter reverse paths strictly
// where nobody says otherwise, as some distributions have it.
func TestOnAndOff(t *testing.T) {
	l := newLab(t, cluster.Options{Nodes: 2})
	for _, n := range l.Nodes() {
		must(t, n.Do(func() error { return os.WriteFile("/proc/sys/net/ipv4/conf/default/rp_filter", []byte("1"), 0) }))
	}
	l.all()
	var pods []*cluster.Pod
	for _, n := range l.Nodes() {
		pods = append(pods, n.Attach(t, "pod-"+n.Name))
	}
	talk(t, pods...)
	for _, step := range []struct{ mode, state string }{
		{"permissive", "encrypted"}, {"wireguard", "encrypted"}, {"permissive", "encrypted"}, {"none", ""},
	} {
		all := stream(t, pods...)
		for i := range l.Nodes() {
			l.daemon(i+1, "--encryption="+step.mode)
			all.more(t, 100)
		}
		for _, d := range l.daemons {
			eventually(t, 30*time.Second, func() error {
				if step.state == "" {
					return nil
				}
				for _, peer := range l.Nodes() {
					series := fmt.Sprintf("weft_wireguard_peer_state{peer=%q,state=%q}", peer.Name, step.state)
					if own := l.daemons[indexOf(l, peer)] == d; !own && metric(t, d, series) != 1 {
						return fmt.Errorf("%s: no %s", step.mode, series)
					}
				}
				return nil
			})
		}
		all.more(t, 200)
		t.Logf("%s on all nodes", step.mode)
		all.complete(t)
	}
	for _, n := range l.Nodes() {
		if err := has(t, n, "route 10.244.", "dev vxlan-weft")(); err != nil {
			t.Error(err)
		}
		l.published(n.Name, time.Second, func(v *v1alpha1.VTEP) bool { return v.Spec.WireGuard == nil || v.Spec.WireGuard.Mode == "none" })
	}
}

func indexOf(l *lab, n *cluster.Node) int {
	for i, other := range l.Nodes() {
		if other == n {
			return i
		}
	}
	return -1
}
