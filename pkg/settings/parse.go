package settings

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/weft-cni/weft/pkg/encrypt"
)

// Flag is a setting given on the command line.
type Flag struct{ Key, Value string }

// Parse reads the YAML file data and puts flags over it; flags later in the
// list win. The error joins all that is wrong: for each, the key, its value
// and what it takes.
func Parse(data []byte, flags []Flag) (Settings, error) {
	s := Default()
	values, err := flatten(data)
	if err != nil {
		return Settings{}, fmt.Errorf("settings: %w", err)
	}
	var errs []error
	for _, key := range slices.Sorted(maps.Keys(values)) {
		if err := s.set(key, values[key]); err != nil {
			errs = append(errs, fmt.Errorf("settings: %s %w", key, err))
		}
	}
	for _, f := range flags {
		if err := s.set(f.Key, f.Value); err != nil {
			errs = append(errs, fmt.Errorf("flag --%s %w", FlagName(f.Key), err))
		}
	}
	if err := cmp.Or(errors.Join(errs...), s.check()); err != nil {
		return Settings{}, err
	}
	return s, nil
}

// FlagName is the name of a key's flag: underlay.interface is set by
// --underlay-interface.
func FlagName(key string) string {
	var b strings.Builder
	for i, r := range key {
		switch {
		case r == '.':
			b.WriteByte('-')
		case r >= 'A' && r <= 'Z':
			if prev := key[i-1]; prev >= 'a' && prev <= 'z' {
				b.WriteByte('-')
			}
			b.WriteRune(r - 'A' + 'a')
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}

func (s *Settings) set(key string, value any) error {
	k, ok := find(key)
	if !ok {
		return fmt.Errorf("is unknown%s", suggest(key))
	}
	if err := k.set(s, value); err != nil {
		return fmt.Errorf("is %s; accepted: %s%s", show(value), k.Takes, because(err))
	}
	return nil
}

// check looks at what no key can tell alone.
func (s *Settings) check() error {
	var errs []error
	for _, c := range s.Underlay.CIDRs {
		if s.Underlay.Family == IPv4 && !c.Addr().Is4() || s.Underlay.Family == IPv6 && c.Addr().Is4() {
			errs = append(errs, fmt.Errorf("settings: underlay.cidrs has %s; accepted: ranges of underlay.family, which is %s", c, s.Underlay.Family))
		}
	}
	if s.Encrypt.Keepalive%time.Second != 0 {
		errs = append(errs, fmt.Errorf("settings: wireguard.persistentKeepalive is %s; accepted: whole seconds", s.Encrypt.Keepalive))
	}
	if s.Encrypt.Mode != encrypt.None && s.Overlay.DirectRouting {
		errs = append(errs, fmt.Errorf("settings: encryption is %s; accepted with directRouting: none, since a direct route is in clear", s.Encrypt.Mode))
	}
	if s.Encrypt.Mode == encrypt.WireGuard && len(s.Encrypt.ClusterCIDRs) == 0 {
		errs = append(errs, fmt.Errorf("settings: wireguard.clusterCIDRs is empty; accepted with encryption %s: the ranges that hold all pods, as in kube-controller-manager's --cluster-cidr, since nothing else tells which packets must not leave in clear", s.Encrypt.Mode))
	}
	errs = append(errs, disjoint("noMasquerade", s.Overlay.NoMasquerade), disjoint("wireguard.clusterCIDRs", s.Encrypt.ClusterCIDRs))
	return errors.Join(errs...)
}

// disjoint refuses what the kernel's sets don't take: a prefix that overlaps
// another.
func disjoint(key string, prefixes []netip.Prefix) error {
	var errs []error
	for i, c := range prefixes {
		for _, other := range prefixes[:i] {
			if c.Overlaps(other) {
				errs = append(errs, fmt.Errorf("settings: %s has %s; accepted: ranges that don't overlap, and this one does %s", key, c, other))
			}
		}
	}
	return errors.Join(errs...)
}

// flatten reads YAML into scalars (their text, or nil) and lists by dotted
// key: {underlay: {family: ipv4}} is underlay.family.
func flatten(data []byte) (map[string]any, error) {
	text, err := yaml.YAMLToJSONStrict(data)
	if err != nil {
		return nil, fmt.Errorf("not YAML: %w", err)
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	var tree any
	if err := d.Decode(&tree); err != nil {
		return nil, fmt.Errorf("not YAML: %w", err)
	}
	if tree == nil {
		return nil, nil // an empty file
	}
	root, ok := tree.(map[string]any)
	if !ok {
		return nil, fmt.Errorf("the file is %s; accepted: a map of keys such as vni and underlay", show(tree))
	}
	values := map[string]any{}
	return values, flattenInto(values, "", root)
}

func flattenInto(values map[string]any, prefix string, tree map[string]any) error {
	for key, v := range tree {
		name := prefix + key
		sub, isMap := v.(map[string]any)
		switch {
		case strings.Contains(key, "."):
			return fmt.Errorf("key %q has a dot; accepted: sections as maps, as in {underlay: {family: ipv4}}", key)
		case !isSection(name):
			values[name] = v
		case isMap:
			if err := flattenInto(values, name+".", sub); err != nil {
				return err
			}
		case v != nil: // a section with nothing in it is null
			return fmt.Errorf("%s is %s; accepted: a map of %s", name, show(v), strings.Join(known(name), ", "))
		}
	}
	return nil
}

// show prints a value as the user wrote it, more or less.
func show(v any) string {
	text, err := json.Marshal(v)
	if err != nil {
		return fmt.Sprint(v)
	}
	return string(text)
}

func because(err error) string {
	if text := err.Error(); text != "" {
		return " (" + text + ")"
	}
	return ""
}
