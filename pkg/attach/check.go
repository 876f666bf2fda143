package attach

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"strings"

	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/weft-cni/weft/pkg/ipam"
	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/netconf"
	"github.com/weft-cni/weft/pkg/record"
	"github.com/weft-cni/weft/pkg/veth"
)

// DriftError says how an attachment differs from what its ADD made, an item
// for each difference. It is an ErrDrift.
type DriftError struct {
	Attachment ipam.Owner
	Items      []string
}

func (e *DriftError) Error() string {
	return fmt.Sprintf("%s: %v: %s", e.Attachment, ErrDrift, strings.Join(e.Items, "; "))
}

// Is makes errors.Is(err, ErrDrift) hold.
func (e *DriftError) Is(target error) bool { return target == ErrDrift }

// Check compares an attachment with its record: the kernel's objects in the
// pod and on the node, the claims on its addresses, and the result that the
// runtime keeps. The error is a *DriftError that names every difference.
// Routes that a later plugin took out of the result are not missed (CNI
// specification, section 2, "CHECK").
func (p *Plugin) Check(ctx context.Context, n *netconf.Network) error {
	if n.PrevResult == nil {
		return &netconf.InputError{Kind: netconf.ErrConfig, Key: "prevResult", Want: "the result of the ADD"}
	}
	drift := &DriftError{Attachment: ipam.Owner{ContainerID: n.Env.ContainerID, IfName: n.Env.IfName}}
	rec, err := store(n).Get(n.Env.ContainerID, n.Env.IfName)
	if errors.Is(err, fs.ErrNotExist) {
		drift.Items = []string{"record is missing"}
		return drift
	}
	if err != nil {
		return err
	}
	if rec.BootID != p.BootID {
		drift.Items = []string{"attached before the node's last boot"}
		return drift
	}
	as, err := asAdded(rec, n.Env)
	if err != nil {
		return err
	}
	c := check{node: p.Node, n: n, as: as, rec: rec}
	var objects []string
	switch {
	case rec.VF != nil:
		objects, err = p.checkVF(n, rec)
	case rec.VNI != 0:
		objects, err = c.portObjects()
	default:
		objects, err = c.objects()
	}
	if err != nil {
		return err
	}
	drift.Items = slices.Concat(objects, c.claims(ctx), c.result())
	if len(drift.Items) > 0 {
		return drift
	}
	return nil
}

// check is one attachment under Check. Its methods give the differences.
type check struct {
	node *veth.Node
	n    *netconf.Network // of the CHECK
	as   *netconf.Network // of the ADD
	rec  record.Attachment
}

func (c check) objects() ([]string, error) {
	pod, err := openNetns(c.n.Env.Netns)
	if err != nil {
		return nil, err
	}
	defer pod.Close()
	pair := pairOf(c.rec, c.as)
	inHost, inPod, err := c.node.Read(pod, pair)
	if err != nil {
		return nil, err
	}
	wantPod := pair.Pod()
	allow(wantPod, inPod, c.n.PrevResult)
	var items []string
	for _, item := range veth.Drift(pair.Host(), inHost) {
		items = append(items, "node: "+item)
	}
	for _, item := range veth.Drift(wantPod, inPod) {
		items = append(items, "pod: "+item)
	}
	return items, nil
}

// allow takes out of want what later plugins changed and the result tells of:
// routes that it has no more, another MTU of the pod's interface, further
// addresses.
func allow(want, have kernel.State, result *types100.Result) {
	for k, o := range want {
		r, ok := o.(veth.Route)
		if ok && r.Via.IsValid() && r.Table == 0 && !hasRoute(result, r.Dst) {
			delete(want, k)
			delete(have, k) // Multus 4.3 takes default routes out of the result alone
		}
		if l, ok := o.(veth.Link); ok {
			if iface := podInterfaceOf(result, l.Name); iface != nil && iface.Mtu > 0 {
				l.MTU = iface.Mtu
				want.Put(l)
			}
		}
	}
	for k := range have {
		if k.Kind == kernel.KindAddr && want[k] == nil && hasAddr(result, k.Dst.Addr()) {
			delete(have, k)
		}
	}
}

func (c check) claims(ctx context.Context) []string {
	of := c.as
	if !of.IPAM.Own() {
		of = c.n // a delegate wants the prevResult
	}
	if err := ipam.New(of, netconf.Node{}).Check(ctx, c.rec.Addrs); err != nil {
		return []string{err.Error()}
	}
	return nil
}

func (c check) result() []string {
	var items []string
	differs := func(format string, args ...any) {
		items = append(items, "prevResult: "+fmt.Sprintf(format, args...))
	}
	result := c.n.PrevResult
	pod := podInterfaceOf(result, c.rec.IfName)
	switch {
	case pod == nil:
		differs("interface %s is missing", c.rec.IfName)
	case pod.Mac != c.rec.PodMAC.String() && c.rec.PodMAC != (kernel.MAC{}):
		differs("interface %s has mac %s, want %s", c.rec.IfName, pod.Mac, c.rec.PodMAC)
	case pod.Sandbox != c.rec.Netns:
		differs("interface %s has sandbox %s, want %s", c.rec.IfName, pod.Sandbox, c.rec.Netns)
	}
	if c.rec.HostLink != "" && !slices.ContainsFunc(result.Interfaces, func(i *types100.Interface) bool {
		return i.Name == c.rec.HostLink && i.Sandbox == ""
	}) {
		differs("interface %s is missing", c.rec.HostLink)
	}
	for _, a := range c.rec.Addrs {
		if !hasAddr(result, a) {
			differs("address %s is missing", a)
		}
	}
	return items
}

// podInterfaceOf is the interface of that name in a sandbox.
func podInterfaceOf(r *types100.Result, name string) *types100.Interface {
	for _, i := range r.Interfaces {
		if i.Name == name && i.Sandbox != "" {
			return i
		}
	}
	return nil
}

func hasAddr(r *types100.Result, addr netip.Addr) bool {
	return slices.ContainsFunc(r.IPs, func(ip *types100.IPConfig) bool {
		a, ok := netip.AddrFromSlice(ip.Address.IP)
		return ok && a.Unmap() == addr
	})
}

func hasRoute(r *types100.Result, dst netip.Prefix) bool {
	for _, route := range r.Routes {
		a, ok := netip.AddrFromSlice(route.Dst.IP)
		bits, _ := route.Dst.Mask.Size()
		if ok && netip.PrefixFrom(a.Unmap(), bits) == dst {
			return true
		}
	}
	return false
}
