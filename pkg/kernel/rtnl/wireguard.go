package rtnl

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/rtmsg"
)

// wireGuardProbe is a link that exists for a moment.
const wireGuardProbe = "wgprobe-weft"

// HasWireGuard reports whether the kernel can make WireGuard devices: it makes
// one, which loads the module where there is one, and deletes it. Anything but
// a plain yes or no is an error, such as EPERM without CAP_NET_ADMIN.
func (h *Handle) HasWireGuard() (bool, error) {
	info := rtmsg.AttrString(nil, unix.IFLA_INFO_KIND, "wireguard")
	body := rtmsg.AttrString(rtmsg.Link(0, 0, 0), unix.IFLA_IFNAME, wireGuardProbe)
	body = rtmsg.Attr(body, unix.IFLA_LINKINFO|unix.NLA_F_NESTED, info)
	err := h.all(rtmsg.Request{Type: unix.RTM_NEWLINK, Flags: unix.NLM_F_CREATE | unix.NLM_F_EXCL, Body: body})
	switch {
	case errors.Is(err, unix.EOPNOTSUPP):
		return false, nil
	case err != nil && !errors.Is(err, unix.EEXIST): // left by one who was killed
		return false, fmt.Errorf("probe for WireGuard: %w", err)
	}
	l, err := h.link(wireGuardProbe)
	if errors.Is(err, unix.ENODEV) {
		return true, nil // deleted by another who probes
	}
	if err == nil {
		err = h.all(linkDelete(l.index))
	}
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return true, fmt.Errorf("probe for WireGuard: delete link %s: %w", wireGuardProbe, err)
	}
	return true, nil
}
