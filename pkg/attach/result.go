package attach

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"

	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/weft-cni/weft/pkg/ipam"
	"github.com/weft-cni/weft/pkg/netconf"
	"github.com/weft-cni/weft/pkg/veth"
)

// Places in the interfaces of a result.
const (
	hostInterface = iota
	podInterface
)

// resultOf is the result of an ADD (CNI specification, section 5). Addresses
// have full length, as the pod has them, also those of a delegate that told a
// subnet.
func resultOf(n *netconf.Network, pair veth.Pair, given ipam.Result) *types100.Result {
	r := &types100.Result{
		CNIVersion: types100.ImplementedSpecVersion,
		Interfaces: []*types100.Interface{
			hostInterface: {Name: pair.HostLink, Mac: netconf.HostMAC, Mtu: pair.MTU},
			podInterface:  {Name: pair.PodLink, Mac: pair.MAC.String(), Mtu: pair.MTU, Sandbox: n.Env.Netns},
		},
		DNS: n.DNS,
	}
	if r.DNS.IsEmpty() {
		r.DNS = given.DNS
	}
	for _, a := range pair.Addrs {
		r.IPs = append(r.IPs, &types100.IPConfig{
			Interface: types100.Int(podInterface),
			Address:   ipNet(netip.PrefixFrom(a, a.BitLen())),
			Gateway:   veth.Gateway(a).AsSlice(),
		})
	}
	for _, route := range pair.PodRoutes() {
		// Older results can't say that a route is not in the main table.
		if route.Table == 0 || n.CNIVersion == types100.ImplementedSpecVersion {
			r.Routes = append(r.Routes, route.CNI())
		}
	}
	return r
}

// encode gives a result in a version as JSON.
func encode(r *types100.Result, version string) ([]byte, error) {
	converted, err := r.GetAsVersion(version)
	if err != nil {
		return nil, fmt.Errorf("result in version %s: %w", version, err)
	}
	var text bytes.Buffer
	if err := converted.PrintTo(&text); err != nil {
		return nil, fmt.Errorf("print the result: %w", err)
	}
	return text.Bytes(), nil
}

func ipNet(p netip.Prefix) net.IPNet {
	return net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
