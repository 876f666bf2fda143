package agent

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/weft-cni/weft/pkg/kernel/rtnl"
	"github.com/weft-cni/weft/pkg/overlay"
	"github.com/weft-cni/weft/pkg/settings"
)

// errUnderlayLost says that no interface has an address to end tunnels at.
var errUnderlayLost = errors.New("no underlay address")

// chooseUnderlay picks this node's underlay addresses of those that its
// interfaces have: the first is the tunnel's, and there is at most one of each
// family. Where settings name no interface and no range, only the Node's
// InternalIPs count; where they do, InternalIPs are preferred. Everything else
// equal, the order of host decides.
//
// The error is errUnderlayLost where there is none, and says what was looked
// for and what there is.
func chooseUnderlay(want settings.Underlay, internal []netip.Addr, host []rtnl.HostAddr) ([]overlay.Underlay, error) {
	var found []rtnl.HostAddr
	for _, a := range host {
		if a.Up && eligible(want, internal, a) {
			found = append(found, a)
		}
	}
	slices.SortStableFunc(found, func(a, b rtnl.HostAddr) int {
		return cmp.Compare(rank(internal, a), rank(internal, b))
	})
	tunnel := slices.IndexFunc(found, func(a rtnl.HostAddr) bool {
		return want.Family == settings.Auto || (want.Family == settings.IPv4) == a.Prefix.Addr().Is4()
	})
	if tunnel < 0 {
		return nil, fmt.Errorf("%w: wanted %s, the interfaces have %s", errUnderlayLost, wanted(want, internal), listed(host))
	}
	chosen := []overlay.Underlay{underlay(found[tunnel])}
	for _, a := range found {
		if a.Prefix.Addr().Is4() != chosen[0].Addr.Is4() {
			return append(chosen, underlay(a)), nil
		}
	}
	return chosen, nil
}

func eligible(want settings.Underlay, internal []netip.Addr, a rtnl.HostAddr) bool {
	addr := a.Prefix.Addr()
	if !want.Explicit() {
		return slices.Contains(internal, addr)
	}
	inRange := len(want.CIDRs) == 0 || slices.ContainsFunc(want.CIDRs, func(c netip.Prefix) bool { return c.Contains(addr) })
	return inRange && (want.Interface == nil || want.Interface.MatchString(a.Link))
}

// rank is lower for an address that the Node object has earlier.
func rank(internal []netip.Addr, a rtnl.HostAddr) int {
	if i := slices.Index(internal, a.Prefix.Addr()); i >= 0 {
		return i
	}
	return len(internal)
}

func underlay(a rtnl.HostAddr) overlay.Underlay {
	return overlay.Underlay{Addr: a.Prefix.Addr(), Link: a.Link, Subnet: a.Prefix.Masked(), MTU: a.MTU, AcceptRA: a.AcceptRA}
}

// lost reports whether an address that the node had is gone.
func lost(before, now []rtnl.HostAddr) bool {
	return slices.ContainsFunc(before, func(a rtnl.HostAddr) bool {
		return !slices.ContainsFunc(now, func(b rtnl.HostAddr) bool { return a.Prefix.Addr() == b.Prefix.Addr() })
	})
}

// keepRouterAdvertisements keeps in mind that a link takes router
// advertisements. The kernel says so only as long as forwarding is off or the
// sysctl is as Weft sets it; somebody else's change of the sysctl is drift.
func keepRouterAdvertisements(before, now []overlay.Underlay) {
	for i := range now {
		now[i].AcceptRA = now[i].AcceptRA || slices.ContainsFunc(before, func(u overlay.Underlay) bool {
			return u.AcceptRA && u.Link == now[i].Link && u.Addr == now[i].Addr
		})
	}
}

func wanted(want settings.Underlay, internal []netip.Addr) string {
	var parts []string
	if want.Family != settings.Auto {
		parts = append(parts, string(want.Family))
	}
	if want.Interface != nil {
		parts = append(parts, "on an interface like "+want.Interface.String())
	}
	if len(want.CIDRs) > 0 {
		parts = append(parts, fmt.Sprintf("within %v", want.CIDRs))
	}
	if !want.Explicit() {
		parts = append(parts, fmt.Sprintf("one of the Node's InternalIPs %v", internal))
	}
	return strings.Join(parts, ", ")
}

func listed(host []rtnl.HostAddr) string {
	if len(host) == 0 {
		return "none"
	}
	var parts []string
	for _, a := range host {
		state := ""
		if !a.Up {
			state = " (down)"
		}
		parts = append(parts, fmt.Sprintf("%s on %s%s", a.Prefix.Addr(), a.Link, state))
	}
	return strings.Join(parts, ", ")
}
