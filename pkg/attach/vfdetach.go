package attach

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"github.com/weft-cni/weft/pkg/ipam"
	"github.com/weft-cni/weft/pkg/netconf"
	"github.com/weft-cni/weft/pkg/podns"
	"github.com/weft-cni/weft/pkg/record"
	"github.com/weft-cni/weft/pkg/sriov"
	"github.com/weft-cni/weft/pkg/vf"
)

// giveBack restores the device of a recorded attachment, wherever and in
// whatever state it is, and gives up the claim on it. A device that is no
// longer this attachment's is left alone: it was restored before.
func (p *Plugin) giveBack(ctx context.Context, n *netconf.Network, rec record.Attachment) error {
	if rec.BootID != p.BootID {
		return nil // the reboot made all devices new
	}
	d, owner, claims := rec.VF.Device, ipam.Owner{ContainerID: rec.ContainerID, IfName: rec.IfName}, devicesOf(n)
	unlock, err := claims.lock(ctx, d)
	if err != nil {
		return err
	}
	defer unlock()
	mine, err := claims.mine(d, owner, p.BootID)
	if err != nil || !mine {
		return err
	}
	pod, err := p.podOf(rec, n)
	if err != nil {
		return err
	}
	if pod != nil {
		defer pod.Close()
	}
	node, err := vf.Open(p.Sysfs, p.Log)
	if err != nil {
		return err
	}
	defer node.Close()
	v, err := node.Open(d, pod)
	if err != nil {
		return err
	}
	defer v.Close()
	if err := p.restore(ctx, v, rec); err != nil {
		return fmt.Errorf("give the device back: %w", err)
	}
	return errors.Join(removeInfo(rec.VF.InfoFile), claims.release(d.Address))
}

// podOf is the namespace that the device went to; nil where it is gone.
func (p *Plugin) podOf(rec record.Attachment, n *netconf.Network) (*podns.NS, error) {
	for _, path := range []string{rec.Netns, n.Env.Netns} {
		if path == "" {
			continue
		}
		pod, err := podns.Open(path)
		switch {
		case err == nil:
			return pod, nil
		case !isGone(err):
			return nil, fmt.Errorf("%w: %w", ErrNetns, err)
		}
	}
	return nil, nil
}

// isGone reports whether an error of podns.Open says that the pod's namespace
// is not there any more.
func isGone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, podns.ErrNotNetns) || errors.Is(err, podns.ErrOwnNetns)
}

// restore makes a device what it was before its attachment. One that was
// changed is reset before, if it can be, so that nothing of one pod is left in
// it for the next; so is one whose network device is nowhere to be found.
func (p *Plugin) restore(ctx context.Context, v *vf.VF, rec record.Attachment) error {
	original := rec.VF.Original
	now, err := v.Read()
	if errors.Is(err, sriov.ErrNoDevice) {
		p.Log.Warn("the device has gone: there is nothing to give back", "device", rec.VF.Device.Address)
		return nil
	}
	if err != nil {
		return err
	}
	if original.Port != nil && now.Port == nil {
		p.Log.Warn("the PF's network device is not on the node: what the PF holds of the VF stays as it is",
			"device", rec.VF.Device.Address, "pf", rec.VF.Device.PF)
	}
	lost := original.Link != nil && now.Link == nil && !v.Device.Userspace()
	if !lost && len(sriov.Plan(now, original)) == 0 {
		return nil
	}
	if original.Link != nil && !v.Device.Userspace() { // vfio-pci resets by itself
		if now, err = p.renew(ctx, v, now); err != nil {
			return err
		}
	}
	return v.Apply(sriov.Plan(now, original))
}

// renew resets a device that has a driver of the kernel's, and gives the state
// that this leaves. One that can't be reset is left as it is, unless its
// network device is lost.
func (p *Plugin) renew(ctx context.Context, v *vf.VF, now sriov.State) (sriov.State, error) {
	reset := p.Sysfs.CanReset(v.Device)
	if now.Link == nil && !reset && v.Device.Driver != "" {
		var err error
		if now, err = v.ReadSettled(ctx, settleTime); err != nil {
			return now, err
		}
	}
	if now.Link != nil && !reset {
		return now, nil
	}
	err := p.Sysfs.Renew(v.Device)
	if readOnly := errors.Is(err, os.ErrPermission) || errors.Is(err, syscall.EROFS); readOnly && now.Link != nil {
		p.Log.Warn("the device is not reset", "device", v.Device.Address, "error", err)
		return now, nil
	}
	if err != nil {
		return now, err
	}
	if now, err = v.ReadSettled(ctx, renewTime); err != nil {
		return now, err
	}
	if now.Link == nil && !v.Device.Userspace() {
		return now, fmt.Errorf("%s: its driver %q makes no network device", v.Device, v.Device.Driver)
	}
	return now, nil
}

// detachVF is detach for an attachment of ModeSRIOV: rec is its record, if
// there is one.
func (p *Plugin) detachVF(ctx context.Context, n, as *netconf.Network, rec record.Attachment, recorded bool) error {
	if recorded && rec.VF != nil {
		if err := p.giveBack(ctx, n, rec); err != nil {
			return err
		}
	}
	err := ipam.New(as, netconf.Node{}).Del(ctx)
	if errors.Is(err, ipam.ErrNoPlugin) && !recorded {
		p.Log.Warn("detaching without the IPAM plugin", "error", err)
		err = nil
	}
	if err != nil {
		return fmt.Errorf("release the addresses: %w", err)
	}
	owner := ownerOf(n)
	if err := store(n).Delete(owner.ContainerID, owner.IfName); err != nil {
		return err
	}
	if recorded {
		return nil
	}
	return devicesOf(n).releaseAll(func(o ipam.Owner) bool { return o == owner })
}
