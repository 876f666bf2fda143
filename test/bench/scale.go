package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/netconf"
	"github.com/weft-cni/weft/pkg/overlay"
	"github.com/weft-cni/weft/test/cluster"
)

// scaleBench runs one real daemon in a cluster of a real API server and many
// nodes that exist as objects only.
type scaleBench struct {
	bin       string
	manifests string
	peers     int
	starts    int // of the daemon, each on a node without a trace of it
	joins     int // samples of a node that joins and leaves
	windows   int // of idling
	window    time.Duration
}

func (b scaleBench) run(ctx context.Context, r *report) error {
	r.progress("an API server with %d nodes", b.peers+1)
	c, err := cluster.Start(ctx, cluster.Options{
		Nodes: 1, Families: cluster.IPv4Only, Manifests: []string{b.manifests}, Log: r.log,
	})
	if err != nil {
		return err
	}
	defer c.Close()
	crowd, err := newCrowd(c.API.Config)
	if err != nil {
		return err
	}
	if err = crowd.create(ctx, b.peers); err != nil {
		return err
	}
	r.progress("start of the daemon, %d times", b.starts)
	d, err := b.measureStarts(ctx, r, c.Node(1))
	if err != nil {
		return err
	}
	r.progress("%d nodes join and leave", b.joins)
	if err = b.measureJoins(ctx, r, c.Node(1), crowd); err != nil {
		return err
	}
	r.progress("idling for %s, with 17 Node status updates a second", time.Duration(b.windows)*b.window)
	if err = b.measureIdle(ctx, r, c.Node(1), d, crowd); err != nil {
		return err
	}
	return b.measureMemory(r, d)
}

// measureStarts takes the time from the daemon's start until the kernel has
// every peer. The last daemon runs on.
func (b scaleBench) measureStarts(ctx context.Context, r *report, n *cluster.Node) (*cluster.Process, error) {
	var times []time.Duration
	for {
		if err := n.WriteKubeconfig(ctx); err != nil {
			return nil, err
		}
		var log bytes.Buffer
		start := time.Now()
		d, err := n.Start(b.daemon(ctx, n, &log))
		if err != nil {
			return nil, err
		}
		took, err := b.waitProgrammed(ctx, n, d, start)
		if err != nil {
			d.Kill()
			return nil, fmt.Errorf("%w\n%s", err, log.Bytes())
		}
		times = append(times, took)
		if len(times) == b.starts {
			r.figure("start-5000-s", median(times).Seconds())
			r.note("start to %d routes, neighbours and FDB entries each: %.2f s (median of %d: %s)", b.peers, median(times).Seconds(), len(times), times)
			return d, nil
		}
		if err := n.Reboot(); err != nil {
			return nil, err
		}
	}
}

func (b scaleBench) daemon(ctx context.Context, n *cluster.Node, log io.Writer) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(b.bin, "weftd"),
		"--kubeconfig=/etc/weft/kubeconfig", "--node-name="+n.Name, "--install-from="+b.bin)
	cmd.Stderr = log
	return cmd
}

// waitProgrammed waits for the node's file, which the daemon writes after its
// first pass, and then makes sure that the kernel has all peers.
func (b scaleBench) waitProgrammed(ctx context.Context, n *cluster.Node, d *cluster.Process, start time.Time) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	var took time.Duration
	var have entries
	err := n.Do(func() error {
		ticker := time.NewTicker(2 * time.Millisecond)
		defer ticker.Stop()
		for {
			select {
			case <-d.Done():
				return errors.New("weftd ended")
			case <-ctx.Done():
				return fmt.Errorf("wait for all peers: %w; the kernel has %+v", ctx.Err(), have)
			case <-ticker.C:
			}
			if _, err := os.Stat(filepath.Join(netconf.RunDir, netconf.NodeFile)); err != nil {
				continue
			}
			took = time.Since(start)
			var err error
			if have, err = countEntries(); err != nil {
				return err
			}
			if have.fdb >= b.peers && have.neighs >= b.peers && have.routes >= b.peers {
				return nil
			}
		}
	})
	return took, err
}

// entries counts what leads to peers.
type entries struct{ fdb, neighs, routes int }

// countEntries counts in the calling thread's network namespace.
func countEntries() (entries, error) {
	link, err := netlink.LinkByName(overlay.Link)
	if err != nil {
		return entries{}, err
	}
	index := link.Attrs().Index
	fdb, err := netlink.NeighList(index, unix.AF_BRIDGE)
	if err != nil {
		return entries{}, fmt.Errorf("list FDB: %w", err)
	}
	neighs, err := netlink.NeighList(index, unix.AF_INET)
	if err != nil {
		return entries{}, fmt.Errorf("list neighbours: %w", err)
	}
	routes, err := netlink.RouteListFiltered(unix.AF_INET,
		&netlink.Route{LinkIndex: index, Protocol: kernel.RouteProtocol}, netlink.RT_FILTER_OIF|netlink.RT_FILTER_PROTOCOL)
	if err != nil {
		return entries{}, fmt.Errorf("list routes: %w", err)
	}
	return entries{fdb: len(fdb), neighs: len(neighs), routes: len(routes)}, nil
}

// measureMemory reads what the daemon has resident after all of it.
func (b scaleBench) measureMemory(r *report, d *cluster.Process) error {
	now, err := statusKiB(d.PID(), "VmRSS")
	if err != nil {
		return err
	}
	peak, err := statusKiB(d.PID(), "VmHWM")
	if err != nil {
		return err
	}
	r.figure("rss-mib@5000", float64(now)/1024)
	r.note("resident memory %.1f MiB, at its peak %.1f MiB", float64(now)/1024, float64(peak)/1024)
	return nil
}

// statusKiB reads a size from /proc/PID/status.
func statusKiB(pid int, key string) (int, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, key+":"); ok {
			return strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(value), " kB"))
		}
	}
	return 0, fmt.Errorf("/proc/%d/status: no %s", pid, key)
}
