package attach

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/weft-cni/weft/pkg/flock"
	"github.com/weft-cni/weft/pkg/ipam"
	"github.com/weft-cni/weft/pkg/netconf"
	"github.com/weft-cni/weft/pkg/podns"
	"github.com/weft-cni/weft/pkg/record"
	"github.com/weft-cni/weft/pkg/sriov"
)

// Sweep does what no DEL did for attachments of this boot whose pods have gone:
// some runtimes never call it, and Multus calls no plugin for a pod that it
// didn't attach itself and that the API server doesn't know any more. It
// releases all that others could have: devices, which it restores, and Weft's own
// addresses. Records of devices and of a delegate's addresses stay, for the DEL or
// GC that can call the delegate. n tells where records are. A failure stops none
// of the rest.
//
// It takes nothing from a pod that is only out of sight: where namespaces can't
// be seen from here, a network device has to be back on the node already, and
// the host end of a pair, which goes with the pod's namespace, has to be gone.
func (p *Plugin) Sweep(ctx context.Context, n *netconf.Network) error {
	return errors.Join(p.sweepDevices(ctx, n), p.sweepPairs(ctx, n))
}

// sweepDevices restores the devices of pods that have gone.
func (p *Plugin) sweepDevices(ctx context.Context, n *netconf.Network) error {
	recs, err := store(n).List()
	if err != nil && len(record.Corrupt(err)) == 0 {
		return err
	}
	var errs []error
	for _, rec := range recs {
		if rec.VF != nil {
			errs = append(errs, p.sweepDevice(ctx, n, rec))
		}
	}
	return errors.Join(errs...)
}

// sweepDevice restores a device whose pod has gone.
func (p *Plugin) sweepDevice(ctx context.Context, n *netconf.Network, rec record.Attachment) error {
	if p.Sysfs.Root == "" {
		return nil
	}
	abandoned, err := p.abandoned(n, rec)
	if err != nil || !abandoned {
		return err
	}
	p.Log.Info("restoring the device of a pod that has gone",
		"container", rec.ContainerID, "interface", rec.IfName, "device", rec.VF.Device.Address)
	as := *n
	as.Env = netconf.Env{Command: netconf.Del, ContainerID: rec.ContainerID, IfName: rec.IfName}
	if err := p.giveBack(ctx, &as, rec); err != nil {
		return fmt.Errorf("sweep %s/%s: %w", rec.ContainerID, rec.IfName, err)
	}
	return nil
}

// sweepAge is the age from which on a record without a host end is no ADD's or
// DEL's that is under way. It only spares them the lock.
const sweepAge = 10 * time.Second

// sweepPairs detaches pods that have gone with the host ends of their pairs.
func (p *Plugin) sweepPairs(ctx context.Context, n *netconf.Network) error {
	if gone, err := p.gone(n); err != nil || len(gone) == 0 {
		return err
	}
	unlock, err := lock(ctx, n, flock.Exclusive)
	if err != nil {
		return err
	}
	defer unlock()
	gone, err := p.gone(n)
	errs := []error{err}
	for _, rec := range gone {
		p.Log.Info("detaching a pod that has gone", "container", rec.ContainerID, "interface", rec.IfName,
			"pod", rec.PodNamespace+"/"+rec.PodName, "addresses", rec.Addrs)
		if err := p.detachOwner(ctx, n, ipam.Owner{ContainerID: rec.ContainerID, IfName: rec.IfName}); err != nil {
			errs = append(errs, fmt.Errorf("sweep %s/%s: %w", rec.ContainerID, rec.IfName, err))
		}
	}
	return errors.Join(errs...)
}

// gone are the records of pairs whose host end isn't there, nor the pod's
// namespace, as far as that can be seen.
func (p *Plugin) gone(n *netconf.Network) (gone []record.Attachment, err error) {
	recs, err := store(n).List()
	if err != nil && len(record.Corrupt(err)) == 0 {
		return nil, err
	}
	ends, err := p.Node.List()
	if err != nil {
		return nil, err
	}
	there := map[string]bool{}
	for _, e := range ends {
		there[e.Name] = true
	}
	for _, rec := range recs {
		delegated := rec.IPAM != "" && rec.IPAM != netconf.Type
		if rec.VF != nil || delegated || rec.BootID != p.BootID || there[rec.HostLink] || time.Since(rec.Created) < sweepAge {
			continue
		}
		if pod, err := podns.Open(rec.Netns); err == nil {
			pod.Close()
		} else if isGone(err) {
			gone = append(gone, rec)
		}
	}
	return gone, nil
}

// seen reports whether there is such a file: where not, perhaps the namespaces
// of pods can't be seen from here.
func seen(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// abandoned reports whether a record has a device whose pod has gone.
func (p *Plugin) abandoned(n *netconf.Network, rec record.Attachment) (bool, error) {
	if rec.BootID != p.BootID {
		return false, nil
	}
	if !seen(filepath.Dir(rec.Netns)) {
		return false, nil
	}
	if pod, err := podns.Open(rec.Netns); err == nil {
		pod.Close()
		return false, nil
	} else if !isGone(err) {
		return false, err
	}
	d, err := p.Sysfs.Device(rec.VF.Device.Address)
	if errors.Is(err, sriov.ErrNoDevice) {
		return false, nil
	}
	if err != nil || d.Link == "" && !d.Userspace() {
		return false, err
	}
	owner := ipam.Owner{ContainerID: rec.ContainerID, IfName: rec.IfName}
	holder, held, err := devicesOf(n).owner(rec.VF.Device.Address)
	return held && holder == owner, err
}
