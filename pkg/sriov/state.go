package sriov

import (
	"fmt"
	"slices"
	"strings"

	"github.com/weft-cni/weft/pkg/kernel"
)

// Place is the network namespace that a device is in.
type Place int

// Places of a device.
const (
	Nowhere Place = iota // not there, or in all namespaces
	Host
	Pod
)

func (p Place) String() string { return [...]string{"nowhere", "host", "pod"}[p] }

// Switch is a setting that is on or off, or that a driver doesn't tell of.
type Switch int

// Positions of a Switch.
const (
	Unknown Switch = iota
	Off
	On
)

func (s Switch) String() string { return [...]string{"unknown", "off", "on"}[s] }

// SwitchOf is the Switch that is on or off.
func SwitchOf(on bool) Switch {
	if on {
		return On
	}
	return Off
}

// LinkState is what a VF sees as its carrier (IFLA_VF_LINK_STATE).
type LinkState uint32

// Link states, with the kernel's numbers.
const (
	StateAuto    LinkState = iota // the PF's
	StateEnable                   // on, whatever the PF's is
	StateDisable                  // off
)

func (s LinkState) String() string {
	if s > StateDisable {
		return fmt.Sprintf("state %d", uint32(s))
	}
	return [...]string{"auto", "enable", "disable"}[s]
}

// Ethertypes of VLAN tags.
const (
	Proto8021Q  uint16 = 0x8100
	Proto8021AD uint16 = 0x88a8
)

// VLAN is the tag that the NIC puts on a VF's frames and takes off what the
// VF receives.
type VLAN struct {
	ID    int    `json:"id"` // 1 to 4094; 0 is no tag
	QoS   int    `json:"qos,omitempty"`
	Proto uint16 `json:"proto,omitempty"` // ethertype; irrelevant without a tag
}

func (v VLAN) String() string {
	s := fmt.Sprintf("vlan %d", v.ID)
	if v.QoS != 0 {
		s += fmt.Sprintf(" qos %d", v.QoS)
	}
	if v.ID != 0 && v.Proto == Proto8021AD {
		s += " proto 802.1ad"
	}
	return s
}

// normal makes one value of those that mean the same.
func (v VLAN) normal() VLAN {
	if v.ID == 0 && v.QoS == 0 || v.Proto == 0 {
		v.Proto = Proto8021Q
	}
	return v
}

// Rate is the range that a VF's transmit rate is kept in, in Mbit/s; 0 is no
// bound.
type Rate struct {
	Min int `json:"min,omitempty"`
	Max int `json:"max,omitempty"`
}

// Link is a VF's network device. Whoever has it can change all of this.
type Link struct {
	Place    Place      `json:"place"`
	Name     string     `json:"name"`
	AltNames []string   `json:"altNames,omitempty"` // sorted
	Alias    string     `json:"alias,omitempty"`
	MAC      kernel.MAC `json:"mac"` // zero where it is none of Ethernet's
	MTU      int        `json:"mtu"` // bytes
	Up       bool       `json:"up,omitempty"`
	Promisc  bool       `json:"promisc,omitempty"`
	AllMulti bool       `json:"allMulti,omitempty"`
}

// Port is what a PF holds of its VF (ip-link(8), "vf"). Only the host can
// change it.
type Port struct {
	MAC        kernel.MAC `json:"mac"` // zero: the VF chooses
	VLAN       VLAN       `json:"vlan"`
	SpoofCheck Switch     `json:"spoofCheck,omitempty"`
	Trust      Switch     `json:"trust,omitempty"`
	LinkState  LinkState  `json:"linkState,omitempty"`
	Rate       Rate       `json:"rate"`
}

// Representor is the host's end of a VF in an eSwitch in switchdev mode.
type Representor struct {
	Name   string `json:"name"`
	Up     bool   `json:"up,omitempty"`
	Bridge string `json:"bridge,omitempty"` // that it is a port of
	PVID   int    `json:"pvid,omitempty"`   // untagged VLAN of that port; 0 is the bridge's choice
}

// State is everything of a VF that Weft or a pod may change. What isn't there
// is nil: a network device of a VF with a userspace driver, the PF's side of a
// VF whose PF can't be reached, the representor where there is no switchdev
// mode.
type State struct {
	Link        *Link        `json:"link,omitempty"`
	Port        *Port        `json:"port,omitempty"`
	Representor *Representor `json:"representor,omitempty"`
	// RDMA is where the RDMA device is. It is Nowhere also where RDMA devices
	// belong to no namespace.
	RDMA Place `json:"rdma,omitempty"`
}

// Clone copies s.
func (s State) Clone() State {
	if s.Link != nil {
		l := *s.Link
		l.AltNames = slices.Clone(l.AltNames)
		s.Link = &l
	}
	if s.Port != nil {
		p := *s.Port
		s.Port = &p
	}
	if s.Representor != nil {
		r := *s.Representor
		s.Representor = &r
	}
	return s
}

// String shows all of s, a line for each part, in the words of ip(8).
func (s State) String() string {
	var b strings.Builder
	if s.Link != nil {
		all := linkFields(^LinkFields(0)).list(*s.Link)
		fmt.Fprintf(&b, "link %s", strings.Join(all, " "))
		for _, n := range s.Link.AltNames {
			fmt.Fprintf(&b, " altname %s", n)
		}
		b.WriteString("\n")
	}
	if s.Port != nil {
		fmt.Fprintf(&b, "vf %s\n", strings.Join(portFields(^PortFields(0)).list(*s.Port), " "))
	}
	if s.Representor != nil {
		fmt.Fprintf(&b, "representor %s\n", *s.Representor)
	}
	if s.RDMA != Nowhere {
		fmt.Fprintf(&b, "rdma netns %s\n", s.RDMA)
	}
	return b.String()
}

func (r Representor) String() string {
	s := r.Name + " " + upDown(r.Up)
	if r.Bridge != "" {
		s += " master " + r.Bridge
	}
	if r.PVID != 0 {
		s += fmt.Sprintf(" pvid %d untagged", r.PVID)
	}
	return s
}

func upDown(up bool) string {
	if up {
		return "up"
	}
	return "down"
}
