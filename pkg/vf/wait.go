package vf

import (
	"context"
	"time"

	"github.com/weft-cni/weft/pkg/sriov"
)

// poll is how often to look for a network device that is on its way: nothing
// tells which of the kernel's events would be its.
const poll = 10 * time.Millisecond

// ReadSettled reads the device's state, and waits for up to wait for a network
// device that is in neither place: the kernel gives devices of a namespace
// that has gone back to the node some time later, and a driver that was bound
// makes one some time later. What is read at the end has no Link where none
// came.
func (v *VF) ReadSettled(ctx context.Context, wait time.Duration) (sriov.State, error) {
	deadline := time.NewTimer(wait)
	defer deadline.Stop()
	ticks := time.NewTicker(poll)
	defer ticks.Stop()
	for {
		s, err := v.Read()
		if err != nil || s.Link != nil || v.Device.Userspace() {
			return s, err
		}
		select {
		case <-ctx.Done():
			return s, ctx.Err()
		case <-deadline.C:
			return s, nil
		case <-ticks.C:
		}
	}
}
