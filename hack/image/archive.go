package main

import (
	"archive/tar"
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// write makes the layout and the archive, and gives the digest of the index
// over all platforms.
func (o *options) write(images []v1.Image) (v1.Hash, error) {
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for i, image := range images {
		index = mutate.AppendManifests(index, mutate.IndexAddendum{
			Add: image, Descriptor: v1.Descriptor{Platform: &o.platforms[i]},
		})
	}
	index = mutate.Annotations(index, o.labels()).(v1.ImageIndex) //nolint:errcheck // it gives what it got
	dir := filepath.Join(o.out, "layout")
	path, err := layout.Write(dir, empty.Index)
	if err != nil {
		return v1.Hash{}, err
	}
	_, tag, _ := strings.Cut(filepath.Base(o.name), ":")
	err = path.AppendIndex(index, layout.WithAnnotations(map[string]string{
		"org.opencontainers.image.ref.name": tag,
		"io.containerd.image.name":          o.name, // what ctr and kind name it by
	}))
	if err != nil {
		return v1.Hash{}, err
	}
	if err := o.archive(dir, images[0]); err != nil {
		return v1.Hash{}, err
	}
	return index.Digest()
}

// archive makes one file of the layout. containerd (ctr, kind, Docker with its
// image store) reads it as that, with all platforms. A manifest.json as docker
// save writes it is for Docker's own older store, which holds one platform: the
// first.
func (o *options) archive(dir string, first v1.Image) error {
	manifest, err := first.Manifest()
	if err != nil {
		return err
	}
	entry := struct {
		Config   string
		RepoTags []string
		Layers   []string
	}{Config: blob(manifest.Config.Digest), RepoTags: []string{o.name}}
	for _, l := range manifest.Layers {
		entry.Layers = append(entry.Layers, blob(l.Digest))
	}
	saved, err := json.Marshal([]any{entry})
	if err != nil {
		return err
	}
	out, err := os.Create(filepath.Join(o.out, "weft.tar"))
	if err != nil {
		return err
	}
	defer out.Close()
	w := tar.NewWriter(out)
	err = filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		if entry.IsDir() {
			return w.WriteHeader(header(name+"/", 0o755, 0, o.created))
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return o.add(w, name, data)
	})
	if err != nil {
		return err
	}
	if err := o.add(w, "manifest.json", saved); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	return out.Close()
}

func (o *options) add(w *tar.Writer, name string, data []byte) error {
	if err := w.WriteHeader(header(name, 0o644, len(data), o.created)); err != nil {
		return err
	}
	_, err := w.Write(data)
	return err
}

// blob is the path of a blob in a layout.
func blob(h v1.Hash) string { return "blobs/" + h.Algorithm + "/" + h.Hex }
