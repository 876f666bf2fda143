package veth

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/podns"
	"github.com/weft-cni/weft/pkg/rtmsg"
)

// ErrExists says that a link of one of the pair's names is there already.
var ErrExists = errors.New("link exists")

// KernelError is an object that the kernel refused.
type KernelError struct {
	Object string // in the words of ip(8)
	Err    error  // mostly a syscall.Errno
}

func (e *KernelError) Error() string { return e.Object + ": " + e.Err.Error() }

func (e *KernelError) Unwrap() error { return e.Err }

// InUseError is a host route to one of a pair's addresses that leads
// elsewhere.
type InUseError struct {
	Addr netip.Addr
	Link string // where it leads; empty for an unreachable, prohibit or blackhole route
}

func (e *InUseError) Error() string {
	if e.Link == "" {
		return fmt.Sprintf("address %s: a route to it leads nowhere", e.Addr)
	}
	return fmt.Sprintf("address %s: a route to it leads to link %s", e.Addr, e.Link)
}

// Create makes the pair between the node's network namespace and pod, with
// all that Host and Pod say. After an error nothing of it is left, unless the
// error says that too.
//
// The error is ErrExists where one of the names is taken, an *InUseError
// where a route to one of the addresses is there, and else a *KernelError.
func (n *Node) Create(pod *podns.NS, p Pair) error {
	inPod, err := dialIn(pod)
	if err != nil {
		return err
	}
	defer inPod.Close()

	err = p.add(n.conn, inPod, pod)
	if errors.Is(err, ErrExists) {
		return err
	}
	if err == nil {
		err = p.configure(n, inPod, pod)
	}
	if err != nil {
		// Also where the message that makes the pair has failed: perhaps only
		// its answer was lost.
		if undo := p.undo(n, pod); undo != nil {
			err = fmt.Errorf("%w; then, to remove the pair: %w", err, undo)
		}
	}
	return err
}

func dialIn(pod *podns.NS) (conn *rtmsg.Conn, err error) {
	err = pod.Do(func() (err error) {
		conn, err = rtmsg.Dial()
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("netlink in %s: %w", pod.Path(), err)
	}
	return conn, nil
}

func (p Pair) undo(n *Node, pod *podns.NS) error {
	err := n.Remove(p.HostLink)
	if !p.DefaultRoute {
		err = errors.Join(err, RemoveRules(pod, p.Addrs))
	}
	return err
}

// add makes both ends in one message, each in its namespace, under its name,
// with its address and MTU, so that there is never half a pair. The host end is
// up at once: without a carrier, which it gets when the pod's end is up too, it
// does nothing yet.
func (p Pair) add(host, inPod *rtmsg.Conn, pod *podns.NS) error {
	peer := linkAttrs(rtmsg.Link(0, 0, 0), p.PodLink, p.MAC, p.MTU)
	peer = rtmsg.AttrUint32(peer, unix.IFLA_NET_NS_FD, uint32(pod.FD()))
	info := rtmsg.AttrString(nil, unix.IFLA_INFO_KIND, "veth")
	info = rtmsg.Attr(info, unix.IFLA_INFO_DATA|unix.NLA_F_NESTED, rtmsg.Attr(nil, vethInfoPeer, peer))
	body := linkAttrs(rtmsg.Link(0, unix.IFF_UP, unix.IFF_UP), p.HostLink, hostMAC, p.MTU)
	body = rtmsg.Attr(body, unix.IFLA_LINKINFO|unix.NLA_F_NESTED, info)

	err := host.Execute([]rtmsg.Request{{Type: unix.RTM_NEWLINK, Flags: exclusive, Body: body}})[0]
	if errors.Is(err, unix.EEXIST) {
		if _, notThere := inPod.Index(p.PodLink); notThere == nil {
			return fmt.Errorf("%s in %s: %w", p.PodLink, pod.Path(), ErrExists)
		}
		return fmt.Errorf("%s: %w", p.HostLink, ErrExists)
	}
	if err != nil {
		return &KernelError{Object: fmt.Sprintf("veth pair of %s and %s", p.HostLink, p.PodLink), Err: err}
	}
	return nil
}

const (
	vethInfoPeer = 1 // VETH_INFO_PEER of linux/veth.h

	exclusive = unix.NLM_F_CREATE | unix.NLM_F_EXCL
)

// linkAttrs appends what each end is to be.
//
// Of each queue there is one. Left alone the kernel makes one for each CPU, of
// which it only uses further ones for XDP and for receive offload on the pair,
// and each is a directory in sysfs to make and to remove: on a machine of 128
// CPUs that is most of an ADD.
func linkAttrs(body []byte, name string, mac kernel.MAC, mtu int) []byte {
	body = rtmsg.AttrString(body, unix.IFLA_IFNAME, name)
	body = rtmsg.Attr(body, unix.IFLA_ADDRESS, mac[:])
	body = rtmsg.AttrUint32(body, unix.IFLA_MTU, uint32(mtu))
	body = rtmsg.AttrUint32(body, unix.IFLA_NUM_TX_QUEUES, 1)
	return rtmsg.AttrUint32(body, unix.IFLA_NUM_RX_QUEUES, 1)
}

// configure does what the kernel doesn't take with the message that makes the
// pair: a batch for each end.
func (p Pair) configure(n *Node, inPod *rtmsg.Conn, pod *podns.NS) error {
	host := &end{conn: n.conn, h: n.h, name: p.HostLink, do: func(f func() error) error { return f() }}
	peer := &end{conn: inPod, name: p.PodLink, do: pod.Do}
	for _, e := range []*end{host, peer} {
		if err := e.find(); err != nil {
			return err
		}
	}
	// The host end needs no address of its own: pods know it by its permanent
	// neighbour entry.
	host.add("addrgenmode of "+host.name, rtmsg.Request{
		Type: unix.RTM_SETLINK, Body: rtmsg.NoLinkLocal(rtmsg.Link(host.index, 0, 0)),
	})
	host.add("alias of "+host.name, rtmsg.Request{
		Type: unix.RTM_SETLINK, Body: rtmsg.Attr(rtmsg.Link(host.index, 0, 0), unix.IFLA_IFALIAS, []byte(p.Alias)),
	})
	peer.add("link "+peer.name+" up", rtmsg.Request{
		Type: unix.RTM_SETLINK, Body: rtmsg.Link(peer.index, unix.IFF_UP, unix.IFF_UP),
	})
	if err := peer.put(p.Pod()); err != nil {
		return fmt.Errorf("in the pod: %w", err)
	}
	return host.put(p.Host())
}

// routeLink names the link that the node's route to exactly ip leads to. It is
// empty where there is no such route, or one that leads nowhere.
func routeLink(h *netlink.Handle, ip netip.Addr) (string, error) {
	routes, err := h.RouteGetWithOptions(ip.AsSlice(), &netlink.RouteGetOptions{FIBMatch: true})
	for _, none := range []error{unix.ENETUNREACH, unix.EHOSTUNREACH, unix.EACCES, unix.EINVAL} {
		if errors.Is(err, none) {
			return "", nil // the answers for no route, unreachable, prohibit and blackhole
		}
	}
	if err != nil {
		return "", fmt.Errorf("route to %s: %w", ip, err)
	}
	for _, r := range routes {
		if prefix(r.Dst) != full(ip) {
			continue
		}
		if link, err := h.LinkByIndex(r.LinkIndex); err == nil {
			return link.Attrs().Name, nil
		}
	}
	return "", nil
}
