// Bench measures Weft against the marks that it has to reach, each beside its
// reference in the same run. docs/benchmarks.md says how each is taken.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
)

func main() {
	var o options
	flag.StringVar(&o.bin, "bin", "bin", "directory with weft, weftd, empty and, in cni/, the reference plugins")
	flag.StringVar(&o.json, "json", "", "file that the figures are written to")
	flag.StringVar(&o.only, "run", ".", "regular expression: the groups to run, of "+strings.Join(groupNames(), ", "))
	flag.BoolVar(&o.quick, "quick", false, "few rounds and few peers: shows that all of it works, says nothing of speed")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, o)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

type options struct {
	bin, json, only string
	quick           bool
}

// A group is measured together.
type group struct {
	name string
	run  func(context.Context, *report) error
}

func groupNames() []string {
	var names []string
	for _, g := range groups(options{}, "") {
		names = append(names, g.name)
	}
	return names
}

func groups(o options, dir string) []group {
	attach := attachBench{bin: o.bin, dir: dir, rounds: 41, sizes: []int{1, 250, 1000}, atOnce: 100, repeats: 5}
	start := startBench{bin: o.bin, rounds: 101}
	full := syncBench{peers: 4999, rounds: 7}
	if o.quick {
		full.peers, full.rounds = 100, 1
		start.rounds = 3
		attach.rounds, attach.repeats = 3, 1
	}
	return []group{
		{"start", start.run},
		{"attach", attach.run},
		{"sync", full.run},
	}
}

func run(ctx context.Context, o options) (err error) {
	only, err := regexp.Compile(o.only)
	if err != nil {
		return fmt.Errorf("-run: %w", err)
	}
	if o.bin, err = filepath.Abs(o.bin); err != nil {
		return err
	}
	// Not below /tmp, which may be in memory: plugins that call fsync pay.
	dir, err := os.MkdirTemp(o.bin, "bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	r := newReport(os.Stdout)
	for _, g := range groups(o, dir) {
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
