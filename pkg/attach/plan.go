package attach

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/weft-cni/weft/pkg/ipam"
	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/netconf"
	"github.com/weft-cni/weft/pkg/record"
	"github.com/weft-cni/weft/pkg/veth"
)

// minIPv6MTU is the least MTU of a link with IPv6, in bytes (RFC 8200 section
// 5).
const minIPv6MTU = 1280

// plan says what an attachment that was given these addresses is like: its
// record, and its pair.
func plan(n *netconf.Network, node netconf.Node, given ipam.Result) (record.Attachment, veth.Pair, error) {
	mtu, err := n.PodMTU(node)
	if err != nil {
		return record.Attachment{}, veth.Pair{}, err
	}
	has6 := slices.ContainsFunc(given.IPs(), netip.Addr.Is6)
	if has6 && mtu < minIPv6MTU {
		return record.Attachment{}, veth.Pair{}, &netconf.InputError{
			Kind: netconf.ErrConfig, Key: "mtu", Value: fmt.Sprint(mtu),
			Want: fmt.Sprintf("at least %d for a pod with an IPv6 address", minIPv6MTU),
		}
	}
	mac := n.MAC
	if mac == (kernel.MAC{}) {
		mac = veth.DefaultMAC(n.Env.ContainerID, n.Env.IfName)
	}
	routes := slices.Clone(n.Routes)
	for _, r := range given.Routes {
		// A delegate names the gateway of a subnet; here the node is the only
		// neighbour.
		r.GW = netip.Addr{}
		routes = append(routes, r)
	}
	pair := veth.Pair{
		HostLink:     veth.HostLink(n.Env.ContainerID, n.Env.IfName),
		PodLink:      n.Env.IfName,
		Alias:        veth.Alias(n.Name, n.Pod.Namespace, n.Pod.Name, n.Env.IfName),
		MAC:          mac,
		MTU:          mtu,
		Addrs:        given.IPs(),
		DefaultRoute: n.DefaultRoute,
		Routes:       routes,
	}
	return recordOf(n, node, pair), pair, nil
}

func recordOf(n *netconf.Network, node netconf.Node, pair veth.Pair) record.Attachment {
	rec := recordFor(n, node.BootID)
	rec.HostLink = pair.HostLink
	rec.PodMAC = pair.MAC
	rec.MTU = pair.MTU
	rec.Addrs = pair.Addrs
	rec.Routes = pair.PodRoutes()
	return rec
}

// recordFor is the part of a record that doesn't depend on the mode.
func recordFor(n *netconf.Network, bootID string) record.Attachment {
	return record.Attachment{
		ContainerID:  n.Env.ContainerID,
		IfName:       n.Env.IfName,
		Network:      n.Name,
		Netns:        n.Env.Netns,
		Mode:         string(n.Mode),
		PodNamespace: n.Pod.Namespace,
		PodName:      n.Pod.Name,
		PodUID:       n.Pod.UID,
		IPAM:         n.IPAM.Type,
		Config:       n.Raw,
		Args:         n.Env.Args,
		Created:      time.Now().UTC().Truncate(time.Second),
		BootID:       bootID,
	}
}

// pairOf is the pair that a record tells of. as is the configuration that it
// was made with.
func pairOf(rec record.Attachment, as *netconf.Network) veth.Pair {
	return veth.Pair{
		HostLink:     rec.HostLink,
		PodLink:      rec.IfName,
		Alias:        veth.Alias(rec.Network, rec.PodNamespace, rec.PodName, rec.IfName),
		MAC:          rec.PodMAC,
		MTU:          rec.MTU,
		Addrs:        rec.Addrs,
		DefaultRoute: as.DefaultRoute,
		Routes:       rec.Routes,
	}
}

// asAdded is the configuration that a record's attachment was made with, for
// another command on it.
func asAdded(rec record.Attachment, now netconf.Env) (*netconf.Network, error) {
	env := now
	env.ContainerID, env.IfName, env.Args = rec.ContainerID, rec.IfName, rec.Args
	if env.Netns == "" {
		env.Netns = rec.Netns
	}
	n, err := netconf.Parse(rec.Config, env)
	if err != nil {
		return nil, fmt.Errorf("the recorded configuration of %s/%s: %w", rec.ContainerID, rec.IfName, err)
	}
	return n, nil
}
