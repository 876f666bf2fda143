package veth

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/rtmsg"
)

// end is one end of a pair in its namespace, and what is to be done there.
type end struct {
	conn  *rtmsg.Conn
	name  string
	index int
	h     *netlink.Handle          // of the node, to ask whose a route is
	do    func(func() error) error // runs a function in the namespace
	first bool                     // its default routes go before those of other links

	wasOff bool // IPv6, until enableIPv6

	names    []string // of what each request is about, in the words of ip(8)
	requests []rtmsg.Request
}

func (e *end) find() (err error) {
	if e.index, err = e.conn.Index(e.name); err != nil {
		return &KernelError{Object: "link " + e.name, Err: err}
	}
	return nil
}

// add puts a request into the end's batch.
func (e *end) add(name string, r rtmsg.Request) {
	e.names, e.requests = append(e.names, name), append(e.requests, r)
}

// put makes all objects of s but the links, after what is in the batch.
func (e *end) put(s kernel.State) error {
	before := len(e.requests)
	var objects []kernel.Object
	for _, k := range slices.SortedFunc(maps.Keys(s), kernel.Key.Compare) {
		switch o := s[k].(type) {
		case Link:
		case kernel.Sysctl:
			err := e.do(func() error { return os.WriteFile("/proc/sys/"+o.Name, []byte(o.Value), 0) })
			if err != nil {
				return &KernelError{Object: o.String(), Err: err}
			}
		default:
			r, err := e.encode(o)
			if err != nil {
				return err
			}
			objects = append(objects, o)
			e.add(o.String(), r)
		}
	}
	for i, err := range e.conn.Execute(e.requests) {
		if i >= before {
			err = e.settle(objects[i-before], e.requests[i], err)
		} else if errors.Is(err, unix.EAFNOSUPPORT) {
			err = nil // addrgenmode, where the kernel has no IPv6
		}
		if inUse := (*InUseError)(nil); errors.As(err, &inUse) {
			return err
		}
		if err != nil {
			return &KernelError{Object: e.names[i], Err: err}
		}
	}
	return nil
}

// settle decides what an object's error means, and tries again where that
// helps.
func (e *end) settle(o kernel.Object, r rtmsg.Request, err error) error {
	if err != nil && o.Key().Dst.Addr().Is6() && e.enableIPv6() {
		err = e.conn.Execute([]rtmsg.Request{r})[0]
	}
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	switch o := o.(type) {
	case kernel.Route:
		return e.inTheWay(o.Dst.Addr())
	case Route:
		if o.Via.IsValid() && o.Dst.Bits() == 0 {
			return fmt.Errorf(`%w, through another interface of the pod; "defaultRoute": false leaves it out here`, err)
		}
	}
	return err
}

// inTheWay says whose route to a pod's address there is already: it belongs to
// somebody, and is not this package's to judge.
func (e *end) inTheWay(ip netip.Addr) error {
	link, err := routeLink(e.h, ip)
	if err != nil {
		return err
	}
	if link == e.name {
		return nil // the daemon, which knows the record, was quicker
	}
	return &InUseError{Addr: ip, Link: link}
}

// encode makes the request that adds o.
func (e *end) encode(o kernel.Object) (rtmsg.Request, error) {
	switch o := o.(type) {
	case kernel.Addr:
		ip := o.Prefix.Addr()
		body := rtmsg.Addr(rtmsg.Family(ip), o.Prefix.Bits(), e.index)
		body = rtmsg.AttrAddr(rtmsg.AttrAddr(body, unix.IFA_LOCAL, ip), unix.IFA_ADDRESS, ip)
		body = rtmsg.AttrUint32(body, unix.IFA_FLAGS, unix.IFA_F_NODAD)
		return rtmsg.Request{Type: unix.RTM_NEWADDR, Flags: exclusive, Body: body}, nil
	case kernel.Neigh:
		body := rtmsg.Neigh(rtmsg.Family(o.IP), e.index, unix.NUD_PERMANENT, 0)
		body = rtmsg.Attr(rtmsg.AttrAddr(body, unix.NDA_DST, o.IP), unix.NDA_LLADDR, o.MAC[:])
		return rtmsg.Request{Type: unix.RTM_NEWNEIGH, Flags: unix.NLM_F_CREATE | unix.NLM_F_REPLACE, Body: body}, nil
	case kernel.Route:
		return e.route(Route{Dst: o.Dst}, exclusive), nil
	case Route:
		if !o.Via.IsValid() {
			// Each interface of a pod has this route to the same gateway.
			return e.route(o, unix.NLM_F_CREATE|unix.NLM_F_APPEND), nil
		}
		if e.first && o.Dst.Bits() == 0 {
			return e.route(o, aheadOf(o.Dst.Addr())), nil
		}
		return e.route(o, exclusive), nil
	case Rule:
		return o.request(false), nil
	}
	return rtmsg.Request{}, fmt.Errorf("%T is no object of a pair", o)
}

// aheadOf are the flags that put a route before the others to the same
// destination: of the same metric in IPv4, where the last one made is the first
// one taken, and in IPv6 those of a larger metric.
func aheadOf(dst netip.Addr) uint16 {
	if dst.Is4() {
		return unix.NLM_F_CREATE
	}
	return unix.NLM_F_CREATE | unix.NLM_F_REPLACE
}

func (e *end) route(r Route, flags uint16) rtmsg.Request {
	dst := r.Dst.Addr()
	scope, onlink := uint8(unix.RT_SCOPE_LINK), uint32(0)
	if r.Via.IsValid() {
		scope, onlink = unix.RT_SCOPE_UNIVERSE, unix.RTNH_F_ONLINK
	}
	body := rtmsg.Route(rtmsg.Family(dst), r.Dst.Bits(), kernel.RouteProtocol, scope, onlink)
	body = rtmsg.AttrAddr(rtmsg.IntoTable(body, uint32(r.Table)), unix.RTA_DST, dst)
	body = rtmsg.AttrUint32(body, unix.RTA_OIF, uint32(e.index))
	if r.Via.IsValid() {
		body = rtmsg.AttrAddr(body, unix.RTA_GATEWAY, r.Via)
	}
	if r.Priority != 0 {
		body = rtmsg.AttrUint32(body, unix.RTA_PRIORITY, uint32(r.Priority))
	}
	var metrics []byte
	if r.MTU != 0 {
		metrics = rtmsg.AttrUint32(metrics, unix.RTAX_MTU, uint32(r.MTU))
	}
	if r.AdvMSS != 0 {
		metrics = rtmsg.AttrUint32(metrics, unix.RTAX_ADVMSS, uint32(r.AdvMSS))
	}
	if metrics != nil {
		body = rtmsg.Attr(body, unix.RTA_METRICS|unix.NLA_F_NESTED, metrics)
	}
	return rtmsg.Request{Type: unix.RTM_NEWROUTE, Flags: flags, Body: body}
}

// rulePriority is before the main table's 32766 and after what most others
// choose.
const rulePriority = 32000

// request adds the rule, or deletes it, whatever its table.
func (r Rule) request(del bool) rtmsg.Request {
	add := rtmsg.Request{Type: unix.RTM_NEWRULE, Flags: exclusive}
	action := uint8(rtmsg.ToTable)
	if del {
		add, action = rtmsg.Request{Type: unix.RTM_DELRULE}, 0
	}
	body := rtmsg.Rule(rtmsg.Family(r.From), r.From.BitLen(), action)
	body = rtmsg.AttrAddr(body, unix.FRA_SRC, r.From)
	body = rtmsg.AttrUint32(body, unix.FRA_PRIORITY, rulePriority)
	body = rtmsg.Attr(body, unix.FRA_PROTOCOL, []byte{kernel.RouteProtocol})
	if !del {
		body = rtmsg.AttrUint32(body, unix.FRA_TABLE, uint32(r.Table))
	}
	add.Body = body
	return add
}

// enableIPv6 turns IPv6 on for this one interface and reports whether it had
// been off: where the namespace has it off by default, the interface gets it
// all the same because the network gives it an IPv6 address.
func (e *end) enableIPv6() bool {
	if e.wasOff {
		return true
	}
	err := e.do(func() error {
		path := "/proc/sys/net/ipv6/conf/" + e.name + "/disable_ipv6"
		value, err := os.ReadFile(path)
		if err != nil || strings.TrimSpace(string(value)) == "0" {
			return err
		}
		e.wasOff = true
		return os.WriteFile(path, []byte("0"), 0)
	})
	return e.wasOff && err == nil
}
