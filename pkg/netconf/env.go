package netconf

import (
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"unicode"
)

// Commands of the CNI specification, in CNI_COMMAND.
const (
	Add     = "ADD"
	Del     = "DEL"
	Check   = "CHECK"
	GC      = "GC"
	Status  = "STATUS"
	Version = "VERSION"
)

// Env is the environment that a runtime runs the plugin with (CNI
// specification, section 2, "Parameters").
type Env struct {
	Command     string // CNI_COMMAND
	ContainerID string // CNI_CONTAINERID
	Netns       string // CNI_NETNS, an absolute path; empty on a DEL after the namespace is gone
	IfName      string // CNI_IFNAME
	Args        string // CNI_ARGS
	Path        string // CNI_PATH
}

// EnvFrom reads the environment by getenv (os.Getenv). It checks nothing:
// Parse does.
func EnvFrom(getenv func(string) string) Env {
	return Env{
		Command:     getenv("CNI_COMMAND"),
		ContainerID: getenv("CNI_CONTAINERID"),
		Netns:       getenv("CNI_NETNS"),
		IfName:      getenv("CNI_IFNAME"),
		Args:        getenv("CNI_ARGS"),
		Path:        getenv("CNI_PATH"),
	}
}

// Vars are the variables of e as a process that it is handed to gets them.
func (e Env) Vars() []string {
	return []string{
		"CNI_COMMAND=" + e.Command,
		"CNI_CONTAINERID=" + e.ContainerID,
		"CNI_NETNS=" + e.Netns,
		"CNI_IFNAME=" + e.IfName,
		"CNI_ARGS=" + e.Args,
		"CNI_PATH=" + e.Path,
	}
}

// validate checks the variables that the command needs, and no others.
func (e Env) validate() error {
	commands := []string{Add, Del, Check, GC, Status}
	if !slices.Contains(commands, e.Command) {
		return badEnv("CNI_COMMAND", e.Command, list(commands))
	}
	if e.Command == GC || e.Command == Status {
		return nil
	}
	if !IsName(e.ContainerID) {
		return badEnv("CNI_CONTAINERID", e.ContainerID, wantName)
	}
	if !IsLinkName(e.IfName) {
		return badEnv("CNI_IFNAME", e.IfName, wantLinkName)
	}
	if e.Command == Del && e.Netns == "" {
		return nil
	}
	if !filepath.IsAbs(e.Netns) || strings.ContainsRune(e.Netns, 0) {
		return badEnv("CNI_NETNS", e.Netns, "the absolute path of a network namespace")
	}
	return nil
}

// maxName is the longest name that the plugin makes file names of, in bytes.
// Runtimes' container IDs have 64 and a file's name may have 255.
const maxName = 200

const wantName = "1 to 200 letters, digits, _, . or -, the first a letter or digit"

// maxLinkName is the kernel's IFNAMSIZ less the zero that ends a name.
const maxLinkName = 15

const wantLinkName = "1 to 15 bytes of UTF-8 without /, : and white space, not . nor .."

// IsLinkName reports whether the kernel takes s as a link's name: 1 to 15
// bytes, no slash, colon or white space, neither "." nor "..". It has to be
// UTF-8 as well, since records and results carry it in JSON.
func IsLinkName(s string) bool {
	bad := func(r rune) bool {
		return r == '/' || r == ':' || r == 0 || r == unicode.ReplacementChar || unicode.IsSpace(r)
	}
	return s != "" && len(s) <= maxLinkName && s != "." && s != ".." && !strings.ContainsFunc(s, bad)
}

// IsName reports whether s is what the CNI specification (sections 1 and 2)
// allows as a container ID or network name: ASCII letters, digits,
// underscores, dots and hyphens, of which the first is a letter or digit. It
// may have 200 characters, so that a file can have it as its name.
func IsName(s string) bool {
	for i := range len(s) {
		c := s[i]
		alnum := '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
		if !alnum && (i == 0 || c != '_' && c != '.' && c != '-') {
			return false
		}
	}
	return s != "" && len(s) <= maxName
}

// argKeys are the keys of CNI_ARGS that mean something here.
var argKeys = []string{
	"IgnoreUnknown", "IP", "MAC",
	"K8S_POD_NAMESPACE", "K8S_POD_NAME", "K8S_POD_INFRA_CONTAINER_ID", "K8S_POD_UID",
}

// args reads CNI_ARGS: pairs KEY=VALUE, with semicolons between. Keys of no
// meaning here are an error unless IgnoreUnknown is 1 or true, as Kubernetes'
// runtimes have it.
func (e Env) args() (map[string]string, error) {
	args := map[string]string{}
	for pair := range strings.SplitSeq(e.Args, ";") {
		if pair == "" {
			continue
		}
		key, value, ok := strings.Cut(pair, "=")
		if !ok || key == "" {
			return nil, badEnv("CNI_ARGS", pair, "KEY=VALUE pairs with ; between them")
		}
		args[key] = value
	}
	ignore := args["IgnoreUnknown"]
	if v := strings.ToLower(ignore); v == "1" || v == "true" {
		return args, nil
	} else if v != "" && v != "0" && v != "false" {
		return nil, badEnv("CNI_ARGS IgnoreUnknown", ignore, "1, true, 0, false")
	}
	for _, key := range slices.Sorted(maps.Keys(args)) {
		if !slices.Contains(argKeys, key) {
			return nil, badEnv("CNI_ARGS", key+"="+args[key], "the keys "+list(argKeys)+"; others with IgnoreUnknown=1")
		}
	}
	return args, nil
}
