package agent

import (
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Node is what the daemon needs of its Node object.
type Node struct {
	Name     string
	UID      string // empty when there is no such object
	PodCIDRs []netip.Prefix
	// InternalIPs are the object's addresses of that type, in its order.
	InternalIPs []netip.Addr
}

// Equal reports whether nothing of concern differs.
func (n Node) Equal(o Node) bool {
	return n.Name == o.Name && n.UID == o.UID &&
		slices.Equal(n.PodCIDRs, o.PodCIDRs) && slices.Equal(n.InternalIPs, o.InternalIPs)
}

// parseNode reads a Node object. Addresses that are none are left out: they
// are hints, and the interfaces decide.
func parseNode(n *corev1.Node) (Node, error) {
	node := Node{Name: n.Name, UID: string(n.UID)}
	for i, text := range n.Spec.PodCIDRs {
		cidr, err := netip.ParsePrefix(text)
		if err != nil {
			return node, fmt.Errorf("node %s: spec.podCIDRs[%d]: %q is not an address range: %w", n.Name, i, text, err)
		}
		node.PodCIDRs = append(node.PodCIDRs, cidr.Masked())
	}
	for _, a := range n.Status.Addresses {
		if a.Type != corev1.NodeInternalIP {
			continue
		}
		if addr, err := netip.ParseAddr(a.Address); err == nil {
			node.InternalIPs = append(node.InternalIPs, addr.Unmap())
		}
	}
	return node, nil
}

func (n Node) uid() types.UID { return types.UID(n.UID) }
