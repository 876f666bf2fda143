// Bench measures Weft against the marks that it has to reach, each beside its
// reference in the same run. docs/benchmarks.md says how each is taken.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/weft-cni/weft/test/baretunnel"
	"github.com/weft-cni/weft/test/cluster"
)

func main() {
	baretunnel.Main()
	var o options
	flag.StringVar(&o.bin, "bin", "bin", "directory with weft, weftd, empty and, in cni/, the reference plugins")
	flag.StringVar(&o.manifests, "manifests", "manifests/base", "what is applied to the API server")
	flag.StringVar(&o.json, "json", "", "file that the figures are written to")
	flag.StringVar(&o.only, "run", "start|attach|path|sync|scale|wireguard|wg-sync|segment|endpoints|pool", "regular expression: the groups to run, of "+strings.Join(groupNames(), ", "))
	flag.BoolVar(&o.quick, "quick", false, "few rounds and few peers: shows that all of it works, says nothing of speed")
	flag.Parse()
	os.Exit(cluster.Run(func(ctx context.Context) int {
		if err := run(ctx, o); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			return 1
		}
		return 0
	}))
}

type options struct {
	bin, manifests, json, only string
	quick                      bool
}

// A group is measured together.
type group struct {
	name string
	run  func(context.Context, *report) error
}

func groupNames() []string {
	var names []string
	for _, g := range groups(options{}) {
		names = append(names, g.name)
	}
	return names
}

func groups(o options) []group {
	attach := attachBench{bin: o.bin, rounds: 41, sizes: []int{1, 250, 1000}, atOnce: 100, repeats: 5}
	start := startBench{bin: o.bin, rounds: 101}
	full := syncBench{peers: 4999, rounds: 7}
	path := pathBench{manifests: o.manifests, rounds: 31, stream: time.Second, pings: 5000}
	scale := scaleBench{
		bin: o.bin, manifests: o.manifests,
		peers: 4999, starts: 3, joins: 250, windows: 6, window: 10 * time.Second,
	}
	wgFull := wgSyncBench{peers: 1000, rounds: 11}
	tenant := segmentBench{bin: o.bin, rounds: 41}
	many := manyBench{manifests: o.manifests, segments: 1000, samples: 21, rest: 20 * time.Second}
	members := membersBench{manifests: o.manifests, nodes: 100, endpoints: 100, poolNodes: 10, poolPods: 1000}
	if o.quick {
		tenant.rounds = 3
		many.segments, many.samples, many.rest = 20, 3, time.Second
		members.nodes, members.endpoints, members.poolNodes, members.poolPods = 3, 3, 3, 30
		wgFull.peers, wgFull.rounds = 100, 1
		path.rounds, path.stream, path.pings = 1, time.Second/4, 500
		scale.peers, scale.starts, scale.joins, scale.windows, scale.window = 100, 1, 5, 1, time.Second
		full.peers, full.rounds = 100, 1
		start.rounds = 3
		attach.rounds, attach.repeats, attach.sizes = 3, 1, attach.sizes[:1]
	}
	tenant.path = path
	return []group{
		{"start", start.run},
		{"attach", attach.run},
		{"path", path.run},
		{"sync", full.run},
		{"scale", scale.run},
		{"hops", hopsBench{path: path}.run},
		{"wireguard", wireGuardBench{path: path}.run},
		{"wg-sync", wgFull.run},
		{"segment", tenant.run},
		{"many", many.run},
		{"endpoints", members.runEndpoints},
		{"pool", members.runPool},
	}
}

func run(ctx context.Context, o options) error {
	only, err := regexp.Compile(o.only)
	if err != nil {
		return fmt.Errorf("-run: %w", err)
	}
	if o.bin, err = filepath.Abs(o.bin); err != nil {
		return err
	}
	if err = os.Setenv(cluster.BinDirEnv, o.bin); err != nil {
		return err
	}
	r := newReport(os.Stdout)
	for _, g := range groups(o) {
		if !only.MatchString(g.name) {
			continue
		}
		if err := g.run(ctx, r); err != nil {
			return fmt.Errorf("%s: %w", g.name, err)
		}
	}
	fmt.Println()
	if err := r.table(os.Stdout); err != nil {
		return err
	}
	if o.json == "" {
		return nil
	}
	return r.writeJSON(o.json)
}
