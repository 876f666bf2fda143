package ipam

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/weft-cni/weft/pkg/flock"
)

// Pool is the addresses of the node's pods: who has which. Any number
// of processes may use one Pool's directory at once, and each may be killed at
// any instruction.
//
//	<Dir>/lock                  held by whoever changes anything below
//	<Dir>/pool/boot             a symbolic link to the boot that it is of
//	<Dir>/pool/claims/<addr>    a symbolic link to its owner: the truth
//	<Dir>/pool/owners/<owner>   a symbolic link to all of its addresses
//	<Dir>/pool/windows/<range>  which addresses are free: a cache
//
// A link is made in one step with its text in it, so a claim is there with its
// owner or not at all. An owner's link is made before its claims and removed
// after them, so whatever a crash leaves is found by its owner, without a
// search. An address is free when it has no claim, whatever the caches say.
//
// No pod outlives a reboot, so no claim does: Dir belongs on a file system that
// a reboot empties, and where it isn't, what an earlier boot left is dropped.
// Nothing is flushed to disk, for the same reason.
type Pool struct {
	Dir string
	// Boot is the identity of the present boot (netconf.BootID). Allocate
	// alone needs it.
	Boot string
	// LockTimeout is how long to wait for other processes.
	LockTimeout time.Duration
	// Restore gives the claims of this boot's attachments for a Dir that is
	// new: someone may have deleted the one before. Nil stands for none.
	Restore func() ([]Claim, error)
}

// Claim is what one attachment has.
type Claim struct {
	Owner Owner
	Addrs []netip.Addr
}

// Allocate claims one address of each family that ranges has, and returns them
// in the order of ranges. It takes those in want for their families, and for
// the others the first that is free after the one given out last, in the first
// range of the family that has one: an address that was released comes last.
// What owner already has is released first: it is from an ADD that was killed.
//
// The first address of a range, the second (the node's own) and in IPv4 the
// last are never given out, so a range is a /30 or /126 at least. Of a range
// with more than 65,536 addresses, those after them are given out only when
// asked for.
//
// The error is ErrExhausted, ErrTaken, ErrOutside, flock.ErrTimeout, or one of
// the file system; then nothing is claimed.
func (p *Pool) Allocate(ctx context.Context, owner Owner, ranges []netip.Prefix, want []netip.Addr) ([]netip.Addr, error) {
	if !owner.valid() {
		return nil, fmt.Errorf("%q is not an attachment", owner)
	}
	if err := os.MkdirAll(p.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("addresses: %w", err)
	}
	unlock, err := p.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err = p.restore(); err != nil {
		return nil, fmt.Errorf("restore addresses: %w", err)
	}
	if err = p.release(owner); err != nil {
		return nil, err
	}
	picks, err := p.pick(ranges, want)
	if err != nil {
		return nil, err
	}
	addrs := make([]netip.Addr, len(picks))
	for i, pick := range picks {
		addrs[i] = pick.addr
	}
	if err := p.claim(p.pool(), Claim{owner, addrs}); err != nil {
		return nil, errors.Join(err, p.release(owner))
	}
	for _, pick := range picks {
		if pick.in == nil {
			continue
		}
		pick.in.set(pick.at)
		if err := pick.in.saveAt(p.windows(), pick.at); err != nil {
			return nil, errors.Join(err, p.release(owner))
		}
	}
	return addrs, nil
}

// Release gives back all that owner has, and nothing of anyone else's. It does
// nothing where that is nothing.
func (p *Pool) Release(ctx context.Context, owner Owner) error {
	if !owner.valid() {
		return fmt.Errorf("%q is not an attachment", owner)
	}
	if _, err := os.Lstat(p.pool()); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	unlock, err := p.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	return p.release(owner)
}

// Holds reports whether owner has each of addrs: ErrNotHeld says which it
// hasn't, and who has it instead.
func (p *Pool) Holds(owner Owner, addrs []netip.Addr) error {
	for _, addr := range addrs {
		has, ok, err := p.ownerOf(addr)
		switch {
		case err != nil:
			return err
		case !ok:
			return fmt.Errorf("%s: %w: no claim on it in %s", addr, ErrNotHeld, p.Dir)
		case has != owner:
			return fmt.Errorf("%s: %w: it is %s's", addr, ErrNotHeld, has)
		}
	}
	return nil
}

// Sweep releases what belongs to owners that keep says no to, and says what it
// released. The caller excludes concurrent ADDs, whose owners keep can't know.
func (p *Pool) Sweep(ctx context.Context, keep func(Owner) bool) ([]Claim, error) {
	if _, err := os.Lstat(p.pool()); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	unlock, err := p.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	claims, err := p.list()
	if err != nil {
		return nil, err
	}
	claims = slices.DeleteFunc(claims, func(c Claim) bool { return keep(c.Owner) })
	for _, c := range claims {
		// Where an owner's link was lost its claims are found all the same.
		if err := p.free(c); err != nil {
			return nil, err
		}
	}
	return claims, nil
}

func (p *Pool) pool() string    { return filepath.Join(p.Dir, "pool") }
func (p *Pool) windows() string { return filepath.Join(p.pool(), "windows") }

func (p *Pool) claimPath(addr netip.Addr) string {
	return filepath.Join(p.pool(), "claims", addr.String())
}

func (p *Pool) ownerPath(o Owner) string {
	return filepath.Join(p.pool(), "owners", o.fileName())
}

func (p *Pool) lock(ctx context.Context) (unlock func(), err error) {
	unlock, err = flock.Exclusive(ctx, filepath.Join(p.Dir, "lock"), p.LockTimeout)
	if err != nil {
		return nil, fmt.Errorf("addresses: %w", err)
	}
	return unlock, nil
}

// restore makes the pool where there is none of this boot. It is complete when
// it gets its name.
func (p *Pool) restore() error {
	boot, err := os.Readlink(filepath.Join(p.pool(), "boot"))
	if err == nil && boot == p.Boot {
		return nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	unfinished := p.pool() + ".new"
	if err = os.RemoveAll(unfinished); err != nil {
		return err
	}
	for _, dir := range []string{"claims", "owners", "windows"} {
		if err = os.MkdirAll(filepath.Join(unfinished, dir), 0o700); err != nil {
			return err
		}
	}
	if err = os.Symlink(p.Boot, filepath.Join(unfinished, "boot")); err != nil {
		return err
	}
	var claims []Claim
	if p.Restore != nil {
		if claims, err = p.Restore(); err != nil {
			return err
		}
	}
	for _, c := range claims {
		if err := p.claim(unfinished, c); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(p.pool()); err != nil {
		return err
	}
	return os.Rename(unfinished, p.pool())
}

// claim makes the links of c in a pool. Its addresses are free.
func (p *Pool) claim(pool string, c Claim) error {
	words := make([]string, len(c.Addrs))
	for i, addr := range c.Addrs {
		words[i] = addr.String()
	}
	if err := os.Symlink(strings.Join(words, ","), filepath.Join(pool, "owners", c.Owner.fileName())); err != nil {
		return fmt.Errorf("claim: %w", err)
	}
	for _, word := range words {
		if err := os.Symlink(c.Owner.String(), filepath.Join(pool, "claims", word)); err != nil {
			return fmt.Errorf("claim: %w", err)
		}
	}
	return nil
}

// release gives back all that owner's link lists.
func (p *Pool) release(owner Owner) error {
	words, err := os.Readlink(p.ownerPath(owner))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("release: %w", err)
	}
	return p.free(Claim{owner, parseAddrs(strings.Split(words, ","))})
}

// free removes those of c's addresses that its owner has, then its link. The
// windows come first: a free bit over a claim is found when it is tried, but
// a set one without a claim hides the address until the range seems full.
func (p *Pool) free(c Claim) error {
	windows, err := p.loadWindows()
	if err != nil {
		return err
	}
	for _, addr := range c.Addrs {
		if has, ok, err := p.ownerOf(addr); err != nil {
			return err
		} else if !ok || has != c.Owner {
			continue
		}
		for _, w := range windows {
			if i, ok := w.index(addr); ok {
				w.clear(i)
				if err := w.saveAt(p.windows(), i); err != nil {
					return fmt.Errorf("release %s: %w", addr, err)
				}
			}
		}
		if err := os.Remove(p.claimPath(addr)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("release: %w", err)
		}
	}
	if !c.Owner.valid() {
		return nil // of a damaged claim: it has no link
	}
	if err := os.Remove(p.ownerPath(c.Owner)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("release: %w", err)
	}
	return nil
}

// ownerOf reads the claim on addr. A damaged one is no valid Owner's.
func (p *Pool) ownerOf(addr netip.Addr) (o Owner, ok bool, err error) {
	text, err := os.Readlink(p.claimPath(addr))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return Owner{}, false, nil
	case errors.Is(err, syscall.EINVAL): // not a link
		return Owner{}, true, nil
	case err != nil:
		return Owner{}, false, fmt.Errorf("claim: %w", err)
	}
	return ownerFrom(text), true, nil
}

// list reads all claims, those of owners that have no address included.
func (p *Pool) list() ([]Claim, error) {
	addrs, err := p.claimed()
	if err != nil {
		return nil, err
	}
	held := map[Owner][]netip.Addr{}
	for _, addr := range addrs {
		var o Owner
		var ok bool
		if o, ok, err = p.ownerOf(addr); err != nil {
			return nil, err
		}
		if ok {
			held[o] = append(held[o], addr)
		}
	}
	owners, err := names(filepath.Join(p.pool(), "owners"))
	if err != nil {
		return nil, err
	}
	for _, name := range owners {
		if o := ownerFrom(strings.Replace(name, ":", "/", 1)); held[o] == nil {
			held[o] = nil
		}
	}
	claims := make([]Claim, 0, len(held))
	for o, addrs := range held {
		claims = append(claims, Claim{o, addrs})
	}
	return claims, nil
}

// claimed lists the addresses that have a claim.
func (p *Pool) claimed() ([]netip.Addr, error) {
	words, err := names(filepath.Join(p.pool(), "claims"))
	return parseAddrs(words), err
}

func names(dir string) ([]string, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("addresses: %w", err)
	}
	defer d.Close()
	return d.Readdirnames(-1)
}

// parseAddrs passes over what is no address.
func parseAddrs(words []string) []netip.Addr {
	addrs := make([]netip.Addr, 0, len(words))
	for _, w := range words {
		if addr, err := netip.ParseAddr(w); err == nil {
			addrs = append(addrs, addr)
		}
	}
	return addrs
}
