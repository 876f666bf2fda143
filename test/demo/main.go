// Command demo shows Weft at work on this machine: a real API server, three
// nodes, pods that reach each other, and what happens when things break. It
// needs Go and root (or a kernel that lets users make user namespaces), and
// leaves nothing behind. Its exit status is not 0 where anything didn't work.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/weft-cni/weft/test/baretunnel"
	"github.com/weft-cni/weft/test/cluster"
)

const (
	nodeCount   = 3
	podsOnANode = 2
)

func main() {
	baretunnel.Main()
	encrypt := flag.Bool("encrypt", false, "show encryption between nodes")
	keep := flag.Bool("keep", false, "leave the cluster up until ^C, and say how to look around")
	flag.Parse()
	os.Exit(cluster.Run(func(ctx context.Context) int {
		d := &demo{out: newPrinter(os.Stdout), keep: *keep, encrypt: *encrypt}
		err := d.run(ctx)
		switch {
		case errors.Is(err, context.Canceled) && ctx.Err() != nil:
			d.out.step("stopped; clearing everything away")
			return 130
		case err != nil:
			fmt.Fprintf(os.Stderr, "\ndemo: %v\n", err)
			return 1
		}
		return 0
	}))
}

// demo is one run.
type demo struct {
	out  *printer
	keep bool
	// encrypt shows encryption in place of what breaks.
	encrypt bool
	c       *cluster.Cluster
	pods    []*cluster.Pod
	weftds  map[string]*cluster.Weftd // by node
	failed  int
}

// fail notes what doesn't work. The demo goes on, to show what does.
func (d *demo) fail(format string, args ...any) {
	d.failed++
	d.out.line("FAILED: "+format, args...)
}

func (d *demo) run(ctx context.Context) (err error) {
	d.out.line("%s on Kubernetes: %d dual-stack nodes with %d pods each, in namespaces of this machine\n",
		d.out.bold("Weft"), nodeCount, podsOnANode)
	err = d.start(ctx)
	if d.c != nil {
		defer func() { err = errors.Join(err, d.c.Close()) }()
	}
	if err != nil {
		return err
	}
	shows := []func(context.Context) error{d.showPairs, d.showOutside, d.showSpeed, d.showKernel, d.showRepairs}
	if d.encrypt {
		shows = []func(context.Context) error{d.showPairs, d.showEncryption, d.showPairs, d.showOutside}
	}
	for _, show := range shows {
		if err = show(ctx); err != nil {
			return err
		}
	}
	if d.failed > 0 {
		err = fmt.Errorf("%d of the above did not work", d.failed)
		d.out.line("")
		d.out.step("%v", err)
	} else {
		d.out.line("")
		d.out.step("all of it works")
	}
	if d.keep {
		err = errors.Join(err, d.lookAround(ctx))
	}
	return err
}

// start brings the cluster, the daemons and the pods up.
func (d *demo) start(ctx context.Context) error {
	var err error
	d.c, err = cluster.Start(ctx, cluster.Options{
		Nodes:            nodeCount,
		Manifests:        []string{"manifests/base"},
		GarbageCollector: true,
		Log:              d.out,
	})
	if err != nil {
		return err
	}
	if err := d.startDaemons(ctx); err != nil {
		return err
	}
	for _, n := range d.c.Nodes() {
		for i := range podsOnANode {
			p, err := n.AttachPod(ctx, fmt.Sprintf("%c%s", 'a'+i, n.Name[1:]), cluster.PodOptions{})
			if err != nil {
				return err
			}
			d.pods = append(d.pods, p)
		}
	}
	d.out.step("%d pods are attached by the plugin weft:", len(d.pods))
	for _, p := range d.pods {
		d.out.line("          pod %s on %s: %v", p.Name, p.Node.Name, p.IPs())
	}
	return nil
}

func (d *demo) startDaemons(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	d.weftds = map[string]*cluster.Weftd{}
	for _, n := range d.c.Nodes() {
		w, err := n.StartWeftd(ctx)
		if err != nil {
			return err
		}
		d.weftds[n.Name] = w
	}
	var group errgroup.Group
	for _, w := range d.weftds {
		group.Go(func() error { return w.WaitReady(ctx) })
	}
	if err := group.Wait(); err != nil {
		return err
	}
	for _, n := range d.c.Nodes() {
		for _, peer := range d.c.Nodes() {
			if n == peer {
				continue
			}
			if err := waitCounts(ctx, n, peer, func(c counts) bool { return c == peerCounts }); err != nil {
				return fmt.Errorf("%s's entries for %s: %w", n.Name, peer.Name, err)
			}
		}
	}
	d.out.step("weftd is ready on %d nodes; each knows the way to all others", len(d.weftds))
	return nil
}
