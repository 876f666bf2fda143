package ipam_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weft-cni/weft/pkg/ipam"
)

// workerDir makes the test binary a process that allocates and releases in the
// pool of that directory until it is killed.
const workerDir = "IPAM_TEST_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(workerDir); dir != "" {
		if err := work(dir, os.Getenv("IPAM_TEST_NAME")); err != nil {
			fmt.Println("fault", err)
		}
		os.Exit(1)
	}
	os.Exit(m.Run())
}

var crashRanges = ranges("10.0.0.0/26", "fd00::/64")

// work tells of each step on standard output before or after it, so that
// whoever killed it knows what must be: "try" before Allocate, "has" after it,
// "free" before Release.
func work(dir, name string) error {
	ctx := context.Background()
	p := &ipam.Pool{Dir: dir, Boot: "b", LockTimeout: time.Minute}
	var mine []ipam.Claim
	for n := 0; ; n++ {
		if len(mine) > 0 && (len(mine) > 4 || rand.IntN(2) == 0) {
			i := rand.IntN(len(mine))
			c := mine[i]
			if err := p.Holds(c.Owner, c.Addrs); err != nil {
				return err
			}
			fmt.Println("free", c.Owner)
			if err := p.Release(ctx, c.Owner); err != nil {
				return err
			}
			mine = slices.Delete(mine, i, i+1)
			continue
		}
		o := ipam.Owner{ContainerID: fmt.Sprintf("%s-%d", name, n), IfName: "eth0"}
		fmt.Println("try", o)
		got, err := p.Allocate(ctx, o, crashRanges, nil)
		if errors.Is(err, ipam.ErrExhausted) {
			continue
		}
		if err != nil {
			return err
		}
		fmt.Println("has", o, got[0], got[1])
		mine = append(mine, ipam.Claim{Owner: o, Addrs: got})
	}
}

// journal is what a killed worker has told.
type journal struct {
	held    map[ipam.Owner][]netip.Addr // allocated, and no release begun
	inDoubt []ipam.Owner                // an allocation or release had begun
}

// runWorker starts a worker, kills it a moment after its first step, and reads
// what it told.
func runWorker(dir, name string) (journal, error) {
	j := journal{held: map[ipam.Owner][]netip.Addr{}}
	ctx, kill := context.WithCancel(context.Background())
	defer kill()
	cmd := exec.CommandContext(ctx, os.Args[0])
	cmd.Env = append(os.Environ(), workerDir+"="+dir, "IPAM_TEST_NAME="+name)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return j, err
	}
	if err = cmd.Start(); err != nil {
		return j, err
	}
	doubt := map[ipam.Owner]bool{}
	lines := bufio.NewScanner(out)
	var faults []error
	var once sync.Once
	for lines.Scan() {
		once.Do(func() {
			time.AfterFunc(time.Duration(rand.IntN(10_000))*time.Microsecond, kill)
		})
		f := strings.Fields(lines.Text())
		id, ifName, _ := strings.Cut(f[1], "/")
		o := ipam.Owner{ContainerID: id, IfName: ifName}
		switch f[0] {
		case "try":
			doubt[o] = true
		case "has":
			delete(doubt, o)
			j.held[o] = addrs(f[2], f[3])
		case "free":
			delete(j.held, o)
			doubt[o] = true
		default:
			faults = append(faults, errors.New(lines.Text()))
		}
	}
	if err = cmd.Wait(); cmd.ProcessState.ExitCode() != -1 {
		faults = append(faults, fmt.Errorf("%s was not killed: %w", name, err))
	}
	j.inDoubt = slices.Collect(maps.Keys(doubt))
	return j, errors.Join(faults...)
}

// liveAndDie runs workers one after the other, does what a runtime does after
// each, and gives what the attachments that stay hold.
func liveAndDie(p *ipam.Pool, name string, rounds int) (map[ipam.Owner][]netip.Addr, error) {
	ctx := context.Background()
	held := map[ipam.Owner][]netip.Addr{}
	for r := range rounds {
		j, err := runWorker(p.Dir, fmt.Sprintf("%sr%d", name, r))
		if err != nil {
			return nil, err
		}
		for _, o := range j.inDoubt {
			if r%2 == 0 {
				continue // no DEL comes: the GC at the end has to find it
			}
			if err := p.Release(ctx, o); err != nil {
				return nil, err
			}
		}
		for o, a := range j.held { // most pods go, some stay
			if err := p.Holds(o, a); err != nil {
				return nil, err
			}
			if rand.IntN(20) == 0 {
				held[o] = a
			} else if err := p.Release(ctx, o); err != nil {
				return nil, err
			}
		}
	}
	return held, nil
}

// Processes that are killed at any instruction: nobody's address is lost or
// given to another, and nothing stays behind that a DEL or a GC doesn't find.
func TestKilledProcesses(t *testing.T) {
	const workers, rounds = 8, 25
	p := newPool(t)
	must(t, os.MkdirAll(p.Dir, 0o700))
	var mu sync.Mutex
	held := map[ipam.Owner][]netip.Addr{}
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			mine, err := liveAndDie(p, fmt.Sprint("w", w), rounds)
			mu.Lock()
			defer mu.Unlock()
			maps.Copy(held, mine)
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	has := map[netip.Addr]ipam.Owner{}
	for o, a := range held {
		must(t, p.Holds(o, a))
		for _, addr := range a {
			if other, ok := has[addr]; ok {
				t.Errorf("%s is both %s's and %s's", addr, o, other)
			}
			has[addr] = o
		}
	}
	for _, name := range left(t, p) {
		// Of odd rounds, those in doubt were released by their owners alone.
		id, isOwner := strings.CutPrefix(strings.TrimSuffix(name, ":eth0"), "owners/")
		o := ipam.Owner{ContainerID: id, IfName: "eth0"}
		if odd := regexp.MustCompile(`r\d*[13579]-`).MatchString(id); isOwner && odd && held[o] == nil {
			t.Errorf("%s has something left after its release", o)
		}
	}
	_, err := p.Sweep(t.Context(), func(o ipam.Owner) bool { return held[o] != nil })
	must(t, err)
	if got := left(t, p); len(got) != 3*len(held) {
		t.Errorf("after a sweep %d files are left of %d attachments: %v", len(got), len(held), got)
	}
	for o := range held {
		must(t, p.Release(t.Context(), o))
	}
	if got := left(t, p); len(got) != 0 {
		t.Errorf("at the end: %v", got)
	}
	fill(t, p, crashRanges[:1], 61)
}

// What a process that is killed between two of its writes leaves, each in
// turn: its own DEL removes it, others aren't hindered meanwhile.
func TestEachInterruption(t *testing.T) {
	pool := func(p *ipam.Pool, name ...string) string {
		return filepath.Join(append([]string{p.Dir, "pool"}, name...)...)
	}
	o := owner(1)
	link := func(p *ipam.Pool) error {
		return os.Symlink("10.0.0.2,fd00::2", pool(p, "owners", o.ContainerID+":eth0"))
	}
	claim := func(addr string) func(*ipam.Pool) error {
		return func(p *ipam.Pool) error { return os.Symlink(o.String(), pool(p, "claims", addr)) }
	}
	steps := []func(*ipam.Pool) error{link, claim("10.0.0.2"), claim("fd00::2")}
	for n := range len(steps) + 1 {
		for _, mend := range []string{"release", "sweep", "again"} {
			t.Run(fmt.Sprintf("%d steps, %s", n, mend), func(t *testing.T) {
				p := newPool(t)
				allocate(t, p, owner(0), crashRanges) // makes the pool and its windows
				release(t, p, owner(0))
				window := pool(p, "windows", "10.0.0.0-26")
				must(t, os.Remove(window)) // the cursor back at the start
				for _, step := range steps[:n] {
					must(t, step(p))
				}
				var got []netip.Addr
				for i := range 10 {
					got = append(got, allocate(t, p, owner(10+i), crashRanges)...)
				}
				switch mend {
				case "release":
					release(t, p, o)
				case "sweep":
					_, err := p.Sweep(t.Context(), func(s ipam.Owner) bool { return s != o })
					must(t, err)
				case "again":
					got = append(got, allocate(t, p, o, crashRanges)...)
				}
				slices.SortFunc(got, netip.Addr.Compare)
				if len(slices.Compact(got)) != len(got) {
					t.Errorf("given twice: %v", got)
				}
				if files := left(t, p); len(files) != len(got)*3/2 {
					t.Errorf("left: %v", files)
				}
				fill(t, p, crashRanges[:1], 61-len(got)/2)
			})
		}
	}
}
