package encrypt

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/weft-cni/weft/pkg/kernel"
)

var t0 = time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)

func TestKeysAreKept(t *testing.T) {
	s := Store{Dir: filepath.Join(t.TempDir(), KeyDir)}
	load := func() []Key {
		keys, err := s.Load()
		if err != nil {
			t.Fatal(err)
		}
		return keys
	}
	same := cmp.Comparer(func(a, b kernel.Secret) bool { return a == b })
	is := func(want []Key) {
		t.Helper()
		if d := cmp.Diff(want, load(), same); d != "" {
			t.Errorf("-want +loaded:\n%s", d)
		}
	}
	if keys := load(); len(keys) != 0 {
		t.Fatalf("a new store has %d keys", len(keys))
	}
	keys, err := s.Make(nil, t0)
	if err != nil {
		t.Fatal(err)
	}
	is(keys)
	if keys, err = s.Make(keys, t0.Add(-time.Hour)); err != nil { // a clock that was set back
		t.Fatal(err)
	}
	is(keys)
	if len(keys) != 2 || keys[0].Slot == keys[1].Slot || !keys[0].Created.After(keys[1].Created) {
		t.Errorf("%+v", keys)
	}
	if _, err = s.Make(keys, t0); err == nil {
		t.Error("a third key is made")
	}
	for range 3 { // around both slots
		if keys, err = s.Retire(keys); err != nil || len(keys) != 1 {
			t.Fatal(keys, err)
		}
		is(keys)
		if keys, err = s.Make(keys, t0); err != nil {
			t.Fatal(err)
		}
		is(keys)
	}
	for slot := range Slots {
		info, err := os.Stat(s.path(slot))
		if err != nil || info.Mode() != 0o600 {
			t.Errorf("mode of %s: %v, %v", s.path(slot), info.Mode(), err)
		}
	}
	if info, err := os.Stat(s.Dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("mode of the directory: %v, %v", info.Mode(), err)
	}
	if left, _ := filepath.Glob(s.Dir + "/*.new"); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// TestBadKeyFiles: a file that can't be used is named, its contents aren't, and
// it stays.
func TestBadKeyFiles(t *testing.T) {
	const secret = "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk="
	good := `{"privateKey":"` + secret + `","created":"2026-11-01T00:00:00Z"}`
	for name, c := range map[string]struct {
		data string
		mode os.FileMode
	}{
		"readable by others": {good, 0o644},
		"writable by others": {good, 0o620},
		"empty":              {"", 0o600},
		"not JSON":           {secret, 0o600},
		"cut short":          {good[:40], 0o600},
		"short key":          {strings.Replace(good, secret, secret[4:], 1), 0o600},
		"zero key":           {strings.Replace(good, secret, strings.Repeat("A", 43)+"=", 1), 0o600},
		"no time":            {`{"privateKey":"` + secret + `"}`, 0o600},
	} {
		t.Run(name, func(t *testing.T) {
			s := Store{Dir: t.TempDir()}
			if err := os.WriteFile(s.path(1), []byte(c.data), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(s.path(1), c.mode); err != nil {
				t.Fatal(err)
			}
			_, err := s.Load()
			if err == nil || !strings.Contains(err.Error(), s.path(1)) || strings.Contains(err.Error(), secret[8:20]) {
				t.Errorf("the error is %v", err)
			}
		})
	}
	// A key that came in between is not replaced.
	s := Store{Dir: t.TempDir()}
	if err := os.WriteFile(s.path(0), []byte(good), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Make(nil, t0); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a key was replaced: %v", err)
	}
	if keys, err := s.Load(); err != nil || len(keys) != 1 {
		t.Errorf("%v, %v", keys, err)
	}
}

func TestDue(t *testing.T) {
	c := Config{RotateEvery: 100 * time.Hour}
	var least, most time.Duration
	for range 1000 {
		k := []Key{{Created: t0, Private: kernel.NewPrivateKey()}}
		due := Due(c, k, time.Time{}).Sub(t0)
		if due != Due(c, k, time.Time{}).Sub(t0) {
			t.Fatal("two answers")
		}
		if least == 0 || due < least {
			least = due
		}
		most = max(most, due)
		if asked := t0.Add(time.Hour); !Due(c, k, asked).Equal(asked) {
			t.Fatal("it isn't due when asked for")
		}
		if got := Due(c, k, t0.Add(-time.Hour)).Sub(t0); got != due {
			t.Fatal("a key made since is due again")
		}
	}
	if least < 90*time.Hour || least > 92*time.Hour || most > 110*time.Hour || most < 108*time.Hour {
		t.Errorf("spread from %v to %v", least, most)
	}
}
