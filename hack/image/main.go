// Command image makes Weft's container image of binaries that are already
// built, without a container engine: for each platform a file system with
// /weftd, /weft, the licences of all that is in them and a list of it (SBOM),
// and nothing else. The same binaries make the same bytes.
//
//	image -bin DIR -out DIR -name REPOSITORY:TAG -version V ... PLATFORM ...
//
// DIR has a directory for each platform: linux-amd64 with weft and weftd. It
// runs at the top of the sources, where the go command finds the modules. It
// writes
//
//	layout/             an OCI image layout, to push
//	weft.tar            the same as an archive, to load: see archive
//	licenses/           the licences, as they are in the image
//	sbom-PLATFORM.json  what is in the binaries, in CycloneDX's format
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"time"

	"github.com/google/go-containerregistry/pkg/v1"
)

// options are the command line.
type options struct {
	bin, out string
	// goroot has the licence of the standard library; sources is the product's
	// module.
	goroot, sources string
	name            string // repository and tag
	version         string // of Weft
	revision        string // of its sources
	created         time.Time
	platforms       []v1.Platform
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	o, err := parse(os.Args[1:])
	if err == nil {
		err = run(ctx, o)
	}
	if err != nil {
		stop()
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1) //nolint:gocritic // stop was called
	}
}

func parse(args []string) (options, error) {
	var o options
	var created int64
	f := flag.NewFlagSet("image", flag.ExitOnError)
	f.StringVar(&o.bin, "bin", "bin", "`directory` with the binaries, in one for each platform")
	f.StringVar(&o.out, "out", "bin/image", "`directory` to write to")
	f.StringVar(&o.goroot, "goroot", "", "`directory` of the Go distribution that built the binaries")
	f.StringVar(&o.sources, "sources", ".", "`directory` of the sources")
	f.StringVar(&o.name, "name", "", "name of the image: repository:tag")
	f.StringVar(&o.version, "version", "", "version of Weft")
	f.StringVar(&o.revision, "revision", "", "commit of the sources")
	f.Int64Var(&created, "created", 0, "time of the sources, in `seconds` since 1970")
	_ = f.Parse(args) // it exits where it fails
	o.created = time.Unix(created, 0).UTC()
	for _, text := range f.Args() {
		p, err := v1.ParsePlatform(text)
		if err != nil {
			return o, fmt.Errorf("platform %s: %w", text, err)
		}
		o.platforms = append(o.platforms, *p)
	}
	if o.name == "" || o.version == "" || o.goroot == "" || len(o.platforms) == 0 {
		return o, errors.New("-name, -version, -goroot and a platform are needed")
	}
	return o, nil
}

func run(ctx context.Context, o options) error {
	if err := os.RemoveAll(o.out); err != nil {
		return err
	}
	if err := os.MkdirAll(o.out, 0o755); err != nil {
		return err
	}
	images := make([]v1.Image, 0, len(o.platforms))
	for _, p := range o.platforms {
		image, err := o.build(ctx, p)
		if err != nil {
			return fmt.Errorf("%s: %w", p, err)
		}
		images = append(images, image)
	}
	digest, err := o.write(images)
	if err != nil {
		return err
	}
	fmt.Printf("%s %s\n", o.name, digest)
	for i, image := range images {
		if err := report(o.platforms[i], image); err != nil {
			return err
		}
	}
	return nil
}

// build makes the image of one platform.
func (o *options) build(ctx context.Context, p v1.Platform) (v1.Image, error) {
	bin := filepath.Join(o.bin, p.OS+"-"+p.Architecture)
	programs := make([]program, 0, 2)
	for _, name := range []string{"weft", "weftd"} {
		read, err := readProgram(filepath.Join(bin, name), p)
		if err != nil {
			return nil, err
		}
		programs = append(programs, read)
	}
	modules, err := o.modules(ctx, p, programs)
	if err != nil {
		return nil, err
	}
	sbom, err := o.sbom(p, programs, modules)
	if err != nil {
		return nil, fmt.Errorf("SBOM: %w", err)
	}
	papers := licences(modules)
	if err := o.keep(p, papers, sbom); err != nil {
		return nil, err
	}
	papers["sbom.cdx.json"] = file{data: sbom}
	files := map[string]file{}
	for _, program := range programs {
		files[program.name] = file{data: program.data, executable: true}
	}
	return o.image(p, papers, files)
}

// keep writes beside the image what a reader looks for first.
func (o *options) keep(p v1.Platform, papers map[string]file, sbom []byte) error {
	for name, f := range papers {
		path := filepath.Join(o.out, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, f.data, 0o644); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(o.out, "sbom-"+p.OS+"-"+p.Architecture+".json"), sbom, 0o644)
}

func report(p v1.Platform, image v1.Image) error {
	layers, err := image.Layers()
	if err != nil {
		return err
	}
	packed, unpacked, err := sizes(layers)
	if err != nil {
		return err
	}
	const mb = 1e6
	fmt.Printf("  %-12s %5.1f MB to pull, %5.1f MB unpacked\n", p, float64(packed)/mb, float64(unpacked)/mb)
	return nil
}
