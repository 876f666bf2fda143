package sriov

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// Errors of a Sysfs.
var (
	// ErrNoDevice says that there is no such device.
	ErrNoDevice = errors.New("no such device")
	// ErrNotWhole says that a device is a PF whose VFs are in use by others.
	ErrNotWhole = errors.New("device has VFs of its own")
)

// Sysfs finds devices in a sysfs tree (Documentation/ABI/testing/sysfs-bus-pci).
// What it says of network devices is about the network namespace that the tree
// was mounted in, the node's. The zero value is the tree at /sys.
type Sysfs struct {
	Root string // "/sys" where empty
}

// Device is a PCI function with a network device, or that could have one.
type Device struct {
	Address string `json:"address"` // PCI: "0000:01:10.0"
	// Parent is the network device's parent as the kernel names it
	// (IFLA_PARENT_DEV_NAME): the PCI address, or "virtio0" below it.
	Parent string `json:"parent,omitempty"`
	Driver string `json:"driver,omitempty"` // "igbvf", "vfio-pci"; empty where it has none
	// PF is the PCI address of the VF's PF; empty where the device is no VF, or
	// its PF can't be reached from here. PFLink is the PF's network device.
	PF     string `json:"pf,omitempty"`
	PFLink string `json:"pfLink,omitempty"`
	Index  int    `json:"index"` // the VF's number at its PF
	// Link is the network device, if it is in the node's namespace.
	Link       string   `json:"link,omitempty"`
	NUMANode   int      `json:"numaNode"`             // -1: none
	IOMMUGroup string   `json:"iommuGroup,omitempty"` // a number
	RDMA       []string `json:"rdma,omitempty"`       // RDMA devices
}

// userspaceDrivers give a device to a program: there is no network device.
var userspaceDrivers = []string{"vfio-pci", "uio_pci_generic", "igb_uio"}

// Userspace reports whether a userspace driver has the device.
func (d Device) Userspace() bool { return slices.Contains(userspaceDrivers, d.Driver) }

// VFIO is the file of the device's VFIO group; empty where vfio-pci doesn't
// have the device.
func (d Device) VFIO() string {
	if d.Driver != "vfio-pci" || d.IOMMUGroup == "" {
		return ""
	}
	return "/dev/vfio/" + d.IOMMUGroup
}

// String names the device for messages: a VF by its PF and number as well.
func (d Device) String() string {
	if d.PF == "" {
		return d.Address
	}
	pf := d.PF
	if d.PFLink != "" {
		pf = d.PFLink
	}
	return fmt.Sprintf("%s (VF %d of %s)", d.Address, d.Index, pf)
}

// The plugin compiles a pattern when it needs it: most of its runs don't.
var addressPattern = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]$`)
})

// IsAddress reports whether s is a PCI address in full, as 0000:01:10.0.
func IsAddress(s string) bool { return addressPattern().MatchString(s) }

func (s Sysfs) path(elem ...string) string {
	root := s.Root
	if root == "" {
		root = "/sys"
	}
	return filepath.Join(append([]string{root}, elem...)...)
}

func (s Sysfs) pci(address string, elem ...string) string {
	return s.path(append([]string{"bus/pci/devices", address}, elem...)...)
}

// Find gives the device of a PCI address or of a network device of the node.
// The error is ErrNoDevice where there is none.
func (s Sysfs) Find(name string) (Device, error) {
	if IsAddress(name) {
		return s.Device(name)
	}
	path, err := filepath.EvalSymlinks(s.path("class/net", name, "device"))
	if err != nil {
		return Device{}, fmt.Errorf("network device %s: %w", name, none(err))
	}
	// A virtio device is below its PCI function.
	for ; path != "/" && path != "."; path = filepath.Dir(path) {
		if address := filepath.Base(path); IsAddress(address) {
			return s.Device(address)
		}
	}
	return Device{}, fmt.Errorf("network device %s: %w on the PCI bus", name, ErrNoDevice)
}

// none is the error of a file that should be there: that it isn't means that
// the device isn't.
func none(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return ErrNoDevice
	}
	return err
}

// Device gives the device of a PCI address. The error is ErrNoDevice where
// there is none.
func (s Sysfs) Device(address string) (Device, error) {
	if _, err := os.Stat(s.pci(address)); err != nil {
		return Device{}, fmt.Errorf("PCI device %s: %w", address, none(err))
	}
	d := Device{Address: address, Driver: s.link(address, "driver"), IOMMUGroup: s.link(address, "iommu_group"), NUMANode: -1}
	if n, err := s.number(address, "numa_node"); err == nil {
		d.NUMANode = n
	}
	var err error
	if d.RDMA, err = s.entries(address, "infiniband"); err != nil {
		return Device{}, err
	}
	if d.Parent, d.Link, err = s.netdev(address); err != nil {
		return Device{}, err
	}
	if d.PF = s.link(address, "physfn"); d.PF == "" {
		return d, nil
	}
	if d.Index, err = s.index(d); err != nil {
		return Device{}, err
	}
	if _, d.PFLink, err = s.netdev(d.PF); err != nil {
		return Device{}, err
	}
	return d, nil
}

// VFs gives the VFs of a PF, by their numbers.
func (s Sysfs) VFs(pf string) ([]Device, error) {
	links, err := filepath.Glob(s.pci(pf, "virtfn*"))
	if err != nil {
		return nil, err
	}
	var all []Device
	for _, l := range links {
		d, err := s.Device(s.link(pf, filepath.Base(l)))
		if err != nil {
			return nil, err
		}
		all = append(all, d)
	}
	slices.SortFunc(all, func(a, b Device) int { return a.Index - b.Index })
	return all, nil
}

// index is the number of a VF: its PF has a link to it.
func (s Sysfs) index(d Device) (int, error) {
	entries, err := os.ReadDir(s.pci(d.PF))
	if err != nil {
		return 0, fmt.Errorf("PF %s of %s: %w", d.PF, d.Address, none(err))
	}
	for _, e := range entries {
		number, ok := strings.CutPrefix(e.Name(), "virtfn")
		if !ok || s.link(d.PF, e.Name()) != d.Address {
			continue
		}
		n, err := strconv.Atoi(number)
		if err != nil {
			return 0, fmt.Errorf("PF %s has %s: %w", d.PF, e.Name(), err)
		}
		return n, nil
	}
	return 0, fmt.Errorf("PF %s doesn't know VF %s: %w", d.PF, d.Address, ErrNoDevice)
}

// netdev is the network device of a PCI function in the node's namespace, and
// its parent. Of several it is the first port's; representors of VFs, which
// are the PF's as well, don't count.
func (s Sysfs) netdev(address string) (parent, link string, err error) {
	parent, dir := address, []string{"net"}
	if virtio, e := filepath.Glob(s.pci(address, "virtio*")); e == nil && len(virtio) > 0 {
		parent = filepath.Base(virtio[0])
		dir = []string{parent, "net"}
	}
	links, err := s.entries(address, dir...)
	if err != nil {
		return "", "", err
	}
	best := -1
	for _, l := range links {
		if _, isVF := s.portName(l); isVF {
			continue
		}
		port, err := s.readNumber(s.path("class/net", l, "dev_port"))
		if err != nil {
			port = 0 // the device may just be on its way to another namespace
		}
		if best < 0 || port < best {
			best, link = port, l
		}
	}
	return parent, link, nil
}

// entries lists a directory of a PCI function; it is empty where the directory
// is missing.
func (s Sysfs) entries(address string, dir ...string) ([]string, error) {
	list, err := os.ReadDir(s.pci(address, dir...))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("PCI device %s: %w", address, err)
	}
	var names []string
	for _, e := range list {
		names = append(names, e.Name())
	}
	return names, nil
}

// link is the last part of what a symbolic link of a PCI function leads to;
// empty where there is none.
func (s Sysfs) link(address, name string) string {
	to, err := os.Readlink(s.pci(address, name))
	if err != nil {
		return ""
	}
	return filepath.Base(to)
}

func (s Sysfs) number(address, name string) (int, error) { return s.readNumber(s.pci(address, name)) }

func (s Sysfs) readNumber(path string) (int, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(text)))
}
