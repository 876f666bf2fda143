package attach

import (
	"fmt"

	"github.com/weft-cni/weft/pkg/netconf"
	"github.com/weft-cni/weft/pkg/record"
	"github.com/weft-cni/weft/pkg/sriov"
	"github.com/weft-cni/weft/pkg/vf"
)

// checkVF compares a device with its record: each property that Weft set or
// found, addresses, routes, and whose the device is.
func (p *Plugin) checkVF(n *netconf.Network, rec record.Attachment) ([]string, error) {
	pod, err := openNetns(n.Env.Netns)
	if err != nil {
		return nil, err
	}
	defer pod.Close()
	node, err := vf.Open(p.Sysfs, p.Log)
	if err != nil {
		return nil, err
	}
	defer node.Close()
	v, err := node.Open(rec.VF.Device, pod)
	if err != nil {
		return nil, err
	}
	defer v.Close()
	now, err := v.Read()
	if err != nil {
		return nil, err
	}
	items := sriov.Drift(rec.VF.Wanted, now)
	if d := rec.VF.Device.Driver; v.Device.Driver != d {
		items = append(items, fmt.Sprintf("driver is %q, want %q", v.Device.Driver, d))
	}
	owner, held, err := devicesOf(n).owner(rec.VF.Device.Address)
	if err != nil {
		return nil, err
	}
	if !held || owner != ownerOf(n) {
		items = append(items, fmt.Sprintf("device %s is not claimed by this attachment", rec.VF.Device))
	}
	if now.Link == nil || now.Link.Place != sriov.Pod {
		return items, nil
	}
	missing, err := v.Missing(vf.Addresses{Prefixes: rec.VF.Prefixes, Routes: rec.Routes})
	return append(items, missing...), err
}
