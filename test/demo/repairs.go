package main

import (
	"context"
	"fmt"
	"time"

	"github.com/weft-cni/weft/test/cluster"
	"github.com/weft-cni/weft/test/probe"
	"github.com/weft-cni/weft/test/programs"
)

// repairTimeout bounds each repair.
const repairTimeout = 15 * time.Second

// breakage is one thing that the demo breaks.
type breakage struct {
	what string
	// do breaks it and waits for the repair; it says what the repair was, and
	// gives the time from the breaking.
	do func(ctx context.Context) (repair string, took time.Duration, err error)
	// lossless is whether pods must not notice.
	lossless bool
}

// showRepairs breaks things while a pod sends an echo request to a pod on
// another node each millisecond.
func (d *demo) showRepairs(ctx context.Context) error {
	from, to := d.pods[0], d.pods[podsOnANode]
	d.out.title("Breaking things, while pod %s sends pod %s an echo each millisecond", from.Name, to.Name)
	widths := []int{34, 46, 10}
	d.out.row(widths, "broken", "repair", "after", "echoes lost")
	for _, b := range []breakage{
		{what: "FDB entry for n2 deleted on n1", do: d.breakFDB},
		{what: "VXLAN device deleted on n1", do: d.breakLink},
		{what: "weftd on n1 killed (SIGKILL)", do: d.breakDaemon, lossless: true},
		{what: "node n3 removed", do: d.breakNode, lossless: true},
		{what: "API server killed", do: d.breakAPI, lossless: true},
	} {
		row, err := d.breakAndRepair(ctx, b, from, to)
		if err != nil {
			return err
		}
		d.out.row(widths, row...)
	}
	return nil
}

func (d *demo) breakAndRepair(ctx context.Context, b breakage, from, to *cluster.Pod) ([]string, error) {
	pings, err := probe.StartPings(from, to.IP(4), time.Millisecond)
	if err != nil {
		return nil, err
	}
	limited, cancel := context.WithTimeout(ctx, repairTimeout)
	defer cancel()
	repair, took, err := b.do(limited)
	report := pings.Stop()
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	after := took.Round(100 * time.Microsecond).String()
	if err != nil {
		d.failed++
		repair, after = "FAILED: "+err.Error(), ""
	}
	lost := fmt.Sprintf("%d of %d", report.Lost(), report.Sent)
	if b.lossless && report.Lost() > 0 {
		d.failed++
		lost += " FAILED"
	}
	return []string{b.what, repair, after, lost}, nil
}

func (d *demo) breakFDB(ctx context.Context) (string, time.Duration, error) {
	n1, n2 := d.c.Node(1), d.c.Node(2)
	started := time.Now()
	if err := deleteFDB(n1, n2); err != nil {
		return "", 0, err
	}
	err := waitCounts(ctx, n1, n2, func(c counts) bool { return c == peerCounts })
	return "it is back", time.Since(started), err
}

func (d *demo) breakLink(ctx context.Context) (string, time.Duration, error) {
	n1 := d.c.Node(1)
	started := time.Now()
	if err := deleteLink(n1); err != nil {
		return "", 0, err
	}
	for _, peer := range d.c.Nodes()[1:] {
		if err := waitCounts(ctx, n1, peer, func(c counts) bool { return c == peerCounts }); err != nil {
			return "", 0, err
		}
	}
	return "device and all its entries are back", time.Since(started), nil
}

func (d *demo) breakDaemon(ctx context.Context) (string, time.Duration, error) {
	n1 := d.c.Node(1)
	d.weftds[n1.Name].Kill()
	// Echoes go on without it for a moment; then it comes back.
	if err := wait(ctx, 500*time.Millisecond); err != nil {
		return "", 0, err
	}
	started := time.Now()
	w, err := n1.StartWeftd(ctx)
	if err != nil {
		return "", 0, err
	}
	d.weftds[n1.Name] = w
	err = w.WaitReady(ctx)
	return "started 0.5 s later, it is ready", time.Since(started), err
}

func (d *demo) breakAPI(ctx context.Context) (string, time.Duration, error) {
	d.c.API.Stop()
	n2 := d.c.Node(2)
	started := time.Now()
	p, err := n2.AttachPod(ctx, "late", cluster.PodOptions{})
	if err != nil {
		return "", 0, err
	}
	took := time.Since(started)
	if _, err := probe.Ping(ctx, d.pods[0], p.IP(6)); err != nil {
		return "", 0, err
	}
	if err := p.Detach(ctx); err != nil {
		return "", 0, err
	}
	if err := d.c.API.Start(ctx); err != nil {
		return "", 0, err
	}
	return "none needed: a new pod was attached meanwhile", took, nil
}

func (d *demo) breakNode(ctx context.Context) (string, time.Duration, error) {
	n1, n3 := d.c.Node(1), d.c.Node(3)
	started := time.Now()
	if err := n3.Remove(ctx); err != nil {
		return "", 0, err
	}
	d.pods = d.pods[:(nodeCount-1)*podsOnANode]
	err := waitCounts(ctx, n1, n3, func(c counts) bool { return c == counts{} })
	return "its entries are gone from n1", time.Since(started), err
}

// wait waits for a time, or the end of ctx.
func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// kubectl is a command line that reaches the cluster.
func (d *demo) kubectl(ctx context.Context) (string, error) {
	path, err := programs.Kubectl(ctx, d.out)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%s --kubeconfig %s", path, d.c.API.Kubeconfig), nil
}
