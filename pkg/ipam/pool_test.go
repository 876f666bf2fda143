package ipam_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/weft-cni/weft/pkg/flock"
	"github.com/weft-cni/weft/pkg/ipam"
)

var byValue = cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})

func newPool(t testing.TB) *ipam.Pool {
	t.Helper()
	return &ipam.Pool{Dir: filepath.Join(t.TempDir(), "run", "ipam", "weft"), Boot: "b", LockTimeout: time.Minute}
}

func ranges(s ...string) []netip.Prefix {
	var all []netip.Prefix
	for _, s := range s {
		all = append(all, netip.MustParsePrefix(s))
	}
	return all
}

func addrs(s ...string) []netip.Addr {
	var all []netip.Addr
	for _, s := range s {
		all = append(all, netip.MustParseAddr(s))
	}
	return all
}

func owner(n int) ipam.Owner {
	return ipam.Owner{ContainerID: fmt.Sprintf("%064x", n), IfName: "eth0"}
}

func allocate(t testing.TB, p *ipam.Pool, o ipam.Owner, r []netip.Prefix, want ...netip.Addr) []netip.Addr {
	t.Helper()
	got, err := p.Allocate(context.Background(), o, r, want)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func release(t testing.TB, p *ipam.Pool, o ipam.Owner) {
	t.Helper()
	if err := p.Release(context.Background(), o); err != nil {
		t.Fatal(err)
	}
}

func same(t testing.TB, got, want []netip.Addr) {
	t.Helper()
	if d := cmp.Diff(want, got, byValue); d != "" {
		t.Error(d)
	}
}

// left lists what is in a pool's directory besides its lock and caches.
func left(t testing.TB, p *ipam.Pool) []string {
	t.Helper()
	var all []string
	for _, dir := range []string{"claims", "owners"} {
		entries, err := os.ReadDir(filepath.Join(p.Dir, "pool", dir))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			all = append(all, dir+"/"+e.Name())
		}
	}
	return all
}

func TestAllocateGivesOneOfEachFamily(t *testing.T) {
	p := newPool(t)
	r := ranges("10.244.1.0/24", "fd00:10:244:1::/64", "10.245.1.0/24")
	same(t, allocate(t, p, owner(1), r), addrs("10.244.1.2", "fd00:10:244:1::2"))
	same(t, allocate(t, p, owner(2), r), addrs("10.244.1.3", "fd00:10:244:1::3"))
	same(t, allocate(t, p, owner(3), ranges("fd00:10:244:1::/64")), addrs("fd00:10:244:1::4"))
	same(t, allocate(t, p, owner(4), ranges("fd00:10:244:1::/64", "10.244.1.0/24")), addrs("fd00:10:244:1::5", "10.244.1.4"))
}

// A released address is used again only when all others were.
func TestRoundRobin(t *testing.T) {
	p := newPool(t)
	r := ranges("10.244.1.0/28") // .2 to .14
	for i := range 40 {
		want := netip.AddrFrom4([4]byte{10, 244, 1, byte(2 + i%13)})
		same(t, allocate(t, p, owner(i), r), []netip.Addr{want})
		release(t, p, owner(i))
	}
}

func TestReserved(t *testing.T) {
	for _, c := range []struct {
		r    string
		give []netip.Addr
	}{
		{"10.0.0.0/30", addrs("10.0.0.2")},
		{"10.0.0.8/29", addrs("10.0.0.10", "10.0.0.11", "10.0.0.12", "10.0.0.13", "10.0.0.14")},
		{"fd00::4/126", addrs("fd00::6", "fd00::7")},
		{"fd00::/125", addrs("fd00::2", "fd00::3", "fd00::4", "fd00::5", "fd00::6", "fd00::7")},
	} {
		t.Run(c.r, func(t *testing.T) {
			p := newPool(t)
			var got []netip.Addr
			for i := range len(c.give) {
				got = append(got, allocate(t, p, owner(i), ranges(c.r))...)
			}
			same(t, got, c.give)
			if _, err := p.Allocate(t.Context(), owner(100), ranges(c.r), nil); !errors.Is(err, ipam.ErrExhausted) {
				t.Errorf("one more: %v", err)
			}
			base := netip.MustParsePrefix(c.r)
			for a := base.Addr(); base.Contains(a); a = a.Next() {
				if slices.Contains(c.give, a) {
					continue
				}
				if _, err := p.Allocate(t.Context(), owner(100), ranges(c.r), []netip.Addr{a}); !errors.Is(err, ipam.ErrOutside) {
					t.Errorf("asked for %s: %v", a, err)
				}
			}
		})
	}
}

func TestTooSmallRange(t *testing.T) {
	for _, r := range []string{"10.0.0.0/31", "10.0.0.1/32", "fd00::/127", "fd00::1/128", "10.0.0.1/24"} {
		_, err := newPool(t).Allocate(t.Context(), owner(1), ranges(r), nil)
		want := "range " + r + " has no address for pods; accepted: a network of a /30 (IPv4) or /126 (IPv6) at least"
		if err == nil || err.Error() != want {
			t.Errorf("got  %v\nwant %s", err, want)
		}
	}
	if _, err := newPool(t).Allocate(t.Context(), owner(1), nil, nil); !errors.Is(err, ipam.ErrExhausted) {
		t.Errorf("no range: %v", err)
	}
}

func TestNextRangeWhenFull(t *testing.T) {
	p := newPool(t)
	r := ranges("10.0.0.0/30", "fd00::/64", "10.0.1.0/29", "10.0.2.0/30")
	var got []netip.Addr
	for i := range 7 {
		got = append(got, allocate(t, p, owner(i), r)[0])
	}
	same(t, got, addrs("10.0.0.2", "10.0.1.2", "10.0.1.3", "10.0.1.4", "10.0.1.5", "10.0.1.6", "10.0.2.2"))
	_, err := p.Allocate(t.Context(), owner(7), r, nil)
	want := "no free address: in use are all 1 of 10.0.0.0/30 and all 5 of 10.0.1.0/29 and all 1 of 10.0.2.0/30 (claims in " +
		p.Dir + "/pool/claims)"
	if !errors.Is(err, ipam.ErrExhausted) || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
	if n := len(left(t, p)); n != 3*7 {
		t.Errorf("%d files for 7 attachments with 2 addresses each", n)
	}
	release(t, p, owner(2))
	same(t, allocate(t, p, owner(8), r), addrs("10.0.1.3", "fd00::9"))
}

func TestWanted(t *testing.T) {
	p := newPool(t)
	r := ranges("10.244.1.0/24", "fd00::/64")
	same(t, allocate(t, p, owner(1), r, addrs("10.244.1.100")...), addrs("10.244.1.100", "fd00::2"))
	same(t, allocate(t, p, owner(2), r, addrs("fd00::ffff:0:0:1", "10.244.1.3")...), addrs("10.244.1.3", "fd00::ffff:0:0:1"))
	same(t, allocate(t, p, owner(3), r), addrs("10.244.1.2", "fd00::3"))
	same(t, allocate(t, p, owner(4), r), addrs("10.244.1.4", "fd00::4")) // not 10.244.1.3

	_, err := p.Allocate(t.Context(), owner(5), r, addrs("10.244.1.100"))
	want := "10.244.1.100: address is in use: it is " + owner(1).String() + "'s"
	if !errors.Is(err, ipam.ErrTaken) || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
	_, err = p.Allocate(t.Context(), owner(5), r, addrs("10.245.0.5"))
	want = "10.245.0.5: address can't be given to a pod: the node's ranges are 10.244.1.0/24, fd00::/64, " +
		"and of each the first two addresses and in IPv4 the last are reserved"
	if !errors.Is(err, ipam.ErrOutside) || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
	if _, err = p.Allocate(t.Context(), owner(5), r[:1], addrs("fd00::5")); !errors.Is(err, ipam.ErrOutside) {
		t.Errorf("of a family without a range: %v", err)
	}
	if err = p.Holds(owner(5), nil); err != nil || slices.ContainsFunc(left(t, p), func(name string) bool {
		return strings.Contains(name, owner(5).ContainerID)
	}) {
		t.Errorf("failed allocations left something: %v, %v", err, left(t, p))
	}

	release(t, p, owner(1))
	same(t, allocate(t, p, owner(5), r, addrs("10.244.1.100")...), addrs("10.244.1.100", "fd00::5"))
}

// Of a range with more than 65,536 addresses the first ones are given out, and
// those behind them can be asked for.
func TestLargeRanges(t *testing.T) {
	p := newPool(t)
	r := ranges("10.0.0.0/8", "2001:db8::/32")
	same(t, allocate(t, p, owner(1), r, addrs("10.0.255.255", "2001:db8::fffe")...), addrs("10.0.255.255", "2001:db8::fffe"))
	same(t, allocate(t, p, owner(2), r, addrs("10.200.0.0", "2001:db8:1::")...), addrs("10.200.0.0", "2001:db8:1::"))
	same(t, allocate(t, p, owner(3), r), addrs("10.0.0.2", "2001:db8::2"))
	release(t, p, owner(1))
	release(t, p, owner(2))
	if got := left(t, p); len(got) != 3 {
		t.Errorf("left: %v", got)
	}
}

func TestReleaseIsTheOwnersAlone(t *testing.T) {
	p := newPool(t)
	r := ranges("10.0.0.0/30")
	release(t, p, owner(1)) // before anything exists
	if _, err := os.Stat(p.Dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a release made a pool: %v", err)
	}
	allocate(t, p, owner(1), r)
	release(t, p, owner(1))
	allocate(t, p, owner(2), r)
	release(t, p, owner(1)) // late: the address is another's
	if err := p.Holds(owner(2), addrs("10.0.0.2")); err != nil {
		t.Error(err)
	}
	other := owner(2)
	other.IfName = "net1"
	release(t, p, other)
	if err := p.Holds(owner(2), addrs("10.0.0.2")); err != nil {
		t.Error(err)
	}
	release(t, p, owner(2))
	release(t, p, owner(2))
	if got := left(t, p); len(got) != 0 {
		t.Errorf("left: %v", got)
	}
}

func TestHolds(t *testing.T) {
	p := newPool(t)
	allocate(t, p, owner(1), ranges("10.0.0.0/24"))
	allocate(t, p, owner(2), ranges("10.0.0.0/24"))
	for _, c := range []struct {
		addr, want string
	}{
		{"10.0.0.2", ""},
		{"10.0.0.3", "10.0.0.3: address is not held: it is " + owner(2).String() + "'s"},
		{"10.0.0.4", "10.0.0.4: address is not held: no claim on it in " + p.Dir},
	} {
		err := p.Holds(owner(1), addrs(c.addr))
		if c.want == "" && err == nil {
			continue
		}
		if !errors.Is(err, ipam.ErrNotHeld) || err.Error() != c.want {
			t.Errorf("got  %v\nwant %s", err, c.want)
		}
	}
}

// An ADD that was killed and is repeated has its first addresses no more.
func TestAllocateAgain(t *testing.T) {
	p := newPool(t)
	r := ranges("10.0.0.0/29", "fd00::/64")
	for range 20 {
		allocate(t, p, owner(1), r)
	}
	if got := left(t, p); len(got) != 3 {
		t.Errorf("left: %v", got)
	}
	same(t, allocate(t, p, owner(1), r, addrs("10.0.0.6")...), addrs("10.0.0.6", "fd00::16"))
	same(t, allocate(t, p, owner(1), r, addrs("10.0.0.6")...), addrs("10.0.0.6", "fd00::17"))
}

func TestSweep(t *testing.T) {
	p := newPool(t)
	r := ranges("10.0.0.0/28", "fd00::/64")
	if got, err := p.Sweep(t.Context(), nil); err != nil || got != nil {
		t.Errorf("without a pool: %v, %v", got, err)
	}
	for i := range 4 {
		allocate(t, p, owner(i), r)
	}
	claims := filepath.Join(p.Dir, "pool", "claims")
	// What crashes and hands leave: a claim whose owner's link is gone, an
	// owner's link without a claim, and what is no claim at all.
	must(t, os.Remove(filepath.Join(p.Dir, "pool", "owners", owner(2).ContainerID+":eth0")))
	must(t, os.Symlink("10.0.0.9", filepath.Join(p.Dir, "pool", "owners", owner(9).ContainerID+":eth0")))
	must(t, os.WriteFile(filepath.Join(claims, "10.0.0.10"), nil, 0o600))
	must(t, os.Symlink("../../../etc/passwd", filepath.Join(claims, "10.0.0.11")))

	kept := owner(1)
	gone, err := p.Sweep(t.Context(), func(o ipam.Owner) bool { return o == kept })
	if err != nil {
		t.Fatal(err)
	}
	got := map[ipam.Owner][]netip.Addr{}
	for _, c := range gone {
		slices.SortFunc(c.Addrs, netip.Addr.Compare)
		got[c.Owner] = c.Addrs
	}
	want := map[ipam.Owner][]netip.Addr{
		owner(0): addrs("10.0.0.2", "fd00::2"),
		owner(2): addrs("10.0.0.4", "fd00::4"),
		owner(3): addrs("10.0.0.5", "fd00::5"),
		owner(9): nil,
		{}:       addrs("10.0.0.10"),
		{ContainerID: "..", IfName: "../../etc/passwd"}: addrs("10.0.0.11"),
	}
	if d := cmp.Diff(want, got, byValue); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]string{"claims/10.0.0.3", "claims/fd00::3", "owners/" + kept.ContainerID + ":eth0"}, left(t, p)); d != "" {
		t.Error(d)
	}
	fill(t, p, r[:1], 12)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// fill takes addresses until none is left and says how many there were.
func fill(t *testing.T, p *ipam.Pool, r []netip.Prefix, want int) {
	t.Helper()
	seen := map[netip.Addr]bool{}
	for i := 0; ; i++ {
		got, err := p.Allocate(t.Context(), ipam.Owner{ContainerID: fmt.Sprint("fill", i), IfName: "eth0"}, r, nil)
		if errors.Is(err, ipam.ErrExhausted) {
			break
		}
		must(t, err)
		if seen[got[0]] {
			t.Fatalf("%s is given twice", got[0])
		}
		seen[got[0]] = true
	}
	if len(seen) != want {
		t.Errorf("%d addresses could be given, want %d: %v", len(seen), want, slices.Collect(maps.Keys(seen)))
	}
}

// The windows are caches: whatever is done to them, no address is given twice
// and none is lost.
func TestDamagedWindows(t *testing.T) {
	window := func(p *ipam.Pool) string { return filepath.Join(p.Dir, "pool", "windows", "10.0.0.0-26") }
	for name, damage := range map[string]func(p *ipam.Pool) error{
		"gone":       func(p *ipam.Pool) error { return os.Remove(window(p)) },
		"empty":      func(p *ipam.Pool) error { return os.Truncate(window(p), 0) },
		"short":      func(p *ipam.Pool) error { return os.Truncate(window(p), 9) },
		"long":       func(p *ipam.Pool) error { return os.Truncate(window(p), 4096) },
		"all free":   func(p *ipam.Pool) error { return os.WriteFile(window(p), make([]byte, 16), 0o600) },
		"all in use": func(p *ipam.Pool) error { return os.WriteFile(window(p), []byte(strings.Repeat("\xff", 16)), 0o600) },
		"wild cursor": func(p *ipam.Pool) error {
			return os.WriteFile(window(p), []byte("\xfe\xff\xff\xff\xff\xff\xff\x7f\x00\x00\x00\x00\x00\x00\x00\x00"), 0o600)
		},
		"interrupted": func(p *ipam.Pool) error { return os.WriteFile(window(p)+".new", []byte("x"), 0o600) },
		"strange": func(p *ipam.Pool) error {
			return os.WriteFile(filepath.Join(filepath.Dir(window(p)), "a-b"), nil, 0o600)
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPool(t)
			r := ranges("10.0.0.0/26")
			for i := range 20 {
				allocate(t, p, owner(i), r)
			}
			for i := range 10 {
				release(t, p, owner(2*i))
			}
			must(t, damage(p))
			release(t, p, owner(1))
			allocate(t, p, owner(100), r)
			must(t, damage(p))
			fill(t, p, r, 61-10)
		})
	}
}

// Ranges that change under a pool: what was given out before stays given out.
func TestRangesChange(t *testing.T) {
	p := newPool(t)
	for i := range 10 {
		allocate(t, p, owner(i), ranges("10.0.0.0/26"))
	}
	seen := map[netip.Addr]bool{}
	for i := range 10 {
		seen[netip.AddrFrom4([4]byte{10, 0, 0, byte(2 + i)})] = true
	}
	for i := range 45 {
		a := allocate(t, p, owner(100+i), ranges("10.0.0.0/24"))[0]
		if seen[a] {
			t.Fatalf("%s is given twice", a)
		}
		seen[a] = true
	}
	for i := range 10 {
		release(t, p, owner(i))
	}
	fill(t, p, ranges("10.0.0.0/26"), 61-45)
}

func TestLockTimeout(t *testing.T) {
	p := newPool(t)
	r := ranges("10.0.0.0/24")
	allocate(t, p, owner(1), r)
	unlock, err := flock.Exclusive(t.Context(), filepath.Join(p.Dir, "lock"), time.Minute)
	must(t, err)
	p.LockTimeout = time.Millisecond
	if _, err = p.Allocate(t.Context(), owner(2), r, nil); !errors.Is(err, flock.ErrTimeout) {
		t.Errorf("Allocate: %v", err)
	}
	if err = p.Release(t.Context(), owner(1)); !errors.Is(err, flock.ErrTimeout) {
		t.Errorf("Release: %v", err)
	}
	if _, err = p.Sweep(t.Context(), nil); !errors.Is(err, flock.ErrTimeout) {
		t.Errorf("Sweep: %v", err)
	}
	if err = p.Holds(owner(1), addrs("10.0.0.2")); err != nil {
		t.Errorf("Holds needs no lock: %v", err)
	}
	unlock()
	p.LockTimeout = time.Minute
	same(t, allocate(t, p, owner(2), r), addrs("10.0.0.3"))
}

func TestRefusesOwners(t *testing.T) {
	p := newPool(t)
	for _, o := range []ipam.Owner{{}, {"a", ""}, {"../a", "eth0"}, {"a", "b/c"}, {"a:b", "eth0"}} {
		if _, err := p.Allocate(t.Context(), o, ranges("10.0.0.0/24"), nil); err == nil {
			t.Errorf("Allocate for %q", o)
		}
		if err := p.Release(t.Context(), o); err == nil {
			t.Errorf("Release of %q", o)
		}
	}
}

// Where the run directory is deleted under living pods, their addresses come
// back from the records before any is given out.
func TestRestore(t *testing.T) {
	p := newPool(t)
	p.Restore = func() ([]ipam.Claim, error) {
		return []ipam.Claim{
			{Owner: owner(1), Addrs: addrs("10.0.0.2", "fd00::2")},
			{Owner: owner(2), Addrs: addrs("10.0.0.4")},
		}, nil
	}
	r := ranges("10.0.0.0/24", "fd00::/64")
	same(t, allocate(t, p, owner(3), r), addrs("10.0.0.3", "fd00::3"))
	same(t, allocate(t, p, owner(4), r), addrs("10.0.0.5", "fd00::4"))
	must(t, p.Holds(owner(1), addrs("10.0.0.2", "fd00::2")))
	release(t, p, owner(1))
	must(t, os.RemoveAll(p.Dir))
	p.Restore = func() ([]ipam.Claim, error) { return nil, errors.New("unreadable") }
	if _, err := p.Allocate(t.Context(), owner(5), r, nil); err == nil || err.Error() != "restore addresses: unreadable" {
		t.Errorf("got %v", err)
	}
	p.Restore = nil // the half-made pool of before is in nobody's way
	same(t, allocate(t, p, owner(5), r), addrs("10.0.0.2", "fd00::2"))
}

// Where the run directory survives a reboot, the claims in it don't.
func TestReboot(t *testing.T) {
	p := newPool(t)
	r := ranges("10.0.0.0/24", "fd00::/64")
	allocate(t, p, owner(1), r)
	allocate(t, p, owner(2), r)
	p.Boot = "c"
	p.Restore = func() ([]ipam.Claim, error) {
		return []ipam.Claim{{Owner: owner(3), Addrs: addrs("10.0.0.3")}}, nil
	}
	same(t, allocate(t, p, owner(4), r), addrs("10.0.0.2", "fd00::2"))
	release(t, p, owner(1)) // its DEL comes late
	must(t, p.Holds(owner(4), addrs("10.0.0.2", "fd00::2")))
	same(t, allocate(t, p, owner(5), r), addrs("10.0.0.4", "fd00::3"))
	if got := left(t, p); len(got) != 3+3+2 {
		t.Errorf("left: %v", got)
	}
}
