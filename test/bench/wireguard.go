package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/weft-cni/weft/pkg/encrypt"
	"github.com/weft-cni/weft/pkg/kernel/rtnl"
	"github.com/weft-cni/weft/test/baretunnel"
	"github.com/weft-cni/weft/test/cluster"
)

// wireGuardBench compares pod to pod, encrypted, with a bare WireGuard tunnel
// between the two nodes that somebody made by hand, of the same kind: the
// kernel's, or the WireGuard authors' own program.
type wireGuardBench struct{ path pathBench }

func (b wireGuardBench) run(ctx context.Context, r *report) error {
	kinds := []encrypt.Implementation{encrypt.Userspace}
	has, err := kernelHasWireGuard()
	if err != nil {
		return err
	}
	if has {
		kinds = append(kinds, encrypt.Kernel)
	}
	for _, kind := range kinds {
		if err = b.measure(ctx, r, kind); err != nil {
			return fmt.Errorf("%s: %w", kind, err)
		}
	}
	return nil
}

func kernelHasWireGuard() (bool, error) {
	s, err := newSpace()
	if err != nil {
		return false, err
	}
	has := false
	err = s.do(func() error {
		h, failed := rtnl.Open()
		if failed != nil {
			return failed
		}
		defer h.Close()
		has, failed = h.HasWireGuard()
		return failed
	})
	return has, errors.Join(err, s.close())
}

func (b wireGuardBench) measure(ctx context.Context, r *report, kind encrypt.Implementation) error {
	r.progress("two nodes with encryption, %s WireGuard", kind)
	c, err := cluster.Start(ctx, cluster.Options{Nodes: 2, Manifests: []string{b.path.manifests}, Log: r.log})
	if err != nil {
		return err
	}
	defer c.Close()
	implementation := "--wireguard-implementation=" + string(kind)
	for _, n := range c.Nodes() {
		if err = startWireGuard(ctx, n, implementation); err != nil {
			return err
		}
	}
	pods, err := startPods(ctx, c, "--encryption=wireguard", implementation)
	if err != nil {
		return err
	}
	bare, err := baretunnel.Start(c.Node(1), c.Node(2), kind == encrypt.Kernel)
	if err != nil {
		return err
	}
	ways := [2]way{
		{[2]cluster.Place{c.Node(1), c.Node(2)}, bare},
		{[2]cluster.Place{pods[0], pods[1]}, pods[1].IP(4)},
	}
	for _, w := range ways {
		if err = reachable(ctx, w); err != nil {
			return err
		}
	}
	return b.compare(ctx, r, kind, ways)
}

func startWireGuard(ctx context.Context, n *cluster.Node, implementation string) error {
	w, err := n.StartWireGuard(implementation, "--log-level=info")
	if err != nil {
		return err
	}
	return w.WaitReady(ctx)
}

// compare takes both figures: of bare tunnel and pods, in turns.
func (b wireGuardBench) compare(ctx context.Context, r *report, kind encrypt.Implementation, ways [2]way) error {
	t, err := b.path.inTurns(ctx, ways)
	if err != nil {
		return err
	}
	name := "wg-user"
	if kind == encrypt.Kernel {
		name = "wg-kernel"
	}
	r.figure(name+"-tcp/bare", t.stream())
	r.figure(name+"-rr/bare", t.rate())
	r.note("%s WireGuard: %s", kind, t.text("pods", "bare tunnel"))
	return nil
}
