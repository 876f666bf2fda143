// Package segment plans tenants' networks: layer 2 segments (RFC 8014), each a
// bridge on every member node and a VXLAN device of the segment's own VNI. It
// is pure: no netlink, no API client, no clock.
//
//	pod                     node                             other members
//	net1  ────────────────  weft…  ┐
//	                               ├ br-weft1001 ─ vx-weft1001 ══ UDP ══ vx-weft1001
//	net1  ────────────────  weft…  ┘
//
// Nothing is learned, mostly. Each node tells which stations are behind it
// (SegmentMember); for each of a peer's the plan has an entry of the VXLAN
// device (which VTEP), one of the bridge (which port), and a neighbour for each
// of its addresses, by which the bridge itself answers ARP and neighbour
// discovery. Broadcast, multicast and unknown stations go to every other member
// and to nobody else (head-end replication).
//
// Encapsulations but VXLAN have tunnels to one VTEP each: these are ports of the
// bridge like the VXLAN device, stations are behind the one to their VTEP, and
// the bridge floods to all.
//
// Where VTEPs outside the cluster take part, or all are found in another way,
// the VXLAN device learns which stations are behind those that no object tells
// of, and ARP crosses: what objects tell of stays as they tell it.
//
// A pod can send from its own MAC only (a locked port) and from its own
// addresses only (sets of an nftables table), unless it was allowed others.
// Stations behind a pod that was allowed other MACs are learned, by its bridge
// and by all members' (Member.Learn): they move faster than any object of the
// API. What is planned is sticky, and isn't moved by frames.
//
// Where a segment's pods have VLANs, all of its bridges filter them, and each
// frame between nodes carries the tag of its VLAN. Stations are behind a port in
// one VLAN; those of trunks are learned, and ARP crosses.
//
// Between a segment and the node there is no way: what is for the bridge's own
// address is dropped, but from pods whose gateway the node is (PlanGateways).
package segment

import (
	"crypto/sha256"
	"fmt"
	"net/netip"
	"time"

	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/netconf"
	"github.com/weft-cni/weft/pkg/overlay"
)

// MaxVNI is the largest VXLAN network identifier (RFC 7348 section 5).
const MaxVNI = netconf.MaxVNI

// TunnelStart begins the names of segments' VXLAN devices, PeerTunnelStart those
// of other encapsulations. Their bridges' begin with netconf.BridgeStart.
const TunnelStart = "vx-weft"

// Table is the nftables table that keeps pods to their addresses.
const Table = netconf.SegmentTable

// Names are all that plans' objects go by, but for pods' links.
var Names = struct{ Links, Tables, Sysctls []string }{
	Links: []string{netconf.BridgeStart + "*", TunnelStart + "*", PeerTunnelStart + "*"}, Tables: []string{Table, GatewayTable},
}

// Bridge is the name of a segment's bridge.
func Bridge(vni uint32) string { return netconf.BridgeOf(vni) }

// Tunnel is the name of a segment's VXLAN device.
func Tunnel(vni uint32) string { return fmt.Sprintf("%s%d", TunnelStart, vni) }

// MAC is the Ethernet address of a segment's devices on a node. No pod has to
// know it.
func MAC(node string, vni uint32) kernel.MAC {
	sum := sha256.Sum256(fmt.Appendf(nil, "weft segment %d %s", vni, node))
	return kernel.MACFromHash(sum[:])
}

// Segment is what a plan is made from.
type Segment struct {
	VNI     uint32
	Tunnels netconf.Tunnels
	// Snooping and Gateway are netconf.Segment's.
	Snooping, Gateway bool
	Members           []Member
	Ports             []Port
}

// Member is a peer that takes part in a segment.
type Member struct {
	Peer    overlay.Peer
	Created time.Time // of the SegmentMember
	// Tunnels is how it reaches the others.
	Tunnels netconf.Tunnels
	// Endpoints are the stations behind it.
	Endpoints []Endpoint
	// Learn says that others may be, which only their frames tell of.
	Learn bool
}

// Endpoint is one station: a pod's interface.
type Endpoint struct {
	MAC kernel.MAC
	IPs []netip.Addr
	// Isolated stations reach no other isolated ones.
	Isolated bool
	// VLAN is that of its frames without a tag; 0 where there is none.
	VLAN uint16
}

// Port is an attachment of this node.
type Port struct {
	HostLink string
	Endpoint
	Options netconf.PortOptions
}
