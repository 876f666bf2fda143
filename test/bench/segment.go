package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/weft-cni/weft/pkg/netconf"
	"github.com/weft-cni/weft/test/cluster"
)

// segmentBench counts what a tenant's network sends where it isn't wanted, and
// compares it with the cluster network: ADD on one node in turns, then the data
// path between two.
type segmentBench struct {
	path   pathBench
	bin    string
	rounds int // of ADD and DEL
}

// networks are configurations of one plugin: the cluster network's and a
// tenant's.
var networks = [2]string{
	`{"cniVersion": "1.1.0", "name": "weft", "type": "weft"}`,
	`{"cniVersion": "1.1.0", "name": "tenant", "type": "weft", "mode": "overlay", "vni": 1001,
	  "ipam": {"type": "weft", "ranges": [{"subnet": "192.168.0.0/16"}]}}`,
}

// onTenant are the options of a pod on the tenant's network.
var onTenant = cluster.PodOptions{ConfList: []byte(`{"cniVersion": "1.1.0", "name": "tenant", "plugins": [` + networks[1] + `]}`)}

func (b segmentBench) run(ctx context.Context, r *report) error {
	r.progress("three nodes, a tenant's network on two of them")
	c, err := cluster.Start(ctx, cluster.Options{Nodes: 3, Manifests: []string{b.path.manifests}, Families: cluster.IPv4Only, Log: r.log})
	if err != nil {
		return err
	}
	defer c.Close()
	daemons, err := startDaemons(ctx, c)
	if err != nil {
		return err
	}
	var ways [2]way
	for i, opts := range []cluster.PodOptions{{}, onTenant} {
		if ways[i], err = pairOf(ctx, c, fmt.Sprintf("pod-%d", i), opts); err != nil {
			return err
		}
	}
	if err = b.countCrossing(ctx, r, c, ways[1]); err != nil {
		return err
	}
	if err = b.compareAdds(ctx, r, c.Node(1)); err != nil {
		return err
	}
	for _, d := range daemons {
		d.Kill() // what is measured now is the kernel's
	}
	t, err := b.path.inTurns(ctx, ways)
	if err != nil {
		return err
	}
	r.figure("segment-tcp/overlay-tcp", t.stream())
	r.figure("segment-rr/overlay-rr", t.rate())
	r.note("segment: %s", t.text("tenant's pods", "cluster network"))
	return nil
}

// pairOf attaches a pod on each of the first two nodes, and waits until they reach each
// other.
func pairOf(ctx context.Context, c *cluster.Cluster, name string, opts cluster.PodOptions) (w way, err error) {
	for end, n := range c.Nodes()[:2] {
		p, err := n.AttachPod(ctx, name, opts)
		if err != nil {
			return w, err
		}
		w.ends[end], w.to = p, p.IP(4)
	}
	return w, reachable(ctx, w)
}

// startDaemons starts weftd on all nodes and waits until each is ready.
func startDaemons(ctx context.Context, c *cluster.Cluster) (daemons []*cluster.Weftd, err error) {
	for _, n := range c.Nodes() {
		d, err := n.StartWeftd(ctx)
		if err != nil {
			return nil, err
		}
		daemons = append(daemons, d)
	}
	for _, d := range daemons {
		if err := d.WaitReady(ctx); err != nil {
			return nil, err
		}
	}
	return daemons, nil
}

// compareAdds takes the times of ADDs on a node that has a pod of each network.
func (b segmentBench) compareAdds(ctx context.Context, r *report, n *cluster.Node) (err error) {
	var pods []*cluster.Pod
	defer func() { err = errors.Join(err, destroyAll(pods)) }()
	var adds [2][]time.Duration
	for round := range b.rounds {
		for i, config := range networks {
			p := plugin{name: "weft", node: n, binary: filepath.Join(b.bin, "weft"), path: b.bin, config: config}
			at, err := p.pod(fmt.Sprintf("network-%d", i), round)
			if err != nil {
				return err
			}
			pods = append(pods, at)
			took, err := p.run(ctx, netconf.Add, at)
			if err != nil {
				return err
			}
			if _, err := p.run(ctx, netconf.Del, at); err != nil {
				return err
			}
			if round > 0 { // the first warms up
				adds[i] = append(adds[i], took)
			}
		}
	}
	r.figure("segment-add/overlay-add", ratio(median(adds[1]), median(adds[0])))
	r.note("segment: ADD %.2f ms, on the cluster network %.2f ms (medians of %d)",
		ms(median(adds[1])), ms(median(adds[0])), len(adds[0]))
	return nil
}
