package agent

import (
	"context"
	"errors"
	"fmt"

	"github.com/weft-cni/weft/pkg/control"
	"github.com/weft-cni/weft/pkg/netconf"
	"github.com/weft-cni/weft/pkg/record"
)

// seal has the runner make what encrypted segments need, and waits until it is
// there. The caller calls release once the segment is noted, or given up.
func (s *segments) seal(ctx context.Context) (release func(), err error) {
	s.mu.Lock()
	s.state.sealing++
	s.mu.Unlock()
	release = func() {
		s.mu.Lock()
		s.state.sealing--
		s.mu.Unlock()
	}
	done := make(chan error, 1)
	s.sealed(true, done)
	select {
	case <-ctx.Done():
		err = fmt.Errorf("%w: %w", control.ErrNotYet, context.Cause(ctx))
	case err = <-done:
	}
	switch {
	case err == nil:
		return release, nil
	case errors.Is(err, errNoWireGuard):
		err = fmt.Errorf("%w: encrypt is true; accepted on this node: false: %w", control.ErrRefused, err)
	default:
		err = fmt.Errorf("%w: encrypt: %w", control.ErrNotYet, err)
	}
	release()
	return nil, err
}

// unseal has the runner take away what encrypted segments need, if there is none
// and nobody is about to ask for one. Their devices are gone by then.
func (s *segments) unseal() {
	s.mu.Lock()
	defer s.mu.Unlock()
	needed := s.state.sealing > 0 || s.state.self == nil || !s.state.self.Inner.Addr.IsValid()
	for _, on := range s.state.active {
		needed = needed || on.tunnels.Encrypt
	}
	for _, o := range s.state.opened {
		needed = needed || o.segment.Tunnels.Encrypt
	}
	if !needed {
		s.sealed(false, nil)
	}
}

// sealedOnRecord reports whether there are attachments to encrypted segments.
func sealedOnRecord(attachments func() ([]record.Attachment, error)) bool {
	all, _ := attachments() // passes tell of those that can't be read
	for _, a := range all {
		if a.Mode == string(netconf.ModeOverlay) && tunnelsOnRecord(a).Encrypt {
			return true
		}
	}
	return false
}

// tunnelsOnRecord is how the segment of an attachment spans the nodes.
func tunnelsOnRecord(a record.Attachment) (t netconf.Tunnels) {
	n, err := netconf.Parse(a.Config, netconf.Env{
		Command: netconf.Del, ContainerID: a.ContainerID, IfName: a.IfName, Netns: a.Netns, Args: a.Args,
	})
	if err == nil && n.Segment != nil {
		t = n.Segment.Tunnels
	}
	return t
}
