package rtmsg

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// PortFlag is a setting of a bridge's port: an attribute IFLA_BRPORT_ of one
// byte, and its value; 0 and 1 are off and on.
type PortFlag struct {
	Type  uint16
	Value byte
}

// Flag is a PortFlag that is on or off.
func Flag(typ uint16, on bool) PortFlag {
	if on {
		return PortFlag{typ, 1}
	}
	return PortFlag{typ, 0}
}

// BridgePort is a request that sets flags of the port that the link with this
// index is (bridge(8), "bridge link set").
func BridgePort(index int, flags ...PortFlag) Request {
	body := Link(index, 0, 0)
	body[0] = unix.AF_BRIDGE
	var info []byte
	for _, f := range flags {
		info = Attr(info, f.Type, []byte{f.Value})
	}
	return Request{Type: unix.RTM_SETLINK, Body: Attr(body, unix.IFLA_PROTINFO|unix.NLA_F_NESTED, info)}
}

// PodPort are the flags of a port that a pod is behind, as kernel.BridgePort
// has them.
func PodPort(isolated, learning bool) []PortFlag {
	return []PortFlag{
		Flag(unix.IFLA_BRPORT_LEARNING, learning),
		Flag(unix.IFLA_BRPORT_UNICAST_FLOOD, learning),
		Flag(unix.IFLA_BRPORT_LOCKED, !learning),
		Flag(unix.IFLA_BRPORT_ISOLATED, isolated),
	}
}

// InVLAN has a message about an entry of a bridge's FDB be about that in a VLAN;
// 0: in none.
func InVLAN(body []byte, vlan uint16) []byte {
	if vlan == 0 {
		return body
	}
	return Attr(body, unix.NDA_VLAN, binary.NativeEndian.AppendUint16(nil, vlan))
}

// ntfSticky is NTF_STICKY (linux/neighbour.h).
const ntfSticky = 1 << 6

// Station is a request that makes an entry of a bridge's FDB, for its port
// with this index, or deletes it. No frame at another port moves it. vlan is the
// VLAN on a bridge with VLAN filtering, and 0 on others.
func Station(index int, mac [6]byte, vlan uint16, del bool) Request {
	body := Neigh(unix.AF_BRIDGE, index, unix.NUD_NOARP, unix.NTF_MASTER|ntfSticky)
	body = InVLAN(Attr(body, unix.NDA_LLADDR, mac[:]), vlan)
	if del {
		return Request{Type: unix.RTM_DELNEIGH, Body: body}
	}
	return Request{Type: unix.RTM_NEWNEIGH, Flags: unix.NLM_F_CREATE | unix.NLM_F_REPLACE, Body: body}
}
