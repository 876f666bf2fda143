package vf

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/sriov"
)

// readRepresentor gives the representor's state; nil where the eSwitch isn't
// in switchdev mode.
func (v *VF) readRepresentor() (*sriov.Representor, error) {
	name, err := v.node.Sysfs.Representor(v.Device)
	if err != nil || name == "" {
		return nil, err
	}
	link, err := v.node.host.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("representor %s: %w", name, err)
	}
	a := link.Attrs()
	r := &sriov.Representor{Name: a.Name, Up: a.RawFlags&unix.IFF_UP != 0}
	if a.MasterIndex == 0 {
		return r, nil
	}
	master, err := v.node.host.LinkByIndex(a.MasterIndex)
	if err != nil {
		return nil, fmt.Errorf("master of representor %s: %w", name, err)
	}
	r.Bridge = master.Attrs().Name
	vlans, err := v.node.host.BridgeVlanList()
	if err != nil {
		return nil, fmt.Errorf("VLANs of representor %s: %w", name, err)
	}
	for _, info := range vlans[int32(a.Index)] {
		if info.Flags&nl.BRIDGE_VLAN_INFO_PVID != 0 {
			r.PVID = int(info.Vid)
		}
	}
	return r, nil
}

// setRepresentor makes the representor what o.To says: in its VLAN before it
// is up.
func (v *VF) setRepresentor(o *sriov.RepresentorOp) error {
	h := v.node.host
	link, err := h.LinkByName(o.To.Name)
	if err != nil {
		return err
	}
	if o.From.Bridge != o.To.Bridge {
		if err := v.setMaster(link, o.To.Bridge); err != nil {
			return err
		}
	}
	if o.To.Bridge != "" && o.To.PVID != 0 {
		if err := v.setPVID(link, o.To.PVID); err != nil {
			return err
		}
	}
	if o.To.Up {
		return h.LinkSetUp(link)
	}
	return h.LinkSetDown(link)
}

func (v *VF) setMaster(link netlink.Link, bridge string) error {
	if bridge == "" {
		return v.node.host.LinkSetNoMaster(link)
	}
	master, err := v.node.host.LinkByName(bridge)
	if err != nil {
		return fmt.Errorf("bridge %s: %w", bridge, err)
	}
	if err := v.node.host.LinkSetMaster(link, master); err != nil {
		return fmt.Errorf("port of bridge %s: %w", bridge, err)
	}
	return nil
}

// setPVID puts a bridge's port into one VLAN, untagged, and takes it out of
// all others, the bridge's default one included.
func (v *VF) setPVID(link netlink.Link, vid int) error {
	h := v.node.host
	if err := h.BridgeVlanAdd(link, uint16(vid), true, true, false, true); err != nil {
		return fmt.Errorf("VLAN %d: %w", vid, err)
	}
	vlans, err := h.BridgeVlanList()
	if err != nil {
		return fmt.Errorf("VLANs of %s: %w", link.Attrs().Name, err)
	}
	for _, info := range vlans[int32(link.Attrs().Index)] {
		if int(info.Vid) == vid {
			continue
		}
		err := h.BridgeVlanDel(link, info.Vid, false, false, false, true)
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("VLAN %d: %w", info.Vid, err)
		}
	}
	return nil
}
