// Package node_test runs real daemons against a real API server and a real
// kernel, and changes what can change under them.
package node_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weft-cni/weft/api/v1alpha1"
	weft "github.com/weft-cni/weft/pkg/client/versioned/typed/api/v1alpha1"
	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/kernel/rtnl"
	"github.com/weft-cni/weft/pkg/overlay"
	"github.com/weft-cni/weft/test/cluster"
)

func TestMain(m *testing.M) { cluster.Main(m) }

const manifests = "../../manifests/base"

// repairTime is the promise: drift that the kernel tells of is repaired within
// a second.
const repairTime = time.Second

// within is a context for what has to be done in time.
func within(t testing.TB, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// eventually waits until check gives no error, for at most d, and says how
// long that took.
func eventually(t testing.TB, d time.Duration, check func() error) time.Duration {
	t.Helper()
	start := time.Now()
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	for {
		err := check()
		if err == nil {
			return time.Since(start)
		}
		if time.Since(start) > d {
			t.Fatalf("after %v: %v", d, err)
		}
		<-ticker.C
	}
}

// names are all that Read finds Weft's objects by.
var names = rtnl.Names(overlay.Names)

// state is what the node's kernel holds of ours. A read that the daemon's own
// changes interrupt is begun again.
func state(t testing.TB, n *cluster.Node) kernel.State {
	t.Helper()
	var s kernel.State
	eventually(t, time.Second, func() error {
		return n.Do(func() error {
			h, err := rtnl.Open()
			if err != nil {
				return err
			}
			defer h.Close()
			s, err = h.Read(names)
			return err
		})
	})
	return s
}

// is checks that the node's kernel holds want, and nothing else.
func is(t testing.TB, n *cluster.Node, want kernel.State) func() error {
	return func() error {
		if ops := kernel.Diff(want, state(t, n), nil); len(ops) > 0 {
			return fmt.Errorf("the kernel of %s lacks %d operations, the first: %s", n.Name, len(ops), ops[0])
		}
		return nil
	}
}

// has checks that the node's kernel leads to a peer at its VTEP, by the words
// of its objects.
func has(t testing.TB, n *cluster.Node, v *v1alpha1.VTEP) func() error {
	return func() error {
		s := state(t, n).String()
		for _, want := range []string{v.Spec.MAC, " dst " + v.Spec.Underlay[0] + " "} {
			if !strings.Contains(s, want) {
				return fmt.Errorf("nothing with %q on %s:\n%s", want, n.Name, s)
			}
		}
		for _, cidr := range v.Spec.PodCIDRs {
			if !strings.Contains(s, "route "+cidr+" ") {
				return fmt.Errorf("no route to %s on %s:\n%s", cidr, n.Name, s)
			}
		}
		return nil
	}
}

// lacks checks that nothing with text is in the node's kernel.
func lacks(t testing.TB, n *cluster.Node, text string) func() error {
	return func() error {
		if s := state(t, n).String(); strings.Contains(s, text) {
			return fmt.Errorf("%q is on %s:\n%s", text, n.Name, s)
		}
		return nil
	}
}

// vteps is a client with an administrator's rights.
func vteps(t testing.TB, c *cluster.Cluster) weft.VTEPInterface {
	t.Helper()
	client, err := weft.NewForConfig(c.API.Config)
	if err != nil {
		t.Fatal(err)
	}
	return client.VTEPs()
}

// published waits until the node's VTEP is as ok wants it, and gives it.
func published(t testing.TB, c *cluster.Cluster, n *cluster.Node, ok func(*v1alpha1.VTEP) bool) (v *v1alpha1.VTEP) {
	t.Helper()
	eventually(t, 10*time.Second, func() error {
		var err error
		if v, err = vteps(t, c).Get(t.Context(), n.Name, metav1.GetOptions{}); err == nil && !ok(v) {
			err = fmt.Errorf("VTEP %s is %+v", v.Name, v)
		}
		return err
	})
	return v
}

// ready starts a daemon on each node.
func ready(t testing.TB, c *cluster.Cluster, args ...string) (daemons []*cluster.Weftd) {
	t.Helper()
	for _, n := range c.Nodes() {
		daemons = append(daemons, n.Weftd(t, args...))
	}
	for _, n := range c.Nodes() {
		v := published(t, c, n, func(*v1alpha1.VTEP) bool { return true })
		for _, other := range c.Nodes() {
			if other != n {
				eventually(t, 5*time.Second, has(t, other, v))
			}
		}
	}
	return daemons
}

// metric sums a metric over its labels.
func metric(t testing.TB, d *cluster.Weftd, name string) (sum float64) {
	t.Helper()
	body, err := d.Get(within(t, 5*time.Second), "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	for lines := bufio.NewScanner(bytes.NewReader(body)); lines.Scan(); {
		series, value, ok := strings.Cut(lines.Text(), " ")
		if metric, _, _ := strings.Cut(series, "{"); !ok || series != name && metric != name {
			continue
		}
		v, err := strconv.ParseFloat(value, 64)
		if err != nil {
			t.Fatal(err)
		}
		sum += v
	}
	return sum
}

// told waits for an Event about the node.
func told(t testing.TB, c *cluster.Cluster, n *cluster.Node, reason string) corev1.Event {
	t.Helper()
	var found corev1.Event
	eventually(t, 10*time.Second, func() error {
		list, err := c.API.Client.CoreV1().Events("default").List(t.Context(), metav1.ListOptions{
			FieldSelector: "reason=" + reason + ",involvedObject.name=" + n.Name,
		})
		if err != nil {
			return err
		}
		if len(list.Items) == 0 {
			return fmt.Errorf("no Event %s about %s", reason, n.Name)
		}
		found = list.Items[0]
		return nil
	})
	return found
}
