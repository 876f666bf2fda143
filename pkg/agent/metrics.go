package agent

import (
	"runtime"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/weft-cni/weft/pkg/kernel"
)

// metrics are what /metrics shows, in a registry of their own.
type metrics struct {
	registry *prometheus.Registry

	states   *prometheus.GaugeVec
	notes    *prometheus.GaugeVec
	repairs  *prometheus.CounterVec
	failures *prometheus.CounterVec
	passes   *prometheus.HistogramVec
	watches  *prometheus.GaugeVec
	last     prometheus.Gauge

	info, keyAge *prometheus.GaugeVec // of WireGuard; nil where nothing shows them
}

func newMetrics(version string) *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		states: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "weft_peers", Help: "Peers by state: programmed, or why they aren't.",
		}, []string{"state"}),
		notes: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "weft_conditions", Help: "What an operator should know of this node, by reason; 0 when all is well.",
		}, []string{"reason"}),
		repairs: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "weft_drift_repairs_total", Help: "Kernel objects put right after somebody else had changed, deleted or added them, by kind.",
		}, []string{"kind"}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "weft_sync_errors_total", Help: "Failures by step: reads of the kernel, single operations, files for the runtime, writes to the API.",
		}, []string{"step"}),
		passes: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "weft_sync_duration_seconds", Help: "Time of a pass from its plan to its last operation, by scope: full or partial.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 14),
		}, []string{"scope"}),
		watches: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "weft_api_watch_up", Help: "1 while the API server serves the watch of the resource.",
		}, []string{"resource"}),
		last: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "weft_last_full_sync_timestamp_seconds", Help: "When everything was last compared with the kernel.",
		}),
	}
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "weft_build_info", Help: "1, with the build in labels.",
		ConstLabels: prometheus.Labels{"version": version, "goversion": runtime.Version()},
	})
	build.Set(1)
	m.registry.MustRegister(m.states, m.notes, m.repairs, m.failures, m.passes, m.watches, m.last, build,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	for _, k := range kernel.Kinds() {
		m.repairs.WithLabelValues(k.String())
	}
	for _, step := range []string{stepRead, stepApply, stepFiles, stepAPI} {
		m.failures.WithLabelValues(step)
	}
	return m
}

// Steps that can fail.
const (
	stepRead  = "read"
	stepApply = "apply"
	stepFiles = "files"
	stepAPI   = "api"
)

// entries adds a gauge of the planned objects, counted when it is read.
func (m *metrics) entries(p *plan) {
	for _, k := range kernel.Kinds() {
		m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "weft_entries", Help: "Kernel objects that are kept as planned, by kind.",
			ConstLabels: prometheus.Labels{"kind": k.String()},
		}, func() float64 { return float64(p.count(k)) }))
	}
}

func (m *metrics) failed(step string)     { m.failures.WithLabelValues(step).Inc() }
func (m *metrics) repaired(k kernel.Kind) { m.repairs.WithLabelValues(k.String()).Inc() }

func (m *metrics) pass(full bool, d time.Duration) {
	if !full {
		m.passes.WithLabelValues("partial").Observe(d.Seconds())
		return
	}
	m.passes.WithLabelValues("full").Observe(d.Seconds())
	m.last.SetToCurrentTime()
}

// observe shows the number of valid peers and the conditions.
func (m *metrics) observe(peers int, now conditions) {
	conflicts, unreachable := now.count(reasonConflict), now.count(reasonPeerUnreachable)
	m.states.WithLabelValues("programmed").Set(float64(peers - conflicts - unreachable))
	m.states.WithLabelValues("conflicting").Set(float64(conflicts))
	m.states.WithLabelValues("unreachable").Set(float64(unreachable))
	m.states.WithLabelValues("malformed").Set(float64(now.count(reasonPeerMalformed)))
	for _, reason := range []string{
		reasonUnderlayLost, reasonNoPodCIDRs, reasonNoNode, reasonMTUMismatch,
		reasonNoWireGuard, reasonOutside, reasonNoPrivateKey, reasonPresharedKey, reasonPeerWithoutKey, reasonPeerStrict,
		reasonOtherPSK, reasonPeerSilent, reasonRotationPostpone,
	} {
		m.notes.WithLabelValues(reason).Set(float64(now.count(reason)))
	}
}
