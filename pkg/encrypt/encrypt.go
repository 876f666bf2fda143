package encrypt

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/overlay"
)

// Mode is what a node does with the packets between its pods and others.
type Mode string

// The modes. A permissive node encrypts to peers that it has a session with,
// sends in clear to others, and takes both; it leads from none to WireGuard and
// back without a lost packet.
const (
	None       Mode = "none"
	Permissive Mode = "permissive"
	WireGuard  Mode = "wireguard"
)

// Implementation is where a node's WireGuard is.
type Implementation string

// Auto is the kernel where that has WireGuard.
const (
	Auto      Implementation = "auto"
	Kernel    Implementation = "kernel"
	Userspace Implementation = "userspace"
)

// Config is the part of the daemon's settings that is about encryption.
type Config struct {
	Mode           Mode
	Port           uint16 // the first of Ports
	Implementation Implementation
	RotateEvery    time.Duration
	Keepalive      time.Duration // whole seconds; 0 for none
	// PresharedKeyFile has a preshared key; empty for none.
	PresharedKeyFile string
	// ClusterCIDRs hold all pods there may ever be: with WireGuard what is in
	// them is never sent in clear, whether a peer claims it or not.
	ClusterCIDRs []netip.Prefix
}

// Slots is how many keys a node can have, Ports how many devices and UDP ports.
const (
	Slots = 2
	Ports = Slots * Slots
)

// Link is the device in which the node's key in slot own meets those of its
// peers that are in slot peer.
func Link(own, peer int) string { return fmt.Sprintf("%s%d", overlay.WireGuardStart, own*Slots+peer) }

// Links are all devices.
func Links() []string {
	var all []string
	for own := range Slots {
		for peer := range Slots {
			all = append(all, Link(own, peer))
		}
	}
	return all
}

// Names are all that the plans' objects go by, overlay's included.
var Names = struct{ Links, Tables, Sysctls []string }{
	Links: append(Links(), overlay.Names.Links...), Tables: slices.Concat(overlay.Names.Tables, []string{SegmentTable}), Sysctls: overlay.Names.Sysctls,
}

// Self is this node.
type Self struct {
	overlay.Self
	// Keys are its private keys, the newest first; none without encryption.
	Keys      []Key
	Userspace bool
	// Preshared are preshared keys, that of the file first: those from before
	// it changed serve peers that haven't got it yet.
	Preshared []kernel.Secret
}

// Key is a private key of the node.
type Key struct {
	Slot    int // 0 or 1
	Created time.Time
	Private kernel.Secret
}

// PublicKeys are the public keys of keys.
func PublicKeys(keys []Key) []kernel.PublicKey {
	var all []kernel.PublicKey
	for _, k := range keys {
		all = append(all, k.Private.Public())
	}
	return all
}

// Session names one end of a tunnel.
type Session struct {
	Link string
	Peer kernel.PublicKey
}

// Sessions are the tunnels with a handshake so recently that packets pass.
type Sessions map[Session]struct{}

// MTU is the largest packet, in bytes, that fits into one underlay packet: 60
// less over IPv4 (WireGuard's header and tag 32, UDP 8, IP 20), 80 over IPv6
// (IP 40). Padding never makes a packet longer than the device's MTU.
func MTU(u overlay.Underlay) int {
	if u.Addr.Is4() {
		return u.MTU - 60
	}
	return u.MTU - 80
}
