// Package record keeps one file for each attachment (one interface of one
// pod): all that DEL, CHECK and GC need, written before the kernel is touched
// and removed last.
package record

import (
	"encoding/json"
	"net/netip"
	"time"

	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/netconf"
	"github.com/weft-cni/weft/pkg/sriov"
)

// Version is that of the records' format.
const Version = 1

// Attachment is the record of one interface of one pod.
type Attachment struct {
	Version     int    `json:"version"` // of this format; Put fills it in
	ContainerID string `json:"containerID"`
	IfName      string `json:"ifName"` // in the pod
	Network     string `json:"network"`
	Netns       string `json:"netns"` // path, as the runtime gave it
	Mode        string `json:"mode"`  // netconf's Mode

	PodNamespace string `json:"podNamespace,omitempty"`
	PodName      string `json:"podName,omitempty"`
	PodUID       string `json:"podUID,omitempty"`

	// VNI is the segment's that the attachment is to; 0 in other modes.
	VNI uint32 `json:"vni,omitempty"`
	// Port is what the pod may do on the segment.
	Port netconf.PortOptions `json:"port,omitzero"`

	// HostLink is the name of the pair's end on the node.
	HostLink string       `json:"hostLink"`
	PodMAC   kernel.MAC   `json:"podMAC"`
	MTU      int          `json:"mtu"`
	Addrs    []netip.Addr `json:"addrs"`
	// Routes are all of the pod's through this interface, next hops filled in.
	Routes []netconf.Route `json:"routes,omitempty"`

	// VF is what a pod of mode sriov has; nil in other modes.
	VF *VF `json:"vf,omitempty"`

	// IPAM is the type of the IPAM plugin that gave Addrs: "weft", or the
	// delegate that DEL has to call.
	IPAM string `json:"ipam"`
	// Config and Args are the network configuration and CNI_ARGS of the ADD,
	// for GC and for a DEL that the runtime calls with others.
	Config  json.RawMessage `json:"config,omitempty"`
	Args    string          `json:"args,omitempty"`
	Created time.Time       `json:"created"`
	// BootID is the boot (netconf.Node's BootID) that the attachment was made
	// in. After a reboot nothing of it is left in the kernel, and its
	// addresses are free.
	BootID string `json:"bootID"`
}

// VF is a device that a pod has.
type VF struct {
	Device sriov.Device `json:"device"`
	// Original is its state before anything changed, which it gets back, and
	// Wanted that in the pod.
	Original sriov.State `json:"original"`
	Wanted   sriov.State `json:"wanted"`
	// Prefixes are Addrs with the lengths of their subnets.
	Prefixes []netip.Prefix `json:"prefixes,omitempty"`
	// InfoFile is the device-info file that was written; empty for none.
	InfoFile string `json:"infoFile,omitempty"`
}
