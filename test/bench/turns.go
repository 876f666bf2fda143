package main

import (
	"context"
	"fmt"
	"time"

	"github.com/weft-cni/weft/test/probe"
)

// turns are the streams (bits per second) and round trips of two ways, taken in
// turns, with the two ends of a connection on a CPU each.
type turns struct {
	streams [2][]float64
	trips   [2][]time.Duration
}

func (b pathBench) inTurns(ctx context.Context, ways [2]way) (t turns, err error) {
	cpus, err := probe.OneEach()
	if err != nil {
		return t, err
	}
	for range b.rounds {
		for i, w := range ways {
			bits, err := probe.Throughput(ctx, w.ends[0], w.ends[1], w.to, cpus, b.stream)
			if err != nil {
				return t, err
			}
			t.streams[i] = append(t.streams[i], bits)
		}
		for i, w := range ways {
			times, err := probe.RoundTrips(ctx, w.ends[0], w.ends[1], w.to, cpus, b.pings)
			if err != nil {
				return t, err
			}
			t.trips[i] = append(t.trips[i], probe.Median(times))
		}
	}
	return t, nil
}

// stream is the second way's throughput to the first's.
func (t turns) stream() float64 { return pairs(t.streams[1], t.streams[0]) }

// rate is the second way's round trips in a time to the first's.
func (t turns) rate() float64 { return pairs(t.trips[0], t.trips[1]) }

// text is for a reader, who calls the ways so.
func (t turns) text(second, first string) string {
	return fmt.Sprintf("one stream: %s %.2f Gbit/s, %s %.2f Gbit/s, ratio %.3f; 1-byte ping-pong: %.1f and %.1f µs, ratio of rates %.3f (medians of %d turns)",
		second, middle(t.streams[1])/1e9, first, middle(t.streams[0])/1e9, t.stream(),
		micros(median(t.trips[1])), micros(median(t.trips[0])), t.rate(), len(t.trips[0]))
}
