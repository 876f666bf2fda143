package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/test/cluster"
)

// measureIdle counts what the daemon gets from the API server, and what CPU
// time it takes, while other nodes report their status and none joins. The
// only TCP connections in the node's namespace are the daemon's.
func (b scaleBench) measureIdle(ctx context.Context, r *report, n *cluster.Node, d *cluster.Process, crowd *crowd) error {
	reporting, stop := context.WithCancel(ctx)
	type reported struct {
		count int
		err   error
	}
	done := make(chan reported, 1)
	go func() {
		count, err := crowd.report(reporting, 17)
		done <- reported{count, err}
	}()
	rates, cpu, err := b.watchIdle(ctx, n, d)
	stop()
	load := <-done
	if err = errors.Join(err, load.err); err != nil {
		return err
	}
	total := 0.0
	for _, rate := range rates {
		total += rate * b.window.Seconds()
	}
	took := time.Duration(b.windows) * b.window
	r.figure("idle-api-bytes-s@5000", middle(rates))
	r.note("%.0f bytes from the API server in %s (bytes/s in windows of %s: %.0f) and %s of CPU time, %.2f %% of a core, during %d Node status updates",
		total, took, b.window, rates, cpu, 100*cpu.Seconds()/took.Seconds(), load.count)
	return nil
}

// watchIdle gives the bytes a second of each window, and the CPU time of all.
func (b scaleBench) watchIdle(ctx context.Context, n *cluster.Node, d *cluster.Process) (rates []float64, cpu time.Duration, err error) {
	started, err := cpuTime(d.PID())
	if err != nil {
		return nil, 0, err
	}
	before, err := received(n)
	if err != nil {
		return nil, 0, err
	}
	for range b.windows {
		if err = pause(ctx, b.window); err != nil {
			return nil, 0, err
		}
		var after map[uint32]uint64
		if after, err = received(n); err != nil {
			return nil, 0, err
		}
		var bytes uint64
		for socket, count := range after {
			bytes += count - before[socket] // a new socket is counted from 0
		}
		rates = append(rates, float64(bytes)/b.window.Seconds())
		before = after
	}
	ended, err := cpuTime(d.PID())
	return rates, ended - started, err
}

// received gives the bytes that each TCP connection of the node has received
// (tcp_info's tcpi_bytes_received: payload, TLS included).
func received(n *cluster.Node) (map[uint32]uint64, error) {
	counts := map[uint32]uint64{}
	err := n.Do(func() error {
		for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
			sockets, err := netlink.SocketDiagTCPInfo(family)
			if err != nil {
				return fmt.Errorf("list TCP sockets: %w", err)
			}
			for _, s := range sockets {
				if s.TCPInfo != nil && s.InetDiagMsg != nil {
					counts[s.InetDiagMsg.INode] = s.TCPInfo.Bytes_received
				}
			}
		}
		return nil
	})
	return counts, err
}

// cpuTime is the process's user and system time (proc_pid_stat(5), fields 14
// and 15, in ticks of 10 ms).
func cpuTime(pid int) (time.Duration, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The second field is a name in parentheses that may hold anything.
	fields := strings.Fields(string(stat[slices.Index(stat, ')')+1:]))
	if len(fields) < 13 {
		return 0, fmt.Errorf("/proc/%d/stat: %q", pid, stat)
	}
	user, err := strconv.ParseInt(fields[11], 10, 64)
	if err != nil {
		return 0, err
	}
	system, err := strconv.ParseInt(fields[12], 10, 64)
	return time.Duration(user+system) * 10 * time.Millisecond, err
}
