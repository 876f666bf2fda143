// Package vf reads and changes virtual functions, and other NICs that pods get
// whole, by rtnetlink: what package sriov plans is carried out here. A device
// is found by its PCI address in either namespace, whatever its name.
package vf

import (
	"errors"
	"fmt"
	"log/slog"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/podns"
	"github.com/weft-cni/weft/pkg/sriov"
)

// ErrExists says that the pod has an interface of that name already.
var ErrExists = errors.New("link exists")

// RefusedError is a change of a device that the kernel refused.
type RefusedError struct {
	Device sriov.Device
	Change string // in the words of ip(8)
	Err    error  // mostly a syscall.Errno
}

func (e *RefusedError) Error() string {
	return fmt.Sprintf("device %s refuses %s: %v", e.Device, e.Change, e.Err)
}

func (e *RefusedError) Unwrap() error { return e.Err }

// Node is the node's network namespace: that of the thread that opened it.
type Node struct {
	Sysfs sriov.Sysfs
	Log   *slog.Logger
	// RDMA is the kernel's RDMA subsystem.
	RDMA RDMA
	own  *podns.NS
	host *conn
}

// Open opens the calling thread's network namespace.
func Open(sysfs sriov.Sysfs, log *slog.Logger) (*Node, error) {
	own, err := podns.Own()
	if err != nil {
		return nil, err
	}
	host, err := dial(own)
	if err != nil {
		own.Close()
		return nil, err
	}
	return &Node{Sysfs: sysfs, Log: log, RDMA: kernelRDMA{}, own: own, host: host}, nil
}

// Close lets go of it.
func (n *Node) Close() {
	n.host.close()
	n.own.Close()
}

// conn talks rtnetlink to one namespace: in this package's own messages, and
// in the library's.
type conn struct {
	*netlink.Handle
	socket *nl.SocketHandle // counts its requests, so that no late answer is taken for another's
	ns     *podns.NS
}

func dial(ns *podns.NS) (*conn, error) {
	h, err := ns.Handle()
	if err != nil {
		return nil, err
	}
	h.DisableVFInfoCollection() // readPort asks for the one VF's
	c := &conn{Handle: h, ns: ns}
	c.socket = &nl.SocketHandle{}
	err = ns.Do(func() (err error) {
		c.socket.Socket, err = nl.GetNetlinkSocketAt(netns.None(), netns.None(), unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		h.Close()
		return nil, fmt.Errorf("netlink in %s: %w", ns.Path(), err)
	}
	return c, nil
}

func (c *conn) close() {
	c.socket.Close()
	c.Handle.Close()
}

// request is a message about the link with this index.
func (c *conn) request(kind, flags, index int) *nl.NetlinkRequest {
	r := nl.NewNetlinkRequest(kind, flags)
	r.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: c.socket}
	m := nl.NewIfInfomsg(unix.AF_UNSPEC)
	m.Index = int32(index)
	r.AddData(m)
	return r
}

// VF is a device at work: it is on the node or in one pod. Not safe for
// concurrent use; callers exclude each other's processes as well.
type VF struct {
	Device  sriov.Device
	node    *Node
	pod     *conn // nil: the pod's namespace is gone
	seen    located
	movedAs string // the name that it was given when it was moved last
	pf      int    // index of the PF's network device; 0: not asked for yet
}

// Open takes a device. pod may be nil.
func (n *Node) Open(d sriov.Device, pod *podns.NS) (*VF, error) {
	v := &VF{Device: d, node: n}
	if pod == nil {
		return v, nil
	}
	var err error
	v.pod, err = dial(pod)
	return v, err
}

// Close lets go of the device.
func (v *VF) Close() {
	if v.pod != nil {
		v.pod.close()
	}
}

// at is the connection to a place.
func (v *VF) at(p sriov.Place) (*conn, error) {
	switch {
	case p == sriov.Host:
		return v.node.host, nil
	case p == sriov.Pod && v.pod != nil:
		return v.pod, nil
	}
	return nil, fmt.Errorf("device %s: its pod's network namespace is gone", v.Device)
}
