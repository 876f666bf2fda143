// Package veth is the data path of a pod on the cluster network: a veth pair
// with routed addresses.
//
// A Pair says what an attachment should be; Host and Pod turn that into the
// kernel objects of the two network namespaces, without looking at either. A
// Node makes them (Create), reads them back (Read) and deletes the pair
// (Remove), with which everything on it goes; Drift compares what was read
// with what should be.
//
//	pod                                     node
//	eth0 10.244.1.5/32  ──────────────────  weft7n2k…  ee:ee:ee:ee:ee:ee
//	default via 169.254.1.1, a permanent    10.244.1.5/32 dev weft7n2k…, and a
//	neighbour: ee:ee:ee:ee:ee:ee            permanent neighbour: the pod's MAC
//
// Neither end ever sends ARP or neighbour discovery for the other, and no
// bridge is in between.
package veth

import (
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/netconf"
)

// Pair is the veth pair of one attachment.
type Pair struct {
	HostLink string // name of the host end, see HostLink
	PodLink  string // name of the pod end
	// Alias is the host end's (ip-link(8), "alias"), see Alias.
	Alias string
	MAC   kernel.MAC // of the pod end
	MTU   int        // bytes, of both ends
	// Addrs are the pod's addresses, of either family. Each becomes a host
	// route of the node.
	Addrs []netip.Addr
	// DefaultRoute is whether all that no other route of the pod matches goes
	// through this pair. Where it doesn't, only what the pod sends from Addrs
	// does, by a routing rule, so that answers leave where the question came
	// in.
	DefaultRoute bool
	// Routes are further routes of the pod. One without a next hop gets the
	// link-local gateway; one to 0.0.0.0/0 or ::/0 in the main table stands in
	// for the default route. Those of a family that Addrs lack are left out.
	Routes []netconf.Route
}

// hostLinkLen is the longest name that the kernel takes, in bytes (IFNAMSIZ
// less the zero).
const hostLinkLen = 15

var lowerBase32 = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// HostLink is the name of the host end of an attachment's pair. It follows
// from the attachment alone, so that the pair can be found without a record,
// and its 55 bits of a hash fill what the kernel takes as a name.
func HostLink(containerID, ifName string) string {
	sum := digest(containerID, ifName)
	return (netconf.LinkStart + lowerBase32.EncodeToString(sum[:]))[:hostLinkLen]
}

// DefaultMAC is the pod end's Ethernet address where none is asked for: the
// same each time for one attachment.
func DefaultMAC(containerID, ifName string) kernel.MAC {
	sum := digest(containerID, ifName)
	return kernel.MACFromHash(sum[8:14])
}

// AddressMAC is the Ethernet address of a station on a segment by its IP address:
// the same on every node, for whoever has that address. Others keep it in their
// neighbour tables for most of a minute (arp(7): base_reachable_time), and where
// neighbours are suppressed nothing that a station announces crosses the tunnels.
func AddressMAC(vni uint32, addr netip.Addr) kernel.MAC {
	sum := sha256.Sum256(fmt.Appendf(nil, "weft station %d %s", vni, addr))
	return kernel.MACFromHash(sum[:])
}

func digest(containerID, ifName string) [sha256.Size]byte {
	return sha256.Sum256([]byte(containerID + "/" + ifName))
}

// aliasMax is the longest alias the kernel takes, in bytes (IFALIASZ less the
// zero).
const aliasMax = 255

// Alias is the host end's alias: it tells people, and the garbage collection,
// whose a link is.
func Alias(network, podNamespace, podName, ifName string) string {
	alias := "weft network=" + network + " if=" + ifName
	if podName != "" {
		alias += " pod=" + podNamespace + "/" + podName
	}
	return alias[:min(len(alias), aliasMax)]
}

// aliasNetwork is the network that an Alias names.
func aliasNetwork(alias string) (network string, ok bool) {
	rest, ok := strings.CutPrefix(alias, "weft network=")
	if !ok {
		return "", false
	}
	network, _, ok = strings.Cut(rest, " ")
	return network, ok
}

// hasFamily reports whether the pod has an address of the family of ip.
func (p Pair) hasFamily(ip netip.Addr) bool {
	return slices.ContainsFunc(p.Addrs, func(a netip.Addr) bool { return a.Is4() == ip.Is4() })
}
