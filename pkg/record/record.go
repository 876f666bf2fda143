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

	// HostLink is the name of the pair's end on the node.
	HostLink string       `json:"hostLink"`
	PodMAC   kernel.MAC   `json:"podMAC"`
	MTU      int          `json:"mtu"`
	Addrs    []netip.Addr `json:"addrs"`
	// Routes are all of the pod's through this interface, next hops filled in.
	Routes []netconf.Route `json:"routes,omitempty"`

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
