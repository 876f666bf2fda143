package podns_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/weft-cni/weft/pkg/podns"
	"github.com/weft-cni/weft/test/testns"
)

func TestOpen(t *testing.T) {
	node := testns.Enter(t)
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		path string
		is   error
		want string
	}{
		{"/nonexistent", fs.ErrNotExist, "network namespace /nonexistent: no such file or directory"},
		{file, podns.ErrNotNetns, "network namespace FILE: not a network namespace"},
		{"/proc/self/ns/mnt", podns.ErrNotNetns, "network namespace /proc/self/ns/mnt: not a network namespace"},
		{node.Path, podns.ErrOwnNetns, "network namespace NODE: the node's network namespace, not one of a pod"},
	} {
		_, err := podns.Open(c.path)
		if err == nil {
			t.Errorf("%s: opened", c.path)
			continue
		}
		got := strings.NewReplacer(file, "FILE", node.Path, "NODE").Replace(err.Error())
		if got != c.want || !errors.Is(err, c.is) {
			t.Errorf("got  %s\nwant %s", got, c.want)
		}
	}
}

// TestNames: the host end's name and the MAC follow from the attachment, fit
// the kernel, and differ between attachments.
