package ipam_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/weft-cni/weft/pkg/ipam"
)

// walk is a pool and what it must hold.
type walk struct {
	*testing.T

	rand   *rand.Rand
	pool   *ipam.Pool
	ranges []netip.Prefix
	has    map[ipam.Owner][]netip.Addr
}

func (w *walk) owner() ipam.Owner { return owner(w.rand.IntN(40)) }

func (w *walk) taken(addr netip.Addr) bool {
	for _, all := range w.has {
		if slices.Contains(all, addr) {
			return true
		}
	}
	return false
}

// usable reports whether addr may be a pod's.
func (w *walk) usable(addr netip.Addr) bool {
	for _, r := range w.ranges {
		first := r.Addr()
		last := addr.Is4() && !r.Contains(addr.Next())
		if r.Contains(addr) && addr != first && addr != first.Next() && !last {
			return true
		}
	}
	return false
}

// free counts the addresses of a family that nobody has.
func (w *walk) free(is4 bool) int {
	n := 0
	for _, r := range w.ranges {
		for a := r.Addr(); a.Is4() == is4 && r.Contains(a); a = a.Next() {
			if !w.taken(a) && w.usable(a) {
				n++
			}
		}
	}
	return n
}

func (w *walk) allocate() {
	o := w.owner()
	delete(w.has, o) // a repeated ADD gives up what the first one got
	var want []netip.Addr
	if w.rand.IntN(4) == 0 {
		want = []netip.Addr{netip.AddrFrom4([4]byte{10, 0, byte(w.rand.IntN(3)), byte(w.rand.IntN(20))})}
	}
	asked := len(want) > 0
	room := w.free(false) > 0 && (asked || w.free(true) > 0)
	got, err := w.pool.Allocate(w.Context(), o, w.ranges, want)
	switch {
	case asked && !w.usable(want[0]):
		if !errors.Is(err, ipam.ErrOutside) {
			w.Fatalf("%s wants %s: %v, %v", o, want, got, err)
		}
		return
	case asked && w.taken(want[0]):
		if !errors.Is(err, ipam.ErrTaken) {
			w.Fatalf("%s wants %s: %v, %v", o, want, got, err)
		}
		return
	case !room:
		if !errors.Is(err, ipam.ErrExhausted) {
			w.Fatalf("%s: %v, %v, but all are in use", o, got, err)
		}
		return
	case err != nil:
		w.Fatalf("%s: %v, with %d and %d free", o, err, w.free(true), w.free(false))
	}
	if len(got) != 2 || !got[0].Is4() || !got[1].Is6() || asked && got[0] != want[0] {
		w.Fatalf("%s wants %v and gets %v", o, want, got)
	}
	for _, a := range got {
		if w.taken(a) || !w.usable(a) {
			w.Fatalf("%s gets %s, which can't be given", o, a)
		}
	}
	w.has[o] = got
}

func (w *walk) release() {
	o := w.owner()
	release(w.T, w.pool, o)
	delete(w.has, o)
}

func (w *walk) sweep() {
	keep := map[ipam.Owner]bool{}
	for o := range w.has {
		if w.rand.IntN(4) > 0 {
			keep[o] = true
		} else {
			delete(w.has, o)
		}
	}
	_, err := w.pool.Sweep(w.Context(), func(o ipam.Owner) bool { return keep[o] })
	must(w.T, err)
}

// damage does to the caches what disks, hands and old versions may do.
func (w *walk) damage() {
	dir := filepath.Join(w.pool.Dir, "pool", "windows")
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) == 0 {
		return
	}
	path := filepath.Join(dir, entries[w.rand.IntN(len(entries))].Name())
	info, err := os.Stat(path)
	must(w.T, err)
	data := make([]byte, info.Size())
	for i := range data {
		data[i] = byte(w.rand.Uint32())
	}
	switch w.rand.IntN(3) {
	case 0:
		must(w.T, os.Remove(path))
	case 1:
		must(w.T, os.WriteFile(path, data, 0o600))
	case 2:
		must(w.T, os.Truncate(path, w.rand.Int64N(20)))
	}
}

// lose deletes the run directory: what is restored is what records tell.
func (w *walk) lose() {
	must(w.T, os.RemoveAll(w.pool.Dir))
}

func (w *walk) check() {
	files := 0
	for o, all := range w.has {
		must(w.T, w.pool.Holds(o, all))
		files += 1 + len(all)
	}
	if _, err := os.Stat(filepath.Join(w.pool.Dir, "pool")); err != nil {
		return // nothing is restored before the next Allocate
	}
	if got := left(w.T, w.pool); len(got) != files {
		w.Fatalf("%d files where %d belong: %v", len(got), files, got)
	}
}

// A pool under random operations, beside a model of it.
func TestRandomWalk(t *testing.T) {
	for seed := range uint64(8) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			w := &walk{
				T:      t,
				rand:   rand.New(rand.NewPCG(seed, 0)),
				pool:   newPool(t),
				ranges: ranges("10.0.0.0/29", "fd00::/123", "10.0.1.0/28", "fd00:1::/126"),
				has:    map[ipam.Owner][]netip.Addr{},
			}
			w.pool.Restore = func() ([]ipam.Claim, error) {
				var all []ipam.Claim
				for o, a := range w.has {
					all = append(all, ipam.Claim{Owner: o, Addrs: a})
				}
				return all, nil
			}
			for range 250 {
				switch n := w.rand.IntN(100); {
				case n < 55:
					w.allocate()
				case n < 90:
					w.release()
				case n < 92:
					w.sweep()
				case n < 98:
					w.damage()
				default:
					w.lose()
					w.allocate()
				}
				w.check()
			}
		})
	}
}
