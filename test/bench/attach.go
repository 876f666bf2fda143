package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/weft-cni/weft/pkg/netconf"
	"github.com/weft-cni/weft/test/cluster"
)

// A plugin is a CNI plugin under test on a node of its own, where nothing
// else runs.
type plugin struct {
	name   string
	binary string
	path   string // CNI_PATH
	config string
	node   *cluster.Node
}

// run executes the plugin once, as a runtime does, and gives the time from
// its start to its end.
func (p *plugin) run(ctx context.Context, command string, at *cluster.Pod) (time.Duration, error) {
	var took time.Duration
	err := p.node.Do(func() error {
		cmd := exec.CommandContext(ctx, p.binary)
		cmd.Env = []string{
			"CNI_COMMAND=" + command, "CNI_CONTAINERID=" + at.ContainerID, "CNI_NETNS=" + at.Netns,
			"CNI_IFNAME=eth0", "CNI_PATH=" + p.path, "PATH=" + os.Getenv("PATH"),
		}
		cmd.Stdin = strings.NewReader(p.config)
		var stdout, stderr bytes.Buffer
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		start := time.Now()
		err := cmd.Run()
		took = time.Since(start)
		if err != nil {
			return fmt.Errorf("%s %s %s: %w: %s%s", p.name, command, at.Name, err, stdout.Bytes(), stderr.Bytes())
		}
		return nil
	})
	return took, err
}

// attachBench compares ADD and DEL with those of bridge and host-local.
type attachBench struct {
	bin     string // our binaries, with the reference plugins in cni/
	rounds  int
	sizes   []int // attachments on the node, the measured one included
	atOnce  int   // concurrent ADDs
	repeats int   // of the concurrent ADDs
}

func (b attachBench) run(ctx context.Context, r *report) error {
	c, err := cluster.Start(ctx, cluster.Options{Nodes: 2, NoAPI: true, Families: cluster.IPv4Only})
	if err != nil {
		return err
	}
	defer c.Close()
	ours, theirs, err := b.plugins(c.Node(1), c.Node(2))
	if err != nil {
		return err
	}
	present := 0
	for _, size := range b.sizes {
		r.progress("ADD and DEL with %d on the node", size)
		for ; present < size-1; present++ {
			for _, p := range []*plugin{ours, theirs} {
				if err := p.fill(ctx, present); err != nil {
					return err
				}
			}
		}
		if err := b.compare(ctx, r, size, ours, theirs); err != nil {
			return err
		}
		if size == 1 {
			if err := b.compareAtOnce(ctx, r, ours, theirs); err != nil {
				return err
			}
		}
	}
	return nil
}

// plugins sets both up: a range of 4,094 addresses and a gateway each.
func (b attachBench) plugins(first, second *cluster.Node) (ours, theirs *plugin, err error) {
	ours = &plugin{name: "weft", node: first, binary: filepath.Join(b.bin, "weft"), path: b.bin, config: `
		{"cniVersion": "1.1.0", "name": "weft", "type": "weft"}`}
	reference := filepath.Join(b.bin, "cni")
	theirs = &plugin{name: "bridge", node: second, binary: filepath.Join(reference, "bridge"), path: reference, config: `
		{"cniVersion": "1.1.0", "name": "reference", "type": "bridge", "bridge": "cni0", "isGateway": true,
		 "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.245.0.0/20"}]], "routes": [{"dst": "0.0.0.0/0"}]}}`}
	return ours, theirs, writeNode(first, netip.MustParsePrefix("10.244.0.0/20"))
}

// writeNode writes what weftd tells the plugin of its node.
func writeNode(n *cluster.Node, cidrs ...netip.Prefix) error {
	boot, err := n.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return err
	}
	data, err := json.Marshal(netconf.Node{
		Name: n.Name, BootID: string(bytes.TrimSpace(boot)), PodCIDRs: cidrs, MTU: 1450,
	})
	if err != nil {
		return err
	}
	return n.WriteFile(filepath.Join(netconf.RunDir, netconf.NodeFile), data, 0o644)
}

// fill attaches one more pod, to stay.
func (p *plugin) fill(ctx context.Context, number int) error {
	at, err := p.pod("fill", number)
	if err != nil {
		return err
	}
	_, err = p.run(ctx, netconf.Add, at)
	return err
}

// pod makes the namespace of a pod.
func (p *plugin) pod(what string, number int) (*cluster.Pod, error) {
	return p.node.NewPod(fmt.Sprintf("%s-%d", what, number), cluster.PodOptions{})
}

// compare measures single ADDs and DELs in turns. Namespaces are made before
// and dropped after all of it, since the kernel's own work on them would be
// measured along.
func (b attachBench) compare(ctx context.Context, r *report, size int, ours, theirs *plugin) (err error) {
	var pods []*cluster.Pod
	defer func() { err = errors.Join(err, destroyAll(pods)) }()
	var adds, dels [2][]time.Duration
	for round := range b.rounds {
		for i, p := range []*plugin{ours, theirs} {
			at, err := p.pod("measured", round)
			if err != nil {
				return err
			}
			pods = append(pods, at)
			add, err := p.run(ctx, netconf.Add, at)
			if err != nil {
				return err
			}
			del, err := p.run(ctx, netconf.Del, at)
			if err != nil {
				return err
			}
			if round > 0 { // the first of each warms the caches
				adds[i], dels[i] = append(adds[i], add), append(dels[i], del)
			}
		}
	}
	add := [2]time.Duration{median(adds[0]), median(adds[1])}
	del := [2]time.Duration{median(dels[0]), median(dels[1])}
	r.figure(fmt.Sprintf("add/bridge+host-local@%d", size), ratio(add[0], add[1]))
	r.figure(fmt.Sprintf("add+del/bridge+host-local@%d", size), ratio(add[0]+del[0], add[1]+del[1]))
	r.note("@%d: ADD %.2f ms, DEL %.2f ms; bridge + host-local: ADD %.2f ms, DEL %.2f ms (medians of %d)",
		size, ms(add[0]), ms(del[0]), ms(add[1]), ms(del[1]), len(adds[0]))
	return nil
}

// compareAtOnce measures many ADDs started at the same moment, from the first
// start to the last end.
func (b attachBench) compareAtOnce(ctx context.Context, r *report, ours, theirs *plugin) error {
	r.progress("%d ADDs at once", b.atOnce)
	var totals [2][]time.Duration
	for range b.repeats {
		for i, p := range []*plugin{ours, theirs} {
			total, err := b.addAtOnce(ctx, p)
			if err != nil {
				return err
			}
			totals[i] = append(totals[i], total)
		}
	}
	r.figure("add-100-at-once/bridge+host-local", ratio(median(totals[0]), median(totals[1])))
	r.note("%d ADDs at once: %.0f ms; bridge + host-local: %.0f ms (medians of %d, no failure)",
		b.atOnce, ms(median(totals[0])), ms(median(totals[1])), b.repeats)
	return nil
}

func (b attachBench) addAtOnce(ctx context.Context, p *plugin) (total time.Duration, err error) {
	pods := make([]*cluster.Pod, b.atOnce)
	for i := range pods {
		if pods[i], err = p.pod("at-once", i); err != nil {
			return 0, err
		}
	}
	defer func() { err = errors.Join(err, destroyAll(pods)) }()
	var adds errgroup.Group
	start := time.Now()
	for _, at := range pods {
		adds.Go(func() error {
			_, e := p.run(ctx, netconf.Add, at)
			return e
		})
	}
	err = adds.Wait()
	total = time.Since(start)
	for _, at := range pods {
		_, e := p.run(ctx, netconf.Del, at)
		err = errors.Join(err, e)
	}
	return total, err
}

func destroyAll(pods []*cluster.Pod) error {
	var errs []error
	for _, p := range pods {
		errs = append(errs, p.DestroyNetns())
	}
	return errors.Join(errs...)
}
