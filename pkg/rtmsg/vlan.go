package rtmsg

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// Of linux/if_bridge.h and linux/rtnetlink.h: what the package unix lacks.
const (
	vlanFlagPVID     = 1 << 1 // BRIDGE_VLAN_INFO_PVID
	vlanFlagUntagged = 1 << 2 // BRIDGE_VLAN_INFO_UNTAGGED
	vlanFlagBegin    = 1 << 3 // BRIDGE_VLAN_INFO_RANGE_BEGIN
	vlanFlagEnd      = 1 << 4 // BRIDGE_VLAN_INFO_RANGE_END

	bridgeVLANInfo = 2 // IFLA_BRIDGE_VLAN_INFO: struct bridge_vlan_info

	vlanMsgSize    = 8 // struct br_vlan_msg
	vlanEntry      = 1 // BRIDGE_VLANDB_ENTRY
	vlanEntryInfo  = 1 // BRIDGE_VLANDB_ENTRY_INFO: struct bridge_vlan_info
	vlanEntryRange = 2 // BRIDGE_VLANDB_ENTRY_RANGE: the last of several
)

// PortVLANs are requests by which the bridge's port that the link with this index
// is leaves others, and is in native (untagged both ways; 0: none) and in tagged:
// ranges, each from its first to its last.
func PortVLANs(index int, native uint16, tagged, others [][2]uint16) []Request {
	var in []byte
	for _, r := range tagged {
		in = vlanRange(in, r)
	}
	if native != 0 {
		in = vlanInfo(in, vlanFlagPVID|vlanFlagUntagged, native)
	}
	var out []byte
	for _, r := range others {
		out = vlanRange(out, r)
	}
	var requests []Request
	for _, r := range []struct {
		typ  uint16
		spec []byte
	}{{unix.RTM_DELLINK, out}, {unix.RTM_SETLINK, in}} {
		if r.spec == nil {
			continue
		}
		body := Link(index, 0, 0)
		body[0] = unix.AF_BRIDGE
		requests = append(requests, Request{Type: r.typ, Body: Attr(body, unix.IFLA_AF_SPEC|unix.NLA_F_NESTED, r.spec)})
	}
	return requests
}

func vlanRange(b []byte, r [2]uint16) []byte {
	if r[0] == r[1] {
		return vlanInfo(b, 0, r[0])
	}
	return vlanInfo(vlanInfo(b, vlanFlagBegin, r[0]), vlanFlagEnd, r[1])
}

func vlanInfo(b []byte, flags, id uint16) []byte {
	info := binary.NativeEndian.AppendUint16(nil, flags)
	return Attr(b, bridgeVLANInfo, binary.NativeEndian.AppendUint16(info, id))
}

// PortVLANs reads what the requests of that name make. odd says that there are
// VLANs with other flags, which are in neither. errors.Is ErrInterrupted where
// some may be missing.
func (c *Conn) PortVLANs(index int) (native uint16, tagged [][2]uint16, odd bool, err error) {
	head := binary.NativeEndian.AppendUint32([]byte{unix.AF_BRIDGE, 0, 0, 0}, uint32(index))
	err = c.Dump(Request{Type: unix.RTM_GETVLAN, Body: head}, func(b []byte) {
		if VLANPort(b) != index {
			return
		}
		for typ, entry := range Attrs(b[vlanMsgSize:]) {
			if typ != vlanEntry {
				continue
			}
			switch flags, r := decodeVLAN(entry); {
			case flags == 0:
				tagged = append(tagged, r)
			case flags == vlanFlagPVID|vlanFlagUntagged && r[0] == r[1]:
				native = r[0]
			default:
				odd = true
			}
		}
	})
	return native, tagged, odd, err
}

// VLANPort is the index of the link that an RTM_NEWVLAN or RTM_DELVLAN message is
// about, 0 where it can't be read.
func VLANPort(b []byte) int {
	if len(b) < vlanMsgSize {
		return 0
	}
	return int(binary.NativeEndian.Uint32(b[4:]))
}

func decodeVLAN(entry []byte) (flags uint16, r [2]uint16) {
	for typ, v := range Attrs(entry) {
		switch {
		case typ == vlanEntryInfo && len(v) >= 4:
			flags = binary.NativeEndian.Uint16(v) & (vlanFlagPVID | vlanFlagUntagged)
			r[0] = binary.NativeEndian.Uint16(v[2:])
			r[1] = max(r[0], r[1])
		case typ == vlanEntryRange && len(v) >= 2:
			r[1] = binary.NativeEndian.Uint16(v)
		}
	}
	return flags, r
}
