package main

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/weft-cni/weft/pkg/encrypt"
	"github.com/weft-cni/weft/pkg/kernel/rtnl"
	"github.com/weft-cni/weft/pkg/leak"
	"github.com/weft-cni/weft/test/baretunnel"
	"github.com/weft-cni/weft/test/cluster"
	"github.com/weft-cni/weft/test/probe"
)

// encrypted is what the demo shows of encryption.
type encrypted struct {
	processes map[string]*cluster.WireGuard // by node; none where the kernel has WireGuard
	kernel    bool
	plain     speed // of pods over VXLAN
}

// showEncryption turns encryption on while pods talk, and looks at what goes
// over the wire before and after.
func (d *demo) showEncryption(ctx context.Context) error {
	e := &encrypted{processes: map[string]*cluster.WireGuard{}}
	if err := d.startWireGuard(ctx, e); err != nil {
		return err
	}
	var err error
	if e.plain, err = d.podSpeed(ctx); err != nil {
		return err
	}
	d.out.title("On the wire of n1, in packets, while pods a1 and a2 send each other an echo each millisecond")
	widths := []int{44, 14, 16, 18, 14}
	d.out.row(widths, "", "encrypted", "pods in clear", "clear, in VXLAN", "echoes lost")
	for _, w := range d.watches(e) {
		row, err := d.watch(ctx, w)
		if err != nil {
			return err
		}
		d.out.row(widths, row...)
	}
	return d.showEncryptedSpeed(ctx, e)
}

// startWireGuard starts the processes for userspace WireGuard, where the kernel
// has none.
func (d *demo) startWireGuard(ctx context.Context, e *encrypted) error {
	err := d.c.Node(1).Do(func() error {
		h, err := rtnl.Open()
		if err != nil {
			return err
		}
		defer h.Close()
		e.kernel, err = h.HasWireGuard()
		return err
	})
	if err != nil || e.kernel {
		d.out.step("the kernel has WireGuard")
		return err
	}
	for _, n := range d.c.Nodes() {
		if err := d.wireGuard(ctx, e, n); err != nil {
			return err
		}
	}
	d.out.line("")
	d.out.step("the kernel has no WireGuard: weftd wireguard runs on %d nodes", len(e.processes))
	return nil
}

func (d *demo) wireGuard(ctx context.Context, e *encrypted, n *cluster.Node) error {
	w, err := n.StartWireGuard("--log-level=info")
	if err != nil {
		return err
	}
	e.processes[n.Name] = w
	return w.WaitReady(ctx)
}

// watch is something that the demo does while it looks at the wire.
type watch struct {
	what     string
	do       func(context.Context) error
	lossless bool
	sealed   bool // no packet may be in clear
}

func (d *demo) watches(e *encrypted) []watch {
	n1 := d.c.Node(1)
	all := []watch{
		{what: "encryption: none", do: func(ctx context.Context) error { return wait(ctx, watchTime) }, lossless: true},
		{what: "encryption: permissive, node by node", do: func(ctx context.Context) error { return d.restartAll(ctx, encrypt.Permissive) }, lossless: true},
		{what: "encryption: wireguard, node by node", do: func(ctx context.Context) error { return d.restartAll(ctx, encrypt.WireGuard) }, lossless: true},
		{what: "nothing happens", do: func(ctx context.Context) error { return wait(ctx, watchTime) }, lossless: true, sealed: true},
		{what: "weftd on n1 killed (SIGKILL) and started", sealed: true, lossless: true, do: func(ctx context.Context) error {
			d.weftds[n1.Name].Kill()
			return d.restart(ctx, n1, encrypt.WireGuard)
		}},
	}
	if e.kernel {
		return all
	}
	return append(all,
		watch{what: "weftd wireguard on n1 replaced by another", sealed: true, lossless: true, do: func(ctx context.Context) error {
			old := e.processes[n1.Name]
			err := d.wireGuard(ctx, e, n1)
			old.Kill()
			return err
		}},
		watch{what: "weftd wireguard on n1 killed and started", sealed: true, do: func(ctx context.Context) error {
			e.processes[n1.Name].Kill()
			return d.wireGuard(ctx, e, n1)
		}},
	)
}

// watchTime is how long the demo looks where nothing happens.
const watchTime = time.Second

// watch does something under traffic and gives the row of the table.
func (d *demo) watch(ctx context.Context, w watch) ([]string, error) {
	from, to := d.pods[0], d.pods[podsOnANode]
	capture, err := d.capture(d.c.Node(1))
	if err != nil {
		return nil, err
	}
	var pings []*probe.Pings
	for _, ends := range [][2]*cluster.Pod{{from, to}, {to, from}} {
		p, failed := probe.StartPings(ends[0], ends[1].IP(4+2*len(pings)), time.Millisecond)
		if failed != nil {
			return nil, failed
		}
		pings = append(pings, p)
	}
	limited, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	err = w.do(limited)
	for _, p := range pings { // until it runs again
		for before := p.Received(); err == nil && p.Received() < before+100; {
			err = wait(limited, 5*time.Millisecond)
		}
	}
	lost, sent := 0, 0
	for _, p := range pings {
		report := p.Stop()
		lost, sent = lost+report.Lost(), sent+report.Sent
	}
	report, failed := capture.Stop()
	if err != nil || failed != nil {
		return nil, fmt.Errorf("%s: %w, %w", w.what, err, failed)
	}
	return d.watchRow(w, report, lost, sent), nil
}

func (d *demo) watchRow(w watch, report leak.Report, lost, sent int) []string {
	plain, tunnel := strconv.FormatUint(report.Counts[leak.Clear].Packets, 10), strconv.FormatUint(report.Counts[leak.ClearTunnel].Packets, 10)
	if w.sealed && report.Leaks() > 0 {
		d.failed++
		tunnel += " FAILED"
	}
	echoes := fmt.Sprintf("%d of %d", lost, sent)
	if w.lossless && lost > 0 {
		d.failed++
		echoes += " FAILED"
	}
	return []string{w.what, strconv.FormatUint(report.Encrypted(), 10), plain, tunnel, echoes}
}

func (d *demo) capture(n *cluster.Node) (c *leak.Capture, err error) {
	network := &leak.Net{}
	for _, node := range d.c.Nodes() {
		network.Pods = append(network.Pods, node.PodCIDRs...)
	}
	for i := range uint16(encrypt.Ports) {
		network.WireGuardPorts = append(network.WireGuardPorts, wireGuardPort+i)
	}
	err = n.Do(func() error {
		c, err = leak.Start(network, cluster.NICName)
		return err
	})
	return c, err
}

// wireGuardPort is the default of the setting wireguard.port.
const wireGuardPort = 51820

// restartAll starts all daemons anew, one after the other, with an encryption.
func (d *demo) restartAll(ctx context.Context, mode encrypt.Mode) error {
	for _, n := range d.c.Nodes() {
		if err := d.weftds[n.Name].Terminate(ctx); err != nil {
			return err
		}
		if err := d.restart(ctx, n, mode); err != nil {
			return err
		}
	}
	return nil
}

func (d *demo) restart(ctx context.Context, n *cluster.Node, mode encrypt.Mode) error {
	w, err := n.StartWeftd(ctx, "--encryption="+string(mode))
	if err != nil {
		return err
	}
	d.weftds[n.Name] = w
	return w.WaitReady(ctx)
}

// podSpeed is what pods on two nodes reach now, over IPv4.
func (d *demo) podSpeed(ctx context.Context) (speed, error) {
	from, to := d.pods[0], d.pods[podsOnANode]
	var all []speed
	for range turns {
		s, err := measure(ctx, from, to, to.IP(4))
		if err != nil {
			return speed{}, err
		}
		all = append(all, s)
	}
	return median(all), nil
}

// showEncryptedSpeed measures pods beside a bare tunnel between their nodes.
func (d *demo) showEncryptedSpeed(ctx context.Context, e *encrypted) error {
	n1, n2 := d.c.Node(1), d.c.Node(2)
	addr, err := baretunnel.Start(n1, n2, e.kernel)
	if err != nil {
		return err
	}
	d.out.title("Across nodes, encrypted: one TCP stream, and the round trip of one byte (medians of %d turns)", turns)
	widths := []int{44, 26}
	d.out.row(widths, "", "TCP stream", "round trip")
	if _, err := echo(ctx, n1, addr); err != nil {
		return err
	}
	var bare, pods []speed
	from, to := d.pods[0], d.pods[podsOnANode]
	for range turns {
		b, err := measure(ctx, n1, n2, addr)
		if err != nil {
			return err
		}
		p, err := measure(ctx, from, to, to.IP(4))
		if err != nil {
			return err
		}
		bare, pods = append(bare, b), append(pods, p)
	}
	b, p := median(bare), median(pods)
	d.out.row(widths, "pods over plain VXLAN, before", gigabits(e.plain.bits), micros(e.plain.rtt))
	d.out.row(widths, "nodes over a bare WireGuard tunnel", gigabits(b.bits), micros(b.rtt))
	d.out.row(widths, "pods, encrypted", fmt.Sprintf("%s  (%.2f x)", gigabits(p.bits), p.bits/b.bits),
		fmt.Sprintf("%s  (%.2f x)", micros(p.rtt), float64(p.rtt)/float64(b.rtt)))
	return nil
}
