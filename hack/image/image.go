package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// file is a file of the image.
type file struct {
	data       []byte
	executable bool
}

// image makes an image of one layer for each set of files, by path.
func (o *options) image(p v1.Platform, layers ...map[string]file) (v1.Image, error) {
	image := mutate.MediaType(empty.Image, types.OCIManifestSchema1)
	image = mutate.ConfigMediaType(image, types.OCIConfigJSON)
	for _, files := range layers {
		data, err := pack(files, o.created)
		if err != nil {
			return nil, err
		}
		layer, err := tarball.LayerFromOpener(
			func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil },
			tarball.WithMediaType(types.OCILayer), tarball.WithCompressionLevel(gzip.BestCompression),
		)
		if err != nil {
			return nil, err
		}
		if image, err = mutate.AppendLayers(image, layer); err != nil {
			return nil, err
		}
	}
	config, err := image.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture, config.Variant = p.OS, p.Architecture, p.Variant
	config.Created = v1.Time{Time: o.created}
	config.Config = v1.Config{
		Entrypoint: []string{"/weftd"},
		// What weftd writes on the node belongs to root.
		User:       "0:0",
		WorkingDir: "/",
		Labels:     o.labels(),
	}
	if image, err = mutate.ConfigFile(image, config); err != nil {
		return nil, err
	}
	return mutate.Annotations(image, o.labels()).(v1.Image), nil //nolint:errcheck // it gives what it got
}

// labels are the image's labels and annotations (OCI image specification,
// "Annotations").
func (o *options) labels() map[string]string {
	const site = "https://github.com/weft-cni/weft"
	labels := map[string]string{
		"title":         "Weft",
		"description":   "A Kubernetes CNI for bare-metal clusters: the plugin weft and the node daemon weftd",
		"url":           site,
		"source":        site,
		"documentation": site + "/tree/main/docs",
		"licenses":      "Apache-2.0",
		"version":       o.version,
		"created":       o.created.Format(time.RFC3339),
	}
	if o.revision != "" {
		labels["revision"] = o.revision
	}
	full := map[string]string{}
	for key, value := range labels {
		full["org.opencontainers.image."+key] = value
	}
	return full
}

// pack makes a tar of files that depends on nothing but them.
func pack(files map[string]file, created time.Time) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	written := map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		for i, r := range name {
			if dir := name[:i]; r == '/' && !written[dir] {
				written[dir] = true
				if err := w.WriteHeader(header(dir+"/", 0o755, 0, created)); err != nil {
					return nil, err
				}
			}
		}
		f := files[name]
		mode := int64(0o644)
		if f.executable {
			mode = 0o755
		}
		if err := w.WriteHeader(header(name, mode, len(f.data), created)); err != nil {
			return nil, err
		}
		if _, err := w.Write(f.data); err != nil {
			return nil, err
		}
	}
	return b.Bytes(), w.Close()
}

func header(name string, mode int64, size int, modified time.Time) *tar.Header {
	kind := byte(tar.TypeReg)
	if strings.HasSuffix(name, "/") {
		kind = tar.TypeDir
	}
	return &tar.Header{Typeflag: kind, Name: name, Mode: mode, Size: int64(size), ModTime: modified, Format: tar.FormatPAX}
}

// sizes gives the bytes of layers as they are pulled, and on disk.
func sizes(layers []v1.Layer) (packed, unpacked int64, err error) {
	for _, l := range layers {
		size, err := l.Size()
		if err != nil {
			return 0, 0, err
		}
		content, err := l.Uncompressed()
		if err != nil {
			return 0, 0, err
		}
		n, err := io.Copy(io.Discard, content)
		if err != nil {
			return 0, 0, err
		}
		packed, unpacked = packed+size, unpacked+n
		if err := content.Close(); err != nil {
			return 0, 0, err
		}
	}
	return packed, unpacked, nil
}
