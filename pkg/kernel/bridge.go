package kernel

import (
	"fmt"
	"net/netip"
)

// Bridge is a bridge device of a segment, up: spanning tree off, so that every
// frame goes where the FDB says or to all, and without any address of the node.
type Bridge struct {
	Name string
	MAC  MAC
	MTU  int // bytes
	// Snooping has multicast frames go only to ports that asked for them, and
	// the bridge ask (bridge(8): mcast_snooping, mcast_querier).
	Snooping bool
	// Routed bridges are a way to the node, which tells by packets' marks
	// whether an IPv4 source is behind them (ip-sysctl.rst: src_valid_mark).
	Routed bool
	// VLANs has frames go between ports of the same VLAN only (bridge(8):
	// vlan_filtering); a port is in none that it wasn't put into.
	VLANs bool
	// Detail is what was read and differs from this form but can be put right
	// in place ("down"); empty on what is wanted.
	Detail string
}

// Key implements Object.
func (b Bridge) Key() Key { return Key{Kind: KindLink, Name: b.Name} }

func (b Bridge) String() string {
	snooping := 0
	if b.Snooping {
		snooping = 1
	}
	routed := ""
	if b.Routed {
		routed = " src_valid_mark 1"
	}
	filtering := ""
	if b.VLANs {
		filtering = " vlan_filtering 1"
	}
	return fmt.Sprintf("link %s type bridge stp_state 0 mcast_snooping %d address %s mtu %d%s%s up%s",
		b.Name, snooping, b.MAC, b.MTU, filtering, routed, detail(b.Detail))
}

// BridgePort says how a pod's link takes part in a bridge. Frames are taken
// from stations that the FDB has behind the port, nothing is learned there
// (bridge(8): locked on, learning off), and frames to unknown stations aren't
// flooded to it: a pod's stations are known. A learning port is the opposite:
// stations that only their frames tell of are behind it (locked off, learning
// on, flood on).
//
// It is not the link itself, which is the plugin's.
type BridgePort struct {
	Link, Bridge string
	Isolated     bool // no frames between two isolated ports of a bridge
	Learning     bool
	VLANs        VLANs
	Detail       string // flags that we never use, as read
}

// Key implements Object.
func (p BridgePort) Key() Key { return Key{Kind: KindPort, Name: p.Link} }

func (p BridgePort) String() string {
	isolated, flags := "off", "learning off flood off locked on"
	if p.Isolated {
		isolated = "on"
	}
	if p.Learning {
		flags = "learning on flood on locked off"
	}
	return fmt.Sprintf("port %s master %s %s isolated %s%s%s", p.Link, p.Bridge, flags, isolated, p.VLANs.suffix(), detail(p.Detail))
}

// Station is a permanent entry of a bridge's FDB: frames to MAC leave by the
// port Link. A tunnel's port needs one beside its own FDB entry for each MAC
// whose neighbour entries the bridge answers for.
type Station struct {
	Link   string
	MAC    MAC
	VLAN   uint16 // 0 on a bridge without VLAN filtering
	Detail string // a state other than static, as read
}

// Key implements Object.
func (s Station) Key() Key { return Key{Kind: KindStation, Name: s.Link, MAC: s.MAC, VLAN: s.VLAN} }

func (s Station) String() string {
	return fmt.Sprintf("fdb %s dev %s%s master static%s", s.MAC, s.Link, inVLAN(s.VLAN), detail(s.Detail))
}

func inVLAN(id uint16) string {
	if id == 0 {
		return ""
	}
	return fmt.Sprintf(" vlan %d", id)
}

// Flood is an entry of a VXLAN device's list for head-end replication: frames
// to many, and to stations that aren't known, go to VTEP as well. A multicast
// address is the device's own group, by its lower link.
type Flood struct {
	Link string
	VTEP netip.Addr
	Port uint16 // UDP; 0: the device's own
}

// Key implements Object.
func (f Flood) Key() Key {
	return Key{Kind: KindFDB, Name: f.Link, Dst: netip.PrefixFrom(f.VTEP, f.VTEP.BitLen()), Metric: uint32(f.Port)}
}

func (f Flood) String() string {
	port := ""
	if f.Port != 0 {
		port = fmt.Sprintf(" port %d", f.Port)
	}
	return fmt.Sprintf("fdb %s dev %s dst %s%s self permanent", MAC{}, f.Link, f.VTEP, port)
}

// Source is an element of a set of links, or of links with what may be sent
// from behind them: an Ethernet address, or a prefix.
type Source struct {
	Table, Set string // Table as in Rules
	Link       string
	Prefix     netip.Prefix // invalid for none; one of several addresses needs a set of intervals
	MAC        MAC          // zero for none
}

// Key implements Object.
func (s Source) Key() Key {
	return Key{Kind: KindElement, Name: s.Table + " " + s.Set + "@" + s.Link, Dst: s.Prefix, MAC: s.MAC}
}

func (s Source) String() string {
	value := ""
	switch {
	case s.Prefix.IsValid() && s.Prefix.IsSingleIP():
		value = " . " + s.Prefix.Addr().String()
	case s.Prefix.IsValid():
		value = " . " + s.Prefix.String()
	case s.MAC != MAC{}:
		value = " . " + s.MAC.String()
	}
	return fmt.Sprintf("element %s %s { %s%s }", s.Table, s.Set, s.Link, value)
}
