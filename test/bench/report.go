package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"text/tabwriter"
	"time"
)

// A mark is a figure that the product has to reach.
type mark struct {
	name    string
	unit    string
	limit   float64
	atLeast bool // the limit is a lower one
}

// marks are all figures, in the order of the report.
var marks = []mark{
	{name: "add/bridge+host-local@1", unit: "ratio", limit: 0.4},
	{name: "add/bridge+host-local@250", unit: "ratio", limit: 0.3},
	{name: "add/bridge+host-local@1000", unit: "ratio", limit: 0.3},
	{name: "add+del/bridge+host-local@1", unit: "ratio", limit: 0.7},
	{name: "add+del/bridge+host-local@250", unit: "ratio", limit: 0.7},
	{name: "add+del/bridge+host-local@1000", unit: "ratio", limit: 0.7},
	{name: "add-100-at-once/bridge+host-local", unit: "ratio", limit: 1},
	{name: "overlay-tcp/node-tcp", unit: "ratio", limit: 0.80, atLeast: true},
	{name: "overlay-rtt/node-rtt", unit: "ratio", limit: 1.45},
	{name: "sync-5000/bare-netlink", unit: "ratio", limit: 1.5},
	{name: "start-5000-s", unit: "s", limit: 3},
	{name: "join-p50-ms@5000", unit: "ms", limit: 8},
	{name: "join-p99-ms@5000", unit: "ms", limit: 20},
	{name: "rss-mib@5000", unit: "MiB", limit: 64},
	{name: "idle-api-bytes-s@5000", unit: "B/s", limit: 0},
	{name: "version-ms/empty", unit: "ms", limit: 3},
	{name: "wg-sync-1000/bare-wgctrl", unit: "ratio", limit: 3},
	{name: "wg-user-tcp/bare", unit: "ratio", limit: 0.95, atLeast: true},
	{name: "wg-user-rr/bare", unit: "ratio", limit: 0.9, atLeast: true},
	{name: "wg-kernel-tcp/bare", unit: "ratio", limit: 0.95, atLeast: true},
	{name: "wg-kernel-rr/bare", unit: "ratio", limit: 0.9, atLeast: true},
	{name: "segment-tcp/overlay-tcp", unit: "ratio", limit: 0.95, atLeast: true},
	{name: "segment-rr/overlay-rr", unit: "ratio", limit: 0.9, atLeast: true},
	{name: "segment-add/overlay-add", unit: "ratio", limit: 1.25},
	{name: "segment-bum-nonmember", unit: "frames", limit: 0},
	{name: "segment-arp-crossing", unit: "frames", limit: 0},
	{name: "endpoint-p99-ms@100", unit: "ms", limit: 200},
	{name: "ipam-1000-pods-s", unit: "s", limit: 182},
}

// A figure is one measured mark, as bin/bench.json holds it.
type figure struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
	Limit float64 `json:"limit"`
	Holds bool    `json:"holds"`
}

// A report collects figures and, for the reader, what they were made of.
type report struct {
	figures map[string]figure
	notes   []string
	log     io.Writer // progress
}

func newReport(log io.Writer) *report {
	return &report{figures: map[string]figure{}, log: log}
}

// figure records the value of the mark called name.
func (r *report) figure(name string, value float64) {
	i := slices.IndexFunc(marks, func(m mark) bool { return m.name == name })
	m := marks[i]
	holds := value <= m.limit
	if m.atLeast {
		holds = value >= m.limit
	}
	r.figures[name] = figure{Name: name, Value: math.Round(value*1e4) / 1e4, Unit: m.unit, Limit: m.limit, Holds: holds}
}

// note records what a figure was made of, and shows it at once.
func (r *report) note(format string, args ...any) {
	line := fmt.Sprintf(format, args...)
	r.notes = append(r.notes, line)
	fmt.Fprintln(r.log, "   ", line)
}

// progress says what is going on.
func (r *report) progress(format string, args ...any) {
	fmt.Fprintf(r.log, "==> "+format+"\n", args...)
}

// list gives the figures in the order of marks.
func (r *report) list() []figure {
	list := []figure{}
	for _, m := range marks {
		if f, ok := r.figures[m.name]; ok {
			list = append(list, f)
		}
	}
	return list
}

// table writes the figures for a reader.
func (r *report) table(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "name\tvalue\tunit\tlimit\tholds")
	for _, m := range marks {
		f, ok := r.figures[m.name]
		if !ok {
			continue
		}
		sign, holds := "<=", "yes"
		if m.atLeast {
			sign = ">="
		}
		if !f.Holds {
			holds = "NO"
		}
		fmt.Fprintf(tw, "%s\t%.3g\t%s\t%s %g\t%s\n", f.Name, f.Value, f.Unit, sign, f.Limit, holds)
	}
	return tw.Flush()
}

// writeJSON writes the figures to file.
func (r *report) writeJSON(file string) error {
	data, err := json.MarshalIndent(r.list(), "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(data, '\n'), 0o644)
}

// quantile gives the smallest sample that at least q (0 to 1) of all samples
// do not exceed.
func quantile(samples []time.Duration, q float64) time.Duration {
	sorted := slices.Sorted(slices.Values(samples))
	i := int(q*float64(len(sorted))+0.999999) - 1
	return sorted[min(max(i, 0), len(sorted)-1)]
}

func median(samples []time.Duration) time.Duration { return quantile(samples, 0.5) }

func ratio(a, b time.Duration) float64 { return float64(a) / float64(b) }

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
