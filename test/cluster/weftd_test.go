package cluster_test

import (
	"strings"
	"testing"
	"time"

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
