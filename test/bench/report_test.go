package main

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestReport(t *testing.T) {
	r := newReport(io.Discard)
	r.figure("version-ms/empty", 1.30000001)
	r.figure("overlay-tcp/node-tcp", 0.79)
	r.figure("add/bridge+host-local@1", 0.4)
	var table strings.Builder
	if err := r.table(&table); err != nil {
		t.Fatal(err)
	}
	want := strings.TrimPrefix(`
name                     value  unit   limit   holds
add/bridge+host-local@1  0.4    ratio  <= 0.4  yes
overlay-tcp/node-tcp     0.79   ratio  >= 0.8  NO
version-ms/empty         1.3    ms     <= 3    yes
`, "\n")
	if diff := cmp.Diff(want, table.String()); diff != "" {
		t.Errorf("table (-want +got):\n%s", diff)
	}

	file := filepath.Join(t.TempDir(), "bench.json")
	if err := r.writeJSON(file); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	want = `[
  {
    "name": "add/bridge+host-local@1",
    "value": 0.4,
    "unit": "ratio",
    "limit": 0.4,
    "holds": true
  },
  {
    "name": "overlay-tcp/node-tcp",
    "value": 0.79,
    "unit": "ratio",
    "limit": 0.8,
    "holds": false
  },
  {
    "name": "version-ms/empty",
    "value": 1.3,
    "unit": "ms",
    "limit": 3,
    "holds": true
  }
]
`
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("bench.json (-want +got):\n%s", diff)
	}
}

func TestQuantile(t *testing.T) {
	samples := []time.Duration{5, 1, 4, 2, 3}
	for _, test := range []struct {
		q    float64
		want time.Duration
	}{{0, 1}, {0.2, 1}, {0.21, 2}, {0.5, 3}, {0.99, 5}, {1, 5}} {
		if got := quantile(samples, test.q); got != test.want {
			t.Errorf("quantile %v is %d, want %d", test.q, got, test.want)
		}
	}
}

// A slow moment that hits both of a pair doesn't show in the ratio.
func TestPairs(t *testing.T) {
	if got := pairs([]float64{8, 80, 8}, []float64{10, 100, 10}); got != 0.8 {
		t.Errorf("ratio %v, want 0.8", got)
	}
}

func TestWithoutChain(t *testing.T) {
	text := "set s { type ipv4_addr; }\nchain a { type filter;\n\tdrop\n}\nchain b { type nat;\n\taccept\n}\n"
	for chain, want := range map[string]string{
		"a": "set s { type ipv4_addr; }\nchain b { type nat;\n\taccept\n}\n",
		"b": "set s { type ipv4_addr; }\nchain a { type filter;\n\tdrop\n}\n",
		"c": text,
	} {
		if got := without(text, chain); got != want {
			t.Errorf("without %s: %q", chain, got)
		}
	}
}
