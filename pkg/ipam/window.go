package ipam

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math/bits"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// windowSize is how many addresses of a range are given out by themselves: its
// first 65,536. A node runs far fewer pods, and a bit for each of a /64's
// would fill no disk. An address behind them can be asked for.
const windowSize = 1 << 16

// window is the start of a range with a bit for each address, set for those in
// use and those that are never given out. It is a cache over the claims: what
// it says is checked against them, and it is made anew from them when it is
// missing, damaged or says that the range is full. It lives in a file of a
// cursor (the index of the last address given) and the bits.
type window struct {
	base   netip.Prefix // masked
	size   int          // addresses, a power of two
	cursor uint64
	words  []uint64
}

// newWindow makes the window of a range in which nothing is in use.
func newWindow(base netip.Prefix) *window {
	hostBits := base.Addr().BitLen() - base.Bits()
	w := &window{base: base, size: windowSize}
	if hostBits < 16 {
		w.size = 1 << hostBits
	}
	w.words = make([]uint64, (w.size+63)/64)
	for i := w.size; i < len(w.words)*64; i++ {
		w.set(i)
	}
	for _, i := range []int{0, 1, w.size - 1} {
		if reserved(base, w.addr(i)) {
			w.set(i)
		}
	}
	return w
}

// reserved reports whether addr is never a pod's: a range's first address
// (IPv4's network address, IPv6's subnet-router anycast address, RFC 4291
// section 2.6.1), its second, which is the node's own, and IPv4's last, the
// broadcast address.
func reserved(base netip.Prefix, addr netip.Addr) bool {
	first := base.Masked().Addr()
	if addr == first || addr == first.Next() {
		return true
	}
	return addr.Is4() && !base.Contains(addr.Next())
}

// addr is the address at index i.
func (w *window) addr(i int) netip.Addr {
	if w.base.Addr().Is4() {
		b := w.base.Addr().As4()
		binary.BigEndian.PutUint16(b[2:], binary.BigEndian.Uint16(b[2:])|uint16(i))
		return netip.AddrFrom4(b)
	}
	b := w.base.Addr().As16()
	binary.BigEndian.PutUint16(b[14:], binary.BigEndian.Uint16(b[14:])|uint16(i))
	return netip.AddrFrom16(b)
}

// index is the place of addr; ok is false where it is outside.
func (w *window) index(addr netip.Addr) (i int, ok bool) {
	if !w.base.Contains(addr) {
		return 0, false
	}
	b := addr.AsSlice()
	i = int(binary.BigEndian.Uint16(b[len(b)-2:])) & (w.size - 1)
	return i, w.addr(i) == addr
}

func (w *window) set(i int)   { w.words[i/64] |= 1 << (i % 64) }
func (w *window) clear(i int) { w.words[i/64] &^= 1 << (i % 64) }

// next is the first free index after the cursor, around the end; ok is false
// where none is free.
func (w *window) next() (i int, ok bool) {
	start := int((w.cursor + 1) % uint64(w.size))
	free := ^w.words[start/64] &^ (1<<(start%64) - 1)
	for at := start / 64; ; {
		if free != 0 {
			return at*64 + bits.TrailingZeros64(free), true
		}
		at = (at + 1) % len(w.words)
		free = ^w.words[at]
		if at == start/64 {
			// Once around: what is left is the part before start.
			free &= 1<<(start%64) - 1
			return at*64 + bits.TrailingZeros64(free), free != 0
		}
	}
}

// inUse counts the addresses that pods have.
func (w *window) inUse() int {
	n := 0
	for i, word := range newWindow(w.base).words {
		n += bits.OnesCount64(w.words[i] &^ word)
	}
	return n
}

// fileName is that of the window's file.
func (w *window) fileName() string {
	return w.base.Addr().String() + "-" + strconv.Itoa(w.base.Bits())
}

// baseFrom is the range that a window's file is of.
func baseFrom(fileName string) (netip.Prefix, bool) {
	i := strings.LastIndexByte(fileName, '-')
	if i < 0 {
		return netip.Prefix{}, false
	}
	p, err := netip.ParsePrefix(fileName[:i] + "/" + fileName[i+1:])
	return p, err == nil
}

// errDamaged says that a window's file can't be used.
var errDamaged = errors.New("damaged")

// load reads the window from its file in dir: fs.ErrNotExist or errDamaged say
// that it has to be made anew.
func (w *window) load(dir string) error {
	data, err := os.ReadFile(filepath.Join(dir, w.fileName()))
	if err != nil {
		return err
	}
	if len(data) != 8+8*len(w.words) {
		return errDamaged
	}
	empty := newWindow(w.base).words
	for i := range w.words {
		w.words[i] = binary.LittleEndian.Uint64(data[8+8*i:]) | empty[i]
	}
	w.cursor = binary.LittleEndian.Uint64(data) % uint64(w.size)
	return nil
}

// save writes the whole window to its file in dir.
func (w *window) save(dir string) error {
	data := binary.LittleEndian.AppendUint64(nil, w.cursor)
	for _, word := range w.words {
		data = binary.LittleEndian.AppendUint64(data, word)
	}
	path := filepath.Join(dir, w.fileName())
	if err := os.WriteFile(path+".new", data, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// saveAt writes the cursor and the word of index i alone. A crash between the
// two leaves both as good as they were.
func (w *window) saveAt(dir string, i int) error {
	f, err := os.OpenFile(filepath.Join(dir, w.fileName()), os.O_WRONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return w.save(dir)
	}
	if err != nil {
		return err
	}
	_, errWord := f.WriteAt(binary.LittleEndian.AppendUint64(nil, w.words[i/64]), int64(8+8*(i/64)))
	_, errCursor := f.WriteAt(binary.LittleEndian.AppendUint64(nil, w.cursor), 0)
	if err := errors.Join(errWord, errCursor, f.Close()); err != nil {
		return fmt.Errorf("%s: %w", w.fileName(), err)
	}
	return nil
}
