package ipam

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// pick is an address that Allocate has chosen. Nobody has it.
type pick struct {
	addr netip.Addr
	in   *window // nil where addr is behind its range's window
	at   int     // index in that
}

// pick chooses one address for each family of ranges.
func (p *Pool) pick(ranges []netip.Prefix, want []netip.Addr) ([]pick, error) {
	var families [][]netip.Prefix
	for _, r := range ranges {
		if r != r.Masked() || r.Addr().BitLen()-r.Bits() < 2 {
			return nil, fmt.Errorf("range %s has no address for pods; accepted: a network of a /30 (IPv4) or /126 (IPv6) at least", r)
		}
		same := func(f []netip.Prefix) bool { return f[0].Addr().Is4() == r.Addr().Is4() }
		if i := slices.IndexFunc(families, same); i >= 0 {
			families[i] = append(families[i], r)
		} else {
			families = append(families, []netip.Prefix{r})
		}
	}
	if len(families) == 0 {
		return nil, fmt.Errorf("%w: the node has no range", ErrExhausted)
	}
	for _, addr := range want {
		if !slices.ContainsFunc(ranges, func(r netip.Prefix) bool { return r.Contains(addr) && !reserved(r, addr) }) {
			return nil, fmt.Errorf("%s: %w: the node's ranges are %s, and of each the first two addresses "+
				"and in IPv4 the last are reserved", addr, ErrOutside, join(ranges))
		}
	}
	var picks []pick
	for _, family := range families {
		i := slices.IndexFunc(want, func(a netip.Addr) bool { return a.Is4() == family[0].Addr().Is4() })
		var one pick
		var err error
		if i >= 0 {
			one, err = p.pickWanted(family, want[i])
		} else {
			one, err = p.pickNext(family)
		}
		if err != nil {
			return nil, err
		}
		picks = append(picks, one)
	}
	return picks, nil
}

// pickWanted chooses an address that was asked for.
func (p *Pool) pickWanted(family []netip.Prefix, addr netip.Addr) (pick, error) {
	if owner, ok, err := p.ownerOf(addr); err != nil {
		return pick{}, err
	} else if ok {
		return pick{}, fmt.Errorf("%s: %w: it is %s's", addr, ErrTaken, owner)
	}
	one := pick{addr: addr}
	for _, r := range family {
		if i, ok := newWindow(r).index(addr); ok {
			w, err := p.loadWindow(r)
			if err != nil {
				return pick{}, err
			}
			one.in, one.at = w, i
		}
	}
	return one, nil
}

// pickNext chooses the next free address of the first range that has one.
func (p *Pool) pickNext(family []netip.Prefix) (pick, error) {
	var full []string
	for _, r := range family {
		w, err := p.loadWindow(r)
		if err != nil {
			return pick{}, err
		}
		i, ok, err := p.nextIn(w)
		if err == nil && !ok {
			if err = p.rebuild(w); err == nil {
				i, ok, err = p.nextIn(w)
			}
		}
		if err != nil {
			return pick{}, err
		}
		if ok {
			w.cursor = uint64(i)
			return pick{w.addr(i), w, i}, nil
		}
		full = append(full, fmt.Sprintf("all %d of %s", w.inUse(), r))
	}
	return pick{}, fmt.Errorf("%w: in use are %s (claims in %s)",
		ErrExhausted, strings.Join(full, " and "), filepath.Join(p.pool(), "claims"))
}

// nextIn finds the next index of w whose address has no claim.
func (p *Pool) nextIn(w *window) (i int, ok bool, err error) {
	for {
		if i, ok = w.next(); !ok {
			return 0, false, nil
		}
		_, err := os.Lstat(p.claimPath(w.addr(i)))
		if errors.Is(err, fs.ErrNotExist) {
			return i, true, nil
		}
		if err != nil {
			return 0, false, fmt.Errorf("claim: %w", err)
		}
		// A claim whose maker was killed before it set the bit.
		w.set(i)
		if err := w.saveAt(p.windows(), i); err != nil {
			return 0, false, fmt.Errorf("window: %w", err)
		}
	}
}

// loadWindow reads the window of a range, and makes it anew where that fails.
func (p *Pool) loadWindow(r netip.Prefix) (*window, error) {
	w := newWindow(r)
	err := w.load(p.windows())
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, errDamaged) {
		err = p.rebuild(w)
	}
	if err != nil {
		return nil, fmt.Errorf("window of %s: %w", r, err)
	}
	return w, nil
}

// loadWindows reads all windows. One that is damaged is removed: the next
// Allocate makes it anew.
func (p *Pool) loadWindows() ([]*window, error) {
	files, err := names(p.windows())
	if err != nil {
		return nil, err
	}
	var all []*window
	for _, name := range files {
		r, ok := baseFrom(name)
		if !ok {
			continue
		}
		w := newWindow(r)
		err := w.load(p.windows())
		if errors.Is(err, errDamaged) {
			err = os.Remove(filepath.Join(p.windows(), name))
		} else if err == nil {
			all = append(all, w)
		}
		if err != nil {
			return nil, fmt.Errorf("window of %s: %w", r, err)
		}
	}
	return all, nil
}

// rebuild makes w's bits from the claims and writes them.
func (p *Pool) rebuild(w *window) error {
	addrs, err := p.claimed()
	if err != nil {
		return err
	}
	w.words = newWindow(w.base).words
	for _, addr := range addrs {
		if i, ok := w.index(addr); ok {
			w.set(i)
		}
	}
	return w.save(p.windows())
}

func join(ranges []netip.Prefix) string {
	words := make([]string, len(ranges))
	for i, r := range ranges {
		words[i] = r.String()
	}
	return strings.Join(words, ", ")
}
