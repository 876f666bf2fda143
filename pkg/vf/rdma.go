package vf

import (
	"errors"
	"fmt"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/sriov"
)

// RDMA is what this package needs of the RDMA subsystem. All of it is about
// the calling thread's network namespace (rdma-system(8), rdma-dev(8)).
type RDMA interface {
	// Exclusive reports whether each RDMA device belongs to one namespace;
	// else all see all.
	Exclusive() (bool, error)
	// Devices names those that can be seen.
	Devices() ([]string, error)
	// Move moves one to the namespace that fd is open on.
	Move(device string, fd int) error
}

// kernelRDMA asks the kernel.
type kernelRDMA struct{}

func (kernelRDMA) Exclusive() (bool, error) {
	mode, err := netlink.RdmaSystemGetNetnsMode()
	return mode == "exclusive", err
}

func (kernelRDMA) Devices() ([]string, error) {
	links, err := netlink.RdmaLinkList()
	var names []string
	for _, l := range links {
		names = append(names, l.Attrs.Name)
	}
	return names, err
}

func (kernelRDMA) Move(device string, fd int) error {
	link, err := netlink.RdmaLinkByName(device)
	if err != nil {
		return err
	}
	return netlink.RdmaLinkSetNsFd(link, uint32(fd))
}

// findRDMA tells where the device's RDMA device is. sysfs names it also when
// it is in a pod, since a PCI function belongs to no namespace.
func (v *VF) findRDMA() (sriov.Place, error) {
	if len(v.Device.RDMA) == 0 {
		return sriov.Nowhere, nil
	}
	exclusive, err := v.node.RDMA.Exclusive()
	if err != nil || !exclusive {
		return sriov.Nowhere, wrapRDMA(v.Device, err)
	}
	for _, place := range []sriov.Place{sriov.Host, sriov.Pod} {
		c, e := v.at(place)
		if e != nil {
			continue
		}
		var names []string
		err := c.ns.Do(func() (err error) {
			names, err = v.node.RDMA.Devices()
			return err
		})
		if err != nil {
			return sriov.Nowhere, wrapRDMA(v.Device, err)
		}
		if slices.Contains(names, v.Device.RDMA[0]) {
			return place, nil
		}
	}
	return sriov.Nowhere, nil
}

func (v *VF) moveRDMA(o *sriov.RDMAOp) error {
	from, err := v.at(o.In)
	if err != nil {
		return err
	}
	to, err := v.at(o.To)
	if err != nil {
		return err
	}
	for _, name := range v.Device.RDMA {
		err := from.ns.Do(func() error { return v.node.RDMA.Move(name, to.ns.FD()) })
		if err != nil && !errors.Is(err, unix.ENODEV) {
			return wrapRDMA(v.Device, err)
		}
	}
	return nil
}

func wrapRDMA(d sriov.Device, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("RDMA device %v of %s: %w", d.RDMA, d, err)
}
