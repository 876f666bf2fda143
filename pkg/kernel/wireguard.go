package kernel

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// WireGuard is a WireGuard device, up: a link of the kernel's, or a TUN device
// with a process behind it. Reverse path filtering is loose on it, so that a
// peer's packets may come by another device than those to it leave by.
type WireGuard struct {
	Name      string
	Userspace bool
	Port      uint16 // UDP
	MTU       int    // bytes, of the inner packet
	Private   Secret
	// Detail is what was read and differs from this form but can be put right
	// in place ("down"); empty on what is wanted.
	Detail string
}

// Key implements Object.
func (w WireGuard) Key() Key { return Key{Kind: KindLink, Name: w.Name} }

func (w WireGuard) String() string {
	kind := "wireguard"
	if w.Userspace {
		kind = "tun"
	}
	return fmt.Sprintf("link %s type %s public-key %s listen-port %d mtu %d up%s",
		w.Name, kind, w.Private.Public(), w.Port, w.MTU, detail(w.Detail))
}

// Incompatible says why the device have can't be changed into w and has to be
// made anew; it is empty where it can be changed in place.
func (w WireGuard) Incompatible(have Object) string {
	h, ok := have.(WireGuard)
	switch {
	case !ok:
		return "not a WireGuard device"
	case h.Userspace && !w.Userspace:
		return "of a process, not of the kernel"
	case !h.Userspace && w.Userspace:
		return "of the kernel, not of a process"
	}
	return ""
}

// WireGuardPeer is a peer of a WireGuard device.
type WireGuardPeer struct {
	Link      string
	PublicKey PublicKey
	// PresharedKey may be none.
	PresharedKey Secret
	// Endpoint is where packets to the peer go; it may be invalid where the
	// peer has to begin.
	Endpoint netip.AddrPort
	// Keepalive is the time between two keepalives in seconds, 0 for none.
	Keepalive uint16
	// AllowedIPs are the peer's addresses inside the tunnel: see PrefixList.
	AllowedIPs PrefixList
	// Learned says that there was a handshake so recently that Endpoint, as
	// read, is where the peer is, whatever is wanted.
	Learned bool
}

// Key implements Object.
func (p WireGuardPeer) Key() Key { return PeerKey(p.Link, p.PublicKey) }

// PeerKey says where a peer of a WireGuard device lives.
func PeerKey(link string, k PublicKey) Key {
	return Key{Kind: KindPeer, Name: link + " " + k.String()}
}

func (p WireGuardPeer) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "peer %s dev %s", p.PublicKey, p.Link)
	if p.Endpoint.IsValid() {
		fmt.Fprintf(&b, " endpoint %s", p.Endpoint)
	}
	if p.Learned {
		b.WriteString(" (learned)")
	}
	if !p.PresharedKey.IsZero() {
		fmt.Fprintf(&b, " preshared-key-hash %s", p.PresharedKey.Hash())
	}
	if p.Keepalive != 0 {
		fmt.Fprintf(&b, " persistent-keepalive %d", p.Keepalive)
	}
	fmt.Fprintf(&b, " allowed-ips %s", p.AllowedIPs)
	return b.String()
}

// meets reports whether have is what p asks for: an endpoint that the peer
// chose itself is as good as the one it published.
func (p WireGuardPeer) meets(have Object) bool {
	h, ok := have.(WireGuardPeer)
	if ok && h.Learned {
		h.Endpoint, h.Learned = p.Endpoint, false
	}
	return ok && h == p
}

// PrefixList is a list of prefixes as a comparable value: sorted text, with
// commas.
type PrefixList string

// PrefixListOf makes a list of prefixes in any order.
func PrefixListOf(prefixes []netip.Prefix) PrefixList {
	sorted := slices.Clone(prefixes)
	slices.SortFunc(sorted, netip.Prefix.Compare)
	texts := make([]string, 0, len(sorted))
	for _, p := range slices.Compact(sorted) {
		texts = append(texts, p.String())
	}
	return PrefixList(strings.Join(texts, ","))
}

// Prefixes gives the list's prefixes.
func (l PrefixList) Prefixes() []netip.Prefix {
	var all []netip.Prefix
	for text := range strings.SplitSeq(string(l), ",") {
		if p, err := netip.ParsePrefix(text); err == nil {
			all = append(all, p)
		}
	}
	return all
}
