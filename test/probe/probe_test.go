package probe_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/weft-cni/weft/test/cluster"
	"github.com/weft-cni/weft/test/probe"
)

func TestMain(m *testing.M) { cluster.Main(m) }

func TestProbesOverBothFamilies(t *testing.T) {
	c := cluster.New(t, cluster.Options{Nodes: 2, NoAPI: true})
	a, b := c.Node(1), c.Node(2)
	cpus, err := probe.OneEach()
	if err != nil {
		t.Fatal(err)
	}
	for _, addr := range b.Underlay() {
		t.Run(addr.String(), func(t *testing.T) {
			rtt, err := probe.Ping(t.Context(), a, addr)
			if err != nil || rtt <= 0 {
				t.Errorf("echo after %s: %v", rtt, err)
			}
			bits, err := probe.Throughput(t.Context(), a, b, addr, cpus, 100*time.Millisecond)
			if err != nil || bits < 10e6 {
				t.Errorf("%.0f bit/s: %v", bits, err)
			}
			times, err := probe.RoundTrips(t.Context(), a, b, addr, cpus.Shared(), 200)
			if err != nil || len(times) != 200 || !slices.IsSorted(times) || probe.Median(times) <= 0 {
				t.Errorf("%d round trips, median %s: %v", len(times), probe.Median(times), err)
			}
		})
	}
}

func TestWhatIsUnreachableGivesAnError(t *testing.T) {
	c := cluster.New(t, cluster.Options{Nodes: 2, NoAPI: true})
	a, b := c.Node(1), c.Node(2)
	if err := b.Unplug(cluster.NICName); err != nil {
		t.Fatal(err)
	}
	for _, addr := range b.Underlay() {
		t.Run(addr.String(), func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			defer cancel()
			if _, err := probe.Ping(ctx, a, addr); !errors.Is(err, probe.ErrNoReply) {
				t.Errorf("echo: %v", err)
			}
			if _, err := probe.RoundTrips(ctx, a, b, addr, probe.CPUs{}, 1); err == nil {
				t.Error("round trips to what is unplugged")
			}
		})
	}
}

func TestLossesAreCounted(t *testing.T) {
	c := cluster.New(t, cluster.Options{Nodes: 2, NoAPI: true})
	a, b := c.Node(1), c.Node(2)
	addr := b.Underlay()[0]
	pings, err := probe.StartPings(a, addr, time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool { return pings.Received() >= 50 })
	if err = b.Unplug(cluster.NICName); err != nil {
		t.Fatal(err)
	}
	const outage = 100 * time.Millisecond
	unplugged := time.Now()
	waitFor(t, func() bool { return time.Since(unplugged) > outage })
	if err = b.PlugIn(b.DefaultNIC()); err != nil {
		t.Fatal(err)
	}
	before := pings.Received()
	waitFor(t, func() bool { return pings.Received() >= before+50 })
	report := pings.Stop()
	if report.Received < 100 || report.Lost() == 0 || report.Gap < outage {
		t.Errorf("after an outage of %s: %s", outage, report)
	}

	pings, err = probe.StartPings(a, addr, time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool { return pings.Received() >= 100 })
	if report := pings.Stop(); report.Lost() != 0 {
		t.Errorf("without an outage: %s", report)
	}
}

func waitFor(t *testing.T, done func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	ticker := time.NewTicker(time.Millisecond)
	defer ticker.Stop()
	for !done() {
		select {
		case <-ctx.Done():
			t.Fatal("waited for 10 s")
		case <-ticker.C:
		}
	}
}
