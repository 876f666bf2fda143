package main

import (
	"bytes"
	"context"
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"

	"github.com/google/go-containerregistry/pkg/v1"
)

// program is one of the binaries.
type program struct {
	name string
	data []byte
	info *debug.BuildInfo
}

func readProgram(path string, p v1.Platform) (program, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return program{}, err
	}
	info, err := buildinfo.Read(bytes.NewReader(data))
	if err != nil {
		return program{}, fmt.Errorf("%s: %w", path, err)
	}
	for key, want := range map[string]string{"GOOS": p.OS, "GOARCH": p.Architecture, "CGO_ENABLED": "0", "-trimpath": "true"} {
		if got := setting(info, key); got != want {
			return program{}, fmt.Errorf("%s was built with %s %q; it has to be %q", path, key, got, want)
		}
	}
	return program{name: filepath.Base(path), data: data, info: info}, nil
}

func setting(info *debug.BuildInfo, key string) string {
	for _, s := range info.Settings {
		if s.Key == key {
			return s.Value
		}
	}
	return ""
}

// module is one that the binaries have code of: the product, Go's standard
// library, or another.
type module struct {
	path, version string
	sum           string // of the go.sum file; empty for the first two
	licence       string // SPDX expression
	texts         map[string][]byte
}

// The modules that have no go.sum line.
const (
	product = "github.com/weft-cni/weft"
	std     = "std"
)

// listed is what `go list -json` says of a package.
type listed struct {
	ImportPath, Dir string
	Standard        bool
	Module          *struct{ Path, Version, Dir string }
}

// modules gives the modules that programs are made of, in the order of their
// paths, with the licences that hold for the packages in use. The go command
// and the binaries have to agree on what is in them.
func (o *options) modules(ctx context.Context, p v1.Platform, programs []program) ([]module, error) {
	all := map[string]*module{}
	sums := map[string]string{}
	for _, program := range programs {
		for _, dep := range program.info.Deps {
			if dep.Replace != nil {
				return nil, fmt.Errorf("%s: %s is replaced; nobody else could tell by what", program.name, dep.Path)
			}
			sums[dep.Path+"@"+dep.Version] = dep.Sum
		}
	}
	packages, err := o.list(ctx, p)
	if err != nil {
		return nil, err
	}
	for _, pkg := range packages {
		path, version, top := std, programs[0].info.GoVersion, o.goroot
		if m := pkg.Module; m != nil && !pkg.Standard {
			path, version, top = m.Path, m.Version, m.Dir
		}
		m, ok := all[path]
		if !ok {
			m = &module{path: path, version: version, sum: sums[path+"@"+version], texts: map[string][]byte{}}
			all[path] = m
		}
		dir := pkg.Dir
		if path == std {
			dir = top // its packages are under the one licence at the top
		}
		if err = m.gather(top, dir); err != nil {
			return nil, fmt.Errorf("licences of %s: %w", pkg.ImportPath, err)
		}
	}
	all[product].version = o.version
	for key := range sums {
		if !slices.ContainsFunc(slices.Collect(maps.Values(all)), func(m *module) bool { return m.path+"@"+m.version == key }) {
			return nil, fmt.Errorf("the binaries have %s, the sources don't: build them again", key)
		}
	}
	var modules []module
	for _, path := range slices.Sorted(maps.Keys(all)) {
		m := all[path]
		if m.sum == "" && path != product && path != std {
			return nil, fmt.Errorf("the sources have %s, the binaries don't: build them again", path)
		}
		if m.licence, err = classify(m.texts); err != nil {
			return nil, fmt.Errorf("module %s: %w", path, err)
		}
		modules = append(modules, *m)
	}
	return modules, nil
}

// list gives all packages that are in the binaries.
func (o *options) list(ctx context.Context, p v1.Platform) (packages []listed, err error) {
	cmd := exec.CommandContext(ctx, "go", "list", "-deps", "-json=ImportPath,Dir,Standard,Module", "./cmd/plugin", "./cmd/daemon")
	cmd.Dir = o.sources
	cmd.Env = append(os.Environ(), "GOOS="+p.OS, "GOARCH="+p.Architecture, "CGO_ENABLED=0", "GOFLAGS=-mod=readonly")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w\n%s", err, stderr.Bytes())
	}
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var pkg listed
		switch err := d.Decode(&pkg); {
		case errors.Is(err, io.EOF):
			return packages, nil
		case err != nil:
			return nil, fmt.Errorf("go list: %w", err)
		}
		packages = append(packages, pkg)
	}
}
