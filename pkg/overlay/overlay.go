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
	"crypto/sha256"
	"net/netip"
	"time"

	"github.com/weft-cni/weft/pkg/kernel"
)

// Names in the kernel. `docs/architecture.md` says how each is recognised.
const (
	Link = "vxlan-weft" // the VXLAN device of the cluster network

	// WireGuardStart begins the names of WireGuard devices: see package encrypt.
	WireGuardStart = "wg-weft"

	// The nftables tables, each with its family: what leaves the cluster, and
	// the check of pods' source addresses for either family.
	Table        = "inet weft"
	SourceTable4 = "ip weft"
	SourceTable6 = "ip6 weft"
)

// ReversePathFilter is the sysctl whose value 2 (loose) takes the check of
// pods' IPv4 source addresses out of rp_filter's hands: what counts for an
// interface is the larger of all's value and its own (ip-sysctl.rst).
const ReversePathFilter = "net/ipv4/conf/all/rp_filter"

// Names are all that the plans' objects go by.
var Names = struct{ Links, Tables, Sysctls []string }{
	Links: []string{Link}, Tables: []string{Table, SourceTable4, SourceTable6},
	Sysctls: []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"},
}

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
	// Underlay are the node's ends of the underlay, at most one of each
	// family. The first is the tunnel's; the other serves direct routes only.
	Underlay []Underlay
	MTU      int // bytes, of the VXLAN device and of pods
	// LooseReversePath says that ReversePathFilter is 2 on this node.
	LooseReversePath bool
	// Encrypted says that packets are taken by key and address: no two nodes may
	// have one key or one underlay address. PublicKeys are this node's own.
	Encrypted  bool
	PublicKeys []kernel.PublicKey
	// Inner is this node's end of encrypted segments' tunnels, inside WireGuard:
	// its Addr is InnerAddr of the node, its MTU that of the WireGuard devices.
	// It is zero where the node has no such segment. InnerPort is the UDP port.
	Inner     Underlay
	InnerPort uint16
}

// Underlay is an address that this node has on the underlay.
type Underlay struct {
	Addr   netip.Addr
	Link   string       // the interface that has it
	Subnet netip.Prefix // the subnet of Addr on Link
	MTU    int          // bytes, of Link
	// AcceptRA is whether Link takes IPv6 router advertisements: once
	// forwarding is on, the kernel ignores them unless accept_ra is 2.
	AcceptRA bool
}

// Peer is another node, parsed and validated from its VTEP.
type Peer struct {
	Name     string
	Created  time.Time // of the VTEP
	Underlay []netip.Addr
	MAC      kernel.MAC
	Port     uint16         // UDP port of its VXLAN device
	PodCIDRs []netip.Prefix // masked, in the VTEP's order, none overlaps another
	MTU      int            // bytes, of the peer's underlay; 0 when not told
	// Encryption is nil where the peer doesn't encrypt.
	Encryption *Encryption
}

// Encryption is the public side of a peer's WireGuard devices.
type Encryption struct {
	// Strict says that the peer takes nothing in clear.
	Strict bool
	// SegmentsOnly says that its keys are for encrypted segments, or for what is
	// under way since it stopped to encrypt: the cluster network's packets it
	// sends in clear, and takes so.
	SegmentsOnly bool
	// Keys are the newest first, in different slots; one, or two while the peer
	// rotates.
	Keys []SlotKey
	Port uint16 // the first of its UDP ports
	// PresharedKeyHash is kernel.Secret's, empty for none.
	PresharedKeyHash string
}

// SlotKey is a public key in one of its node's two slots, 0 or 1.
type SlotKey struct {
	Slot   int
	Public kernel.PublicKey
}

// Gateway is the address of the node within one of its pod CIDRs: the first
// after the network's own. It is on the VXLAN device, is the source of the
// node's own packets to pods elsewhere, and never a pod's.
func Gateway(podCIDR netip.Prefix) netip.Addr { return podCIDR.Masked().Addr().Next() }

// VTEPMAC is the Ethernet address of a node's VXLAN device. It comes from the
// node's name, so it is the same after a reboot, a new underlay address and a
// new Node object, and peers' entries stay true.
func VTEPMAC(node string) kernel.MAC {
	sum := sha256.Sum256([]byte("weft vtep " + node))
	return kernel.MACFromHash(sum[:])
}

// InnerPrefix holds all nodes' addresses inside WireGuard, by which encrypted
// segments have their tunnels: a unique local prefix of our own (RFC 4193).
var InnerPrefix = netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 0x5a, 0xc3, 0x1e, 0x97, 0x64}), 48)

// InnerAddr is a node's address in InnerPrefix. Like VTEPMAC it comes from the
// node's name, so nobody has to tell it, and nobody can claim another's.
func InnerAddr(node string) netip.Addr {
	addr := InnerPrefix.Addr().As16()
	sum := sha256.Sum256([]byte("weft inner " + node))
	copy(addr[InnerPrefix.Bits()/8:], sum[:])
	return netip.AddrFrom16(addr)
}

// InnerPort is the UDP port of VXLAN inside WireGuard, of a node whose WireGuard
// has its first port at first.
func InnerPort(first uint16) uint16 { return first + wireGuardPorts }

// MTU is the largest packet, in bytes, that fits into one underlay packet:
// 50 less over IPv4 (inner Ethernet 14, VXLAN 8, UDP 8, IP 20), 70 over IPv6
// (IP 40).
func MTU(u Underlay) int {
	if u.Addr.Is4() {
		return u.MTU - 50
	}
	return u.MTU - 70
}
