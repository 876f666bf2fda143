package segment_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weft-cni/weft/test/cluster"
)

// TestChurn attaches a hundred pods to a segment that has pods already, several
// at a time, and detaches them, twice: the nodes' kernels, their claims, and
// what they publish are what they were.
func TestChurn(t *testing.T) {
	const perNode, rounds = 50, 2
	l := newLab(t, 2)
	conf := tenant(1001, "")
	a, b := l.attach(l.Node(1), "a", conf), l.attach(l.Node(2), "b", conf)
	l.reach(a, b)
	var before string
	eventually(t, 10*time.Second, func() error {
		last := before
		before = l.everything(t)
		return same(last, before)
	})
	for round := range rounds {
		started := time.Now()
		var pods errgroup.Group
		for _, n := range l.Nodes() {
			for worker := range 5 {
				pods.Go(func() error { return churn(t, n, fmt.Sprintf("%d-%d", round, worker), perNode/5, conf) })
			}
		}
		if err := pods.Wait(); err != nil {
			t.Fatal(err)
		}
		attached := time.Since(started)
		eventually(t, 60*time.Second, func() error { return same(before, l.everything(t)) })
		t.Logf("round %d: attached and detached in %s, settled in %s", round+1, attached, time.Since(started)-attached)
	}
	l.reach(b, a)
}

// churn attaches some pods, one after the other, and detaches them.
func churn(t *testing.T, n *cluster.Node, name string, count int, conf []byte) error {
	t.Helper()
	var pods []*cluster.Pod
	for i := range count {
		p, err := n.AttachPod(t.Context(), fmt.Sprintf("many-%s-%d", name, i), cluster.PodOptions{ConfList: conf, IfName: "net1"})
		if err != nil {
			return err
		}
		pods = append(pods, p)
	}
	for _, p := range pods {
		if err := p.Detach(t.Context()); err != nil {
			return err
		}
	}
	return nil
}

func same(before, after string) error {
	if diff := cmp.Diff(strings.Split(before, "\n"), strings.Split(after, "\n")); diff != "" {
		return fmt.Errorf("not what it was: %s", diff)
	}
	return nil
}

// everything is what nodes hold of segments, and what they publish.
func (l *lab) everything(t *testing.T) string {
	t.Helper()
	var lines []string
	for _, n := range l.Nodes() {
		lines = append(lines, fmt.Sprintf("%s:\n%s", n.Name, l.state(n)))
	}
	members, err := l.api.SegmentMembers().List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range members.Items {
		lines = append(lines, fmt.Sprintf("%s: %+v", members.Items[i].Name, members.Items[i].Spec))
	}
	blocks, err := l.api.IPBlocks().List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range blocks.Items {
		lines = append(lines, fmt.Sprintf("%s: %+v", blocks.Items[i].Name, blocks.Items[i].Spec))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}
