package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// VTEP is one node's tunnel end: what the other nodes must know to reach its
// pods. It has the node's name and is owned by the Node. Only the node's own
// daemon writes it.
//
// +genclient
// +genclient:nonNamespaced
// +genclient:noStatus
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster,path=vteps,singular=vtep,categories=weft
// +kubebuilder:printcolumn:name="Underlay",type=string,JSONPath=`.spec.underlay`,description="Addresses that tunnels to the node end at"
// +kubebuilder:printcolumn:name="Pod CIDRs",type=string,JSONPath=`.spec.podCIDRs`,description="Address ranges of the node's pods"
// +kubebuilder:printcolumn:name="MAC",type=string,priority=1,JSONPath=`.spec.mac`,description="Ethernet address of the node's VXLAN device"
// +kubebuilder:printcolumn:name="Port",type=integer,priority=1,JSONPath=`.spec.port`,description="UDP port of the node's VXLAN device"
// +kubebuilder:printcolumn:name="MTU",type=integer,priority=1,JSONPath=`.spec.mtu`,description="MTU of the node's underlay interface"
// +kubebuilder:printcolumn:name="Encryption",type=string,JSONPath=`.spec.wireGuard.mode`,description="What the node takes from its peers: wireguard, permissive, which is clear packets too, or none, which is encrypted segments alone"
// +kubebuilder:printcolumn:name="WireGuard",type=string,priority=1,JSONPath=`.spec.wireGuard.implementation`,description="Where the node's WireGuard is: kernel or userspace"
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type VTEP struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec VTEPSpec `json:"spec"`
}

// VTEPSpec says where a node's pods are and how they are reached.
//
// +kubebuilder:validation:XValidation:rule="self.podCIDRs.all(c, self.underlay.all(a, !isCIDR(c) || !isIP(a) || !cidr(c).containsIP(a)))",message="podCIDRs must not hold an underlay address"
type VTEPSpec struct {
	// NodeUID is the UID of the Node object that this VTEP was made for.
	//
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=128
	NodeUID string `json:"nodeUID"`

	// Underlay are the node's addresses that tunnels end at, at most one of
	// each family.
	//
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=2
	// +kubebuilder:validation:items:MaxLength=39
	// +kubebuilder:validation:items:XValidation:rule="isIP(self)",message="must be an IP address, such as 192.0.2.1 or 2001:db8::1"
	// +kubebuilder:validation:items:XValidation:rule="!isIP(self) || ip.isCanonical(self)",message="must be in canonical form: lower case, zeros shortened, such as 2001:db8::1"
	// +kubebuilder:validation:items:XValidation:rule="!isIP(self) || ip(self).isGlobalUnicast()",message="must be a unicast address that other nodes can reach: not loopback, link-local, multicast or unspecified"
	// +kubebuilder:validation:XValidation:rule="self.filter(a, isIP(a) && ip(a).family() == 4).size() <= 1 && self.filter(a, isIP(a) && ip(a).family() == 6).size() <= 1",message="must hold at most one address of each family"
	Underlay []string `json:"underlay"`

	// MAC is the Ethernet address of the node's VXLAN device: unicast, in
	// lower case.
	//
	// +kubebuilder:validation:MaxLength=17
	// +kubebuilder:validation:XValidation:rule="self.matches('^[0-9a-f]{2}(:[0-9a-f]{2}){5}$')",message="must be an Ethernet address in lower case, such as 02:00:5e:10:00:01"
	// +kubebuilder:validation:XValidation:rule="!self.matches('^[0-9a-f][13579bdf]:') && self != '00:00:00:00:00:00'",message="must be a unicast address: the first byte even, not all zero"
	MAC string `json:"mac"`

	// Port is the UDP port of the node's VXLAN device.
	//
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=65535
	Port int32 `json:"port"`

	// PodCIDRs are the node's pod address ranges.
	//
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=8
	// +kubebuilder:validation:items:MaxLength=43
	// +kubebuilder:validation:items:XValidation:rule="isCIDR(self)",message="must be an address range, such as 10.244.1.0/24 or 2001:db8:1::/64"
	// +kubebuilder:validation:items:XValidation:rule="!isCIDR(self) || string(cidr(self).masked()) == self",message="must be in canonical form: lower case, zeros shortened, no bits beyond the prefix, such as 2001:db8:1::/64"
	// +kubebuilder:validation:items:XValidation:rule="!isCIDR(self) || cidr(self).prefixLength() >= 8 && cidr(self).ip().isGlobalUnicast()",message="must be a range of unicast addresses with a prefix of at least 8 bits: not loopback, link-local, multicast or everything"
	// +kubebuilder:validation:items:XValidation:rule="!isCIDR(self) || cidr(self).prefixLength() <= (cidr(self).ip().family() == 4 ? 30 : 126)",message="must have room for pods: a prefix of at most 30 bits (IPv4) or 126 (IPv6)"
	// +kubebuilder:validation:XValidation:rule="!self.all(c, isCIDR(c)) || self.all(a, self.all(b, a == b || !cidr(a).containsCIDR(b)))",message="must hold ranges that do not overlap"
	PodCIDRs []string `json:"podCIDRs"`

	// MTU is the MTU of the node's underlay interface, in bytes.
	//
	// +optional
	// +kubebuilder:validation:Minimum=576
	// +kubebuilder:validation:Maximum=65536
	MTU int32 `json:"mtu,omitempty"`

	// WireGuard is set where the node encrypts, be it a tenant's segment alone.
	//
	// +optional
	WireGuard *WireGuard `json:"wireGuard,omitempty"`
}

// WireGuard is the public side of a node's WireGuard devices.
type WireGuard struct {
	// Mode is what the node takes from its peers: encrypted packets only
	// (wireguard), or such in clear as well (permissive), or encrypted segments
	// and all else in clear (none; also while packets are under way to a node
	// that has turned encryption off).
	//
	// +kubebuilder:validation:Enum=none;permissive;wireguard
	Mode string `json:"mode"`

	// Keys are the node's public keys, the newest first: while a key is
	// rotated there are two, in different slots.
	//
	// +listType=map
	// +listMapKey=slot
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=2
	// +kubebuilder:validation:XValidation:rule="self.size() < 2 || self[0].publicKey != self[1].publicKey",message="must not hold one key twice"
	Keys []WireGuardKey `json:"keys"`

	// Port is the first of four UDP ports. On port + 2s + p the node's key in
	// slot s meets those keys of its peers that are in their slot p. Inside,
	// encrypted segments have the one behind these.
	//
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=65531
	Port int32 `json:"port"`

	// PresharedKeyHash tells one preshared key from another: the first eight
	// bytes of its salted SHA-256, in hexadecimal. It is empty where the node
	// has none.
	//
	// +optional
	// +kubebuilder:validation:MaxLength=16
	// +kubebuilder:validation:XValidation:rule="self.matches('^([0-9a-f]{16})?$')",message="must be 16 hexadecimal digits in lower case"
	PresharedKeyHash string `json:"presharedKeyHash,omitempty"`

	// Implementation is where the node's WireGuard is: in its kernel or in a
	// process. Peers don't care.
	//
	// +optional
	// +kubebuilder:validation:Enum=kernel;userspace
	Implementation string `json:"implementation,omitempty"`
}

// WireGuardKey is one public key of a node.
type WireGuardKey struct {
	// Slot is where the node keeps the key: 0 or 1.
	//
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=1
	Slot int32 `json:"slot"`

	// PublicKey is a Curve25519 public key in base64, as wg pubkey prints it.
	//
	// +kubebuilder:validation:MaxLength=44
	// +kubebuilder:validation:XValidation:rule="self.matches('^[A-Za-z0-9+/]{42}[AEIMQUYcgkosw480]=$')",message="must be a Curve25519 public key in base64: 44 characters, as wg pubkey prints it"
	PublicKey string `json:"publicKey"`
}

// VTEPList is a list of VTEPs.
//
// +kubebuilder:object:root=true
type VTEPList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata"`

	Items []VTEP `json:"items"`
}
