package kernel

import (
	"fmt"
	"net/netip"
)

// TunnelKind is a kind of link that is an Ethernet tunnel to one VTEP.
type TunnelKind string

// Kinds of tunnels.
const (
	Geneve    TunnelKind = "geneve"    // RFC 8926
	GRETAP    TunnelKind = "gretap"    // NVGRE (RFC 7637) over IPv4
	IP6GRETAP TunnelKind = "ip6gretap" // NVGRE over IPv6
)

// Tunnel is an Ethernet tunnel to one VTEP, up, and a port of a bridge. The
// routing table picks the way out. Outer packets are never marked as not to be
// fragmented, and of a fixed TTL where they would inherit the inner one.
type Tunnel struct {
	Name string
	Kind TunnelKind
	// VNI is 24 bits; of GRE it is the VSID, in the key with a FlowID of 0.
	VNI uint32
	// Local is the outer source address, and the only one that is listened to.
	// Geneve devices have none: the route has the source.
	Local  netip.Addr
	Remote netip.Addr
	Port   uint16 // UDP destination port; 0 for GRE
	MAC    MAC
	MTU    int // bytes, of the inner packet
	// Bridge is the bridge that the device is a port of, empty for none;
	// multicast frames go to it always.
	Bridge string
	// Learning has the bridge learn which stations are behind the device.
	Learning bool
	// Moving and VLANs are VXLAN's.
	Moving bool
	VLANs  VLANs
	// Detail is what was read and differs from this form but can be put right
	// in place ("down"); empty on what is wanted.
	Detail string
}

// Key implements Object.
func (t Tunnel) Key() Key { return Key{Kind: KindLink, Name: t.Name} }

func (t Tunnel) String() string {
	id, local, port, master, learning, suppress := fmt.Sprintf("id %d", t.VNI), "", "", "", "off", "on"
	if t.Kind != Geneve {
		id = fmt.Sprintf("key %#x", t.VNI<<8)
	}
	if t.Local.IsValid() {
		local = fmt.Sprintf(" local %s", t.Local)
	}
	if t.Port != 0 {
		port = fmt.Sprintf(" dstport %d", t.Port)
	}
	if t.Bridge != "" {
		master = " master " + t.Bridge
	}
	if t.Learning {
		learning = "on"
	}
	if t.Moving {
		suppress = "off"
	}
	return fmt.Sprintf("link %s type %s %s%s remote %s%s address %s mtu %d%s learning %s neigh_suppress %s%s up%s",
		t.Name, t.Kind, id, local, t.Remote, port, t.MAC, t.MTU, master, learning, suppress, t.VLANs.suffix(), detail(t.Detail))
}

// Incompatible says why the device have can't be changed into t and has to be
// made anew; it is empty where it can be changed in place.
func (t Tunnel) Incompatible(have Object) string {
	h, ok := have.(Tunnel)
	switch {
	case !ok:
		return "not a tunnel of this form"
	case h.Kind != t.Kind:
		return fmt.Sprintf("type %s, not %s", h.Kind, t.Kind)
	case h.VNI != t.VNI:
		return fmt.Sprintf("VNI %d, not %d", h.VNI, t.VNI)
	case h.Local != t.Local || h.Remote != t.Remote:
		return fmt.Sprintf("from %s to %s, not from %s to %s", h.Local, h.Remote, t.Local, t.Remote)
	case h.Port != t.Port:
		return fmt.Sprintf("UDP port %d, not %d", h.Port, t.Port)
	}
	return ""
}
