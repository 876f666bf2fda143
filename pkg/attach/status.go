package attach

import (
	"context"
	"errors"
	"fmt"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/weft-cni/weft/pkg/ipam"
	"github.com/weft-cni/weft/pkg/netconf"
)

// Status reports whether an ADD can work: ErrUnavailable where the daemon has
// not been ready since boot and no pod is there yet, ErrLimited where pods are
// there that may not reach other nodes, and a delegate's own error.
func (p *Plugin) Status(ctx context.Context, n *netconf.Network) error {
	var node netconf.Node
	if n.Mode == netconf.ModeCluster {
		var err error
		if node, err = netconf.ReadNode(n.RunDir, p.BootID); err != nil {
			return p.unready(err)
		}
	}
	err := ipam.New(n, node).Status(ctx)
	var delegate *types.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &delegate) && delegate.Code == CodeLimited:
		return fmt.Errorf("%w: %w", ErrLimited, err)
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}

func (p *Plugin) unready(cause error) error {
	kind := ErrUnavailable
	if ends, err := p.Node.List(); err == nil && len(ends) > 0 {
		kind = ErrLimited
	}
	return fmt.Errorf("%w: %w: %w", kind, ErrNotReady, cause)
}
