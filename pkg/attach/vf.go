package attach

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/weft-cni/weft/pkg/flock"
	"github.com/weft-cni/weft/pkg/ipam"
	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/netconf"
	"github.com/weft-cni/weft/pkg/record"
	"github.com/weft-cni/weft/pkg/sriov"
	"github.com/weft-cni/weft/pkg/vf"
)

// How long to wait for a device.
const (
	// settleTime is for a network device on its way back from a namespace that
	// has gone.
	settleTime = 3 * time.Second
	// renewTime is for a driver to make a network device. Some talk to their
	// firmware for seconds.
	renewTime = 20 * time.Second
	// carrierTime is for the carrier, before addresses are announced.
	carrierTime = 2 * time.Second
)

// ErrDevice says that a device can't be had by a pod.
var ErrDevice = errors.New("device can't be attached")

// vfAttachment is an ADD of a VF.
type vfAttachment struct {
	*Plugin
	n    *netconf.Network
	vf   *vf.VF
	rec  record.Attachment
	done undoList
}

// attachVF gives a pod a device: whole, or the VF as the PF and the
// configuration have it. It takes neither the daemon nor the API server.
func (p *Plugin) attachVF(ctx context.Context, n *netconf.Network) (result []byte, err error) {
	if err = first(n); err != nil {
		return nil, err
	}
	pod, err := openNetns(n.Env.Netns)
	if err != nil {
		return nil, err
	}
	defer pod.Close()
	unlock, err := lock(ctx, n, flock.Shared)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err = p.notRecorded(n); err != nil {
		return nil, err
	}
	device, err := p.device(n)
	if err != nil {
		return nil, err
	}
	unlockDevice, err := devicesOf(n).lock(ctx, device)
	if err != nil {
		return nil, err
	}
	defer unlockDevice()

	node, err := vf.Open(p.Sysfs, p.Log)
	if err != nil {
		return nil, err
	}
	defer node.Close()
	v, err := node.Open(device, pod)
	if err != nil {
		return nil, err
	}
	defer v.Close()
	a := &vfAttachment{Plugin: p, n: n, vf: v}
	defer func() { err = a.done.undoOn(err) }()
	return a.attach(ctx)
}

// device finds what the configuration names.
func (p *Plugin) device(n *netconf.Network) (sriov.Device, error) {
	d, err := p.Sysfs.Find(n.VF.Device)
	if err != nil {
		return d, fmt.Errorf("%w: %w", ErrDevice, err)
	}
	vfs, err := p.Sysfs.VFs(d.Address)
	if err != nil {
		return d, err
	}
	if len(vfs) > 0 {
		return d, fmt.Errorf("%w: %s has %d VFs of its own, which others may have", ErrDevice, d, len(vfs))
	}
	return d, nil
}

// attach works on a locked device.
func (a *vfAttachment) attach(ctx context.Context) ([]byte, error) {
	d, owner, claims := a.vf.Device, ownerOf(a.n), devicesOf(a.n)
	if err := claims.claim(d, owner, a.BootID); err != nil {
		return nil, err
	}
	a.done.add("release the device", func() error { return claims.release(d.Address) })

	if err := a.plan(ctx); err != nil {
		return nil, err
	}
	flush, err := a.record()
	if err != nil {
		return nil, err
	}
	given, err := a.allocate(ctx)
	if err != nil {
		return nil, errors.Join(err, flush())
	}
	if len(given.Addrs) > 0 {
		if err = flush(); err != nil {
			return nil, err
		}
		if flush, err = store(a.n).Write(a.rec); err != nil {
			return nil, err
		}
	}
	flushed := inBackground(flush)
	err = a.move(ctx, given)
	if err = errors.Join(err, <-flushed); err != nil {
		return nil, err
	}
	return encode(a.result(given), a.n.CNIVersion)
}

// plan reads what the device is like, and says what it shall be like.
func (a *vfAttachment) plan(ctx context.Context) error {
	original, err := a.vf.ReadSettled(ctx, settleTime)
	if err != nil {
		return err
	}
	d := a.vf.Device
	switch {
	case original.Link == nil && !d.Userspace():
		return fmt.Errorf("%w: %s has neither a network device on the node nor a driver of those that need none (driver %q)",
			ErrDevice, d, d.Driver)
	case original.Link != nil && original.Link.Place == sriov.Pod:
		return fmt.Errorf("%s: %w as %s, without a record", d, ErrAttached, original.Link.Name)
	}
	wanted, err := sriov.Want(original, a.n.Env.IfName, a.n.VF.Settings)
	if err != nil {
		return fmt.Errorf("%w: %s: %w", ErrDevice, d, err)
	}
	a.rec = a.newRecord(d, original, wanted)
	return nil
}

func (a *vfAttachment) newRecord(d sriov.Device, original, wanted sriov.State) record.Attachment {
	rec := recordFor(a.n, a.BootID)
	rec.IPAM = cmp.Or(rec.IPAM, "none")
	rec.VF = &record.VF{Device: d, Original: original, Wanted: wanted, InfoFile: a.n.VF.InfoFile}
	if l := wanted.Link; l != nil {
		rec.PodMAC, rec.MTU = l.MAC, l.MTU
	} else if wanted.Port != nil {
		rec.PodMAC = wanted.Port.MAC
	}
	return rec
}

// record writes down all that a DEL needs, before anything changes.
func (a *vfAttachment) record() (flush func() error, err error) {
	a.done.add("remove the record", func() error { return store(a.n).Delete(a.rec.ContainerID, a.rec.IfName) })
	return store(a.n).Write(a.rec)
}

// allocate asks the IPAM plugin, if there is one. What it gives is kept in the
// record.
func (a *vfAttachment) allocate(ctx context.Context) (ipam.Result, error) {
	allocator := ipam.New(a.n, netconf.Node{})
	given, err := allocator.Add(ctx)
	if err != nil {
		return given, err
	}
	a.done.add("release the addresses", func() error { return allocator.Del(context.WithoutCancel(ctx)) })
	for i, r := range given.Routes {
		if !r.GW.IsValid() {
			given.Routes[i].GW = gatewayFor(r.Dst, given.Addrs)
		}
	}
	a.rec.Addrs, a.rec.Routes = given.IPs(), given.Routes
	for _, addr := range given.Addrs {
		a.rec.VF.Prefixes = append(a.rec.VF.Prefixes, addr.Prefix)
	}
	return given, nil
}

// gatewayFor is the next hop of a route that names none: the first gateway of
// its family, as the reference plugins have it.
func gatewayFor(dst netip.Prefix, addrs []ipam.Addr) netip.Addr {
	for _, a := range addrs {
		if a.Gateway.IsValid() && a.Gateway.Is4() == dst.Addr().Is4() {
			return a.Gateway
		}
	}
	return netip.Addr{}
}

// move takes the device into the pod.
func (a *vfAttachment) move(ctx context.Context, given ipam.Result) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	v := a.rec.VF
	// Only the record knows what the device was like.
	a.done.hold("give the device back", func() error { return a.restore(context.WithoutCancel(ctx), a.vf, a.rec) })
	if err := a.vf.Apply(sriov.Plan(v.Original, v.Wanted)); err != nil {
		return err
	}
	if err := a.describe(); err != nil {
		return err
	}
	if v.Wanted.Link == nil {
		return nil // a program has the device, and will have the addresses
	}
	if err := a.vf.Address(a.n.Env.IfName, vf.Addresses{Prefixes: v.Prefixes, Routes: a.rec.Routes}); err != nil {
		return err
	}
	down := v.Wanted.Port != nil && v.Wanted.Port.LinkState == sriov.StateDisable
	if len(given.Addrs) == 0 || down || v.Wanted.Link.MAC == (kernel.MAC{}) {
		return nil
	}
	if err := a.vf.Announce(ctx, v.Wanted.Link.MAC, given.IPs(), carrierTime); err != nil {
		a.Log.Warn("addresses not announced: neighbours may not find the pod at once", "device", v.Device.Address, "error", err)
	}
	return nil
}
