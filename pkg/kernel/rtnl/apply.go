package rtnl

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/rtmsg"
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
		case kernel.KindPeer:
			if len(a.peers) > 0 && a.peers[0].Key().Link() != op.Key().Link() {
				a.flush()
			}
			a.peers = append(a.peers, op)
		case kernel.KindRule:
			a.flush()
			a.note(op, h.applyRule(op))
		case kernel.KindPort:
			a.flush()
			a.note(op, h.applyPort(op))
		case kernel.KindAddr, kernel.KindFDB, kernel.KindStation, kernel.KindNeigh, kernel.KindRoute:
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
	batch   []rtmsg.Request
	peers   []kernel.Op // of one WireGuard device, after what is in batch
	failed  []OpError
}

func (a *applier) note(op kernel.Op, err error) {
	if err != nil {
		a.failed = append(a.failed, OpError{Op: op, Err: err})
	}
}

func (a *applier) queue(op kernel.Op) {
	if len(a.peers) > 0 {
		a.flush()
	}
	name := op.Key().Name
	if name == "" { // an unreachable route: on no link
		u, _ := either(op).(kernel.Unreachable)
		a.pending, a.batch = append(a.pending, op), append(a.batch, unreachableRequest(u, op.Verb == kernel.Delete))
		return
	}
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
	if f, ok := object.(kernel.Flood); ok && f.VTEP.IsMulticast() {
		l, err := a.link(name)
		if err != nil {
			a.note(op, err)
			return
		}
		r.Body = rtmsg.AttrUint32(r.Body, unix.NDA_IFINDEX, uint32(l.vxlan.lower))
	}
	a.pending, a.batch = append(a.pending, op), append(a.batch, r)
}

func (a *applier) flush() {
	for i, err := range a.conn.Execute(a.batch) {
		if err != nil && !(a.pending[i].Verb == kernel.Delete && isGone(err)) {
			a.note(a.pending[i], err)
		}
	}
	a.pending, a.batch = a.pending[:0], a.batch[:0]
	if len(a.peers) > 0 {
		a.failed = append(a.failed, applyPeers(a.peers[0].Key().Link(), a.peers)...)
		a.peers = a.peers[:0]
	}
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
		have, isWG := op.Have.(kernel.WireGuard)
		switch {
		case err != nil:
		case op.Verb == kernel.Delete && isWG && have.Userspace:
			err = h.rest(l)
		default:
			err = h.all(linkDelete(l.index))
		}
		if err != nil && !isGone(err) {
			return fmt.Errorf("delete: %w", err)
		}
		if op.Verb == kernel.Delete {
			return nil
		}
	}
	if want, ok := op.Want.(kernel.WireGuard); ok {
		return h.applyWireGuard(op, want)
	}
	if want, ok := op.Want.(kernel.Bridge); ok {
		return h.applyBridge(op, want)
	}
	return h.applyTunnel(op)
}

// applyTunnel makes a tunnel's device or changes it in place.
func (h *Handle) applyTunnel(op kernel.Op) error {
	if op.Verb != kernel.Replace {
		var err error
		switch want := op.Want.(type) {
		case kernel.VXLAN:
			err = h.createVXLAN(want)
		case kernel.Tunnel:
			err = h.createTunnel(want)
		default:
			return fmt.Errorf("%T is not a link that can be made", op.Want)
		}
		if err != nil {
			return fmt.Errorf("create: %w", err)
		}
	}
	name, want := op.Key().Name, tunnelDeviceOf(op.Want)
	l, err := h.link(name)
	if err != nil {
		return err
	}
	if op.Verb == kernel.Replace {
		changes := []rtmsg.Request{tunnelDeviceChange(tunnelDeviceOf(op.Have), want, l.index)}
		if v, is := op.Want.(kernel.VXLAN); is {
			have, _ := op.Have.(kernel.VXLAN) // Incompatible saw to it
			changes = vxlanChange(have, v, l.index)
		}
		if err := h.all(changes...); err != nil {
			return fmt.Errorf("change: %w", err)
		}
	}
	if want.bridge == "" { // else the node takes nothing from it
		if err := h.loosen(name); err != nil {
			return err
		}
	}
	if err := disableGRO(name); err != nil {
		return err
	}
	if err := h.intoBridge(want, l.index); err != nil {
		return fmt.Errorf("bridge: %w", err)
	}
	return h.up(l.index)
}

// createVXLAN makes a device.
func (h *Handle) createVXLAN(want kernel.VXLAN) error {
	via := 0
	if want.Via != "" {
		l, err := h.link(want.Via)
		if err != nil {
			return err
		}
		via = l.index
	}
	return h.create(vxlanCreate(want, via), want.MAC, func(l link) bool {
		return l.kind == "vxlan" && l.vxlan.vni == want.VNI && l.vxlan.port == want.Port
	})
}

// create makes a device. The kernel takes one of each: where ours is there under
// another name, by somebody else or until we delete it, it goes first.
func (h *Handle) create(r rtmsg.Request, mac kernel.MAC, same func(link) bool) error {
	exists := h.all(r)
	if !errors.Is(exists, unix.EEXIST) && !errors.Is(exists, unix.EBUSY) { // EBUSY: Geneve's word for it
		return exists
	}
	all, err := h.links()
	if err != nil {
		return errors.Join(exists, err)
	}
	for _, l := range all {
		switch {
		case !same(l):
		case l.mac != mac:
			return fmt.Errorf("link %s is the same: %w", l.name, exists)
		default:
			return h.all(linkDelete(l.index), r)
		}
	}
	return exists
}

// up sets a link up, without an IPv6 link-local address where the kernel has
// IPv6.
func (h *Handle) up(index int) error {
	errs := h.conn.Execute(linkUp(index))
	if errors.Is(errs[0], unix.EAFNOSUPPORT) || errors.Is(errs[0], unix.EOPNOTSUPP) {
		errs[0] = nil
	}
	return errors.Join(errs...)
}

// all executes requests and gives their errors joined.
func (h *Handle) all(requests ...rtmsg.Request) error {
	return errors.Join(h.conn.Execute(requests)...)
}

func (h *Handle) writeSysctl(op kernel.Op) error {
	s, ok := op.Want.(kernel.Sysctl)
	if !ok {
		return fmt.Errorf("%T is not a sysctl", op.Want)
	}
	return os.WriteFile(filepath.Join(h.sysctls, s.Name), []byte(s.Value), 0o644)
}
