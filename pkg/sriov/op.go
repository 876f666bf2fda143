package sriov

import (
	"fmt"
	"slices"
	"strings"
)

// Op is a change of one part of a VF: a *LinkOp, *AltNameOp, *PortOp,
// *RepresentorOp or *RDMAOp. String tells it in the words of ip(8).
type Op interface {
	fmt.Stringer
	// apply makes the change in s.
	apply(s *State)
}

// LinkFields are parts of a Link.
type LinkFields uint

// Parts of a Link. The place and the name go together, so that there is no
// moment at which the device has a name that it can't have where it is.
const (
	LinkPlace LinkFields = 1 << iota
	LinkName
	LinkAlias
	LinkMAC
	LinkMTU
	LinkUp
	LinkPromisc
	LinkAllMulti
)

// LinkOp changes the network device, all in one message.
type LinkOp struct {
	In     Place // where the device is
	Fields LinkFields
	To     Link // what Fields become
}

func (o *LinkOp) String() string {
	return "link set " + strings.Join(linkFields(o.Fields).list(o.To), " ")
}

func (o *LinkOp) apply(s *State) {
	l := s.Link
	if o.Fields&LinkPlace != 0 && l.Place != o.To.Place {
		l.Place, l.Up = o.To.Place, false // the kernel takes a device down that it moves
	}
	for f, set := range map[LinkFields]func(){
		LinkName:     func() { l.Name = o.To.Name },
		LinkAlias:    func() { l.Alias = o.To.Alias },
		LinkMAC:      func() { l.MAC = o.To.MAC },
		LinkMTU:      func() { l.MTU = o.To.MTU },
		LinkUp:       func() { l.Up = o.To.Up },
		LinkPromisc:  func() { l.Promisc = o.To.Promisc },
		LinkAllMulti: func() { l.AllMulti = o.To.AllMulti },
	} {
		if o.Fields&f != 0 {
			set()
		}
	}
}

// linkFields lists the values of some fields.
type linkFields LinkFields

func (f linkFields) list(l Link) []string {
	var words []string
	add := func(field LinkFields, format string, args ...any) {
		if LinkFields(f)&field != 0 {
			words = append(words, fmt.Sprintf(format, args...))
		}
	}
	add(LinkPlace, "netns %s", l.Place)
	add(LinkName, "name %s", l.Name)
	add(LinkAlias, "alias %q", l.Alias)
	add(LinkMAC, "address %s", l.MAC)
	add(LinkMTU, "mtu %d", l.MTU)
	add(LinkUp, "%s", upDown(l.Up))
	add(LinkPromisc, "promisc %s", SwitchOf(l.Promisc))
	add(LinkAllMulti, "allmulticast %s", SwitchOf(l.AllMulti))
	return words
}

// AltNameOp adds or deletes alternative names of the network device.
type AltNameOp struct {
	In     Place // where the device is
	Delete bool
	Names  []string
}

func (o *AltNameOp) String() string {
	verb := "add"
	if o.Delete {
		verb = "del"
	}
	return "link property " + verb + " altname " + strings.Join(o.Names, " altname ")
}

func (o *AltNameOp) apply(s *State) {
	s.Link.AltNames = without(s.Link.AltNames, o.Names)
	if !o.Delete {
		s.Link.AltNames = append(s.Link.AltNames, o.Names...)
		slices.Sort(s.Link.AltNames)
	}
}

// without gives those of names that aren't among others.
func without(names, others []string) []string {
	var left []string
	for _, n := range names {
		if !slices.Contains(others, n) {
			left = append(left, n)
		}
	}
	return left
}

// PortFields are parts of a Port.
type PortFields uint

// Parts of a Port, in the kernel's order.
const (
	PortMAC PortFields = 1 << iota
	PortVLAN
	PortRate
	PortSpoofCheck
	PortLinkState
	PortTrust
)

// PortOp changes the PF's side, all in one message.
type PortOp struct {
	Fields PortFields
	To     Port // what Fields become
	// Try is set for what only helps: a driver that refuses it has no need of
	// it.
	Try bool
}

func (o *PortOp) String() string { return "vf " + strings.Join(portFields(o.Fields).list(o.To), " ") }

func (o *PortOp) apply(s *State) {
	for f, set := range map[PortFields]func(){
		PortMAC:        func() { s.Port.MAC = o.To.MAC },
		PortVLAN:       func() { s.Port.VLAN = o.To.VLAN },
		PortRate:       func() { s.Port.Rate = o.To.Rate },
		PortSpoofCheck: func() { s.Port.SpoofCheck = o.To.SpoofCheck },
		PortLinkState:  func() { s.Port.LinkState = o.To.LinkState },
		PortTrust:      func() { s.Port.Trust = o.To.Trust },
	} {
		if o.Fields&f != 0 {
			set()
		}
	}
}

// portFields lists the values of some fields.
type portFields PortFields

func (f portFields) list(p Port) []string {
	var words []string
	add := func(field PortFields, format string, args ...any) {
		if PortFields(f)&field != 0 {
			words = append(words, fmt.Sprintf(format, args...))
		}
	}
	add(PortMAC, "mac %s", p.MAC)
	add(PortVLAN, "%s", p.VLAN)
	add(PortRate, "min_tx_rate %d max_tx_rate %d", p.Rate.Min, p.Rate.Max)
	add(PortSpoofCheck, "spoofchk %s", p.SpoofCheck)
	add(PortLinkState, "state %s", p.LinkState)
	add(PortTrust, "trust %s", p.Trust)
	return words
}

// RepresentorOp makes the representor what To says.
type RepresentorOp struct {
	From, To Representor
}

func (o *RepresentorOp) String() string { return "representor " + o.To.String() }

func (o *RepresentorOp) apply(s *State) { s.Representor = &o.To }

// RDMAOp moves the RDMA device.
type RDMAOp struct {
	In, To Place
}

func (o *RDMAOp) String() string { return "rdma dev set netns " + o.To.String() }

func (o *RDMAOp) apply(s *State) { s.RDMA = o.To }

// Split takes an operation apart into ones that change a single field each, so
// that the one that the kernel refuses can be told. One that can't be taken
// apart is given back alone.
func Split(op Op) []Op {
	var ops []Op
	switch o := op.(type) {
	case *LinkOp:
		// Without its name a device may not be able to move.
		fields := o.Fields
		if both := LinkPlace | LinkName; fields&both == both {
			ops = append(ops, &LinkOp{In: o.In, Fields: both, To: o.To})
			fields &^= both
		}
		in := o.In
		if o.Fields&LinkPlace != 0 {
			in = o.To.Place
		}
		for f := LinkPlace; f <= LinkAllMulti; f <<= 1 {
			if fields&f != 0 {
				ops = append(ops, &LinkOp{In: in, Fields: f, To: o.To})
			}
		}
	case *PortOp:
		for f := PortMAC; f <= PortTrust; f <<= 1 {
			if o.Fields&f != 0 {
				ops = append(ops, &PortOp{Fields: f, To: o.To, Try: o.Try})
			}
		}
	default:
		ops = []Op{op}
	}
	return ops
}
