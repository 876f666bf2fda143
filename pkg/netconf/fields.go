package netconf

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// fields are the keys of one JSON object, read one at a time so that an error
// can name the key and show its value. Keys are compared as they are written:
// encoding/json alone would take "MTU" for "mtu".
type fields struct {
	kind error  // of errors about values: ErrConfig, ErrNode
	path string // before each key in messages: empty or "ipam."
	raw  map[string]json.RawMessage
}

// parseFields reads one JSON object.
func parseFields(data []byte, kind error) (fields, error) {
	f := fields{kind: kind}
	err := json.Unmarshal(data, &f.raw)
	if err == nil && f.raw != nil {
		return f, nil
	}
	fault := shorten(data)
	if syntax := (*json.SyntaxError)(nil); errors.As(err, &syntax) {
		fault = fmt.Sprintf("wrong at byte %d: %v", syntax.Offset, syntax)
	}
	return f, fmt.Errorf("%w: %w: %s", kind, ErrDecode, fault)
}

// has reports whether key is there with a value other than null.
func (f fields) has(key string) bool {
	raw, ok := f.raw[key]
	return ok && string(raw) != "null"
}

// decode reads the value of key into to, which keeps its value where the key
// is missing.
func (f fields) decode(key string, to any, want string) error {
	if !f.has(key) {
		return nil
	}
	if json.Unmarshal(f.raw[key], to) != nil {
		return f.bad(key, want)
	}
	return nil
}

// bad is an error about the value of key, or about its absence.
func (f fields) bad(key, want string) error {
	return &InputError{Kind: f.kind, Key: f.path + key, Value: shorten(f.raw[key]), Want: want}
}

// object reads the object at key; it is empty where the key is missing.
func (f fields) object(key, want string) (fields, error) {
	inner := fields{kind: f.kind, path: f.path + key + "."}
	err := f.decode(key, &inner.raw, want)
	return inner, err
}

// objects reads the list of objects at key.
func (f fields) objects(key, want string) ([]fields, error) {
	var raws []map[string]json.RawMessage
	if err := f.decode(key, &raws, want); err != nil {
		return nil, err
	}
	all := make([]fields, len(raws))
	for i, raw := range raws {
		all[i] = fields{kind: f.kind, path: fmt.Sprintf("%s%s[%d].", f.path, key, i), raw: raw}
	}
	return all, nil
}

// only makes an error of the first key that is not among known and not exempt.
func (f fields) only(known []string, exempt func(key string) bool) error {
	for _, key := range slices.Sorted(maps.Keys(f.raw)) {
		if !slices.Contains(known, key) && (exempt == nil || !exempt(key)) {
			return unknownKey(key, f.path, f.raw[key], known)
		}
	}
	return nil
}

// topKeys are the keys of a configuration that mean something here.
var topKeys = []string{
	"cniVersion", "name", "type", "mode", "mtu", "mac", "defaultRoute", "routes", "dns", "ipam",
	"logLevel", "logFile", "dataDir", "runDir", "capabilities", "runtimeConfig", "args", "prevResult",
}

// foreign reports whether key is none of the plugin's business. The CNI
// specification (section 1) lets a plugin refuse keys that it doesn't know,
// and a misspelled "mtu" shouldn't pass for an absent one. But these reach it
// without the author's doing or are meant for others: those with a slash (the
// runtime's "cni.dev/..." and others' by a domain name), notes (a leading
// underscore or $schema), and what Multus puts into each configuration of a
// network that has devices.
func foreign(key string) bool {
	return strings.Contains(key, "/") || strings.HasPrefix(key, "_") ||
		slices.Contains([]string{"$schema", "deviceID", "pciBusID", "resourceName"}, key)
}
