package agent

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/google/go-cmp/cmp"

	"github.com/weft-cni/weft/pkg/settings"
	"github.com/weft-cni/weft/test/testns"
)

func TestConfList(t *testing.T) {
	modern := []string{"0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"}
	for name, test := range map[string]struct {
		chain settings.Chain
		there map[string][]string
		fails string
	}{
		"alone":           {chain: settings.IfPresent},
		"chained":         {chain: settings.IfPresent, there: map[string][]string{"portmap": modern, "bandwidth": modern}},
		"portmap only":    {chain: settings.IfPresent, there: map[string][]string{"portmap": modern}},
		"old plugins":     {chain: settings.IfPresent, there: map[string][]string{"portmap": modern[:6], "bandwidth": modern[:5]}},
		"not wanted":      {chain: settings.Never, there: map[string][]string{"portmap": modern, "bandwidth": modern}},
		"wanted":          {chain: settings.Always, there: map[string][]string{"portmap": modern, "bandwidth": modern}},
		"wanted, missing": {chain: settings.Always, there: map[string][]string{"portmap": modern}, fails: "chain bandwidth, which cni.bandwidth asks for: file does not exist"},
		"ancient":         {chain: settings.Always, there: map[string][]string{"portmap": {"0.1.0"}, "bandwidth": modern}, fails: "speak none of CNI [0.3.1 0.4.0 1.0.0 1.1.0]"},
	} {
		t.Run(name, func(t *testing.T) {
			data, err := makeConfList(settings.CNI{Portmap: test.chain, Bandwidth: test.chain}, func(plugin string) ([]string, error) {
				if versions, ok := test.there[plugin]; ok {
					return versions, nil
				}
				return nil, os.ErrNotExist
			}, slog.New(slog.DiscardHandler))
			if test.fails != "" {
				if err == nil || !strings.Contains(err.Error(), test.fails) {
					t.Errorf("error is %v, want %q", err, test.fails)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			testns.Golden(t, "conflist-"+strings.ReplaceAll(strings.ReplaceAll(name, " ", "-"), ",", "")+".golden", string(data))
			list, err := libcni.NetworkConfFromBytes(data)
			if err != nil || len(list.Plugins) == 0 {
				t.Errorf("libcni takes %+v of it: %v", list, err)
			}
		})
	}
}

// A plugin that can't be asked is left out where nobody insists on it.
func TestConfListWithBrokenPlugin(t *testing.T) {
	broken := func(string) ([]string, error) { return nil, errors.New("exec format error") }
	log := slog.New(slog.DiscardHandler)
	data, err := makeConfList(settings.CNI{Portmap: settings.IfPresent, Bandwidth: settings.IfPresent}, broken, log)
	if err != nil || strings.Contains(string(data), "portmap") {
		t.Errorf("%s, %v", data, err)
	}
	if _, err := makeConfList(settings.CNI{Portmap: settings.Always, Bandwidth: settings.Never}, broken, log); err == nil {
		t.Error("a plugin that is asked for is broken: no error")
	}
}

func TestVersionsOfAPlugin(t *testing.T) {
	dir := t.TempDir()
	asked := filepath.Join(dir, "asked")
	plugin := func(versions string) {
		script := fmt.Sprintf("#!/bin/sh\necho >> %s\necho '{\"cniVersion\":\"1.1.0\",\"supportedVersions\":[%s]}'\n", asked, versions)
		if err := os.WriteFile(filepath.Join(dir, "portmap"), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	v := &versions{dir: dir}
	if _, err := v.of(t.Context(), "portmap"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a plugin that isn't there: %v", err)
	}
	plugin(`"1.0.0"`)
	for range 3 {
		got, err := v.of(t.Context(), "portmap")
		if d := cmp.Diff([]string{"1.0.0"}, got); err != nil || d != "" {
			t.Errorf("%v, %s", err, d)
		}
	}
	if data, err := os.ReadFile(asked); err != nil || len(data) != 1 {
		t.Errorf("asked %d times, %v", len(data), err)
	}
	plugin(`"1.0.0","1.1.0"`)
	later := time.Now().Add(time.Minute)
	if err := os.Chtimes(filepath.Join(dir, "portmap"), later, later); err != nil {
		t.Fatal(err)
	}
	got, err := v.of(t.Context(), "portmap")
	if d := cmp.Diff([]string{"1.0.0", "1.1.0"}, got); err != nil || d != "" {
		t.Errorf("after an upgrade: %v, %s", err, d)
	}
	if err := os.WriteFile(filepath.Join(dir, "bandwidth"), []byte("#!/bin/sh\nexit 3\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := v.of(t.Context(), "bandwidth"); err == nil || !strings.Contains(err.Error(), "for its CNI versions") {
		t.Errorf("a broken plugin: %v", err)
	}
}

// A distribution's plugin needs libraries that the daemon's container lacks.
func TestVersionsOfAPluginOfTheNode(t *testing.T) {
	const linker = "/no/such/ld.so\x00"
	header := elf.Header64{
		Ident: [elf.EI_NIDENT]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: uint32(elf.EV_CURRENT),
		Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: 1,
	}
	interpreter := elf.Prog64{Type: uint32(elf.PT_INTERP), Off: 120, Filesz: uint64(len(linker)), Memsz: uint64(len(linker))}
	var program bytes.Buffer
	for _, part := range []any{header, interpreter, []byte(linker)} {
		if err := binary.Write(&program, binary.LittleEndian, part); err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "portmap"), program.Bytes(), 0o755); err != nil {
		t.Fatal(err)
	}
	got, err := (&versions{dir: dir}).of(t.Context(), "portmap")
	if d := cmp.Diff([]string{"0.3.1", "0.4.0", "1.0.0"}, got); err != nil || d != "" {
		t.Errorf("%v, %s", err, d)
	}
}

func TestInstall(t *testing.T) {
	from, to := t.TempDir(), filepath.Join(t.TempDir(), "opt", "cni", "bin")
	source := filepath.Join(from, "weft")
	if err := os.WriteFile(source, []byte("one"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		data    string
		changed bool
	}{{"one", true}, {"one", false}, {"two", true}} {
		if err := os.WriteFile(source, []byte(step.data), 0o600); err != nil {
			t.Fatal(err)
		}
		changed, err := install(source, to)
		if err != nil || changed != step.changed {
			t.Errorf("%s: changed %v, %v", step.data, changed, err)
		}
		info, err := os.Stat(filepath.Join(to, "weft"))
		if err != nil || info.Mode() != 0o755 {
			t.Errorf("mode %v, %v", info.Mode(), err)
		}
	}
	if entries, err := os.ReadDir(to); err != nil || len(entries) != 1 {
		t.Errorf("left beside it: %v, %v", entries, err)
	}
	if _, err := install(filepath.Join(from, "none"), to); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no source: %v", err)
	}
	if _, err := install(source, filepath.Join(source, "below a file")); err == nil {
		t.Error("no directory: no error")
	}
}

func TestRivalConfig(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"10-weft.conflist", "20-later.conflist", "00-readme.txt", ".05-hidden.swp"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if name, ok := rivalConfig(dir); ok {
		t.Errorf("%s is none", name)
	}
	if err := os.WriteFile(filepath.Join(dir, "10-flannel.conflist"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if name, ok := rivalConfig(dir); !ok || name != "10-flannel.conflist" {
		t.Errorf("found %q, %v", name, ok)
	}
	multus := `{"type": "multus", "delegates": [{"name": "weft", "plugins": [{"capabilities": {}, "type": "weft"}]}]}`
	if err := os.WriteFile(filepath.Join(dir, "00-multus.conflist"), []byte(multus), 0o600); err != nil {
		t.Fatal(err)
	}
	if name, ok := rivalConfig(dir); ok {
		t.Errorf("%s leads to ours", name)
	}
}
