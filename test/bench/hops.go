package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/kernel/rtnl"
	"github.com/weft-cni/weft/pkg/overlay"
	"github.com/weft-cni/weft/test/cluster"
	"github.com/weft-cni/weft/test/probe"
)

// hopsBench takes the way from pod to pod apart: the same measurements as
// pathBench's with one part after the other taken away, in turns. What a part
// costs is the difference that it makes. Both ends share a CPU, so that a round
// trip is all work. It has no marks and runs only when
// it is asked for.
type hopsBench struct {
	path pathBench
}

// A variant is a way from pod to pod with some of its parts.
type variant struct {
	name        string
	direct      bool // routed over the underlay, without a tunnel
	masquerade  bool // the chain is there, and with it connection tracking
	sourceCheck bool // pods' source addresses are checked (rp_filter)
	ends        [2]cluster.Place
	to          netip.Addr
}

func (b hopsBench) run(ctx context.Context, r *report) error {
	r.progress("two nodes, to take the data path apart")
	c, pods, err := b.path.start(ctx, r)
	if err != nil {
		return err
	}
	defer c.Close()
	ends := [2]cluster.Place{pods[0], pods[1]}
	to := pods[1].IP(4)
	variants := []variant{
		{name: "node to node", ends: [2]cluster.Place{c.Node(1), c.Node(2)}, to: c.Node(2).Underlay()[0]},
		{name: "node to node, with connection tracking", masquerade: true, ends: [2]cluster.Place{c.Node(1), c.Node(2)}, to: c.Node(2).Underlay()[0]},
		{name: "pod to pod, routed", direct: true, ends: ends, to: to},
		{name: "and VXLAN", ends: ends, to: to},
		{name: "and the source check", sourceCheck: true, ends: ends, to: to},
		{name: "and connection tracking: as shipped", sourceCheck: true, masquerade: true, ends: ends, to: to},
	}
	var sites []*site
	for i, n := range c.Nodes() {
		sites = append(sites, &site{node: n, peer: c.Nodes()[1-i]})
		if err = sites[i].learn(); err != nil {
			return err
		}
	}
	cpus, err := probe.OneEach()
	if err != nil {
		return err
	}
	trips := make([][]time.Duration, len(variants))
	streams := make([][]float64, len(variants))
	for range b.path.rounds {
		for i, v := range variants {
			for _, s := range sites {
				if err = s.become(v); err != nil {
					return fmt.Errorf("%s: %w", v.name, err)
				}
			}
			bits, err := probe.Throughput(ctx, v.ends[0], v.ends[1], v.to, cpus, b.path.stream)
			if err != nil {
				return err
			}
			times, err := probe.RoundTrips(ctx, v.ends[0], v.ends[1], v.to, cpus.Shared(), b.path.pings)
			if err != nil {
				return err
			}
			streams[i], trips[i] = append(streams[i], bits), append(trips[i], probe.Median(times))
		}
	}
	return show(r.log, variants, trips, streams)
}

func show(w io.Writer, variants []variant, trips [][]time.Duration, streams [][]float64) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "path\tround trip on one CPU\tratio\tone stream\tratio")
	for i, v := range variants {
		fmt.Fprintf(tw, "%s\t%.1f µs\t%.2f\t%.2f Gbit/s\t%.2f\n", v.name,
			float64(median(trips[i]))/1e3, pairs(trips[i], trips[0]), middle(streams[i])/1e9, pairs(streams[i], streams[0]))
	}
	return tw.Flush()
}

// A site is a node whose daemon has been killed, which leaves the kernel as it
// was: its parts can be taken away and put back.
type site struct {
	node  *cluster.Node
	state kernel.State // as the daemon left it
	peer  *cluster.Node
}

// learn reads the state that the daemon left.
func (s *site) learn() error {
	return s.kernel(func(h *rtnl.Handle) error {
		var err error
		s.state, err = h.Read(rtnl.Names{Links: overlay.Names.Links, Tables: overlay.Names.Tables})
		return err
	})
}

func (s *site) kernel(f func(*rtnl.Handle) error) error {
	return s.node.Do(func() error {
		h, err := rtnl.Open()
		if err != nil {
			return err
		}
		defer h.Close()
		return f(h)
	})
}

// become makes the node's kernel that of a variant.
func (s *site) become(v variant) error {
	want := kernel.State{}
	want.Merge(s.state)
	for key, object := range s.state {
		switch o := object.(type) {
		case kernel.Rules:
			if !v.masquerade {
				o.Text = without(o.Text, "masquerade")
			}
			want.Put(o)
		case kernel.Route:
			if v.direct && o.Dst == s.peer.PodCIDRs[0] {
				delete(want, key)
				want.Put(kernel.Route{Link: cluster.NICName, Dst: o.Dst, Via: s.peer.Underlay()[0], Src: o.Src})
			}
		}
	}
	return s.kernel(func(h *rtnl.Handle) error {
		have, err := h.Read(rtnl.NamesOf(s.state))
		if err != nil {
			return err
		}
		errs := []error{setSourceCheck(h, v.sourceCheck)}
		for _, failed := range h.Apply(kernel.Diff(want, have, nil)) {
			errs = append(errs, failed)
		}
		return errors.Join(errs...)
	})
}

// setSourceCheck sets strict reverse path filtering for all pods' links.
func setSourceCheck(h *rtnl.Handle, on bool) error {
	links, err := h.PodLinks()
	if err != nil {
		return err
	}
	value := "0"
	if on {
		value = "1"
	}
	for _, link := range links {
		if err := os.WriteFile("/proc/sys/net/ipv4/conf/"+link+"/rp_filter", []byte(value), 0); err != nil {
			return err
		}
	}
	return nil
}

// without takes a chain out of a table's text.
func without(text, chain string) string {
	before, rest, found := strings.Cut(text, "chain "+chain+" ")
	_, after, closed := strings.Cut(rest, "\n}\n")
	if !found || !closed {
		return text
	}
	return before + after
}
