package cluster_test

import (
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weft-cni/weft/api/v1alpha1"
	"github.com/weft-cni/weft/pkg/client/versioned"
	"github.com/weft-cni/weft/test/cluster"
	"github.com/weft-cni/weft/test/probe"
)

// TestPodsReachEachOther is the shortest use of all parts together, for each
// choice of address families.
func TestPodsReachEachOther(t *testing.T) {
	for name, families := range map[string]cluster.Families{
		"dual stack": cluster.Dual, "IPv4": cluster.IPv4Only, "IPv6": cluster.IPv6Only,
	} {
		t.Run(name, func(t *testing.T) {
			c := cluster.New(t, cluster.Options{Nodes: 2, Families: families, Manifests: []string{"../../manifests/base"}})
			for _, n := range c.Nodes() {
				n.Weftd(t)
			}
			ctx := within(t, 30*time.Second)
			a, b := c.Node(1).Attach(t, "a"), c.Node(2).Attach(t, "b")
			if len(b.IPs()) != len(c.Node(2).PodCIDRs) {
				t.Errorf("addresses of b: %s", b.IPs())
			}
			for _, ip := range b.IPs() {
				if _, err := probe.Ping(ctx, a, ip); err != nil {
					t.Error(err)
				}
			}
			if err := a.Check(ctx); err != nil {
				t.Error(err)
			}
			if err := c.Node(1).Status(ctx); err != nil {
				t.Error(err)
			}
			if err := c.Node(1).GC(ctx); err != nil {
				t.Error(err)
			}
			if err := b.Detach(ctx); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestWeftdCanBeEndedAndAsked(t *testing.T) {
	c := cluster.New(t, cluster.Options{Nodes: 1, Manifests: []string{"../../manifests/base"}})
	n := c.Node(1)
	d := n.Weftd(t)
	metrics, err := d.Get(t.Context(), "/metrics")
	if err != nil || !strings.Contains(string(metrics), "weft") {
		t.Errorf("metrics: %s %v", metrics, err)
	}
	if err = d.Terminate(within(t, 10*time.Second)); err != nil {
		t.Errorf("SIGTERM: %v", err)
	}
	if _, err = d.Get(t.Context(), "/healthz"); err == nil {
		t.Error("a daemon that has ended answers")
	}
	log, err := d.Log()
	if err != nil || !strings.Contains(string(log), "weftd starts") {
		t.Errorf("log: %s %v", log, err)
	}
	d = n.Weftd(t)
	d.Kill()
	if err := d.WaitReady(within(t, time.Second)); err == nil || !strings.Contains(err.Error(), "weftd starts") {
		t.Errorf("the error of a daemon that has ended holds its log: %v", err)
	}
}

func TestADaemonWritesItsOwnVTEPOnly(t *testing.T) {
	c := cluster.New(t, cluster.Options{Nodes: 2, Manifests: []string{"../../manifests/base"}})
	config, err := c.Node(1).DaemonConfig(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	client, err := versioned.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	vteps := client.WeftV1alpha1().VTEPs()
	vtep := func(node string) *v1alpha1.VTEP {
		return &v1alpha1.VTEP{
			ObjectMeta: metav1.ObjectMeta{
				Name:            node,
				OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: node, UID: "1"}},
			},
			Spec: v1alpha1.VTEPSpec{
				NodeUID: "1", Underlay: []string{"172.30.0.11"}, MAC: "02:00:00:00:00:01", Port: 4789,
				PodCIDRs: []string{"10.244.1.0/24"},
			},
		}
	}
	// A policy is in force a moment after it was made.
	eventually(t, "another node's VTEP is refused", func() bool {
		_, err = vteps.Create(t.Context(), vtep("n2"), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		return err != nil && strings.Contains(err.Error(), "weftd on node n1 may write the VTEP n1 only, not n2")
	})
	if _, err = vteps.Create(t.Context(), vtep("n1"), metav1.CreateOptions{}); err != nil {
		t.Errorf("its own: %v", err)
	}
}
