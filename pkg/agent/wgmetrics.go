package agent

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/weft-cni/weft/pkg/encrypt"
	"github.com/weft-cni/weft/pkg/kernel/rtnl"
	"github.com/weft-cni/weft/pkg/overlay"
)

// peerMetrics reads the WireGuard devices when metrics are asked for.
type peerMetrics struct {
	traffic func(links []string) ([]rtnl.PeerTraffic, error)
	plan    *plan
	failed  func()
}

var (
	stateDesc = prometheus.NewDesc("weft_wireguard_peer_state",
		"1 for the state of a peer: encrypted (there is a session), idle (there is none now), clear, unreachable.", []string{"peer", "state"}, nil)
	ageDesc = prometheus.NewDesc("weft_wireguard_peer_handshake_age_seconds",
		"Time since the last handshake with a peer; none before the first.", []string{"peer"}, nil)
	receivedDesc = prometheus.NewDesc("weft_wireguard_peer_received_bytes_total",
		"Bytes received from a peer, in WireGuard's packets.", []string{"peer"}, nil)
	sentDesc = prometheus.NewDesc("weft_wireguard_peer_sent_bytes_total",
		"Bytes sent to a peer, in WireGuard's packets.", []string{"peer"}, nil)
)

// Describe implements prometheus.Collector.
func (m peerMetrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{stateDesc, ageDesc, receivedDesc, sentDesc} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (m peerMetrics) Collect(ch chan<- prometheus.Metric) {
	all, err := m.traffic(encrypt.Links())
	if err != nil {
		m.failed()
		return
	}
	bySession := make(map[encrypt.Session]rtnl.PeerTraffic, len(all))
	for _, t := range all {
		bySession[encrypt.Session{Link: t.Link, Peer: t.PublicKey}] = t
	}
	now := time.Now()
	m.plan.ways.Range(func(k, v any) bool {
		name, _ := k.(string)
		w, _ := v.(way)
		var sum rtnl.PeerTraffic
		for _, t := range w.tunnels {
			one := bySession[t.Session]
			sum.Rx, sum.Tx = sum.Rx+one.Rx, sum.Tx+one.Tx
			if one.Handshake.After(sum.Handshake) {
				sum.Handshake = one.Handshake
			}
		}
		ch <- prometheus.MustNewConstMetric(stateDesc, prometheus.GaugeValue, 1, name, stateOf(w, sum, now))
		if len(w.tunnels) == 0 {
			return true
		}
		if !sum.Handshake.IsZero() {
			ch <- prometheus.MustNewConstMetric(ageDesc, prometheus.GaugeValue, now.Sub(sum.Handshake).Seconds(), name)
		}
		ch <- prometheus.MustNewConstMetric(receivedDesc, prometheus.CounterValue, float64(sum.Rx), name)
		ch <- prometheus.MustNewConstMetric(sentDesc, prometheus.CounterValue, float64(sum.Tx), name)
		return true
	})
}

func stateOf(w way, sum rtnl.PeerTraffic, now time.Time) string {
	switch {
	case w.link == "":
		return "unreachable"
	case w.link == overlay.Link:
		return "clear"
	case sum.Established(now):
		return "encrypted"
	}
	return "idle"
}

// wireGuard adds what is known of this node's WireGuard and of its peers; it is
// for nodes that encrypt.
func (m *metrics) wireGuard(mode encrypt.Mode, traffic func([]string) ([]rtnl.PeerTraffic, error), p *plan) {
	m.info = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "weft_wireguard_info", Help: "1, with where this node's WireGuard is (kernel, userspace) and what it takes (wireguard, permissive) in labels.",
	}, []string{"implementation", "mode"})
	m.keyAge = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "weft_wireguard_key_created_timestamp_seconds", Help: "When this node's keys were made, by slot; there are two while one is rotated.",
	}, []string{"slot"})
	m.registry.MustRegister(m.info, m.keyAge)
	if mode != encrypt.None {
		m.registry.MustRegister(peerMetrics{traffic, p, func() { m.failed(stepRead) }})
	}
}

// observeKeys shows this node's keys.
func (m *metrics) observeKeys(e *encryption) {
	if m.keyAge == nil {
		return
	}
	m.keyAge.Reset()
	for _, k := range e.keys {
		m.keyAge.WithLabelValues(string('0' + rune(k.Slot))).Set(float64(k.Created.Unix()))
	}
	if e.known {
		m.info.WithLabelValues(e.implementation(), string(e.config.Mode)).Set(1)
	}
}
