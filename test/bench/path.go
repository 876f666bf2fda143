package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/weft-cni/weft/test/cluster"
	"github.com/weft-cni/weft/test/probe"
)

// pathBench compares pod to pod with node to node, over the same underlay and
// in turns.
type pathBench struct {
	manifests string
	rounds    int
	stream    time.Duration // of one TCP stream
	pings     int           // round trips of one ping-pong
}

func (b pathBench) run(ctx context.Context, r *report) error {
	r.progress("two nodes for the data path")
	c, pods, err := b.start(ctx, r)
	if err != nil {
		return err
	}
	defer c.Close()
	nodes := [2]cluster.Place{c.Node(1), c.Node(2)}
	for _, family := range []int{4, 6} {
		node := way{nodes, c.Node(2).Underlay()[family/6]}
		pod := way{[2]cluster.Place{pods[0], pods[1]}, pods[1].IP(family)}
		for _, w := range []way{node, pod} {
			if err := reachable(ctx, w); err != nil {
				return err
			}
		}
		if err := b.compare(ctx, r, family, node, pod); err != nil {
			return err
		}
	}
	return nil
}

// start makes a cluster of two nodes with a pod on each. Its daemons are
// killed once all is set up: what is measured is the kernel's.
func (b pathBench) start(ctx context.Context, r *report) (*cluster.Cluster, []*cluster.Pod, error) {
	c, err := cluster.Start(ctx, cluster.Options{Nodes: 2, Manifests: []string{b.manifests}, Log: r.log})
	if err != nil {
		return nil, nil, err
	}
	pods, err := startPods(ctx, c)
	if err != nil {
		return nil, nil, errors.Join(err, c.Close())
	}
	return c, pods, nil
}

// startPods attaches the pods, with daemons that have these flags besides.
func startPods(ctx context.Context, c *cluster.Cluster, flags ...string) ([]*cluster.Pod, error) {
	var pods []*cluster.Pod
	var daemons []*cluster.Weftd
	for _, n := range c.Nodes() {
		d, err := n.StartWeftd(ctx, flags...)
		if err != nil {
			return nil, err
		}
		daemons = append(daemons, d)
		if err = d.WaitReady(ctx); err != nil {
			return nil, err
		}
		p, err := n.AttachPod(ctx, "pod", cluster.PodOptions{})
		if err != nil {
			return nil, err
		}
		pods = append(pods, p)
	}
	err := reachable(ctx, way{[2]cluster.Place{pods[0], pods[1]}, pods[1].IP(4)})
	for _, d := range daemons {
		d.Kill()
	}
	return pods, err
}

// A way is a path from ends[0] to ends[1], which has the address to.
type way struct {
	ends [2]cluster.Place
	to   netip.Addr
}

// reachable waits for a first answer: nodes learn of each other within
// moments.
func reachable(ctx context.Context, w way) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	_, err := probe.Ping(ctx, w.ends[0], w.to)
	return err
}

// compare takes both figures of one address family. IPv4's are the marks'.
func (b pathBench) compare(ctx context.Context, r *report, family int, node, pod way) error {
	r.progress("TCP over IPv%d", family)
	cpus, err := probe.OneEach()
	if err != nil {
		return err
	}
	var streams, cpu [2][]float64
	var trips, work [2][]time.Duration
	for range b.rounds {
		for i, w := range []way{node, pod} {
			before, err := busy()
			if err != nil {
				return err
			}
			bits, err := probe.Throughput(ctx, w.ends[0], w.ends[1], w.to, cpus, b.stream)
			if err != nil {
				return err
			}
			after, err := busy()
			if err != nil {
				return err
			}
			streams[i] = append(streams[i], bits)
			cpu[i] = append(cpu[i], (after-before).Seconds()/(bits*b.stream.Seconds()/8/(1<<30)))
		}
		for i, w := range []way{node, pod} {
			for on, all := range map[probe.CPUs]*[]time.Duration{cpus: &trips[i], cpus.Shared(): &work[i]} {
				times, err := probe.RoundTrips(ctx, w.ends[0], w.ends[1], w.to, on, b.pings)
				if err != nil {
					return err
				}
				*all = append(*all, probe.Median(times))
			}
		}
	}
	tcp, rtt := pairs(streams[1], streams[0]), pairs(trips[1], trips[0])
	if family == 4 {
		r.figure("overlay-tcp/node-tcp", tcp)
		r.figure("overlay-rtt/node-rtt", rtt)
	}
	r.note("IPv%d, one stream: pods %.2f Gbit/s, nodes %.2f Gbit/s, ratio %.3f; CPU %.2f and %.2f s/GiB, ratio %.2f",
		family, middle(streams[1])/1e9, middle(streams[0])/1e9, tcp, middle(cpu[1]), middle(cpu[0]), pairs(cpu[1], cpu[0]))
	r.note("IPv%d, 1-byte ping-pong: pods %.1f µs, nodes %.1f µs, ratio %.3f; both ends on one CPU: %.1f and %.1f µs, ratio %.3f (medians of %d turns)",
		family, micros(median(trips[1])), micros(median(trips[0])), rtt,
		micros(median(work[1])), micros(median(work[0])), pairs(work[1], work[0]), b.rounds)
	return nil
}

func micros(d time.Duration) float64 { return float64(d) / 1e3 }

// pairs is the median of the ratios a[i]/b[i]: both were measured one right
// after the other, so what slows the machine for a while hits both.
func pairs[T ~float64 | ~int64](a, b []T) float64 {
	ratios := make([]float64, len(a))
	for i := range a {
		ratios[i] = float64(a[i]) / float64(b[i])
	}
	return middle(ratios)
}

func middle(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}

// busy is the time that all CPUs of the machine have spent on work since its
// boot (proc_stat(5): ticks of 10 ms).
func busy() (time.Duration, error) {
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	line, _, _ := strings.Cut(string(stat), "\n")
	fields := strings.Fields(line)
	if len(fields) < 9 {
		return 0, fmt.Errorf("/proc/stat: %q", line)
	}
	var ticks int64
	for i, f := range fields[1:9] { // user nice system idle iowait irq softirq steal
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("/proc/stat: %w", err)
		}
		if i != 3 && i != 4 && i != 7 {
			ticks += n
		}
	}
	return time.Duration(ticks) * 10 * time.Millisecond, nil
}
