package main

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/weft-cni/weft/test/cluster"
	"github.com/weft-cni/weft/test/probe"
)

// echoTimeout is how long a pod waits for a reply before the pair is said not
// to work.
const echoTimeout = 2 * time.Second

// showPairs tries every pod to every pod over both families.
func (d *demo) showPairs(ctx context.Context) error {
	d.out.title("Every pod to every pod: round trip of an echo over IPv4 / IPv6, in ms")
	widths := []int{12, 15}
	header := []string{"from \\ to"}
	for _, p := range d.pods {
		header = append(header, p.Name)
	}
	d.out.row(widths, header...)
	for _, from := range d.pods {
		row := []string{fmt.Sprintf("%s on %s", from.Name, from.Node.Name)}
		for _, to := range d.pods {
			cell, ok := pair(ctx, from, to)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if !ok {
				d.failed++
			}
			row = append(row, cell)
		}
		d.out.row(widths, row...)
	}
	return nil
}

func pair(ctx context.Context, from, to *cluster.Pod) (cell string, ok bool) {
	if from == to {
		return "-", true
	}
	ok = true
	var cells []string
	for _, family := range []int{4, 6} {
		rtt, err := echo(ctx, from, to.IP(family))
		if err != nil {
			ok = false
			cells = append(cells, "FAILED")
			continue
		}
		cells = append(cells, fmt.Sprintf("%.2f", rtt.Seconds()*1000))
	}
	return strings.Join(cells, " / "), ok
}

func echo(ctx context.Context, from probe.Place, to netip.Addr) (time.Duration, error) {
	if !to.IsValid() {
		return 0, fmt.Errorf("no address of this family")
	}
	ctx, cancel := context.WithTimeout(ctx, echoTimeout)
	defer cancel()
	return probe.Ping(ctx, from, to)
}

// showOutside lets a pod reach what is no part of the cluster, which knows no
// way to pods: the node has to put its own address in.
func (d *demo) showOutside(ctx context.Context) error {
	d.out.title("Out of the cluster, with the node's address")
	from := d.pods[0]
	for _, addr := range []netip.Addr{cluster.Outside4, cluster.Outside6} {
		rtt, err := echo(ctx, from, addr)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			d.fail("pod %s to %s: %v", from.Name, addr, err)
			continue
		}
		d.out.line("  pod %s to %s: %.2f ms", from.Name, addr, rtt.Seconds()*1000)
	}
	return nil
}

// Pods and nodes are measured in turns, since the machine has other things to
// do; the median of the turns is shown.
const (
	turns      = 5
	streamTime = 300 * time.Millisecond
	roundTrips = 2000
)

// speed is what is measured between two places.
type speed struct {
	bits float64 // a second
	rtt  time.Duration
}

// showSpeed measures pods on two nodes beside the nodes themselves.
func (d *demo) showSpeed(ctx context.Context) error {
	d.out.title("Across nodes: one TCP stream, and the round trip of one byte (medians of %d turns)", turns)
	n1, n2 := d.c.Node(1), d.c.Node(2)
	a, b := d.pods[0], d.pods[podsOnANode]
	widths := []int{30, 26}
	d.out.row(widths, "", "TCP stream", "round trip")
	for i, family := range []int{4, 6} {
		var nodes, pods []speed
		for range turns {
			node, err := measure(ctx, n1, n2, n2.Underlay()[i])
			if err != nil {
				return err
			}
			pod, err := measure(ctx, a, b, b.IP(family))
			if err != nil {
				return err
			}
			nodes, pods = append(nodes, node), append(pods, pod)
		}
		node, pod := median(nodes), median(pods)
		d.out.row(widths, fmt.Sprintf("IPv%d  node %s to node %s", family, n1.Name, n2.Name), gigabits(node.bits), micros(node.rtt))
		d.out.row(widths, fmt.Sprintf("IPv%d  pod %s to pod %s", family, a.Name, b.Name),
			fmt.Sprintf("%s  (%.2f x)", gigabits(pod.bits), pod.bits/node.bits),
			fmt.Sprintf("%s  (%.2f x)", micros(pod.rtt), float64(pod.rtt)/float64(node.rtt)))
	}
	return nil
}

// median takes the middle of each figure.
func median(all []speed) speed {
	bits, rtts := make([]float64, 0, len(all)), make([]time.Duration, 0, len(all))
	for _, s := range all {
		bits, rtts = append(bits, s.bits), append(rtts, s.rtt)
	}
	slices.Sort(bits)
	slices.Sort(rtts)
	return speed{bits: bits[len(bits)/2], rtt: probe.Median(rtts)}
}

func measure(ctx context.Context, from, to probe.Place, addr netip.Addr) (speed, error) {
	var s speed
	cpus, err := probe.OneEach()
	if err != nil {
		return s, err
	}
	if s.bits, err = probe.Throughput(ctx, from, to, addr, cpus, streamTime); err != nil {
		return s, err
	}
	times, err := probe.RoundTrips(ctx, from, to, addr, cpus, roundTrips)
	s.rtt = probe.Median(times)
	return s, err
}

func gigabits(bits float64) string { return fmt.Sprintf("%.1f Gbit/s", bits/1e9) }

func micros(d time.Duration) string { return fmt.Sprintf("%.1f µs", float64(d.Nanoseconds())/1000) }

// showKernel counts what a node's kernel holds for its peers.
func (d *demo) showKernel(context.Context) error {
	n := d.c.Node(1)
	d.out.title("What the kernel of %s holds for its peers, on the VXLAN device", n.Name)
	widths := []int{10, 14}
	d.out.row(widths, "", "FDB entries", "neighbours", "routes")
	for _, peer := range d.c.Nodes()[1:] {
		c, err := countFor(n, peer)
		if err != nil {
			return err
		}
		d.out.row(widths, append([]string{"for " + peer.Name}, c.cells()...)...)
	}
	all, err := countAll(n)
	if err != nil {
		return err
	}
	d.out.row(widths, append([]string{"in all"}, all.cells()...)...)
	return nil
}

// lookAround says how to see for oneself, and waits for ^C.
func (d *demo) lookAround(ctx context.Context) error {
	for _, n := range d.c.Nodes() {
		if _, err := d.c.EnterScript(n, n.Name); err != nil {
			return err
		}
	}
	for _, p := range d.pods {
		if _, err := d.c.EnterScript(p, p.Name); err != nil {
			return err
		}
	}
	kubectl, err := d.kubectl(ctx)
	if err != nil {
		return err
	}
	d.out.title("The cluster is up until ^C. Look around from another shell:")
	d.out.line(`
  cd %s
  %s get vteps
  ./n1                                    # a shell in node n1
  ./n1 ip -d link show vxlan-weft         # (where iproute2 is installed)
  ./n1 bridge fdb show dev vxlan-weft
  ./a1 ping %s                   # from pod a1 to pod %s
  tail log/weftd-n1.log
`, d.c.Dir(), kubectl, d.pods[podsOnANode].IP(4), d.pods[podsOnANode].Name)
	<-ctx.Done()
	d.out.step("clearing everything away")
	return nil
}
