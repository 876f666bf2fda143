package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/test/cluster"
)

// membersBench is a tenant's network on many nodes, each with a real weftd: how
// soon all know of a new station, and how soon many pods have addresses.
type membersBench struct {
	manifests string
	nodes     int // that have the segment
	endpoints int // new stations, one after the other
	poolNodes int // that pods start on at once
	poolPods  int // of all of them
}

func (b membersBench) start(ctx context.Context, r *report, nodes int) (*cluster.Cluster, error) {
	c, err := cluster.Start(ctx, cluster.Options{
		Nodes: nodes, Manifests: []string{b.manifests}, Families: cluster.IPv4Only, Log: r.log,
	})
	if err != nil {
		return nil, err
	}
	_, err = startDaemons(ctx, c)
	return c, err
}

// runEndpoints measures from the start of a pod's ADD until the kernels of all
// other member nodes have told of the new station's FDB entry.
func (b membersBench) runEndpoints(ctx context.Context, r *report) error {
	r.progress("a segment on %d nodes, with a daemon each", b.nodes)
	c, err := b.start(ctx, r, b.nodes)
	if err != nil {
		return err
	}
	defer c.Close()
	heard := make(chan station, 1024*b.nodes)
	done := make(chan struct{})
	defer close(done)
	for i, n := range c.Nodes() {
		if err := listen(n, i, heard, done); err != nil {
			return err
		}
	}
	for _, n := range c.Nodes() {
		if _, err := n.AttachPod(ctx, "member", onTenant); err != nil {
			return err
		}
	}
	if err := b.settled(ctx, c); err != nil {
		return err
	}
	var all, last []time.Duration
	for i := range b.endpoints {
		start := time.Now()
		at := i % b.nodes
		p, err := c.Nodes()[at].AttachPod(ctx, fmt.Sprintf("endpoint-%d", i), onTenant)
		if err != nil {
			return err
		}
		times, err := await(ctx, heard, p.Result.Interfaces[1].Mac, at, b.nodes, start)
		if err != nil {
			return err
		}
		all = append(all, times...)
		last = append(last, quantile(times, 1))
	}
	r.figure("endpoint-p99-ms@100", ms(quantile(all, 0.99)))
	r.note("a new station, from the start of ADD to the FDB of each of %d other nodes: p50 %.1f ms, %s; to the last of them %s",
		b.nodes-1, ms(median(all)), spread(all), spread(last))
	return nil
}

// settled waits until every member reaches every other's pod: from the first
// node, which is in all others' flood lists once it hears them.
func (b membersBench) settled(ctx context.Context, c *cluster.Cluster) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	want := (b.nodes - 1) * 2 // a flood entry and a station of each peer
	for _, n := range c.Nodes() {
		for {
			entries, err := tunnelEntries(n)
			if err != nil {
				return err
			}
			if entries >= want {
				break
			}
			if err := pause(ctx, 20*time.Millisecond); err != nil {
				return fmt.Errorf("%s has %d of %d FDB entries: %w", n.Name, entries, want, err)
			}
		}
	}
	return nil
}

// tunnelEntries counts the FDB entries with a remote VTEP on a node's tunnel of
// the tenant's network.
func tunnelEntries(n *cluster.Node) (int, error) {
	count := 0
	err := n.Do(func() error {
		link, err := netlink.LinkByName("vx-weft1001")
		if err != nil {
			return err
		}
		list, err := netlink.NeighList(link.Attrs().Index, unix.AF_BRIDGE)
		for _, e := range list {
			if e.IP != nil {
				count++
			}
		}
		return err
	})
	return count, err
}

// A station was told of by a node's kernel, as one behind a tunnel.
type station struct {
	node int
	mac  string
	at   time.Time
}

func listen(n *cluster.Node, index int, heard chan<- station, done <-chan struct{}) error {
	updates := make(chan netlink.NeighUpdate, 1024)
	err := n.Do(func() error {
		ns, err := netns.Get()
		if err != nil {
			return err
		}
		defer ns.Close()
		return netlink.NeighSubscribeWithOptions(updates, done, netlink.NeighSubscribeOptions{
			Namespace: &ns, ReceiveBufferSize: 4 << 20, ReceiveBufferForceSize: true, // all peers' entries at once
		})
	})
	if err != nil {
		return fmt.Errorf("watch the kernel of %s: %w", n.Name, err)
	}
	go func() {
		for u := range updates {
			if u.Type == unix.RTM_NEWNEIGH && u.Family == unix.AF_BRIDGE && u.IP != nil {
				heard <- station{index, u.HardwareAddr.String(), time.Now()}
			}
		}
	}()
	return nil
}

// await gives the time since start at which each node but one told of a
// station.
func await(ctx context.Context, heard <-chan station, mac string, but, nodes int, start time.Time) ([]time.Duration, error) {
	times := map[int]time.Duration{}
	late := time.After(30 * time.Second)
	for len(times) < nodes-1 {
		select {
		case s := <-heard:
			if _, known := times[s.node]; s.mac == mac && s.node != but && !known {
				times[s.node] = s.at.Sub(start)
			}
		case <-late:
			return nil, fmt.Errorf("station %s: %d of %d nodes have it after 30 s", mac, len(times), nodes-1)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	var list []time.Duration
	for _, d := range times {
		list = append(list, d)
	}
	return list, nil
}

// runPool starts pods on all nodes at once, from one range.
func (b membersBench) runPool(ctx context.Context, r *report) error {
	r.progress("%d pods at once on %d nodes, from one range", b.poolPods, b.poolNodes)
	c, err := b.start(ctx, r, b.poolNodes)
	if err != nil {
		return err
	}
	defer c.Close()
	var pods []*cluster.Pod
	for i := range b.poolPods {
		p, err := c.Nodes()[i%b.poolNodes].NewPod(fmt.Sprintf("pool-%d", i), onTenant)
		if err != nil {
			return err
		}
		pods = append(pods, p)
	}
	start := time.Now()
	group, ctx := errgroup.WithContext(ctx)
	for _, p := range pods {
		group.Go(func() error { return p.Add(ctx) })
	}
	if err := group.Wait(); err != nil {
		return err
	}
	took := time.Since(start)
	if err := distinct(pods); err != nil {
		return err
	}
	r.figure("ipam-1000-pods-s", took.Seconds())
	r.note("%d pods on %d nodes had addresses of one range after %.1f s: %.0f a second, no failure, none twice",
		len(pods), b.poolNodes, took.Seconds(), float64(len(pods))/took.Seconds())
	return nil
}

// distinct says that no two pods have an address or a MAC in common.
func distinct(pods []*cluster.Pod) error {
	addrs, macs := map[netip.Addr]*cluster.Pod{}, map[string]*cluster.Pod{}
	for _, p := range pods {
		mac, err := net.ParseMAC(p.Result.Interfaces[1].Mac)
		if err != nil {
			return err
		}
		if other, taken := macs[mac.String()]; taken {
			return fmt.Errorf("pods %s and %s both have %s", other.Name, p.Name, mac)
		}
		macs[mac.String()] = p
		for _, ip := range p.IPs() {
			if other, taken := addrs[ip]; taken {
				return fmt.Errorf("pods %s and %s both have %s", other.Name, p.Name, ip)
			}
			addrs[ip] = p
		}
	}
	return nil
}
