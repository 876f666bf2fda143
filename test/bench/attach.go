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
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/weft-cni/weft/pkg/netconf"
)

// A plugin is a CNI plugin under test on a node of its own: a network
// namespace that only its attachments are in.
type plugin struct {
	name   string
	binary string
	path   string // CNI_PATH
	config []byte
	node   *space
}

// A pod is a namespace to attach, by a container ID.
type pod struct {
	id    string
	netns *space
}

// run executes the plugin once, as a runtime does, and gives the time from
// its start to its end.
func (p *plugin) run(ctx context.Context, command string, at pod) (time.Duration, error) {
	var took time.Duration
	err := p.node.do(func() error {
		cmd := exec.CommandContext(ctx, p.binary)
		cmd.Env = []string{
			"CNI_COMMAND=" + command, "CNI_CONTAINERID=" + at.id, "CNI_NETNS=" + at.netns.path(),
			"CNI_IFNAME=eth0", "CNI_PATH=" + p.path, "PATH=" + os.Getenv("PATH"),
		}
		cmd.Stdin = bytes.NewReader(p.config)
		var stdout, stderr bytes.Buffer
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		start := time.Now()
		err := cmd.Run()
		took = time.Since(start)
		if err != nil {
			return fmt.Errorf("%s %s %s: %w: %s%s", p.name, command, at.id, err, stdout.Bytes(), stderr.Bytes())
		}
		return nil
	})
	return took, err
}

// attachBench compares ADD and DEL with those of bridge and host-local.
type attachBench struct {
	bin     string // our binaries, with the reference plugins in cni/
	dir     string
	rounds  int
	sizes   []int // attachments on the node, the measured one included
	atOnce  int   // concurrent ADDs
	repeats int   // of the concurrent ADDs
}

func (b attachBench) run(ctx context.Context, r *report) error {
	ours, theirs, err := b.plugins()
	if err != nil {
		return err
	}
	defer ours.node.close()
	defer theirs.node.close()
	var present []pod // on both nodes together
	defer func() { closeAll(present) }()
	for _, size := range b.sizes {
		r.progress("ADD and DEL with %d on the node", size)
		if present, err = b.fill(ctx, present, size-1, ours, theirs); err != nil {
			return err
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

// plugins sets up both nodes: a range of 4,094 addresses and a gateway each.
func (b attachBench) plugins() (ours, theirs *plugin, err error) {
	ours = &plugin{name: "weft", binary: filepath.Join(b.bin, "weft"), path: b.bin, config: fmt.Appendf(nil,
		`{"cniVersion": "1.1.0", "name": "weft", "type": "weft", "runDir": %q, "dataDir": %q}`,
		filepath.Join(b.dir, "run"), filepath.Join(b.dir, "data"))}
	reference := filepath.Join(b.bin, "cni")
	theirs = &plugin{name: "bridge", binary: filepath.Join(reference, "bridge"), path: reference, config: fmt.Appendf(nil,
		`{"cniVersion": "1.1.0", "name": "reference", "type": "bridge", "bridge": "cni0", "isGateway": true,
		  "ipam": {"type": "host-local", "dataDir": %q, "ranges": [[{"subnet": "10.245.0.0/20"}]],
		           "routes": [{"dst": "0.0.0.0/0"}]}}`,
		filepath.Join(b.dir, "host-local"))}
	for _, p := range []*plugin{ours, theirs} {
		if p.node, err = newSpace(); err != nil {
			return nil, nil, err
		}
	}
	return ours, theirs, writeNode(filepath.Join(b.dir, "run"), netip.MustParsePrefix("10.244.0.0/20"))
}

// writeNode writes what weftd tells the plugin of its node.
func writeNode(dir string, cidrs ...netip.Prefix) error {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return err
	}
	if err = os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	data, err := json.Marshal(netconf.Node{
		Name: "bench", BootID: string(bytes.TrimSpace(boot)), PodCIDRs: cidrs, MTU: 1450,
	})
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, netconf.NodeFile), data, 0o644)
}

// fill attaches pods until each plugin has size on its node.
func (b attachBench) fill(ctx context.Context, present []pod, size int, plugins ...*plugin) ([]pod, error) {
	for len(present) < size*len(plugins) {
		p := plugins[len(present)%len(plugins)]
		at, err := newPod(fmt.Sprintf("%s-fill-%d", p.name, len(present)))
		if err != nil {
			return present, err
		}
		present = append(present, at)
		if _, err := p.run(ctx, netconf.Add, at); err != nil {
			return present, err
		}
	}
	return present, nil
}

// compare measures single ADDs and DELs in turns. Namespaces are made before
// and dropped after all of it, since the kernel's own work on them would be
// measured along.
func (b attachBench) compare(ctx context.Context, r *report, size int, ours, theirs *plugin) error {
	var pods []pod
	defer func() { closeAll(pods) }()
	var adds, dels [2][]time.Duration
	for round := range b.rounds {
		for i, p := range []*plugin{ours, theirs} {
			at, err := newPod(fmt.Sprintf("%s-%d-%d", p.name, size, round))
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
	for repeat := range b.repeats {
		for i, p := range []*plugin{ours, theirs} {
			total, err := b.addAtOnce(ctx, p, repeat)
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

func (b attachBench) addAtOnce(ctx context.Context, p *plugin, repeat int) (time.Duration, error) {
	pods := make([]pod, b.atOnce)
	for i := range pods {
		var err error
		if pods[i], err = newPod(fmt.Sprintf("%s-at-once-%d-%d", p.name, repeat, i)); err != nil {
			return 0, err
		}
	}
	defer closeAll(pods)
	var adds errgroup.Group
	start := time.Now()
	for _, at := range pods {
		adds.Go(func() error {
			_, err := p.run(ctx, netconf.Add, at)
			return err
		})
	}
	err := adds.Wait()
	total := time.Since(start)
	for _, at := range pods {
		_, e := p.run(ctx, netconf.Del, at)
		err = errors.Join(err, e)
	}
	return total, err
}

func newPod(id string) (pod, error) {
	ns, err := newSpace()
	return pod{id: id, netns: ns}, err
}

func closeAll(pods []pod) {
	for _, p := range pods {
		if p.netns != nil {
			p.netns.close()
		}
	}
}
