package netconf

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
)

// What is wrong with the plugin's input, each with a CNI error code of its
// own (CNI specification, section 5, "Error").
var (
	ErrVersion     = errors.New("incompatible CNI version")      // code 1
	ErrUnsupported = errors.New("unsupported field")             // code 2
	ErrEnv         = errors.New("invalid environment variable")  // code 4
	ErrDecode      = errors.New("not a JSON object")             // code 6
	ErrConfig      = errors.New("invalid network configuration") // code 7
)

// What is wrong with the node file.
var (
	// ErrStale says that it is from before the node's last boot: the daemon
	// has not been ready since (code 11).
	ErrStale = errors.New("written before the node's last boot")
	// ErrNode says that it is not what the daemon writes.
	ErrNode = errors.New("invalid node file")
)

// InputError is one fault in what the plugin was given.
type InputError struct {
	Kind  error  // what errors.Is finds: ErrEnv, ErrConfig, ...
	Key   string // a path in the configuration, as in routes[1].dst, or a variable
	Value string // as it was given; empty where the key is missing
	Want  string // what is accepted
}

func (e *InputError) Error() string {
	if e.Value == "" {
		return fmt.Sprintf("%v: %s is missing; accepted: %s", e.Kind, e.Key, e.Want)
	}
	return fmt.Sprintf("%v: %s is %s; accepted: %s", e.Kind, e.Key, e.Value, e.Want)
}

func (e *InputError) Unwrap() error { return e.Kind }

// unknownKey is an error about a key that has no meaning here. A known one
// that it may be a misspelling of is put into the message.
func unknownKey(key, path string, raw json.RawMessage, known []string) error {
	hint := ""
	if k := Nearest(key, known); k != "" {
		hint = fmt.Sprintf(" did you mean %s%s?", path, k)
	}
	return fmt.Errorf("%w: unknown key %s%s (%s);%s accepted: %s",
		ErrUnsupported, path, key, shorten(raw), hint, list(known))
}

// badEnv is an error about an environment variable.
func badEnv(name, value, want string) error {
	if value != "" {
		value = fmt.Sprintf("%q", cut(value))
	}
	return &InputError{Kind: ErrEnv, Key: name, Value: value, Want: want}
}

// shorten gives a JSON value on one line, as far as an error message has room
// for it.
func shorten(raw json.RawMessage) string {
	if raw == nil {
		return ""
	}
	var b bytes.Buffer
	if json.Compact(&b, raw) != nil {
		return cut(fmt.Sprintf("%q", raw))
	}
	return cut(b.String())
}

func cut(s string) string {
	const most = 80
	if len(s) <= most {
		return s
	}
	return s[:most] + "..."
}
