// Package record keeps one file for each attachment (one interface of one
// pod): all that DEL, CHECK and GC need, written before the kernel is touched
// and removed last.
package record

import (
	"encoding/json"
	"net/netip"
	"time"
)

// Attachment is the record of one interface of one pod.
type Attachment struct {
	Version     int    `json:"version"` // of this format, 1
	ContainerID string `json:"containerID"`
	IfName      string `json:"ifName"` // in the pod
	Network     string `json:"network"`
	Netns       string `json:"netns"` // path, as the runtime gave it
	Mode        string `json:"mode"`  // netconf's Mode

	PodNamespace string `json:"podNamespace,omitempty"`
	PodName      string `json:"podName,omitempty"`
	PodUID       string `json:"podUID,omitempty"`

	HostLink string       `json:"hostLink"`
	PodMAC   string       `json:"podMAC"`
	MTU      int          `json:"mtu"`
	Addrs    []netip.Addr `json:"addrs"`

	// IPAM is the type of the IPAM plugin that gave Addrs: "weft", or the
	// delegate that DEL has to call.
	IPAM string `json:"ipam"`
	// Config is the network configuration of the ADD, for GC and for a DEL
	// that the runtime calls with another one.
	Config  json.RawMessage `json:"config,omitempty"`
	Created time.Time       `json:"created"`
	// BootID is the boot (netconf.Node's BootID) that the attachment was made
	// in. After a reboot nothing of it is left in the kernel, and its
	// addresses are free.
	BootID string `json:"bootID"`
}
