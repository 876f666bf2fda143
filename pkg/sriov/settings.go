package sriov

import (
	"errors"
	"fmt"
	"slices"

	"github.com/weft-cni/weft/pkg/kernel"
)

// Errors of Want.
var (
	// ErrNoPF says that an option needs the PF, which the node can't reach.
	ErrNoPF = errors.New("needs the device's PF, which this node can't reach")
	// ErrNoEswitch says that an option needs an eSwitch in switchdev mode.
	ErrNoEswitch = errors.New("needs an eSwitch in switchdev mode")
	// ErrNoLink says that an option needs a network device, where a userspace
	// driver has the VF.
	ErrNoLink = errors.New("needs a network device, and a userspace driver has this one")
)

// Settings are what a network's configuration asks of a VF. What is nil, zero
// or Unknown is left as the VF has it.
type Settings struct {
	MAC        kernel.MAC
	MTU        int // bytes
	VLAN       *VLAN
	SpoofCheck Switch
	Trust      Switch
	LinkState  *LinkState
	MinRate    *int // Mbit/s
	MaxRate    *int // Mbit/s
	Bridge     string
}

// Want is the state of a VF that was in the state orig and is in a pod as its
// interface name. The error is ErrNoPF, ErrNoEswitch or ErrNoLink, and names
// the option.
func Want(orig State, name string, s Settings) (State, error) {
	want := orig.Clone()
	if l := want.Link; l != nil {
		l.Place, l.Name, l.Up = Pod, name, true
		l.AltNames = slices.DeleteFunc(l.AltNames, func(n string) bool { return n == name })
		if s.MAC != (kernel.MAC{}) {
			l.MAC = s.MAC
		}
		if s.MTU != 0 {
			l.MTU = s.MTU
		}
	} else if s.MTU != 0 {
		return State{}, fmt.Errorf("mtu: %w", ErrNoLink)
	}
	if want.RDMA != Nowhere {
		want.RDMA = Pod
	}
	if err := s.wantPort(&want); err != nil {
		return State{}, err
	}
	return want, s.wantRepresentor(&want)
}

// wantPort is about what the PF does.
func (s Settings) wantPort(want *State) error {
	p := want.Port
	for _, option := range []struct {
		key   string
		asked bool
		set   func()
	}{
		{"vlan", s.VLAN != nil && want.Representor == nil, func() { p.VLAN = s.VLAN.normal() }},
		{"spoofchk", s.SpoofCheck != Unknown, func() { p.SpoofCheck = s.SpoofCheck }},
		{"trust", s.Trust != Unknown, func() { p.Trust = s.Trust }},
		{"link_state", s.LinkState != nil, func() { p.LinkState = *s.LinkState }},
		// One that isn't asked for is 0, as sriov-cni has it.
		{"min_tx_rate", s.MinRate != nil, func() { p.Rate = s.rate() }},
		{"max_tx_rate", s.MaxRate != nil, func() { p.Rate = s.rate() }},
		// A VF's own device takes a MAC without the PF; another driver doesn't.
		{"mac", s.MAC != kernel.MAC{} && (p != nil || want.Link == nil), func() { p.MAC = s.MAC }},
	} {
		if !option.asked {
			continue
		}
		if p == nil {
			return fmt.Errorf("%s: %w", option.key, ErrNoPF)
		}
		option.set()
	}
	return nil
}

func (s Settings) rate() (r Rate) {
	if s.MinRate != nil {
		r.Min = *s.MinRate
	}
	if s.MaxRate != nil {
		r.Max = *s.MaxRate
	}
	return r
}

// wantRepresentor is about the eSwitch. It is a bridge that puts the VLAN's
// tag on and takes it off there.
func (s Settings) wantRepresentor(want *State) error {
	r := want.Representor
	switch {
	case r == nil && s.Bridge != "":
		return fmt.Errorf("bridge: %w", ErrNoEswitch)
	case r == nil:
		return nil
	}
	r.Up = true
	if s.Bridge != "" {
		r.Bridge = s.Bridge
	}
	if s.VLAN == nil {
		return nil
	}
	if r.Bridge == "" && s.VLAN.ID != 0 {
		return errors.New("vlan: in switchdev mode it takes a bridge with VLAN filtering, named by the key bridge")
	}
	if s.VLAN.QoS != 0 || s.VLAN.Proto == Proto8021AD {
		return errors.New("vlan: in switchdev mode a bridge's port has neither vlanQoS nor vlanProto 802.1ad")
	}
	r.PVID = s.VLAN.ID
	return nil
}
