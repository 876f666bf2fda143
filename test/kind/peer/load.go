package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"
)

// stream is a stream of requests to one target.
type stream struct {
	target string
	ask    func(context.Context) error

	mu   sync.Mutex
	done counts
}

// counts are what became of requests. A request that has had no answer within
// requestTimeout is lost.
type counts struct {
	Answered int
	Lost     int
	Slowest  time.Duration // of those answered
	Errors   []string      // the first few
}

// load sends requests to its targets, one each interval whether those before it
// were answered or not, and tells what became of them.
func load(ctx context.Context, args []string) error {
	f := flag.NewFlagSet("load", flag.ContinueOnError)
	every := f.Duration("every", 10*time.Millisecond, "")
	port := f.Int("port", 8080, "")
	if err := f.Parse(args); err != nil {
		return err
	}
	sending, stop := context.WithCancel(ctx)
	defer stop()
	var running sync.WaitGroup
	streams := make([]*stream, 0, f.NArg())
	for _, target := range f.Args() {
		s, err := newStream(target)
		if err != nil {
			return err
		}
		streams = append(streams, s)
		running.Go(func() { s.send(sending, *every) })
	}
	report := func(w http.ResponseWriter, _ *http.Request) {
		if err := json.NewEncoder(w).Encode(summary(streams)); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	}
	mux := answers()
	mux.HandleFunc("/report", report)
	mux.HandleFunc("/stop", func(w http.ResponseWriter, r *http.Request) {
		stop()
		running.Wait()
		report(w, r)
	})
	return listen(ctx, *port, mux)
}

func newStream(target string) (*stream, error) {
	s := &stream{target: target}
	address, isPing := strings.CutPrefix(target, "ping://")
	if !isPing {
		// A connection for each request: they are what a network loses first.
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		s.ask = func(ctx context.Context) error { return fetch(ctx, client, target, io.Discard) }
		return s, nil
	}
	dst, err := netip.ParseAddr(address)
	if err != nil {
		return nil, fmt.Errorf("target %s: %w", target, err)
	}
	s.ask = func(context.Context) error {
		e, err := newEchoer(netip.Addr{}, dst)
		if err != nil {
			return err
		}
		defer e.conn.Close()
		_, err = e.echo(64, requestTimeout)
		return err
	}
	return s, nil
}

// send sends until ctx ends, and returns when all that was sent is accounted for.
func (s *stream) send(ctx context.Context, every time.Duration) {
	var pending sync.WaitGroup
	defer pending.Wait()
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			pending.Go(s.sendOne)
		}
	}
}

func (s *stream) sendOne() {
	// A request that is under way when the stream is stopped gets its answer.
	ctx, cancel := context.WithTimeout(context.Background(), requestTimeout)
	defer cancel()
	started := time.Now()
	err := s.ask(ctx)
	took := time.Since(started)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.done.Lost++
		if len(s.done.Errors) < 5 {
			s.done.Errors = append(s.done.Errors, started.UTC().Format(time.RFC3339Nano)+" "+err.Error())
		}
		return
	}
	s.done.Answered++
	s.done.Slowest = max(s.done.Slowest, took)
}

func summary(streams []*stream) map[string]counts {
	all := make(map[string]counts, len(streams))
	for _, s := range streams {
		s.mu.Lock()
		all[s.target] = s.done
		s.mu.Unlock()
	}
	return all
}
