package ipam_test

import (
	"context"
	"fmt"
	"os"
	"testing"

	"github.com/weft-cni/weft/pkg/ipam"
)

// BenchmarkAllocate takes an address of each family and gives it back, beside
// so many that stay taken. The pool is on a tmpfs, as on a node, where this
// machine has one.
func BenchmarkAllocate(b *testing.B) {
	if info, err := os.Stat("/dev/shm"); err == nil && info.IsDir() {
		b.Setenv("TMPDIR", "/dev/shm")
	}
	for _, used := range []int{0, 250, 1000, 60_000} {
		b.Run(fmt.Sprint("used=", used), func(b *testing.B) {
			p := newPool(b)
			p.Restore = func() ([]ipam.Claim, error) {
				all := make([]ipam.Claim, used)
				v4, v6 := addrs("10.0.0.2")[0], addrs("fd00::2")[0]
				for i := range all {
					all[i] = ipam.Claim{Owner: owner(i), Addrs: addrs(v4.String(), v6.String())}
					v4, v6 = v4.Next(), v6.Next()
				}
				return all, nil
			}
			ctx := context.Background()
			r := ranges("10.0.0.0/16", "fd00::/64")
			allocate(b, p, owner(used), r)
			release(b, p, owner(used))
			for b.Loop() {
				if _, err := p.Allocate(ctx, owner(used), r, nil); err != nil {
					b.Fatal(err)
				}
				if err := p.Release(ctx, owner(used)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
