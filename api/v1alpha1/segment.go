package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// VNILabel is the label of SegmentMembers and IPBlocks that has their VNI: a
// node watches those of the segments that it has pods on.
const VNILabel = "weft.dev/vni"

// NodeLabel is the label of SegmentMembers and IPBlocks that has the node they
// are of.
const NodeLabel = "weft.dev/node"

// LenderLabel is the label of an IPBlock inside another node's that has that
// node, which is asked to lend it.
const LenderLabel = "weft.dev/lender"

// RenewedAnnotation is the annotation of an IPBlock that its node took back into
// use: the resource version that it had before. A deletion that is still on its
// way was asked for by that version, and finds another.
const RenewedAnnotation = "weft.dev/renewed"

// SegmentMember is one node's part in one segment: which stations are behind
// it. How to reach the node, its VTEP says. It is named <vni>.<node> and owned
// by the Node; only the node's own daemon writes it.
//
// +genclient
// +genclient:nonNamespaced
// +genclient:noStatus
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster,path=segmentmembers,singular=segmentmember,categories=weft
// +kubebuilder:printcolumn:name="VNI",type=integer,JSONPath=`.spec.vni`,description="VXLAN network identifier of the segment"
// +kubebuilder:printcolumn:name="Node",type=string,JSONPath=`.spec.node`,description="Node that takes part in it"
// +kubebuilder:printcolumn:name="Stations",type=string,JSONPath=`.spec.endpoints[*].mac`,description="Ethernet addresses behind the node"
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type SegmentMember struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec SegmentMemberSpec `json:"spec"`
}

// SegmentMemberSpec says what is behind a node on a segment.
//
// +kubebuilder:validation:XValidation:rule="self.vni == oldSelf.vni && self.node == oldSelf.node",message="vni and node can't be changed"
type SegmentMemberSpec struct {
	// VNI is the segment's VXLAN network identifier.
	//
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=16777215
	VNI int32 `json:"vni"`

	// Node is the name of the node.
	//
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=244
	Node string `json:"node"`

	// Tunnels is how frames get from member to member, as the pods' network
	// says; nothing where that says nothing. Members that disagree don't hear
	// each other.
	//
	// +optional
	Tunnels *SegmentTunnels `json:"tunnels,omitempty"`

	// Endpoints are the stations behind the node: its pods' interfaces.
	//
	// +optional
	// +listType=map
	// +listMapKey=mac
	// +kubebuilder:validation:MaxItems=1024
	Endpoints []Endpoint `json:"endpoints,omitempty"`

	// Learn asks the other members to learn where stations are from frames:
	// behind this node are pods that may send from other MACs than those in
	// endpoints.
	//
	// +optional
	Learn bool `json:"learn,omitempty"`
}

// SegmentTunnels is how frames of a segment get from member to member.
type SegmentTunnels struct {
	// Discovery is how a member finds the others.
	//
	// +kubebuilder:validation:Enum=kubernetes;static;multicast
	Discovery string `json:"discovery"`

	// VTEPs are those outside the cluster.
	//
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=256
	// +kubebuilder:validation:items:MaxLength=39
	VTEPs []string `json:"vteps,omitempty"`

	// Group is the multicast group by which members are found.
	//
	// +optional
	// +kubebuilder:validation:MaxLength=39
	Group string `json:"group,omitempty"`

	// Encapsulation is what frames are put into; empty is vxlan.
	//
	// +optional
	// +kubebuilder:validation:Enum=vxlan;geneve;nvgre
	Encapsulation string `json:"encapsulation,omitempty"`

	// Port is the UDP port of the tunnels, where it isn't the cluster network's
	// or, of Geneve, 6081.
	//
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=65535
	Port int32 `json:"port,omitempty"`

	// Encrypt says that the tunnels are inside WireGuard.
	//
	// +optional
	Encrypt bool `json:"encrypt,omitempty"`

	// VLANs says that each frame carries the tag of its VLAN.
	//
	// +optional
	VLANs bool `json:"vlans,omitempty"`
}

// Endpoint is one station on a segment.
type Endpoint struct {
	// MAC is its Ethernet address: unicast, in lower case.
	//
	// +kubebuilder:validation:MaxLength=17
	// +kubebuilder:validation:XValidation:rule="self.matches('^[0-9a-f][02468ace](:[0-9a-f]{2}){5}$') && self != '00:00:00:00:00:00'",message="must be a unicast Ethernet address in lower case, such as 02:00:5e:10:00:01"
	MAC string `json:"mac"`

	// IPs are the addresses that ARP and neighbour discovery find there.
	//
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MaxLength=39
	// +kubebuilder:validation:items:XValidation:rule="isIP(self) && ip.isCanonical(self)",message="must be an IP address in canonical form, such as 192.0.2.1 or 2001:db8::1"
	IPs []string `json:"ips,omitempty"`

	// Isolated says that it and other isolated ones are kept apart.
	//
	// +optional
	Isolated bool `json:"isolated,omitempty"`

	// VLAN is that of its frames without a tag, where the segment has VLANs.
	//
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=4094
	VLAN int32 `json:"vlan,omitempty"`
}

// SegmentMemberList is a list of SegmentMembers.
//
// +kubebuilder:object:root=true
type SegmentMemberList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata"`

	Items []SegmentMember `json:"items"`
}

// IPBlock is a node's lease on a block of a segment's addresses. Its name says
// which block, <vni>.<cidr> with - for : and /, as the admission policy sees to:
// making the object is the claim, so no two nodes have one. It is
// owned by the Node, so that the block is free once the Node is gone and not
// before; only the node's own daemon writes it.
//
// A block inside another is a loan: its node gives out no address of it before
// the other block's lent names it. Who makes a block around others lists them
// first, and lends them.
//
// +genclient
// +genclient:nonNamespaced
// +genclient:noStatus
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster,path=ipblocks,singular=ipblock,categories=weft
// +kubebuilder:printcolumn:name="VNI",type=integer,JSONPath=`.spec.vni`,description="VXLAN network identifier of the segment"
// +kubebuilder:printcolumn:name="Block",type=string,JSONPath=`.spec.cidr`,description="Addresses that are leased"
// +kubebuilder:printcolumn:name="Node",type=string,JSONPath=`.spec.node`,description="Node that they are leased to"
// +kubebuilder:printcolumn:name="Lent",type=string,JSONPath=`.spec.lent[*].cidr`,description="Blocks inside it that other nodes have"
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type IPBlock struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec IPBlockSpec `json:"spec"`
}

// IPBlockSpec says what is leased to whom.
//
// +kubebuilder:validation:XValidation:rule="self.vni == oldSelf.vni && self.cidr == oldSelf.cidr && self.node == oldSelf.node",message="vni, cidr and node can't be changed"
type IPBlockSpec struct {
	// VNI is the segment's VXLAN network identifier.
	//
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=16777215
	VNI int32 `json:"vni"`

	// CIDR is the block.
	//
	// +kubebuilder:validation:MaxLength=43
	// +kubebuilder:validation:XValidation:rule="isCIDR(self) && string(cidr(self).masked()) == self && cidr(self).ip().isGlobalUnicast()",message="must be a range of unicast addresses in canonical form, such as 192.168.0.16/28 or fd00:1::10/124"
	CIDR string `json:"cidr"`

	// Node is the name of the node.
	//
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Node string `json:"node"`

	// Lent are the blocks inside this one that other nodes have: no pod of this
	// node has an address of them, or gets one.
	//
	// +optional
	// +listType=map
	// +listMapKey=cidr
	// +kubebuilder:validation:MaxItems=4096
	Lent []Loan `json:"lent,omitempty"`
}

// Loan is a block inside another, of another node.
type Loan struct {
	// CIDR is that of the IPBlock that is lent.
	//
	// +kubebuilder:validation:MaxLength=43
	CIDR string `json:"cidr"`

	// UID is that IPBlock's: one made later under the same name is another loan.
	//
	// +kubebuilder:validation:MaxLength=64
	UID string `json:"uid"`

	// Node is the name of the node that has it.
	//
	// +kubebuilder:validation:MaxLength=253
	Node string `json:"node"`
}

// IPBlockList is a list of IPBlocks.
//
// +kubebuilder:object:root=true
type IPBlockList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata"`

	Items []IPBlock `json:"items"`
}
