package agent

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

func TestServe(t *testing.T) {
	var ready error
	w := newWorld(t)
	w.peers["peer1"] = valid(somePeer(1, 0))
	w.list()
	w.runner.metrics.entries(w.runner.plan)
	for _, profiling := range []bool{false, true} {
		l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		served := make(chan error, 1)
		go func() {
			served <- serve(ctx, l, handler(w.runner.alive, func() error { return ready }, w.runner.metrics, profiling))
		}()
		get := func(path string) (int, string) {
			r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+l.Addr().String()+path, http.NoBody)
			if err != nil {
				t.Fatal(err)
			}
			answer, err := http.DefaultClient.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			defer answer.Body.Close()
			body, err := io.ReadAll(answer.Body)
			if err != nil {
				t.Fatal(err)
			}
			return answer.StatusCode, string(body)
		}
		for _, path := range []string{"/healthz", "/readyz"} {
			if code, body := get(path); code != http.StatusOK {
				t.Errorf("%s: %d %s", path, code, body)
			}
		}
		ready = errors.New("waiting for the first sync")
		if code, body := get("/readyz"); code != http.StatusServiceUnavailable || !strings.Contains(body, "waiting for the first sync") {
			t.Errorf("/readyz: %d %s", code, body)
		}
		if code, _ := get("/healthz"); code != http.StatusOK {
			t.Errorf("/healthz of a node that isn't ready: %d", code)
		}
		ready = nil
		long := time.Now().Add(-time.Hour)
		w.runner.busy.Store(&long)
		if code, body := get("/healthz"); code != http.StatusServiceUnavailable || !strings.Contains(body, "a pass has been running since") {
			t.Errorf("/healthz while a pass hangs: %d %s", code, body)
		}
		w.runner.busy.Store(nil)
		_, metrics := get("/metrics")
		for _, want := range []string{
			`weft_peers{state="programmed"} 1`, `weft_entries{kind="fdb"} 1`, `weft_entries{kind="route"} 2`,
			`weft_drift_repairs_total{kind="sysctl"} 0`, `weft_sync_duration_seconds_count{scope="full"} 1`,
			`weft_build_info{goversion="`, `weft_conditions{reason="UnderlayLost"} 0`, "process_resident_memory_bytes",
		} {
			if !strings.Contains(metrics, want) {
				t.Errorf("no %s in\n%s", want, metrics)
			}
		}
		if code, _ := get("/debug/pprof/heap"); (code == http.StatusOK) != profiling {
			t.Errorf("profiling %v: status %d", profiling, code)
		}
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	}
}
