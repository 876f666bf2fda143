package attach

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/weft-cni/weft/pkg/flock"
	"github.com/weft-cni/weft/pkg/ipam"
	"github.com/weft-cni/weft/pkg/netconf"
	"github.com/weft-cni/weft/pkg/podns"
	"github.com/weft-cni/weft/pkg/record"
	"github.com/weft-cni/weft/pkg/veth"
)

// Detach removes an attachment, whatever is left of it, and does nothing where
// that is nothing. It needs neither the daemon nor the pod's network
// namespace nor, for all but the addresses of a delegate that has changed
// since, the record.
func (p *Plugin) Detach(ctx context.Context, n *netconf.Network) error {
	unlock, err := lock(ctx, n, flock.Shared)
	if err != nil {
		return err
	}
	defer unlock()
	return p.detach(ctx, n)
}

// detach does the work of Detach in the opposite order of Attach, so that an
// address isn't free before nothing has it any more, and a record stays until
// all it tells of is gone.
func (p *Plugin) detach(ctx context.Context, n *netconf.Network) error {
	id, ifName := n.Env.ContainerID, n.Env.IfName
	rec, err := store(n).Get(id, ifName)
	var corrupt *record.CorruptError
	as, recorded := n, err == nil
	switch {
	case recorded:
		as = p.asRecorded(rec, n)
	case errors.As(err, &corrupt):
		p.Log.Warn("detaching without the record", "error", err)
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}

	if recorded && rec.VF != nil || !recorded && n.Mode == netconf.ModeSRIOV {
		return p.detachVF(ctx, n, as, rec, recorded)
	}
	if rec.VNI != 0 {
		err = p.Node.RemovePort(recordedPort(rec, veth.HostLink(id, ifName)))
	} else if err = removeRules(as, rec); err == nil {
		// Of a segment's port without a record the daemon takes back what it
		// could send from.
		err = p.Node.Remove(veth.HostLink(id, ifName))
	}
	if err != nil {
		return err
	}
	err = ipam.New(as, netconf.Node{}).Del(ctx)
	if errors.Is(err, ipam.ErrNoPlugin) && !recorded {
		// Without a record there is no sign that it ever gave an address.
		p.Log.Warn("detaching without the IPAM plugin", "error", err)
		err = nil
	}
	if err != nil {
		return fmt.Errorf("release the addresses: %w", err)
	}
	return store(n).Delete(id, ifName)
}

// asRecorded is the configuration of the ADD, which knows best where its
// addresses came from, or else that of the DEL.
func (p *Plugin) asRecorded(rec record.Attachment, n *netconf.Network) *netconf.Network {
	as, err := asAdded(rec, n.Env)
	if err != nil {
		p.Log.Warn("detaching with the runtime's configuration", "error", err)
		return n
	}
	return as
}

// removeRules removes routing rules from the pod, if it has any of ours and is
// still there.
func removeRules(as *netconf.Network, rec record.Attachment) error {
	if as.DefaultRoute || len(rec.Addrs) == 0 || as.Env.Netns == "" {
		return nil
	}
	pod, err := podns.Open(as.Env.Netns)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, podns.ErrNotNetns) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNetns, err)
	}
	defer pod.Close()
	return veth.RemoveRules(pod, rec.Addrs)
}
