package rtnl

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/netconf"
	"github.com/weft-cni/weft/pkg/rtmsg"
)

// vlanFiltering has a bridge filter VLANs or not, and a port that joins one which
// does be in none. A kernel without VLAN filtering refuses even that it be off.
func vlanFiltering(data []byte, had, on bool) []byte {
	if had != on {
		data = rtmsg.Attr(data, unix.IFLA_BR_VLAN_FILTERING, []byte{rtmsg.Flag(0, on).Value})
	}
	if !on {
		return data
	}
	return rtmsg.Attr(data, unix.IFLA_BR_VLAN_DEFAULT_PVID, []byte{0, 0})
}

// portVLANs has a port be in these and in no others. One that is in none is on a
// bridge that doesn't filter.
func portVLANs(index int, v kernel.VLANs) []rtmsg.Request {
	if v == (kernel.VLANs{}) {
		return nil
	}
	return rtmsg.PortVLANs(index, v.Native, v.Tagged.Ranges(), v.Others())
}

// readVLANs reads which VLANs a port of a bridge is in.
func (h *Handle) readVLANs(l *link, bridge link) error {
	l.filtered = l.isPort && bridge.bridge.filtering
	if !l.filtered {
		return nil
	}
	err := retryDump(func() error {
		native, tagged, odd, err := h.conn.PortVLANs(l.index)
		l.vlans = kernel.VLANs{Native: native, Tagged: kernel.NewVLANList(tagged, 0)}
		if odd {
			l.vlans.Tagged += " and others with flags of their own"
		}
		return err
	})
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENODEV) { // no port any more, or gone
		return nil
	}
	if err != nil {
		return fmt.Errorf("read VLANs of %s: %w", l.name, err)
	}
	return nil
}

// inNoVLAN reports whether an object is a station in a VLAN, on a bridge that
// doesn't filter: ports there are in VLAN 1 by themselves, where the kernel puts
// each of their stations as well, without any effect.
func inNoVLAN(o kernel.Object, filtered bool) bool {
	s, is := o.(kernel.Station)
	return is && s.VLAN != 0 && !filtered
}

// masterOf is the index of the bridge that a message about an FDB entry is of.
func masterOf(b []byte) int {
	for typ, v := range rtmsg.Attrs(b[unix.SizeofNdMsg:]) {
		if typ == unix.NDA_MASTER {
			return int(u32(v))
		}
	}
	return 0
}

// notAProtocol is no protocol of VLAN tags.
const notAProtocol = 0xffff

// HasVLANFiltering reports whether the kernel's bridges can filter VLANs. It asks
// for one of a protocol that doesn't exist, under a name that is taken: a kernel
// that filters refuses the protocol, another looks at the name alone. So nothing
// is ever made.
func (h *Handle) HasVLANFiltering() (bool, error) {
	data := rtmsg.Attr(nil, unix.IFLA_BR_VLAN_PROTOCOL, binary.BigEndian.AppendUint16(nil, notAProtocol))
	body := rtmsg.AttrString(rtmsg.Link(0, 0, 0), unix.IFLA_IFNAME, "lo")
	err := h.all(rtmsg.Request{
		Type: unix.RTM_NEWLINK, Flags: unix.NLM_F_CREATE | unix.NLM_F_EXCL, Body: linkInfo(body, "bridge", data),
	})
	switch {
	case errors.Is(err, unix.EPROTONOSUPPORT):
		return true, nil
	case errors.Is(err, unix.EEXIST), errors.Is(err, unix.EOPNOTSUPP): // the latter: no bridges at all
		return false, nil
	}
	return false, fmt.Errorf("probe for VLAN filtering: unexpected answer: %w", err)
}

// vlanMessage tells that VLANs of a port may have changed.
func (w *watcher) vlanMessage(index int) {
	name, known := w.links[index]
	switch {
	case !known, strings.HasPrefix(name, netconf.BridgeStart): // with its ports
	case isPodLink(name):
		w.send(kernel.Event{Key: kernel.Key{Kind: kernel.KindPort, Name: name}})
	default:
		w.send(kernel.Event{Key: kernel.Key{Kind: kernel.KindLink, Name: name}})
	}
}
