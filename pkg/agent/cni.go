package agent

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"time"

	"github.com/containernetworking/cni/pkg/invoke"

	"github.com/weft-cni/weft/pkg/netconf"
	"github.com/weft-cni/weft/pkg/settings"
)

// confList is a network configuration list (CNI specification, section 1).
type confList struct {
	// CNIVersion is what runtimes take that don't know of CNIVersions, which
	// came with CNI 1.1: containerd 1.7 and older fail on "1.1.0" here.
	CNIVersion  string   `json:"cniVersion"`
	CNIVersions []string `json:"cniVersions"`
	Name        string   `json:"name"`
	Plugins     []plugin `json:"plugins"`
}

type plugin struct {
	Type         string          `json:"type"`
	Capabilities map[string]bool `json:"capabilities"`
}

// compatible is the newest version that every runtime in use takes.
const compatible = "1.0.0"

// makeConfList gives the list for the plugins that are to be chained. speaks
// tells which CNI versions a plugin speaks; fs.ErrNotExist where there is no
// such plugin.
func makeConfList(s settings.CNI, speaks func(plugin string) ([]string, error), log *slog.Logger) ([]byte, error) {
	list := confList{
		CNIVersions: slices.Clone(netconf.Versions),
		Name:        netconf.ClusterName,
		Plugins:     []plugin{{netconf.Type, map[string]bool{"ips": true, "mac": true}}},
	}
	for _, p := range []struct {
		plugin
		chain settings.Chain
	}{
		{plugin{"portmap", map[string]bool{"portMappings": true}}, s.Portmap},
		{plugin{"bandwidth", map[string]bool{"bandwidth": true}}, s.Bandwidth},
	} {
		if p.chain == settings.Never {
			continue
		}
		versions, err := speaks(p.Type)
		switch {
		case err == nil:
			list.Plugins = append(list.Plugins, p.plugin)
			// A runtime asks all plugins of a list for one version.
			list.CNIVersions = slices.DeleteFunc(list.CNIVersions, func(v string) bool { return !slices.Contains(versions, v) })
		case p.chain == settings.Always:
			return nil, fmt.Errorf("chain %s, which cni.%s asks for: %w", p.Type, p.Type, err)
		case !errors.Is(err, os.ErrNotExist):
			log.Warn("plugin not chained", "plugin", p.Type, "err", err)
		}
	}
	for _, v := range list.CNIVersions {
		if v <= compatible {
			list.CNIVersion = v
		}
	}
	if list.CNIVersion == "" {
		return nil, fmt.Errorf("the chained plugins speak none of CNI %v", netconf.Versions)
	}
	data, err := json.MarshalIndent(list, "", "  ")
	return append(data, '\n'), err
}

// versions knows which CNI versions the plugins in dir speak. A plugin is
// asked again when its file has changed. Not safe for concurrent use.
type versions struct {
	dir   string
	known map[string]answer
}

type answer struct {
	file     os.FileInfo
	versions []string
}

// of gives the versions that a plugin speaks: as it says, or, where it can't be
// run here, those up to compatible. The error is fs.ErrNotExist where there is
// none of that name.
func (v *versions) of(ctx context.Context, name string) ([]string, error) {
	path := filepath.Join(v.dir, name)
	file, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if a, ok := v.known[name]; ok && os.SameFile(a.file, file) && a.file.ModTime().Equal(file.ModTime()) {
		return a.versions, nil
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	var speaks []string
	info, err := invoke.GetVersionInfo(ctx, path, nil)
	switch {
	case err == nil:
		speaks = info.SupportedVersions()
	case lacksLibraries(path):
		speaks = slices.DeleteFunc(slices.Clone(netconf.Versions), func(v string) bool { return v > compatible })
	default:
		return nil, fmt.Errorf("ask %s for its CNI versions: %w", path, err)
	}
	if v.known == nil {
		v.known = map[string]answer{}
	}
	v.known[name] = answer{file, speaks}
	return speaks, nil
}

// lacksLibraries reports whether a program needs a dynamic linker that isn't
// here. In the daemon's container there is none, but plugins of a distribution
// need the node's, and have it when the runtime runs them.
func lacksLibraries(path string) bool {
	f, err := elf.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type != elf.PT_INTERP {
			continue
		}
		linker, err := io.ReadAll(p.Open())
		if err != nil {
			return false
		}
		_, err = os.Stat(string(bytes.TrimRight(linker, "\x00")))
		return errors.Is(err, os.ErrNotExist)
	}
	return false
}

// install puts the plugin into dir, unless it is there already.
func install(plugin, dir string) (changed bool, err error) {
	data, err := os.ReadFile(plugin)
	if err != nil {
		return false, fmt.Errorf("install the plugin: %w", err)
	}
	changed, err = writeFile(filepath.Join(dir, netconf.Type), data, 0o755)
	if err != nil {
		return false, fmt.Errorf("install the plugin: %w", err)
	}
	return changed, nil
}

// writeFile makes path hold data, at once and for good, unless it does.
func writeFile(path string, data []byte, mode os.FileMode) (changed bool, err error) {
	if old, readErr := os.ReadFile(path); readErr == nil && bytes.Equal(old, data) {
		return false, nil
	}
	if err = os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return false, err
	}
	// Hidden, so that no runtime takes it for a configuration.
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return false, err
	}
	_, err = io.Copy(f, bytes.NewReader(data))
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return false, errors.Join(err, os.Remove(f.Name()))
	}
	return true, nil
}

// callsWeft is what a configuration has that leads to ours, such as Multus'.
var callsWeft = regexp.MustCompile(`"type"\s*:\s*"` + netconf.Type + `"`)

// rivalConfig finds the configuration that a runtime prefers to ours: the
// first by name of those that it reads, unless that calls our plugin.
func rivalConfig(dir string) (name string, ok bool) {
	entries, err := os.ReadDir(dir) // sorted
	if err != nil {
		return "", false
	}
	for _, e := range entries {
		if e.Name() >= netconf.ConfList {
			break
		}
		if !slices.Contains([]string{".conf", ".conflist", ".json"}, filepath.Ext(e.Name())) {
			continue
		}
		data, err := os.ReadFile(filepath.Join(dir, e.Name()))
		return e.Name(), err != nil || !callsWeft.Match(data)
	}
	return "", false
}
