package attach

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/weft-cni/weft/pkg/ipam"
	"github.com/weft-cni/weft/pkg/kernel"
)

// result is that of an ADD: one interface, in the pod, and its addresses as
// the IPAM plugin gave them. A device that a program has is named the same.
func (a *vfAttachment) result(given ipam.Result) *types100.Result {
	iface := &types100.Interface{
		Name: a.rec.IfName, Mtu: a.rec.MTU, Sandbox: a.rec.Netns, PciID: a.rec.VF.Device.Address,
	}
	if a.rec.PodMAC != (kernel.MAC{}) {
		iface.Mac = a.rec.PodMAC.String()
	}
	r := &types100.Result{
		CNIVersion: types100.ImplementedSpecVersion, Interfaces: []*types100.Interface{iface}, DNS: a.n.DNS,
	}
	if r.DNS.IsEmpty() {
		r.DNS = given.DNS
	}
	for _, addr := range given.Addrs {
		r.IPs = append(r.IPs, &types100.IPConfig{
			Interface: types100.Int(0), Address: ipNet(addr.Prefix), Gateway: addr.Gateway.AsSlice(),
		})
	}
	for _, route := range given.Routes {
		if route.Table == 0 || a.n.CNIVersion == types100.ImplementedSpecVersion {
			r.Routes = append(r.Routes, route.CNI())
		}
	}
	return r
}

// deviceInfo describes a device to the pod's programs (Network Plumbing
// Working Group, "Device Information Specification" 1.1.0). The specification
// allows further keys; vfio-group and vfio-device are such.
type deviceInfo struct {
	Type    string  `json:"type"`
	Version string  `json:"version"`
	PCI     pciInfo `json:"pci"`
}

type pciInfo struct {
	Address     string `json:"pci-address"`
	PF          string `json:"pf-pci-address,omitempty"`
	VhostNet    string `json:"vhost-net,omitempty"`
	RDMA        string `json:"rdma-device,omitempty"`
	Representor string `json:"representor-device,omitempty"`
	VFIOGroup   string `json:"vfio-group,omitempty"`
	VFIODevice  string `json:"vfio-device,omitempty"`
}

const vhostNet = "/dev/vhost-net"

// describe writes the device-info file, if one is asked for.
func (a *vfAttachment) describe() error {
	path := a.rec.VF.InfoFile
	if path == "" {
		return nil
	}
	d := a.rec.VF.Device
	info := deviceInfo{Type: "pci", Version: "1.1.0", PCI: pciInfo{Address: d.Address, PF: d.PF}}
	if len(d.RDMA) > 0 {
		info.PCI.RDMA = d.RDMA[0]
	}
	if r := a.rec.VF.Wanted.Representor; r != nil {
		info.PCI.Representor = r.Name
	}
	if info.PCI.VFIODevice = d.VFIO(); info.PCI.VFIODevice != "" {
		info.PCI.VFIOGroup = d.IOMMUGroup
	}
	if _, err := os.Stat(vhostNet); err == nil && d.Userspace() {
		info.PCI.VhostNet = vhostNet
	}
	data, err := json.Marshal(info)
	if err != nil {
		return fmt.Errorf("device-info: %w", err)
	}
	a.done.add("remove the device-info file", func() error { return removeInfo(path) })
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("device-info: %w", err)
	}
	if err := os.WriteFile(path, data, 0o644); err != nil {
		return fmt.Errorf("device-info: %w", err)
	}
	return nil
}

func removeInfo(path string) error {
	if path == "" {
		return nil
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("device-info: %w", err)
	}
	return nil
}
