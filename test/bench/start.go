package main

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// startBench compares the plugin's VERSION with a Go program that does
// nothing, both built alike: what remains is the plugin's own start-up.
type startBench struct {
	bin    string
	rounds int
}

func (b startBench) run(ctx context.Context, r *report) error {
	r.progress("VERSION")
	var took [2][]time.Duration
	for round := range b.rounds {
		for i, binary := range []string{"weft", "empty"} {
			cmd := exec.CommandContext(ctx, filepath.Join(b.bin, binary))
			cmd.Env = []string{"CNI_COMMAND=VERSION"}
			cmd.Stdin = strings.NewReader(`{"cniVersion": "1.1.0"}`)
			start := time.Now()
			out, err := cmd.Output()
			if err != nil {
				return fmt.Errorf("%s: %w", binary, err)
			}
			if round > 0 { // the first of each warms the caches
				took[i] = append(took[i], time.Since(start))
			}
			if i == 0 && !strings.Contains(string(out), "supportedVersions") {
				return fmt.Errorf("weft VERSION printed %q", out)
			}
		}
	}
	ours, empty := median(took[0]), median(took[1])
	r.figure("version-ms/empty", ms(ours-empty))
	r.note("VERSION %.2f ms; an empty Go program %.2f ms (medians of %d)", ms(ours), ms(empty), len(took[0]))
	return nil
}
