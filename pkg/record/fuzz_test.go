package record_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/weft-cni/weft/pkg/record"
)

// Whatever is in a record's file, Get refuses it as corrupt or gives something
// that Put writes and Get gives back.
func FuzzDecode(f *testing.F) {
	for _, in := range corrupt {
		f.Add([]byte(in))
	}
	f.Add([]byte(record1(``)))
	f.Add([]byte(record1(`,"config":{"name":"weft"},"podName":"web-0"`)))
	f.Fuzz(func(t *testing.T, data []byte) {
		s := record.Store{Dir: t.TempDir()}
		if err := os.WriteFile(filepath.Join(s.Dir, "0123abcd:eth0"), data, 0o600); err != nil {
			t.Fatal(err)
		}
		a, err := s.Get("0123abcd", "eth0")
		if err != nil {
			if c := (*record.CorruptError)(nil); !errors.As(err, &c) {
				t.Fatal(err)
			}
			return
		}
		put(t, s, a)
		again, err := s.Get("0123abcd", "eth0")
		if err != nil {
			t.Fatal(err)
		}
		// A Put writes the configuration anew, with other white space.
		a.Config, again.Config = nil, nil
		if d := cmp.Diff(a, again, byValue); d != "" {
			t.Fatal(d)
		}
	})
}
