// Package overlay plans the cluster network: which kernel objects a node
// needs so that its pods reach those of its peers over VXLAN. It is pure: no
// netlink, no API client, no clock.
//
// A peer costs one route for each pod CIDR, one neighbour for each address
// family and one FDB entry. The VTEP device learns nothing and sends no
// broadcast: a route leads to the peer's gateway address, its neighbour entry
// to the peer's VTEP MAC, and the FDB entry for that MAC to its underlay
// address (RFC 7348 section 4.1, with the control plane in place of
// learning).
package overlay

import (
	"net/netip"
	"time"

	"github.com/weft-cni/weft/pkg/kernel"
)

// Names in the kernel. `docs/architecture.md` says how each is recognised.
const (
	Link  = "vxlan-weft" // the VXLAN device of the cluster network
	Table = "weft"       // the nftables table, family inet
)

// Config is the part of the daemon's settings that plans depend on.
type Config struct {
	VNI           uint32
	Port          uint16 // UDP
	DirectRouting bool   // route to peers on a common subnet without a tunnel
	Masquerade    bool
	// NoMasquerade are destinations outside the cluster that see pods'
	// addresses.
	NoMasquerade []netip.Prefix
}

// Self is this node.
type Self struct {
	Name     string
	MAC      kernel.MAC
	PodCIDRs []netip.Prefix
	Underlay Underlay
	MTU      int // bytes, of the VXLAN device and of pods
}

// Underlay is this node's end of the underlay.
type Underlay struct {
	Addr   netip.Addr   // outer source address; its family is the tunnel's
	Link   string       // the interface that has it
	Subnet netip.Prefix // the subnet of Addr on Link
	MTU    int          // bytes, of Link
	// AcceptRA is whether Link takes IPv6 router advertisements (accept_ra is
	// 1): turning forwarding on would make the kernel ignore them.
	AcceptRA bool
}

// Peer is another node, parsed and validated from its VTEP.
type Peer struct {
	Name     string
	UID      string // of the VTEP object
	Created  time.Time
	Underlay []netip.Addr
	MAC      kernel.MAC
	Port     uint16
	PodCIDRs []netip.Prefix // masked, sorted as in the VTEP
	MTU      int            // bytes, of the peer's underlay; 0 when not told
}
