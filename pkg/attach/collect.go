package attach

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/weft-cni/weft/pkg/flock"
	"github.com/weft-cni/weft/pkg/ipam"
	"github.com/weft-cni/weft/pkg/netconf"
	"github.com/weft-cni/weft/pkg/record"
	"github.com/weft-cni/weft/pkg/veth"
)

// Collect removes what is left of attachments to n's network that are not
// among its ValidAttachments: those with a record, host ends whose record is
// lost, claims on addresses, and files that killed processes left unfinished.
// It never touches other networks. A failure stops none of the rest; the error
// joins them all.
func (p *Plugin) Collect(ctx context.Context, n *netconf.Network) error {
	unlock, err := lock(ctx, n, flock.Exclusive)
	if err != nil {
		return err
	}
	defer unlock()

	keep := make(map[ipam.Owner]bool)
	for _, a := range n.ValidAttachments {
		keep[ipam.Owner{ContainerID: a.ContainerID, IfName: a.IfName}] = true
	}
	var errs []error
	failed := func(what any, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("collect %s: %w", what, err))
		}
	}
	stale, err := p.stale(n, keep)
	failed("records", err)
	for _, owner := range stale {
		if err := p.detachOwner(ctx, n, owner); err != nil {
			failed(owner, err)
			keep[owner] = true // its address may be in use
		}
	}
	failed("devices", p.collectDevices(ctx, n))
	failed("links", p.collectLinks(n, keep))
	failed("unfinished records", store(n).Clean())
	failed("addresses", p.collectClaims(ctx, n, keep))
	return errors.Join(errs...)
}

// stale lists the attachments to n's network that have a record, or one that
// can't be read, and aren't to be kept. What an unreadable record was of is
// told by the host end's alias: without a host end there is nothing to keep.
func (p *Plugin) stale(n *netconf.Network, keep map[ipam.Owner]bool) (stale []ipam.Owner, err error) {
	recs, err := store(n).List()
	corrupt := record.Corrupt(err)
	if err != nil && len(corrupt) == 0 {
		return nil, err
	}
	for _, rec := range recs {
		owner := ipam.Owner{ContainerID: rec.ContainerID, IfName: rec.IfName}
		if rec.Network == n.Name && !keep[owner] {
			stale = append(stale, owner)
		}
	}
	if len(corrupt) == 0 {
		return stale, nil
	}
	ends, err := p.Node.List()
	if err != nil {
		return stale, err
	}
	network := make(map[string]string)
	for _, e := range ends {
		network[e.Name] = e.Network
	}
	for _, c := range corrupt {
		id, ifName, ok := c.Attachment()
		owner := ipam.Owner{ContainerID: id, IfName: ifName}
		if !ok || keep[owner] {
			continue
		}
		if of, there := network[veth.HostLink(id, ifName)]; !there || of == n.Name {
			stale = append(stale, owner)
		}
	}
	return stale, nil
}

// detachOwner detaches one attachment, with the configuration of its ADD if
// that is known.
func (p *Plugin) detachOwner(ctx context.Context, n *netconf.Network, owner ipam.Owner) error {
	of := *n
	of.Env.Command = netconf.Del
	of.Env.ContainerID, of.Env.IfName, of.Env.Netns, of.Env.Args = owner.ContainerID, owner.IfName, "", ""
	p.Log.Info("collecting an attachment that is no longer valid", "attachment", owner)
	return p.detach(ctx, &of)
}

// collectLinks removes host ends that are the network's by their alias and
// have neither a record nor a place among what is to be kept.
func (p *Plugin) collectLinks(n *netconf.Network, keep map[ipam.Owner]bool) error {
	ends, err := p.Node.List()
	if err != nil {
		return err
	}
	known, err := p.recordedLinks(n)
	if err != nil {
		return err
	}
	for owner := range keep {
		known[veth.HostLink(owner.ContainerID, owner.IfName)] = true
	}
	var errs []error
	for _, e := range ends {
		if e.Network != n.Name || known[e.Name] {
			continue
		}
		p.Log.Info("collecting a pod's interface without a record", "link", e.Name)
		errs = append(errs, p.Node.Remove(e.Name))
	}
	return errors.Join(errs...)
}

// collectClaims releases the addresses of attachments of which nothing else is
// left: no place among what is to be kept, no record, no host end. Those of
// other networks have at least one of these.
func (p *Plugin) collectClaims(ctx context.Context, n *netconf.Network, keep map[ipam.Owner]bool) error {
	alive, err := p.recordedLinks(n)
	if err != nil {
		return err
	}
	ends, err := p.Node.List()
	if err != nil {
		return err
	}
	for _, e := range ends {
		alive[e.Name] = true
	}
	return ipam.New(n, netconf.Node{}).GC(ctx, func(o ipam.Owner) bool {
		return keep[o] || alive[veth.HostLink(o.ContainerID, o.IfName)]
	})
}

// collectDevices restores the devices of pods that have gone, and gives up
// claims that no record is behind: their ADDs were killed early.
func (p *Plugin) collectDevices(ctx context.Context, n *netconf.Network) error {
	err := p.sweepDevices(ctx, n) // what else has gone is this collection's
	return errors.Join(err, devicesOf(n).releaseAll(func(o ipam.Owner) bool {
		_, err := store(n).Get(o.ContainerID, o.IfName)
		return errors.Is(err, fs.ErrNotExist)
	}))
}
