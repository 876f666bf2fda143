package main

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/weft-cni/weft/test/cluster"
	"github.com/weft-cni/weft/test/probe"
)

// manyBench is a node with a pod on each of many segments, of which a few are on
// another node too.
type manyBench struct {
	manifests string
	segments  int
	samples   int // of single ADDs
	rest      time.Duration
}

// on are the options of a pod on one of the segments.
func (b manyBench) on(vni int) cluster.PodOptions {
	const conf = `{"cniVersion": "1.1.0", "name": "tenant%d", "plugins": [{"type": "weft", "mode": "overlay", "vni": %d,
		"ipam": {"type": "weft", "ranges": [{"subnet": "192.168.0.0/16"}]}}]}`
	return cluster.PodOptions{ConfList: fmt.Appendf(nil, conf, vni, vni)}
}

func (b manyBench) run(ctx context.Context, r *report) error {
	r.progress("a node with a pod on each of %d segments", b.segments)
	c, err := cluster.Start(ctx, cluster.Options{Nodes: 2, Manifests: []string{b.manifests}, Families: cluster.IPv4Only, Log: r.log})
	if err != nil {
		return err
	}
	defer c.Close()
	daemons, err := startDaemons(ctx, c)
	if err != nil {
		return err
	}
	pods := make([]*cluster.Pod, b.segments)
	for i := range pods {
		if pods[i], err = c.Node(1).NewPod(fmt.Sprint("pod", i), b.on(2000+i)); err != nil {
			return err
		}
	}
	far, err := c.Node(2).AttachPod(ctx, "far", b.on(2000))
	if err != nil {
		return err
	}
	start := time.Now()
	adds, addCtx := errgroup.WithContext(ctx)
	adds.SetLimit(8)
	for _, p := range pods {
		adds.Go(func() error { return p.Add(addCtx) })
	}
	if err = adds.Wait(); err != nil {
		return err
	}
	r.note("segments: %d ADDs, eight at a time, each the first on its segment: %.1f s", b.segments, time.Since(start).Seconds())
	if err = b.atRest(ctx, r, "at rest", daemons[0]); err != nil {
		return err
	}
	if err = b.singles(ctx, r, c.Node(1)); err != nil {
		return err
	}
	daemons[0].Kill()
	start = time.Now()
	if daemons[0], err = c.Node(1).StartWeftd(ctx); err != nil {
		return err
	}
	if err = daemons[0].WaitReady(ctx); err != nil {
		return err
	}
	r.note("segments: the daemon restarts, and the node is ready after %.2f s", time.Since(start).Seconds())
	if err = b.atRest(ctx, r, "from then on", daemons[0]); err != nil {
		return err
	}
	_, err = probe.Ping(ctx, far, pods[0].IP(4))
	return err
}

// atRest is what the daemon takes while nothing happens.
func (b manyBench) atRest(ctx context.Context, r *report, when string, d *cluster.Weftd) error {
	before, err := cpuTime(d.PID())
	if err != nil {
		return err
	}
	if err = pause(ctx, b.rest); err != nil {
		return err
	}
	after, err := cpuTime(d.PID())
	if err != nil {
		return err
	}
	now, err := statusKiB(d.PID(), "VmRSS")
	if err != nil {
		return err
	}
	peak, err := statusKiB(d.PID(), "VmHWM")
	if err != nil {
		return err
	}
	r.note("segments: %s, in %s the daemon took %s of CPU time; resident %.1f MiB, at its peak %.1f MiB",
		when, b.rest, after-before, float64(now)/1024, float64(peak)/1024)
	return nil
}

// singles takes the times of further ADDs, on segments that are there and on new
// ones.
func (b manyBench) singles(ctx context.Context, r *report, n *cluster.Node) error {
	for what, first := range map[string]int{"there": 2000, "new": 2000 + b.segments} {
		var times []time.Duration
		for i := range b.samples {
			p, err := n.NewPod(fmt.Sprint(what, i), b.on(first+i))
			if err != nil {
				return err
			}
			start := time.Now()
			if err := p.Add(ctx); err != nil {
				return err
			}
			times = append(times, time.Since(start))
		}
		r.note("segments: one more ADD, on a segment that is %s: %.1f ms (median of %d; %.1f at most)",
			what, ms(median(times)), b.samples, ms(quantile(times, 1)))
	}
	return nil
}
