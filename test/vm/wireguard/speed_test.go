//go:build vm

package wireguard_test

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/weft-cni/weft/pkg/encrypt"
	"github.com/weft-cni/weft/test/baretunnel"
	"github.com/weft-cni/weft/test/cluster"
	"github.com/weft-cni/weft/test/probe"
)

// How long each side's turn takes. The processor is emulated: the figures are
// ratios of what both sides took of it.
const (
	speedTurns  = 9
	speedStream = 2 * time.Second
	speedTrips  = 300
)

// BenchmarkKernelWireGuard compares pods of two nodes whose daemons use the
// kernel's WireGuard with a tunnel of the same kind that was made by hand between
// the nodes: one stream, and round trips of a byte, in turns.
//
//	make test-vm VMTEST=./test/vm/wireguard TESTFLAGS='-run=none -bench=. -v'
func BenchmarkKernelWireGuard(b *testing.B) {
	c := cluster.New(b, cluster.Options{Nodes: 2, NoAPI: true})
	nodes := c.Nodes()
	a := newAPI(nodes)
	var pods []*cluster.Pod
	for _, n := range nodes {
		a.daemon(b, n, a.serve(b, n))
	}
	for i, n := range nodes {
		leads(b, n, nodes[1-i], encrypt.Link(0, 0))
		pods = append(pods, n.Attach(b, fmt.Sprintf("p%d", i)))
	}
	bare, err := baretunnel.Start(nodes[0], nodes[1], true)
	must(b, err)
	cpus, err := probe.OneEach()
	must(b, err)
	ways := []struct {
		from, to probe.Place
		addr     netip.Addr
	}{{nodes[0], nodes[1], bare}, {pods[0], pods[1], pods[1].IP(4)}}
	for _, w := range ways {
		_, err = probe.Ping(b.Context(), w.from, w.addr)
		must(b, err)
	}
	var streams, rates []float64
	for range speedTurns {
		var bits [2]float64
		var trips [2]time.Duration
		for i, w := range ways {
			bits[i], err = probe.Throughput(b.Context(), w.from, w.to, w.addr, cpus, speedStream)
			must(b, err)
			all, err := probe.RoundTrips(b.Context(), w.from, w.to, w.addr, cpus, speedTrips)
			must(b, err)
			trips[i] = probe.Median(all)
		}
		b.Logf("bare tunnel and pods: %.1f and %.1f Mbit/s, round trips of %v and %v", bits[0]/1e6, bits[1]/1e6, trips[0], trips[1])
		streams, rates = append(streams, bits[1]/bits[0]), append(rates, float64(trips[0])/float64(trips[1]))
	}
	b.ReportMetric(median(streams), "wg-kernel-tcp/bare")
	b.ReportMetric(median(rates), "wg-kernel-rr/bare")
	b.ReportMetric(0, "ns/op")
}

func median(all []float64) float64 {
	slices.Sort(all)
	return all[len(all)/2]
}
