// Package settings is the daemon's configuration: one YAML file, with
// command-line flags over it, parsed and checked once. What comes out needs
// no further checks.
package settings

import (
	"log/slog"
	"net/netip"
	"regexp"
	"time"

	"github.com/weft-cni/weft/pkg/encrypt"
	"github.com/weft-cni/weft/pkg/netconf"
	"github.com/weft-cni/weft/pkg/overlay"
)

// Settings are the daemon's settings. Default gives the values of the keys
// that are left out.
type Settings struct {
	// Overlay is what plans depend on.
	Overlay overlay.Config
	// MTU of pods and of the VXLAN device in bytes; 0 derives it from the
	// underlay.
	MTU      int
	Underlay Underlay

	LogLevel slog.Level
	// Resync is the mean time between two comparisons of the whole kernel
	// state.
	Resync time.Duration
	// Listen is the address, host:port, that /healthz, /readyz and /metrics
	// are served on.
	Listen string
	// Profiling adds /debug/pprof to them.
	Profiling bool

	CNI CNI

	// Encrypt is about encryption between nodes; plans depend on it as well.
	Encrypt encrypt.Config
}

// Underlay chooses this node's underlay addresses. Where nothing is asked
// for, they are the Node's InternalIPs.
type Underlay struct {
	// Family is that of the tunnel.
	Family Family
	// Interface matches the whole name of the interface that has the
	// addresses; nil matches all.
	Interface *regexp.Regexp
	// CIDRs hold the addresses; none means that any address will do.
	CIDRs []netip.Prefix
}

// Explicit reports whether the underlay is chosen here and not by the Node's
// InternalIPs.
func (u Underlay) Explicit() bool { return u.Interface != nil || len(u.CIDRs) > 0 }

// Family is an address family.
type Family string

// Auto takes the family of the Node's first InternalIP.
const (
	Auto Family = "auto"
	IPv4 Family = "ipv4"
	IPv6 Family = "ipv6"
)

// CNI says what the daemon writes for the container runtime.
type CNI struct {
	BinDir, ConfDir string // absolute paths
	// Portmap and Bandwidth are whether these plugins are chained after
	// Weft's.
	Portmap, Bandwidth Chain
}

// Chain is whether a plugin is chained.
type Chain string

// IfPresent chains a plugin where its binary is in BinDir.
const (
	IfPresent Chain = "auto"
	Always    Chain = "true"
	Never     Chain = "false"
)

// Default gives the settings of an empty file.
func Default() Settings {
	return Settings{
		Overlay:  overlay.Config{VNI: 1, Port: 4789, Masquerade: true},
		Underlay: Underlay{Family: Auto},
		LogLevel: slog.LevelInfo,
		Resync:   time.Minute,
		Listen:   "127.0.0.1:9447",
		CNI: CNI{
			BinDir: netconf.BinDir, ConfDir: netconf.ConfDir,
			Portmap: IfPresent, Bandwidth: IfPresent,
		},
		Encrypt: encrypt.Config{
			Mode: encrypt.None, Port: 51820, Implementation: encrypt.Auto, RotateEvery: 7 * 24 * time.Hour,
		},
	}
}
