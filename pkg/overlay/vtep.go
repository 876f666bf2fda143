package overlay

import (
	"fmt"
	"math"
	"net/netip"

	"github.com/weft-cni/weft/api/v1alpha1"
	"github.com/weft-cni/weft/pkg/kernel"
)

// ParseVTEP reads a peer from its object. The API server checks VTEPs as
// well, but an object may be older than its schema: an error names the field,
// its value and what is accepted, and costs that peer alone its entries.
func ParseVTEP(v *v1alpha1.VTEP) (Peer, error) {
	mac, err := kernel.ParseMAC(v.Spec.MAC)
	if err != nil || !mac.IsUnicast() {
		return Peer{}, refuse(v, "mac", fmt.Sprintf("%q", v.Spec.MAC), "want a unicast Ethernet address such as 02:00:5e:10:00:01")
	}
	if v.Spec.Port < 1 || v.Spec.Port > math.MaxUint16 {
		return Peer{}, refuse(v, "port", v.Spec.Port, "want a UDP port, 1 to 65535")
	}
	if v.Spec.MTU < 0 {
		return Peer{}, refuse(v, "mtu", v.Spec.MTU, "want a size in bytes, or none")
	}
	underlay, err := parseUnderlay(v)
	if err != nil {
		return Peer{}, err
	}
	cidrs, err := parsePodCIDRs(v, underlay)
	if err != nil {
		return Peer{}, err
	}
	encryption, err := parseWireGuard(v)
	if err != nil {
		return Peer{}, err
	}
	return Peer{
		Name: v.Name, Created: v.CreationTimestamp.Time, MAC: mac, Port: uint16(v.Spec.Port),
		Underlay: underlay, PodCIDRs: cidrs, MTU: int(v.Spec.MTU), Encryption: encryption,
	}, nil
}

// Modes of a VTEP that encrypts.
const (
	modeSegments   = "none" // but for encrypted segments
	modePermissive = "permissive"
	modeStrict     = "wireguard"
)

// wireGuardPorts is how many UDP ports a node has for WireGuard.
const wireGuardPorts = 4

func parseWireGuard(v *v1alpha1.VTEP) (*Encryption, error) {
	w := v.Spec.WireGuard
	if w == nil {
		return nil, nil
	}
	if w.Mode != modeSegments && w.Mode != modePermissive && w.Mode != modeStrict {
		return nil, refuse(v, "wireGuard.mode", fmt.Sprintf("%q", w.Mode), "want none, permissive or wireguard")
	}
	if w.Port < 1 || w.Port > math.MaxUint16-wireGuardPorts {
		return nil, refuse(v, "wireGuard.port", w.Port, "want the first of four UDP ports, 1 to 65531")
	}
	if n := len(w.Keys); n < 1 || n > 2 {
		return nil, refuse(v, "wireGuard.keys", fmt.Sprintf("%d keys", n), "want one, or two while they are rotated")
	}
	e := &Encryption{
		Strict: w.Mode == modeStrict, SegmentsOnly: w.Mode == modeSegments,
		Port: uint16(w.Port), PresharedKeyHash: w.PresharedKeyHash,
	}
	for i, k := range w.Keys {
		field := fmt.Sprintf("wireGuard.keys[%d]", i)
		key, err := kernel.ParsePublicKey(k.PublicKey)
		if err != nil || key == (kernel.PublicKey{}) {
			return nil, refuse(v, field+".publicKey", fmt.Sprintf("%q", k.PublicKey), "want a Curve25519 public key in base64")
		}
		if k.Slot < 0 || k.Slot > 1 || i > 0 && e.Keys[0].Slot == int(k.Slot) {
			return nil, refuse(v, field+".slot", k.Slot, "want 0 or 1, and another than the other key's")
		}
		if i > 0 && e.Keys[0].Public == key {
			return nil, refuse(v, field+".publicKey", k.PublicKey, "want another than the other key")
		}
		e.Keys = append(e.Keys, SlotKey{Slot: int(k.Slot), Public: key})
	}
	return e, nil
}

func parseUnderlay(v *v1alpha1.VTEP) ([]netip.Addr, error) {
	if n := len(v.Spec.Underlay); n < 1 || n > 2 {
		return nil, refuse(v, "underlay", v.Spec.Underlay, "want one address, or one of each family")
	}
	var addrs []netip.Addr
	for i, text := range v.Spec.Underlay {
		field, value := fmt.Sprintf("underlay[%d]", i), fmt.Sprintf("%q", text)
		addr, err := netip.ParseAddr(text)
		if err != nil || !usable(addr) {
			return nil, refuse(v, field, value, "want a unicast IPv4 or IPv6 address such as 192.0.2.1")
		}
		if i > 0 && addrs[0].Is4() == addr.Is4() {
			return nil, refuse(v, field, value, fmt.Sprintf("want an address of the other family than %s", addrs[0]))
		}
		addrs = append(addrs, addr)
	}
	return addrs, nil
}

func parsePodCIDRs(v *v1alpha1.VTEP, underlay []netip.Addr) ([]netip.Prefix, error) {
	if len(v.Spec.PodCIDRs) == 0 {
		return nil, refuse(v, "podCIDRs", "[]", "want one range or more")
	}
	var cidrs []netip.Prefix
	for i, text := range v.Spec.PodCIDRs {
		field, value := fmt.Sprintf("podCIDRs[%d]", i), fmt.Sprintf("%q", text)
		cidr, err := netip.ParsePrefix(text)
		if err != nil || cidr != cidr.Masked() || cidr.Addr().Is4In6() {
			return nil, refuse(v, field, value, "want a network such as 10.244.1.0/24 or fd00:244:1::/64")
		}
		if cidr.Bits() < 8 || cidr.Addr().BitLen()-cidr.Bits() < 2 || !usable(Gateway(cidr)) {
			return nil, refuse(v, field, value, "want a unicast range no larger than a /8 that has room for pods")
		}
		for _, other := range cidrs {
			if other.Overlaps(cidr) {
				return nil, refuse(v, field, value, fmt.Sprintf("want a range that doesn't overlap %s", other))
			}
		}
		for _, addr := range underlay {
			if cidr.Contains(addr) {
				return nil, refuse(v, field, value, fmt.Sprintf("want a range without the node's underlay address %s", addr))
			}
		}
		cidrs = append(cidrs, cidr)
	}
	return cidrs, nil
}

func refuse(v *v1alpha1.VTEP, field string, value any, accepted string) error {
	return fmt.Errorf("vtep %s: spec.%s: %v: %s", v.Name, field, value, accepted)
}

// usable reports whether a can be a station's address beyond its own link.
func usable(a netip.Addr) bool {
	return a.IsGlobalUnicast() && a.Zone() == "" && !a.Is4In6()
}
