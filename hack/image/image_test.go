package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	cdx "github.com/CycloneDX/cyclonedx-go"
	"github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

var platforms = []v1.Platform{{OS: "linux", Architecture: "amd64"}, {OS: "linux", Architecture: "arm64"}}

// binaries builds the programs as hack/image.sh does.
func binaries(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, p := range platforms {
		for name, pkg := range map[string]string{"weft": "plugin", "weftd": "daemon"} {
			cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w -X main.version=v1.2.3",
				"-o", filepath.Join(dir, p.OS+"-"+p.Architecture, name), "./cmd/"+pkg)
			cmd.Dir = "../.."
			cmd.Env = append(os.Environ(), "GOOS="+p.OS, "GOARCH="+p.Architecture, "CGO_ENABLED=0")
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
		}
	}
	return dir
}

func build(t *testing.T, bin string) string {
	t.Helper()
	o := options{
		bin: bin, out: filepath.Join(t.TempDir(), "image"), goroot: goroot(t), sources: "../..",
		name: "example.com/weft:v1.2.3", version: "v1.2.3", revision: "abc", created: time.Unix(1e9, 0).UTC(), platforms: platforms,
	}
	if err := run(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	return o.out
}

func goroot(t *testing.T) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", "env", "GOROOT").Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

func TestImage(t *testing.T) {
	bin := binaries(t)
	out := build(t, bin)
	if a, b := digests(t, out), digests(t, build(t, bin)); !maps.Equal(a, b) {
		t.Errorf("made again, it is another:\n%v\n%v", a, b)
	}
	index, err := layout.ImageIndexFromPath(filepath.Join(out, "layout"))
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(index); err != nil {
		t.Fatal(err)
	}
	images := byPlatform(t, index)
	for _, p := range platforms {
		image, ok := images[p.String()]
		if !ok {
			t.Fatalf("no image for %s", p)
		}
		t.Run(p.String(), func(t *testing.T) {
			describes(t, image, p)
			holds(t, image, p, bin)
		})
	}
	t.Run("for Docker", func(t *testing.T) {
		saved, err := tarball.ImageFromPath(filepath.Join(out, "weft.tar"), nil)
		if err != nil {
			t.Fatal(err)
		}
		got, gotErr := saved.ConfigName()
		want, wantErr := images[platforms[0].String()].ConfigName()
		if gotErr != nil || wantErr != nil || got != want {
			t.Errorf("docker load gets image %s, not %s: %v %v", got, want, gotErr, wantErr)
		}
	})
}

// digests gives the sum of each file.
func digests(t *testing.T, dir string) map[string][sha256.Size]byte {
	t.Helper()
	sums := map[string][sha256.Size]byte{}
	err := fs.WalkDir(os.DirFS(dir), ".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		data, err := os.ReadFile(filepath.Join(dir, path))
		sums[path] = sha256.Sum256(data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return sums
}

// byPlatform finds the images below the index that the layout names.
func byPlatform(t *testing.T, top v1.ImageIndex) map[string]v1.Image {
	t.Helper()
	manifest, err := top.IndexManifest()
	if err != nil || len(manifest.Manifests) != 1 {
		t.Fatalf("%+v %v", manifest, err)
	}
	entry := manifest.Manifests[0]
	if name := entry.Annotations["io.containerd.image.name"]; name != "example.com/weft:v1.2.3" {
		t.Errorf("the image is called %q", name)
	}
	if tag := entry.Annotations["org.opencontainers.image.ref.name"]; tag != "v1.2.3" {
		t.Errorf("its tag is %q", tag)
	}
	index, err := top.ImageIndex(entry.Digest)
	if err != nil {
		t.Fatal(err)
	}
	if manifest, err = index.IndexManifest(); err != nil {
		t.Fatal(err)
	}
	images := map[string]v1.Image{}
	for _, d := range manifest.Manifests {
		if images[d.Platform.String()], err = index.Image(d.Digest); err != nil {
			t.Fatal(err)
		}
	}
	return images
}

func describes(t *testing.T, image v1.Image, p v1.Platform) {
	t.Helper()
	config, err := image.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if config.OS != p.OS || config.Architecture != p.Architecture || !config.Created.Equal(time.Unix(1e9, 0)) {
		t.Errorf("%+v", config)
	}
	if !slices.Equal(config.Config.Entrypoint, []string{"/weftd"}) || config.Config.User != "0:0" {
		t.Errorf("%+v", config.Config)
	}
	manifest, err := image.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]string{
		"source": "https://github.com/weft-cni/weft", "version": "v1.2.3", "revision": "abc", "licenses": "Apache-2.0",
		"created": "2001-09-09T01:46:40Z",
	} {
		key = "org.opencontainers.image." + key
		if manifest.Annotations[key] != want || config.Config.Labels[key] != want {
			t.Errorf("%s: annotation %q, label %q, not %q", key, manifest.Annotations[key], config.Config.Labels[key], want)
		}
	}
}

// holds checks the files of an image: two programs and papers.
func holds(t *testing.T, image v1.Image, p v1.Platform, bin string) {
	t.Helper()
	files := extract(t, image)
	var programs []string
	for name, f := range files {
		if f.executable {
			programs = append(programs, name)
		}
	}
	slices.Sort(programs)
	if !slices.Equal(programs, []string{"weft", "weftd"}) {
		t.Errorf("what runs is %v", programs)
	}
	machine := map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}[p.Architecture]
	for _, name := range programs {
		want, err := os.ReadFile(filepath.Join(bin, p.OS+"-"+p.Architecture, name))
		if err != nil || !bytes.Equal(files[name].data, want) {
			t.Errorf("%s is not the one that was built: %v", name, err)
		}
		f, err := elf.NewFile(bytes.NewReader(want))
		if err != nil {
			t.Fatal(err)
		}
		if libraries, err := f.ImportedLibraries(); f.Machine != machine || len(libraries) > 0 {
			t.Errorf("%s is for %s and needs %v (%v)", name, f.Machine, libraries, err)
		}
	}
	for _, name := range []string{
		"licenses/github.com/weft-cni/weft/LICENSE", "licenses/std/LICENSE", "licenses/k8s.io/client-go/LICENSE",
		"licenses/github.com/prometheus/client_golang/NOTICE",
	} {
		if len(files[name].data) == 0 {
			t.Errorf("no %s", name)
		}
	}
	var bom cdx.BOM
	if err := json.Unmarshal(files["sbom.cdx.json"].data, &bom); err != nil {
		t.Fatal(err)
	}
	var parts []string
	for _, c := range *bom.Components {
		parts = append(parts, c.PackageURL)
	}
	for _, want := range []string{
		"pkg:golang/github.com/weft-cni/weft/cmd/daemon@v1.2.3", "pkg:golang/std@" + strings.TrimPrefix(runtime.Version(), "go"),
	} {
		if !slices.Contains(parts, want) {
			t.Errorf("the SBOM has no %s:\n%s", want, strings.Join(parts, "\n"))
		}
	}
	if lines := strings.Count(string(files["licenses/list.csv"].data), "\n"); lines != len(parts) { // two programs against one module and a title
		t.Errorf("the SBOM has %d components, the list of licences %d lines", len(parts), lines)
	}
}

func extract(t *testing.T, image v1.Image) map[string]file {
	t.Helper()
	layers, err := image.Layers()
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]file{}
	for _, l := range layers {
		content, err := l.Uncompressed()
		if err != nil {
			t.Fatal(err)
		}
		for r := tar.NewReader(content); ; {
			h, err := r.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if h.Uid != 0 || h.Gid != 0 || h.Mode&0o022 != 0 {
				t.Errorf("%s has owner %d:%d and mode %o", h.Name, h.Uid, h.Gid, h.Mode)
			}
			if h.Typeflag == tar.TypeDir {
				continue
			}
			data, err := io.ReadAll(r)
			if err != nil {
				t.Fatal(err)
			}
			files[h.Name] = file{data: data, executable: h.Mode&0o111 != 0}
		}
	}
	return files
}

// TestBinariesOfAnotherPlatform are refused, and so is what was built
// otherwise.
func TestBinariesOfAnotherPlatform(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []v1.Platform{
		{OS: runtime.GOOS, Architecture: "mips"},
		{OS: runtime.GOOS, Architecture: runtime.GOARCH}, // with paths of this machine in it
	} {
		if _, err := readProgram(self, p); err == nil || !strings.Contains(err.Error(), "was built with") {
			t.Errorf("for %s: %v", p, err)
		}
	}
}

func TestClassify(t *testing.T) {
	apache, err := os.ReadFile("../../LICENSE")
	if err != nil {
		t.Fatal(err)
	}
	gpl := []byte("This program is free software: you can redistribute it and/or modify it under the terms of the " +
		"GNU General Public License as published by the Free Software Foundation, either version 3 of the License, or " +
		"(at your option) any later version.")
	for name, c := range map[string]struct {
		texts map[string][]byte
		want  string
		err   string
	}{
		"one":        {map[string][]byte{"LICENSE": apache}, "Apache-2.0", ""},
		"and notice": {map[string][]byte{"LICENSE": apache, "NOTICE": []byte("thanks")}, "Apache-2.0", ""},
		"none":       {map[string][]byte{"NOTICE": []byte("thanks")}, "", "no licence"},
		"unknown":    {map[string][]byte{"LICENSE": []byte("do as we say")}, "", "LICENSE: 0 % of it are the text of a licence that is known"},
		"refused":    {map[string][]byte{"a/COPYING": gpl}, "", "a/COPYING is GPL"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := classify(c.texts)
			if got != c.want || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
}

func TestParse(t *testing.T) {
	args := []string{"-name", "x:y", "-version", "v1", "-goroot", "/go", "-created", "5"}
	if _, err := parse(args); err == nil {
		t.Error("no platform")
	}
	o, err := parse(append(args, "linux/arm64"))
	if err != nil || fmt.Sprint(o.platforms) != "[linux/arm64]" || o.created.Unix() != 5 {
		t.Errorf("%+v %v", o, err)
	}
}
