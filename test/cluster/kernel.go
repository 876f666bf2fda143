package cluster

import (
	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/kernel/rtnl"
)

// Kernel reads what the node's kernel holds by these names.
func (n *Node) Kernel(names rtnl.Names) (s kernel.State, err error) {
	err = n.Do(func() (err error) {
		h, err := rtnl.Open()
		if err != nil {
			return err
		}
		defer h.Close()
		s, err = h.Read(names)
		return err
	})
	return s, err
}
