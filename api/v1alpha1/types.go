// Package v1alpha1 is Weft's API, group weft.dev.
//
// +kubebuilder:object:generate=true
// +groupName=weft.dev
package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// VTEP is one node's tunnel end: what the other nodes must know to reach its
// pods. It has the node's name and is owned by the Node. Only the node's own
// daemon writes it.
//
// +genclient
// +genclient:nonNamespaced
// +genclient:noStatus
// +k8s:deepcopy-gen:interfaces=k8s.io/apimachinery/pkg/runtime.Object
// +kubebuilder:object:root=true
type VTEP struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec VTEPSpec `json:"spec"`
}

// VTEPSpec says where a node's pods are and how they are reached.
type VTEPSpec struct {
	// NodeUID is the UID of the Node object that this VTEP was made for.
	NodeUID string `json:"nodeUID"`
	// Underlay are the node's addresses that tunnels end at, at most one of
	// each family.
	Underlay []string `json:"underlay"`
	// MAC is the Ethernet address of the node's VXLAN device.
	MAC string `json:"mac"`
	// Port is the UDP port of the node's VXLAN device.
	Port int32 `json:"port"`
	// PodCIDRs are the node's pod address ranges.
	PodCIDRs []string `json:"podCIDRs"`
	// MTU is the MTU of the node's underlay interface, in bytes.
	MTU int32 `json:"mtu,omitempty"`
	// WireGuard is set where the node encrypts.
	WireGuard *WireGuard `json:"wireGuard,omitempty"`
}

// WireGuard is the public side of a node's WireGuard devices.
type WireGuard struct {
	// PublicKeys are the node's public keys, the newest first: during a
	// rotation there are two.
	PublicKeys []string `json:"publicKeys"`
	// Port is the UDP port of the device of the newest key.
	Port int32 `json:"port"`
}

// VTEPList is a list of VTEPs.
//
// +k8s:deepcopy-gen:interfaces=k8s.io/apimachinery/pkg/runtime.Object
// +kubebuilder:object:root=true
type VTEPList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata"`

	Items []VTEP `json:"items"`
}
