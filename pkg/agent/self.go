package agent

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/weft-cni/weft/pkg/encrypt"
	"github.com/weft-cni/weft/pkg/kernel/rtnl"
	"github.com/weft-cni/weft/pkg/overlay"
	"github.com/weft-cni/weft/pkg/settings"
)

// Why there is no plan for this node.
var (
	errNoNode     = errors.New("no such Node")
	errNoPodCIDRs = errors.New("the Node has no pod CIDRs; kube-controller-manager gives them with --allocate-node-cidrs")
)

// selfOf gives what this node is for the overlay. The error is errNoNode,
// errNoPodCIDRs or errUnderlayLost.
func selfOf(n Node, s settings.Settings, host []rtnl.HostAddr) (overlay.Self, error) {
	switch {
	case n.UID == "":
		return overlay.Self{}, fmt.Errorf("node %s: %w", n.Name, errNoNode)
	case len(n.PodCIDRs) == 0:
		return overlay.Self{}, fmt.Errorf("node %s: %w", n.Name, errNoPodCIDRs)
	}
	chosen, err := chooseUnderlay(s.Underlay, n.InternalIPs, host)
	if err != nil {
		return overlay.Self{}, fmt.Errorf("node %s: %w", n.Name, err)
	}
	mtu := tunnelMTU(s.Encrypt, chosen[0])
	if s.MTU != 0 {
		mtu = min(mtu, s.MTU)
	}
	return overlay.Self{
		Name: n.Name, MAC: overlay.VTEPMAC(n.Name), PodCIDRs: n.PodCIDRs, Underlay: chosen, MTU: mtu,
	}, nil
}

// tunnelMTU is the largest packet that fits into one of the underlay by any way
// that packets may take.
func tunnelMTU(c encrypt.Config, u overlay.Underlay) int {
	if c.Mode == encrypt.None {
		return overlay.MTU(u)
	}
	return encrypt.MTU(u)
}

// minMTU6 is the least MTU of a link that carries IPv6 (RFC 8200, section 5).
// The kernel takes IPv6 off an interface below it.
const minMTU6 = 1280

// mtuMismatch says what is wrong with MTUs; empty when nothing is. A node
// compares itself with most of its peers, so that only those that differ from
// the rest speak up.
func mtuMismatch(configured int, p *plan) string {
	u := p.self.Underlay[0]
	ipv6 := slices.ContainsFunc(p.self.PodCIDRs, func(c netip.Prefix) bool { return c.Addr().Is6() })
	switch fits := tunnelMTU(p.encrypt, u); {
	case configured > fits:
		return fmt.Sprintf("mtu is set to %d, but %s with its MTU of %d has room for %d: pods get that", configured, u.Link, u.MTU, fits)
	case ipv6 && p.self.MTU < minMTU6:
		return fmt.Sprintf("pods have IPv6, which needs an MTU of %d; %s with its MTU of %d leaves them %d", minMTU6, u.Link, u.MTU, p.self.MTU)
	}
	total := 0
	for _, n := range p.mtus {
		total += n
	}
	for mtu, n := range p.mtus {
		if mtu != u.MTU && 2*n > total {
			return fmt.Sprintf("%s has an MTU of %d, the underlay of %d of %d peers has %d: large packets may get lost", u.Link, u.MTU, n, total, mtu)
		}
	}
	return ""
}
