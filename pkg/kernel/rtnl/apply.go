package rtnl

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/kernel"
)

// OpError is an operation that the kernel refused.
type OpError struct {
	Op  kernel.Op
	Err error
}

func (e OpError) Error() string { return fmt.Sprintf("%s: %v", e.Op, e.Err) }
func (e OpError) Unwrap() error { return e.Err }

// Apply carries operations out in their order and gives those that failed; a
// failure stops none of the others. Deleting what isn't there any more is no
// failure. The table and its elements change in one transaction, before the
// rest.
func (h *Handle) Apply(ops []kernel.Op) []OpError {
	a := applier{Handle: h, index: map[string]int{}}
	var table []kernel.Op
	for _, op := range ops {
		if k := op.Key().Kind; k == kernel.KindRules || k == kernel.KindElement {
			table = append(table, op)
		}
	}
	if len(table) > 0 {
		a.failed = append(a.failed, h.applyTable(table)...)
	}
	for _, op := range ops {
		switch op.Key().Kind {
		case kernel.KindRules, kernel.KindElement:
		case kernel.KindSysctl:
			a.note(op, h.writeSysctl(op))
		case kernel.KindLink:
			a.flush()
			delete(a.index, op.Key().Name)
			a.note(op, h.applyLink(op))
		case kernel.KindAddr, kernel.KindFDB, kernel.KindNeigh, kernel.KindRoute:
			a.queue(op)
		}
	}
	a.flush()
	return a.failed
}

// applier gathers the operations on links into batches.
type applier struct {
	*Handle
	index   map[string]int // of links, by name
	pending []kernel.Op
	batch   []request
	failed  []OpError
}

func (a *applier) note(op kernel.Op, err error) {
	if err != nil {
		a.failed = append(a.failed, OpError{Op: op, Err: err})
	}
}

func (a *applier) queue(op kernel.Op) {
	name := op.Key().Name
	index, known := a.index[name]
	if !known {
		l, err := a.link(name)
		if err != nil && !(op.Verb == kernel.Delete && errors.Is(err, unix.ENODEV)) {
			a.note(op, err)
			return
		}
		index = l.index
		a.index[name] = index
	}
	if index == 0 {
		if op.Verb != kernel.Delete { // it went with its link
			a.note(op, fmt.Errorf("link %s: %w", name, unix.ENODEV))
		}
		return
	}
	object := op.Want
	if op.Verb == kernel.Delete {
		object = op.Have
	}
	r, err := encode(object, index, op.Verb == kernel.Delete)
	if err != nil {
		a.note(op, err)
		return
	}
	a.pending, a.batch = append(a.pending, op), append(a.batch, r)
}

func (a *applier) flush() {
	for i, err := range a.conn.execute(a.batch) {
		if err != nil && !(a.pending[i].Verb == kernel.Delete && isGone(err)) {
			a.note(a.pending[i], err)
		}
	}
	a.pending, a.batch = a.pending[:0], a.batch[:0]
}

// isGone reports whether a deletion failed because nothing was there.
func isGone(err error) bool {
	for _, gone := range []unix.Errno{unix.ENOENT, unix.ESRCH, unix.ENODEV, unix.EADDRNOTAVAIL} {
		if errors.Is(err, gone) {
			return true
		}
	}
	return false
}

func (h *Handle) applyLink(op kernel.Op) error {
	name := op.Key().Name
	if op.Verb == kernel.Delete || op.Verb == kernel.Recreate {
		l, err := h.link(name)
		if err == nil {
			err = h.all(linkDelete(l.index))
		}
		if err != nil && !isGone(err) {
			return fmt.Errorf("delete: %w", err)
		}
		if op.Verb == kernel.Delete {
			return nil
		}
	}
	want, ok := op.Want.(kernel.VXLAN)
	if !ok {
		return fmt.Errorf("%T is not a link that can be made", op.Want)
	}
	if op.Verb != kernel.Replace {
		if err := h.createVXLAN(want); err != nil {
			return fmt.Errorf("create: %w", err)
		}
	}
	l, err := h.link(name)
	if err != nil {
		return err
	}
	if op.Verb == kernel.Replace {
		have, _ := op.Have.(kernel.VXLAN) // Incompatible saw to it
		if err := h.all(vxlanChange(have, want, l.index)...); err != nil {
			return fmt.Errorf("change: %w", err)
		}
	}
	if err := disableGRO(name); err != nil {
		return err
	}
	return h.up(l.index)
}

// createVXLAN makes a device. The kernel takes one for each VNI and port: where
// ours is there under a name that somebody else gave it, it goes first.
func (h *Handle) createVXLAN(want kernel.VXLAN) error {
	exists := h.all(vxlanCreate(want))
	if !errors.Is(exists, unix.EEXIST) {
		return exists
	}
	all, err := h.links()
	if err != nil {
		return errors.Join(exists, err)
	}
	for _, l := range all {
		switch {
		case l.kind != "vxlan" || l.vxlan.vni != want.VNI || l.vxlan.port != want.Port:
		case l.mac != want.MAC:
			return fmt.Errorf("VNI %d on port %d is taken by link %s: %w", want.VNI, want.Port, l.name, exists)
		default:
			return h.all(linkDelete(l.index), vxlanCreate(want))
		}
	}
	return exists
}

// up sets a link up, without an IPv6 link-local address where the kernel has
// IPv6.
func (h *Handle) up(index int) error {
	errs := h.conn.execute(linkUp(index))
	if errors.Is(errs[0], unix.EAFNOSUPPORT) || errors.Is(errs[0], unix.EOPNOTSUPP) {
		errs[0] = nil
	}
	return errors.Join(errs...)
}

// all executes requests and gives their errors joined.
func (h *Handle) all(requests ...request) error { return errors.Join(h.conn.execute(requests)...) }

func (h *Handle) writeSysctl(op kernel.Op) error {
	s, ok := op.Want.(kernel.Sysctl)
	if !ok {
		return fmt.Errorf("%T is not a sysctl", op.Want)
	}
	return os.WriteFile(filepath.Join(h.sysctls, s.Name), []byte(s.Value), 0o644)
}
