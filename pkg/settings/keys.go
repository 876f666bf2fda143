package settings

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/netip"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/weft-cni/weft/pkg/encrypt"
	"github.com/weft-cni/weft/pkg/netconf"
)

// Key is one key of the file, and one flag.
type Key struct {
	Name  string // as in the file, sections and key joined by dots
	Takes string // what values it takes
	Doc   string // what it does
	set   func(*Settings, any) error
}

// Limits of what keys take.
const (
	maxVNI = 1<<24 - 1 // RFC 7348, section 5
	// The smallest MTU is the smallest packet that every IPv4 host takes (RFC
	// 791); IPv6 asks for 1280, which the daemon checks once it knows whether
	// the node's pods have it.
	minMTU, maxMTU       = 576, math.MaxUint16
	minResync, maxResync = time.Second, 24 * time.Hour
)

// Keys lists all keys in the order of the documentation.
func Keys() []Key {
	return []Key{
		{"vni", "a VXLAN network identifier, 1 to 16777215", "VXLAN network identifier of the cluster network", number(1, maxVNI, func(s *Settings, n int) { s.Overlay.VNI = uint32(n) })},
		{"port", "a UDP port, 1 to 65535", "UDP port that this node's VXLAN device listens on", number(1, math.MaxUint16, func(s *Settings, n int) { s.Overlay.Port = uint16(n) })},
		{"mtu", "auto, or a size in bytes, 576 to 65535", "MTU of pods; auto is the underlay's less 50 (IPv4) or 70 (IPv6)", mtu},
		{"underlay.family", "auto, ipv4 or ipv6", "address family of the tunnels; auto is that of the Node's first InternalIP", word(func(s *Settings, w string) { s.Underlay.Family = Family(w) }, string(Auto), string(IPv4), string(IPv6))},
		{"underlay.interface", "a regular expression (RE2) that matches the whole name, such as bond0|eth[0-9]+", "interface of the underlay; empty takes the one that has the Node's InternalIPs", underlayInterface},
		{"underlay.cidrs", "a list of address ranges such as 192.0.2.0/24", "ranges of the underlay addresses; none takes the Node's InternalIPs", prefixes(func(s *Settings, p []netip.Prefix) { s.Underlay.CIDRs = p })},
		{"directRouting", "true or false", "route to peers on a common subnet without a tunnel", boolean(func(s *Settings, b bool) { s.Overlay.DirectRouting = b })},
		{"masquerade", "true or false", "give traffic from pods that leaves the cluster the node's address", boolean(func(s *Settings, b bool) { s.Overlay.Masquerade = b })},
		{"noMasquerade", "a list of address ranges such as 10.0.0.0/8", "destinations outside the cluster that see pods' own addresses", prefixes(func(s *Settings, p []netip.Prefix) { s.Overlay.NoMasquerade = p })},
		{"encryption", "none, permissive or wireguard", "what is done with packets between nodes' pods: nothing; encrypted where both ends can, on the way from one to the other; encrypted, or not sent", word(func(s *Settings, w string) { s.Encrypt.Mode = encrypt.Mode(w) }, string(encrypt.None), string(encrypt.Permissive), string(encrypt.WireGuard))},
		{"wireguard.port", "a UDP port, 1 to 65531", "first of the four UDP ports of this node's WireGuard devices", number(1, math.MaxUint16-encrypt.Ports, func(s *Settings, n int) { s.Encrypt.Port = uint16(n) })},
		{"wireguard.implementation", "auto, kernel or userspace", "where this node's WireGuard is; auto is the kernel where that has it, otherwise a process of its own", word(func(s *Settings, w string) { s.Encrypt.Implementation = encrypt.Implementation(w) }, string(encrypt.Auto), string(encrypt.Kernel), string(encrypt.Userspace))},
		{"wireguard.rotateEvery", "a duration, 1h to 8760h", "age at which this node's key is replaced, a tenth less or more", duration(time.Hour, 365*24*time.Hour, func(s *Settings, d time.Duration) { s.Encrypt.RotateEvery = d })},
		{"wireguard.persistentKeepalive", "a duration in whole seconds, 1s to 65535s, or 0s for none", "time between two packets that keep the way through a NAT open", keepalive},
		{"wireguard.presharedKeyFile", "an absolute path, or nothing", "file with a preshared key, the same on all nodes, as of wg genpsk; read again when it changes", presharedKeyFile},
		{"wireguard.clusterCIDRs", "a list of address ranges such as 10.244.0.0/16", "ranges that hold all pods, which encryption wireguard asks for: what is in them never leaves a node in clear, whether a peer is known for it or not", prefixes(func(s *Settings, p []netip.Prefix) { s.Encrypt.ClusterCIDRs = p })},
		{"logLevel", "debug, info, warn or error", "least level of what is logged", logLevel},
		{"resync", "a duration, 1s to 24h", "mean time between two comparisons of the whole kernel state", duration(minResync, maxResync, func(s *Settings, d time.Duration) { s.Resync = d })},
		{"listen", "an address and port such as 127.0.0.1:9447", "where /healthz, /readyz and /metrics are served", listen},
		{"profiling", "true or false", "serve /debug/pprof beside the metrics", boolean(func(s *Settings, b bool) { s.Profiling = b })},
		{"cni.binDir", "an absolute path", "directory of CNI plugins, where the runtime looks for them", path(func(s *Settings, p string) { s.CNI.BinDir = p })},
		{"cni.confDir", "an absolute path", "directory of CNI configurations, where the runtime looks for them", path(func(s *Settings, p string) { s.CNI.ConfDir = p })},
		{"cni.portmap", "auto, true or false", "chain the portmap plugin; auto where it is in cni.binDir", word(func(s *Settings, w string) { s.CNI.Portmap = Chain(w) }, string(IfPresent), string(Always), string(Never))},
		{"cni.bandwidth", "auto, true or false", "chain the bandwidth plugin; auto where it is in cni.binDir", word(func(s *Settings, w string) { s.CNI.Bandwidth = Chain(w) }, string(IfPresent), string(Always), string(Never))},
	}
}

func find(name string) (Key, bool) {
	for _, k := range Keys() {
		if k.Name == name {
			return k, true
		}
	}
	return Key{}, false
}

func isSection(name string) bool { return len(known(name)) > 0 }

// known lists the keys of a section, or all for the empty section.
func known(section string) []string {
	var names []string
	for _, k := range Keys() {
		if section == "" || strings.HasPrefix(k.Name, section+".") {
			names = append(names, k.Name)
		}
	}
	return names
}

// suggest names the known key nearest to an unknown one, or else those of its
// section.
func suggest(name string) string {
	if near := netconf.Nearest(name, known("")); near != "" {
		return fmt.Sprintf("; did you mean %s?", near)
	}
	section, _, _ := strings.Cut(name, ".")
	if !isSection(section) {
		section = ""
	}
	return "; known are " + strings.Join(known(section), ", ")
}

// errRefused says no more than what the key takes.
var errRefused = errors.New("")

// text is the text of a scalar: a flag's value, or a file's string, number or
// boolean.
func text(v any) (string, error) {
	switch v := v.(type) {
	case string:
		return v, nil
	case bool:
		return strconv.FormatBool(v), nil
	case fmt.Stringer: // json.Number
		return v.String(), nil
	}
	return "", errRefused
}

// list is a list of texts; a flag gives it with commas.
func list(v any) ([]string, error) {
	switch v := v.(type) {
	case string:
		if v == "" {
			return nil, nil
		}
		return strings.Split(v, ","), nil
	case []any:
		var texts []string
		for _, e := range v {
			t, err := text(e)
			if err != nil {
				return nil, err
			}
			texts = append(texts, t)
		}
		return texts, nil
	}
	return nil, errRefused
}

func number(low, high int, put func(*Settings, int)) func(*Settings, any) error {
	return func(s *Settings, v any) error {
		t, err := text(v)
		if err != nil {
			return err
		}
		n, err := strconv.Atoi(t)
		if err != nil || n < low || n > high {
			return errRefused
		}
		put(s, n)
		return nil
	}
}

func mtu(s *Settings, v any) error {
	if v == string(Auto) {
		s.MTU = 0
		return nil
	}
	return number(minMTU, maxMTU, func(s *Settings, n int) { s.MTU = n })(s, v)
}

func boolean(put func(*Settings, bool)) func(*Settings, any) error {
	return word(func(s *Settings, w string) { put(s, w == "true") }, "true", "false")
}

func word(put func(*Settings, string), words ...string) func(*Settings, any) error {
	return func(s *Settings, v any) error {
		t, err := text(v)
		if err != nil {
			return err
		}
		for _, w := range words {
			if t == w {
				put(s, w)
				return nil
			}
		}
		return errRefused
	}
}

func underlayInterface(s *Settings, v any) error {
	t, ok := v.(string)
	if !ok {
		return errRefused
	}
	if t == "" {
		s.Underlay.Interface = nil
		return nil
	}
	// Compiled alone first: an error quotes what the user wrote.
	if _, err := regexp.Compile(t); err != nil {
		return err
	}
	re, err := regexp.Compile("^(?:" + t + ")$")
	s.Underlay.Interface = re
	return err
}

func prefixes(put func(*Settings, []netip.Prefix)) func(*Settings, any) error {
	return func(s *Settings, v any) error {
		texts, err := list(v)
		if err != nil {
			return err
		}
		var list []netip.Prefix
		for _, t := range texts {
			p, err := netip.ParsePrefix(t)
			switch {
			case err != nil || p.Addr().Is4In6():
				return fmt.Errorf("%q is none", t)
			case p != p.Masked():
				return fmt.Errorf("%s has bits set beyond its length: did you mean %s?", t, p.Masked())
			}
			list = append(list, p)
		}
		put(s, list)
		return nil
	}
}

func logLevel(s *Settings, v any) error {
	levels := map[string]slog.Level{"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError}
	t, _ := v.(string)
	level, ok := levels[t]
	if !ok {
		return errRefused
	}
	s.LogLevel = level
	return nil
}

func duration(low, high time.Duration, put func(*Settings, time.Duration)) func(*Settings, any) error {
	return func(s *Settings, v any) error {
		t, _ := v.(string)
		d, err := time.ParseDuration(t)
		if err != nil || d < low || d > high {
			return errRefused
		}
		put(s, d)
		return nil
	}
}

// keepalive is what the kernel takes: a number of seconds of 16 bits.
func keepalive(s *Settings, v any) error {
	return duration(0, math.MaxUint16*time.Second, func(s *Settings, d time.Duration) {
		s.Encrypt.Keepalive = d
	})(s, v)
}

func presharedKeyFile(s *Settings, v any) error {
	if v == "" {
		s.Encrypt.PresharedKeyFile = ""
		return nil
	}
	return path(func(s *Settings, p string) { s.Encrypt.PresharedKeyFile = p })(s, v)
}

func listen(s *Settings, v any) error {
	t, _ := v.(string)
	// No names: the daemon starts before the cluster's DNS does.
	a, err := netip.ParseAddrPort(t)
	if err != nil || a.Port() == 0 {
		return errRefused
	}
	s.Listen = t
	return nil
}

func path(put func(*Settings, string)) func(*Settings, any) error {
	return func(s *Settings, v any) error {
		t, _ := v.(string)
		if !filepath.IsAbs(t) || filepath.Clean(t) != t {
			return errRefused
		}
		put(s, t)
		return nil
	}
}
