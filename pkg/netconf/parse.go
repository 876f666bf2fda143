package netconf

import (
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
)

// MTUs in bytes: the least is what every IPv4 host takes (RFC 791 section
// 3.1), the most what Linux gives a device.
const (
	minMTU = 576
	maxMTU = 65535
)

// readIdentity reads what no command can do without.
func (n *Network) readIdentity(f fields) error {
	if err := f.decode("cniVersion", &n.CNIVersion, list(Versions)); err != nil {
		return err
	}
	if !slices.Contains(Versions, n.CNIVersion) {
		return &InputError{Kind: ErrVersion, Key: "cniVersion", Value: shorten(f.raw["cniVersion"]), Want: list(Versions)}
	}
	if err := f.decode("name", &n.Name, wantName); err != nil {
		return err
	}
	if !IsName(n.Name) {
		return f.bad("name", wantName)
	}
	return nil
}

// readMode reads what decides about all other keys.
func (n *Network) readMode(f fields) error {
	modes := []Mode{ModeCluster, ModeOverlay, ModeSRIOV}
	mode, want := ModeCluster, list([]string{string(ModeCluster), string(ModeOverlay), string(ModeSRIOV)})
	if err := f.decode("mode", &mode, want); err != nil {
		return err
	}
	if !slices.Contains(modes, mode) {
		return f.bad("mode", want)
	}
	n.Mode = mode
	switch {
	case mode == ModeSRIOV:
		n.IPAM.Type, n.DefaultRoute = "", false // what it has comes from its IPAM plugin
	case mode == ModeOverlay && !f.has("ipam"):
		n.IPAM.Type, n.DefaultRoute = "", false
	case mode == ModeOverlay:
		n.DefaultRoute = false
	}
	return nil
}

func (n *Network) readKeys(f fields) error {
	if f.has("ipMasq") {
		return fmt.Errorf("%w: ipMasq (%s): masquerading is a setting of weftd", ErrUnsupported, shorten(f.raw["ipMasq"]))
	}
	if n.Mode == ModeSRIOV {
		return f.only(vfKeys, foreign)
	}
	if n.Mode == ModeOverlay {
		return f.only(overlayKeys, foreign)
	}
	return f.only(topKeys, foreign)
}

// readPlaces reads where the plugin keeps and logs what.
func (n *Network) readPlaces(f fields) error {
	for _, place := range []struct {
		key string
		to  *string
	}{{"dataDir", &n.DataDir}, {"runDir", &n.RunDir}, {"logFile", &n.LogFile}} {
		if !f.has(place.key) {
			continue
		}
		var path string
		want := "an absolute path"
		if err := f.decode(place.key, &path, want); err != nil {
			return err
		}
		if !filepath.IsAbs(path) || strings.ContainsRune(path, 0) {
			return f.bad(place.key, want)
		}
		*place.to = path
	}
	levels := map[string]slog.Level{
		"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError,
	}
	if n.Mode == ModeSRIOV { // sriov-cni's words
		levels["verbose"], levels["warning"], levels["panic"] = slog.LevelDebug, slog.LevelWarn, slog.LevelError
	}
	level := "info"
	want := "debug, info, warn, error"
	if err := f.decode("logLevel", &level, want); err != nil {
		return err
	}
	var ok bool
	if n.LogLevel, ok = levels[level]; !ok {
		return f.bad("logLevel", want)
	}
	return nil
}

// readInterface reads what the pod's interface is like.
func (n *Network) readInterface(f fields) error {
	mtu, want := 0, fmt.Sprintf("0 (the node's) or %d to %d bytes", minMTU, maxMTU)
	if err := f.decode("mtu", &mtu, want); err != nil {
		return err
	}
	if mtu != 0 && (mtu < minMTU || mtu > maxMTU) {
		return f.bad("mtu", want)
	}
	n.MTU = mtu
	return f.decode("defaultRoute", &n.DefaultRoute, "true or false")
}

func (n *Network) readIPAM(f fields) error {
	if n.Mode == ModeOverlay && n.IPAM.None() {
		return nil
	}
	ipam, err := f.object("ipam", "an object with type and routes")
	if err != nil {
		return err
	}
	kind := n.IPAM.Type
	want := Type + " or the name of an IPAM plugin in CNI_PATH"
	if err := ipam.decode("type", &kind, want); err != nil {
		return err
	}
	if n.Mode == ModeSRIOV {
		want = "the name of an IPAM plugin in CNI_PATH, or none; the node's own addresses are routed, which takes the cluster network"
		if kind == Type {
			return ipam.bad("type", want)
		}
		if kind == "" {
			return nil // an interface without addresses
		}
	}
	if kind == "" || kind == "." || kind == ".." || strings.ContainsAny(kind, "/\\\x00") {
		return ipam.bad("type", want)
	}
	n.IPAM.Type = kind
	if !n.IPAM.Own() || n.Mode == ModeOverlay {
		return nil // its other keys are the delegate's, or the segment's
	}
	return ipam.only([]string{"type", "routes"}, nil)
}

func (n *Network) readDNS(f fields) error {
	dns, err := f.object("dns", "an object with nameservers, domain, search, options")
	if err != nil {
		return err
	}
	if err := dns.only([]string{"nameservers", "domain", "search", "options"}, nil); err != nil {
		return err
	}
	var d types.DNS
	servers := "a list of IP addresses"
	for _, key := range []struct {
		name, want string
		to         any
	}{
		{"nameservers", servers, &d.Nameservers},
		{"domain", "a domain name", &d.Domain},
		{"search", "a list of domain names", &d.Search},
		{"options", "a list of resolver options", &d.Options},
	} {
		if err := dns.decode(key.name, key.to, key.want); err != nil {
			return err
		}
	}
	for _, s := range d.Nameservers {
		if _, err := netip.ParseAddr(s); err != nil {
			return dns.bad("nameservers", servers)
		}
	}
	n.DNS = d
	return nil
}

func (n *Network) readPrevResult(f fields) error {
	if !f.has("prevResult") {
		return nil
	}
	result, err := ParseResult(f.raw["prevResult"], n.CNIVersion)
	if err != nil {
		return f.bad("prevResult", "a CNI result of version "+list(Versions))
	}
	n.PrevResult = result
	return nil
}

// readValidAttachments reads what GC must keep. Where a runtime gives none at
// all, a GC would remove every pod's interface, so that is an error; null or
// an empty list says that no pod is left.
func (n *Network) readValidAttachments(f fields) error {
	const key = "cni.dev/valid-attachments"
	if n.Env.Command != GC {
		return nil
	}
	want := "a list of objects with containerID and ifname"
	if _, ok := f.raw[key]; !ok {
		return f.bad(key, want)
	}
	all, err := f.objects(key, want)
	if err != nil {
		return err
	}
	valid := make([]types.GCAttachment, len(all))
	for i, a := range all {
		if err := a.decode("containerID", &valid[i].ContainerID, wantName); err != nil {
			return err
		}
		if err := a.decode("ifname", &valid[i].IfName, wantLinkName); err != nil {
			return err
		}
		if !IsName(valid[i].ContainerID) {
			return a.bad("containerID", wantName)
		}
		if !IsLinkName(valid[i].IfName) {
			return a.bad("ifname", wantLinkName)
		}
	}
	n.ValidAttachments = valid
	return nil
}
