// Package ipam gives attachments their addresses: from the node's own ranges
// (Local) or by another IPAM plugin (Delegate).
package ipam

import (
	"context"
	"errors"
	"net/netip"
	"strings"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/weft-cni/weft/pkg/netconf"
)

// Errors that callers tell apart, beside flock.ErrTimeout. The messages name
// range, address and owner.
var (
	// ErrExhausted says that no range of a family has an address left.
	ErrExhausted = errors.New("no free address")
	// ErrTaken says that an address asked for belongs to another attachment.
	ErrTaken = errors.New("address is in use")
	// ErrOutside says that an address asked for is in no range or reserved.
	ErrOutside = errors.New("address can't be given to a pod")
	// ErrNotHeld says that an attachment doesn't hold an address it should.
	ErrNotHeld = errors.New("address is not held")
)

// Owner is an attachment as CNI identifies it.
type Owner struct {
	ContainerID string
	IfName      string
}

// String is the form used in claims, logs and errors.
func (o Owner) String() string { return o.ContainerID + "/" + o.IfName }

// fileName is the form that is a file's name: neither part has a colon.
func (o Owner) fileName() string { return o.ContainerID + ":" + o.IfName }

// ownerFrom reads what String gives.
func ownerFrom(s string) Owner {
	id, ifName, _ := strings.Cut(s, "/")
	return Owner{id, ifName}
}

func (o Owner) valid() bool {
	return netconf.IsName(o.ContainerID) && netconf.IsLinkName(o.IfName)
}

// Result is what an attachment gets.
type Result struct {
	// Addrs are at most one of each family from Local, and any number with
	// their subnets from a delegate.
	Addrs  []Addr
	Routes []netconf.Route // from a delegate
	DNS    types.DNS       // from a delegate
}

// IPs are the addresses of r alone.
func (r Result) IPs() []netip.Addr {
	ips := make([]netip.Addr, len(r.Addrs))
	for i, a := range r.Addrs {
		ips[i] = a.Prefix.Addr()
	}
	return ips
}

// Addr is one address.
type Addr struct {
	// Prefix is the address with its subnet's length; full-length from Local.
	Prefix netip.Prefix
	// Gateway is what a delegate names, else invalid.
	Gateway netip.Addr
}

// Allocator gives one attachment its addresses. The environment and
// configuration that it acts for are those that New was given.
type Allocator interface {
	// Add claims addresses. After an error nothing is claimed.
	Add(context.Context) (Result, error)
	// Check reports whether the attachment holds addrs.
	Check(ctx context.Context, addrs []netip.Addr) error
	// Del releases all that the attachment holds; it does nothing when that
	// is nothing, and never touches another attachment's addresses.
	Del(context.Context) error
	// GC releases what belongs to attachments that keep says no to. Those of
	// other networks may be among them. The caller excludes concurrent ADDs.
	GC(ctx context.Context, keep func(Owner) bool) error
	// Status reports whether Add can work at all.
	Status(context.Context) error
}

// New is the allocator that n asks for. Only Add needs to know the node; the
// other methods do with a zero one.
func New(n *netconf.Network, node netconf.Node) Allocator {
	switch {
	case n.IPAM.None():
		return none{}
	case !n.IPAM.Own():
		return newDelegate(n)
	case n.Segment != nil:
		return NewLeased(n, netconf.Leases{})
	}
	return newLocal(n, node)
}

// none is for an interface without addresses.
type none struct{}

func (none) Add(context.Context) (Result, error)        { return Result{}, nil }
func (none) Check(context.Context, []netip.Addr) error  { return nil }
func (none) Del(context.Context) error                  { return nil }
func (none) GC(context.Context, func(Owner) bool) error { return nil }
func (none) Status(context.Context) error               { return nil }
