package attach

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/weft-cni/weft/pkg/control"
	"github.com/weft-cni/weft/pkg/flock"
	"github.com/weft-cni/weft/pkg/ipam"
	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/netconf"
	"github.com/weft-cni/weft/pkg/podns"
	"github.com/weft-cni/weft/pkg/record"
	"github.com/weft-cni/weft/pkg/veth"
)

// attachSegment is Attach for a tenant's network.
func (p *Plugin) attachSegment(ctx context.Context, n *netconf.Network) (result []byte, err error) {
	node, err := p.ready(n)
	if err != nil {
		return nil, err
	}
	pod, err := openNetns(n.Env.Netns)
	if err != nil {
		return nil, err
	}
	defer pod.Close()
	unlock, err := lock(ctx, n, flock.Shared)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err = p.notAttached(n); err != nil {
		return nil, err
	}

	var done undoList
	defer func() { err = done.undoOn(err) }()

	given, file, leave, err := p.enter(ctx, n, node, &done)
	if err != nil {
		return nil, err
	}
	defer leave()
	port, err := portFor(n, file, given)
	if err != nil {
		return nil, err
	}
	flush, err := store(n).Write(segmentRecord(n, node, port))
	if err != nil {
		return nil, err
	}
	encoded := inBackground(func() (err error) {
		result, err = encode(segmentResult(n, port, given), n.CNIVersion)
		return errors.Join(err, flush())
	})
	err = p.connectPort(ctx, pod, port, &done)
	if err = errors.Join(err, <-encoded); err != nil {
		return nil, err
	}
	p.Log.Debug("attached", "vni", port.VNI, "addrs", port.Addrs, "host", port.HostLink)
	return result, nil
}

// askAttempts bounds how often the daemon is asked for what was gone, or used
// up by others, when it had been made ready.
const askAttempts = 5

// enter gives addresses on a segment that is ready on this node, and keeps the
// daemon from taking the segment away until leave is called. Where the segment
// isn't ready, or has no address left here, it asks the daemon.
func (p *Plugin) enter(ctx context.Context, n *netconf.Network, node netconf.Node, done *undoList) (
	given ipam.Result, file netconf.SegmentFile, leave func(), err error,
) {
	for range askAttempts {
		if leave, err = lockSegment(ctx, n); err != nil {
			return given, file, nil, err
		}
		file, err = netconf.ReadSegment(n.RunDir, n.Segment.VNI, p.BootID)
		if err == nil && (file.Gateway || !n.Segment.Gateway) {
			if err = n.Segment.Tunnels.Agree(file.Tunnels, "on this node"); err != nil {
				leave()
				return given, file, nil, fmt.Errorf("%s: %w", n.Segment, err)
			}
			given, err = p.allocateOn(ctx, n, node, file, done)
			if !errors.Is(err, ipam.ErrNoBlock) {
				if err != nil {
					leave()
				}
				return given, file, leave, err
			}
		}
		leave()
		if err = control.Prepare(ctx, n.RunDir, control.Request{Segment: *n.Segment, Addrs: n.Addrs}); err != nil {
			return given, file, nil, fmt.Errorf("%s: %w", n.Segment, err)
		}
	}
	return given, file, nil, fmt.Errorf("%s: %w", n.Segment, control.ErrNotYet)
}

func lockSegment(ctx context.Context, n *netconf.Network) (unlock func(), err error) {
	if err := netconf.MakeSegmentDir(n.RunDir); err != nil {
		return nil, err
	}
	return flock.Shared(ctx, netconf.SegmentLock(n.RunDir, n.Segment.VNI), lockTimeout)
}

// allocateOn gives addresses of the node's blocks, or another plugin's, or none.
func (p *Plugin) allocateOn(ctx context.Context, n *netconf.Network, node netconf.Node, file netconf.SegmentFile, done *undoList) (ipam.Result, error) {
	switch {
	case n.IPAM.None():
		done.add("remove the record", func() error { return store(n).Delete(n.Env.ContainerID, n.Env.IfName) })
		return ipam.Result{}, nil
	case !n.IPAM.Own():
		return allocate(ctx, n, node, done)
	}
	leased := ipam.NewLeased(n, file.Leases)
	given, err := leased.Add(ctx)
	if err != nil {
		return ipam.Result{}, err
	}
	done.add("remove the record", func() error { return store(n).Delete(n.Env.ContainerID, n.Env.IfName) })
	done.add("release the addresses", func() error { return leased.Del(context.WithoutCancel(ctx)) })
	return given, nil
}

// portFor says what an attachment that was given these addresses is like.
func portFor(n *netconf.Network, file netconf.SegmentFile, given ipam.Result) (veth.Port, error) {
	mtu, err := n.PodMTU(netconf.Node{MTU: file.MTU})
	if err != nil {
		return veth.Port{}, err
	}
	if slices.ContainsFunc(given.IPs(), netip.Addr.Is6) && mtu < minIPv6MTU {
		return veth.Port{}, &netconf.InputError{
			Kind: netconf.ErrConfig, Key: "mtu", Value: fmt.Sprint(mtu),
			Want: fmt.Sprintf("at least %d for a pod with an IPv6 address", minIPv6MTU),
		}
	}
	port := veth.Port{
		HostLink: veth.HostLink(n.Env.ContainerID, n.Env.IfName), PodLink: n.Env.IfName,
		Alias: veth.Alias(n.Name, n.Pod.Namespace, n.Pod.Name, n.Env.IfName),
		MAC:   n.MAC, MTU: mtu, VNI: n.Segment.VNI, Gateways: n.Segment.Gateways(), Options: n.Segment.Port,
	}
	switch {
	case port.MAC != kernel.MAC{}:
	case len(given.Addrs) > 0:
		port.MAC = veth.AddressMAC(n.Segment.VNI, given.Addrs[0].Prefix.Addr())
	default:
		port.MAC = veth.DefaultMAC(n.Env.ContainerID, n.Env.IfName)
	}
	for _, a := range given.Addrs {
		port.Addrs = append(port.Addrs, a.Prefix)
	}
	port.Routes, err = segmentRoutes(n, given)
	return port, err
}

// defaultMetric is the metric of a default route that is to be taken before
// those of the pod's other interfaces: in IPv6 one before the kernel's own, 1024
// (IP6_RT_PRIO_USER). In IPv4 it is by its place that it comes first.
func defaultMetric(dst netip.Addr) int {
	if dst.Is4() {
		return 0
	}
	return 512
}

// segmentRoutes are the pod's routes: the default ones first, next hops filled
// in with the ranges' gateways.
func segmentRoutes(n *netconf.Network, given ipam.Result) (routes []netconf.Route, err error) {
	gateway := func(dst netip.Prefix) (hop netip.Addr, has bool) {
		for _, a := range given.Addrs {
			if a.Prefix.Addr().Is4() == dst.Addr().Is4() {
				return a.Gateway, true
			}
		}
		return netip.Addr{}, false
	}
	if n.DefaultRoute {
		for _, all := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
			r := netconf.Route{Dst: netip.PrefixFrom(all, 0), Priority: defaultMetric(all)}
			if r.GW, _ = gateway(r.Dst); r.GW.IsValid() {
				routes = append(routes, r)
			}
		}
		if len(routes) == 0 {
			return nil, &netconf.InputError{
				Kind: netconf.ErrConfig, Key: "defaultRoute", Value: "true", Want: "false where no range of ipam has a gateway",
			}
		}
	}
	for _, r := range slices.Concat(n.Routes, given.Routes) {
		hop, has := gateway(r.Dst)
		if !has {
			continue // of a family that the pod lacks
		}
		if !r.GW.IsValid() {
			r.GW = hop
		}
		if r.Dst.Bits() == 0 {
			r.Priority = cmp.Or(r.Priority, defaultMetric(r.Dst.Addr()))
		}
		if !slices.ContainsFunc(routes, func(o netconf.Route) bool { return o.Dst == r.Dst && o.Table == r.Table && o.Priority == r.Priority }) {
			routes = append(routes, r)
		}
	}
	return routes, nil
}

func segmentRecord(n *netconf.Network, node netconf.Node, port veth.Port) record.Attachment {
	rec := recordFor(n, node.BootID)
	rec.IPAM = cmp.Or(rec.IPAM, "none")
	rec.VNI, rec.HostLink, rec.PodMAC, rec.MTU, rec.Routes = port.VNI, port.HostLink, port.MAC, port.MTU, port.Routes
	rec.Port = port.Options
	for _, a := range port.Addrs {
		rec.Addrs = append(rec.Addrs, a.Addr())
	}
	return rec
}

// connectPort makes the pair.
func (p *Plugin) connectPort(ctx context.Context, pod *podns.NS, port veth.Port, done *undoList) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := p.Node.CreatePort(pod, port); err != nil {
		return err
	}
	done.add("remove the interface", func() error { return p.Node.RemovePort(port) })
	return nil
}

// recordedPort is what a record alone tells of a port: enough to remove it.
func recordedPort(rec record.Attachment, hostLink string) veth.Port {
	port := veth.Port{HostLink: hostLink, VNI: rec.VNI, MAC: rec.PodMAC, Options: rec.Port}
	for _, a := range rec.Addrs {
		port.Addrs = append(port.Addrs, netip.PrefixFrom(a, a.BitLen()))
	}
	return port
}

// portOf is the port that a record tells of, with the lengths of subnets that a
// result or the configuration has.
func portOf(rec record.Attachment, as *netconf.Network, result *types100.Result) veth.Port {
	port := veth.Port{
		HostLink: rec.HostLink, PodLink: rec.IfName,
		Alias: veth.Alias(rec.Network, rec.PodNamespace, rec.PodName, rec.IfName),
		MAC:   rec.PodMAC, MTU: rec.MTU, VNI: rec.VNI, Routes: rec.Routes, Options: rec.Port,
	}
	for _, a := range rec.Addrs {
		bits := a.BitLen()
		if as.Segment != nil {
			port.Gateways = as.Segment.Gateways()
			for _, r := range as.Segment.Ranges {
				if r.Subnet.Contains(a) {
					bits = r.Subnet.Bits()
				}
			}
		}
		for _, ip := range result.IPs {
			if told, ok := netip.AddrFromSlice(ip.Address.IP); ok && told.Unmap() == a && !as.IPAM.Own() {
				bits, _ = ip.Address.Mask.Size()
			}
		}
		port.Addrs = append(port.Addrs, netip.PrefixFrom(a, bits))
	}
	return port
}

// segmentResult is the result of an ADD: addresses with their subnets' lengths
// and gateways.
func segmentResult(n *netconf.Network, port veth.Port, given ipam.Result) *types100.Result {
	r := &types100.Result{
		CNIVersion: types100.ImplementedSpecVersion,
		Interfaces: []*types100.Interface{
			hostInterface: {Name: port.HostLink, Mac: netconf.HostMAC, Mtu: port.MTU},
			podInterface:  {Name: port.PodLink, Mac: port.MAC.String(), Mtu: port.MTU, Sandbox: n.Env.Netns},
		},
		DNS: n.DNS,
	}
	if r.DNS.IsEmpty() {
		r.DNS = given.DNS
	}
	for _, a := range given.Addrs {
		r.IPs = append(r.IPs, &types100.IPConfig{
			Interface: types100.Int(podInterface), Address: ipNet(a.Prefix), Gateway: a.Gateway.AsSlice(),
		})
	}
	for _, route := range port.Routes {
		if route.Table == 0 || n.CNIVersion == types100.ImplementedSpecVersion {
			r.Routes = append(r.Routes, route.CNI())
		}
	}
	return r
}

// portObjects are the differences of a port's objects from its record.
func (c check) portObjects() ([]string, error) {
	pod, err := openNetns(c.n.Env.Netns)
	if err != nil {
		return nil, err
	}
	defer pod.Close()
	port := portOf(c.rec, c.as, c.n.PrevResult)
	inHost, inPod, err := c.node.ReadPort(pod, port)
	if err != nil {
		return nil, err
	}
	wantPod := port.Pod()
	allow(wantPod, inPod, c.n.PrevResult)
	var items []string
	for _, item := range veth.Drift(port.Host(), inHost) {
		items = append(items, "node: "+item)
	}
	for _, item := range veth.Drift(wantPod, inPod) {
		items = append(items, "pod: "+item)
	}
	return items, nil
}
