package agent

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/ipam"
	"github.com/weft-cni/weft/pkg/netconf"
	"github.com/weft-cni/weft/pkg/record"
	"github.com/weft-cni/weft/pkg/segment"
)

// records are the attachments to segments that are on record on this node, by
// segment. A file is read when it is new, and not again until it changes: the
// directory's notices (inotify(7)) say which do. Where there are none, and
// whenever everything is compared, all files are looked at. Safe for concurrent
// use.
type records struct {
	store  record.Store
	bootID string
	log    *slog.Logger

	mu      sync.Mutex
	notices syscall.RawConn       // nil while nobody tells of changes
	lost    bool                  // some notices were
	files   map[string]recordFile // of all attachments, by name
	of      map[uint32]map[string]*attached
	links   map[string]uint32   // segments by pods' links
	dirty   map[uint32]struct{} // segments whose records have changed since take
}

// recordFile is a file as it was when it was read.
type recordFile struct {
	info     fs.FileInfo
	attached *attached // nil: not to a segment
}

// attached is an attachment to a segment.
type attached struct {
	name    string // of the file
	vni     uint32
	port    segment.Port
	segment *netconf.Segment // as its configuration has it; nil where that can't be read
	claim   *ipam.Claim      // nil where Weft gave no address
}

func newRecords(dataDir, bootID string, log *slog.Logger) *records {
	return &records{
		store: record.Store{Dir: filepath.Join(dataDir, record.Dir)}, bootID: bootID, log: log,
		files: map[string]recordFile{}, of: map[uint32]map[string]*attached{}, links: map[string]uint32{}, dirty: map[uint32]struct{}{},
	}
}

// take gives the segments whose records have changed since it was last called.
// all has every file looked at.
func (r *records) take(all bool) (map[uint32]struct{}, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.refresh(all); err != nil {
		return nil, err
	}
	dirty := r.dirty
	r.dirty = map[uint32]struct{}{}
	return dirty, nil
}

// attachedTo gives a segment's attachments as of the last take, in the order of
// their files' names.
func (r *records) attachedTo(vni uint32) []*attached {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.SortedFunc(maps.Values(r.of[vni]), func(a, b *attached) int { return cmp.Compare(a.name, b.name) })
}

// uses reports whether a segment has attachments now. What else has changed is
// for the next take.
func (r *records) uses(vni uint32) (bool, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	err := r.refresh(false)
	return len(r.of[vni]) > 0, err
}

// segments lists those that have attachments, as far as is known.
func (r *records) segments() []uint32 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Collect(maps.Keys(r.of))
}

// segmentOf is the segment of a pod's link.
func (r *records) segmentOf(link string) (vni uint32, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	vni, ok = r.links[link]
	return vni, ok
}

// refresh reads what has changed. The caller holds r.mu, here and below.
func (r *records) refresh(all bool) error {
	told := r.notices != nil
	if told {
		err := r.notices.Control(func(fd uintptr) { r.drain(int(fd)) })
		told = err == nil && !r.lost
	}
	if told && !all {
		return nil
	}
	entries, err := os.ReadDir(r.store.Dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("records: %w", err)
	}
	there := map[string]bool{}
	for _, e := range entries {
		there[e.Name()] = true
		r.read(e.Name())
	}
	for name := range r.files {
		if !there[name] {
			r.put(name, recordFile{})
		}
	}
	r.lost = false
	return nil
}

// drain reads the files that notices are about and reports whether there were
// any notices.
func (r *records) drain(fd int) (had bool) {
	buf := make([]byte, 16<<10)
	for {
		n, err := unix.Read(fd, buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if n <= 0 || err != nil {
			return had
		}
		had = true
		for name := range noticed(buf[:n]) {
			if name == "" { // about the directory, or of notices that were lost
				r.lost = true
				continue
			}
			r.read(name)
		}
	}
}

// read reads a file, unless it is as it was.
func (r *records) read(name string) {
	containerID, ifName, is := strings.Cut(name, ":")
	if !is || strings.HasPrefix(name, ".") { // one that is being written
		return
	}
	info, err := os.Lstat(filepath.Join(r.store.Dir, name))
	old, known := r.files[name]
	switch {
	case errors.Is(err, fs.ErrNotExist):
		r.put(name, recordFile{})
		return
	case err == nil && known && os.SameFile(info, old.info) && info.ModTime().Equal(old.info.ModTime()) && info.Size() == old.info.Size():
		return
	}
	a, err := r.store.Get(containerID, ifName)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		r.put(name, recordFile{})
		return
	case err != nil:
		r.log.Warn("a record that can't be read is left to GC", "err", err)
	}
	file := recordFile{info: info}
	if err == nil && a.BootID == r.bootID && a.Mode == string(netconf.ModeOverlay) && a.VNI != 0 {
		file.attached = attachedBy(name, a)
	}
	r.put(name, file)
}

// put notes what a file has become; without info it is gone.
func (r *records) put(name string, file recordFile) {
	if old := r.files[name].attached; old != nil {
		delete(r.of[old.vni], name)
		if len(r.of[old.vni]) == 0 {
			delete(r.of, old.vni)
		}
		delete(r.links, old.port.HostLink)
		r.dirty[old.vni] = struct{}{}
	}
	delete(r.files, name)
	if file.info == nil {
		return
	}
	r.files[name] = file
	if a := file.attached; a != nil {
		if r.of[a.vni] == nil {
			r.of[a.vni] = map[string]*attached{}
		}
		r.of[a.vni][name], r.links[a.port.HostLink], r.dirty[a.vni] = a, a.vni, struct{}{}
	}
}

func attachedBy(name string, a record.Attachment) *attached {
	on := &attached{name: name, vni: a.VNI, port: segment.Port{
		HostLink: a.HostLink, Options: a.Port,
		Endpoint: segment.Endpoint{MAC: a.PodMAC, IPs: a.Addrs, Isolated: a.Port.Isolated, VLAN: a.Port.VLAN},
	}}
	n, err := netconf.Parse(a.Config, netconf.Env{
		Command: netconf.Del, ContainerID: a.ContainerID, IfName: a.IfName, Netns: a.Netns, Args: a.Args,
	})
	if err == nil {
		on.segment = n.Segment
	}
	if a.IPAM == netconf.Type {
		on.claim = &ipam.Claim{Owner: ipam.Owner{ContainerID: a.ContainerID, IfName: a.IfName}, Addrs: a.Addrs}
	}
	return on
}

// watch calls changed whenever records have changed, until ctx ends or nothing
// tells of changes any more. Where there is no directory yet it waits, without an
// error, until something is made beside it: the plugin makes it with the first
// record.
func (r *records) watch(ctx context.Context, changed func()) error {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return os.NewSyscallError("inotify_init1", err)
	}
	f := os.NewFile(uintptr(fd), filepath.Base(r.store.Dir))
	defer f.Close()
	stop := context.AfterFunc(ctx, func() { f.Close() })
	defer stop()
	const changes = unix.IN_MOVED_TO | unix.IN_DELETE | unix.IN_DELETE_SELF
	if _, err = unix.InotifyAddWatch(fd, r.store.Dir, changes); errors.Is(err, unix.ENOENT) {
		if _, err = unix.InotifyAddWatch(fd, filepath.Dir(r.store.Dir), unix.IN_CREATE|unix.IN_MOVED_TO); err != nil {
			return os.NewSyscallError("inotify_add_watch", err)
		}
		if _, err = unix.InotifyAddWatch(fd, r.store.Dir, changes); errors.Is(err, unix.ENOENT) {
			_, err = f.Read(make([]byte, 4096))
			return err
		}
	}
	if err != nil {
		return os.NewSyscallError("inotify_add_watch", err)
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	r.listen(raw)
	defer r.listen(nil)
	changed()
	for {
		if err := raw.Read(r.heard); err != nil {
			return err
		}
		if _, err := os.Stat(r.store.Dir); err != nil {
			return err
		}
		changed()
	}
}

// listen sets who tells of changes. What changed before isn't known.
func (r *records) listen(to syscall.RawConn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.notices, r.lost = to, true
}

// heard reports whether anything has changed for a pass to see.
func (r *records) heard(fd uintptr) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.drain(int(fd)) && (r.lost || len(r.dirty) > 0)
}

// noticed gives the files' names of inotify events, empty for an event about
// the directory.
func noticed(b []byte) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		for len(b) >= unix.SizeofInotifyEvent {
			size := int(binary.NativeEndian.Uint32(b[12:]))
			end := min(unix.SizeofInotifyEvent+size, len(b))
			name, _, _ := bytes.Cut(b[unix.SizeofInotifyEvent:end], []byte{0})
			if !yield(string(name)) {
				return
			}
			b = b[end:]
		}
	}
}
