package sriov

import (
	"slices"

	"github.com/weft-cni/weft/pkg/kernel"
)

// Plan gives the operations that lead from have to want, in order. It is pure:
// attaching, giving back and repairing are the same function between other
// states. Parts that either state lacks are left alone, and so is what want
// doesn't know.
//
// A VF that leaves a pod does so before its PF's side changes, and one that
// enters a pod does so afterwards, so that no pod ever has it with another
// VLAN than its own.
func Plan(have, want State) []Op {
	p := &planner{have: have.Clone(), want: want.Clone()}
	p.leave()
	p.moveRDMA(Host)
	p.configure()
	p.representor()
	p.enter()
	p.moveRDMA(Pod)
	return p.ops
}

type planner struct {
	have, want State // have follows the operations
	ops        []Op
}

func (p *planner) add(op Op) {
	op.apply(&p.have)
	p.ops = append(p.ops, op)
}

func (p *planner) links() (have, want *Link, ok bool) {
	return p.have.Link, p.want.Link, p.have.Link != nil && p.want.Link != nil
}

// leave takes the network device out of the pod. Its MAC waits for the PF,
// which may not let it have another.
func (p *planner) leave() {
	have, want, ok := p.links()
	if !ok || have.Place == want.Place || want.Place != Host {
		return
	}
	if foreign := without(have.AltNames, want.AltNames); len(foreign) > 0 {
		p.add(&AltNameOp{In: have.Place, Delete: true, Names: foreign})
	}
	to := *want
	to.Up = false
	p.add(&LinkOp{In: have.Place, Fields: LinkPlace | LinkName | changed(*have, to)&^LinkMAC, To: to})
}

// configure changes the PF's side, and the network device's MAC.
//
// A driver may refuse a VF that isn't trusted another MAC than the PF has set
// for it (igb does, and since 6.12 even the same one). So where the PF has
// none, the device gets it before the PF, where the PF shall have none, after
// the PF, and else the VF is trusted meanwhile.
func (p *planner) configure() {
	fields := p.portFields()
	have, want, ok := p.links()
	macChanges := ok && changed(*have, *want)&LinkMAC != 0
	switch {
	case p.have.Port == nil || p.want.Port == nil:
		if macChanges {
			p.setMAC()
		}
	case !macChanges:
		p.setPort(fields)
	case p.want.Port.MAC == kernel.MAC{}:
		p.setPort(fields)
		p.setMAC()
	case p.have.Port.MAC == kernel.MAC{}:
		p.setMAC()
		p.setPort(fields)
	default:
		final := p.want.Port.Trust
		if final == Unknown {
			final = p.have.Port.Trust
		}
		if p.have.Port.Trust != On {
			p.add(&PortOp{Fields: PortTrust, To: Port{Trust: On}, Try: true})
		}
		p.setPort(fields&^PortTrust | PortMAC)
		p.setMAC()
		if final == Off {
			p.add(&PortOp{Fields: PortTrust, To: Port{Trust: Off}})
		}
	}
}

// portFields are the fields of the port that have to change.
func (p *planner) portFields() (f PortFields) {
	have, want := p.have.Port, p.want.Port
	if have == nil || want == nil {
		return 0
	}
	for field, differs := range map[PortFields]bool{
		PortMAC:        have.MAC != want.MAC,
		PortVLAN:       have.VLAN.normal() != want.VLAN.normal(),
		PortRate:       have.Rate != want.Rate,
		PortSpoofCheck: have.SpoofCheck != want.SpoofCheck && want.SpoofCheck != Unknown,
		PortLinkState:  have.LinkState != want.LinkState,
		PortTrust:      have.Trust != want.Trust && want.Trust != Unknown,
	} {
		if differs {
			f |= field
		}
	}
	return f
}

func (p *planner) setPort(f PortFields) {
	if f != 0 {
		p.add(&PortOp{Fields: f, To: *p.want.Port})
	}
}

func (p *planner) setMAC() {
	p.add(&LinkOp{In: p.have.Link.Place, Fields: LinkMAC, To: *p.want.Link})
}

// representor puts the representor in its place, whatever its name is now.
func (p *planner) representor() {
	if p.have.Representor == nil || p.want.Representor == nil {
		return
	}
	from, to := *p.have.Representor, *p.want.Representor
	to.Name = from.Name
	if from != to {
		p.add(&RepresentorOp{From: from, To: to})
	}
}

// enter does what is left to do with the network device, the way into the pod
// included.
func (p *planner) enter() {
	have, want, ok := p.links()
	if !ok {
		return
	}
	renamed := have.Name != want.Name
	var drop []string
	if renamed && slices.Contains(have.AltNames, want.Name) {
		drop = append(drop, want.Name) // it can't be both
	}
	for _, n := range without(have.AltNames, want.AltNames) {
		if !slices.Contains(drop, n) {
			drop = append(drop, n)
		}
	}
	if len(drop) > 0 {
		p.add(&AltNameOp{In: have.Place, Delete: true, Names: drop})
	}
	if renamed && have.Up && have.Place == want.Place {
		// Before 6.3 a device that is up can't be renamed.
		p.add(&LinkOp{In: have.Place, Fields: LinkUp, To: Link{}})
	}
	fields := changed(*have, *want)
	if have.Place != want.Place {
		fields |= LinkPlace | LinkName
		if want.Up {
			fields |= LinkUp // moving takes it down
		}
	}
	if fields != 0 {
		p.add(&LinkOp{In: have.Place, Fields: fields, To: *want})
	}
	if missing := without(want.AltNames, have.AltNames); len(missing) > 0 {
		p.add(&AltNameOp{In: want.Place, Names: missing})
	}
}

// moveRDMA moves the RDMA device to a place, if that is where it shall be.
func (p *planner) moveRDMA(to Place) {
	if p.have.RDMA != Nowhere && p.want.RDMA == to && p.have.RDMA != to {
		p.add(&RDMAOp{In: p.have.RDMA, To: to})
	}
}

// changed are the fields in which have differs from want, but for the place. A
// MAC that isn't Ethernet's is left alone.
func changed(have, want Link) (f LinkFields) {
	for field, differs := range map[LinkFields]bool{
		LinkName:     have.Name != want.Name,
		LinkAlias:    have.Alias != want.Alias,
		LinkMAC:      have.MAC != want.MAC && want.MAC != kernel.MAC{},
		LinkMTU:      have.MTU != want.MTU && want.MTU != 0,
		LinkUp:       have.Up != want.Up,
		LinkPromisc:  have.Promisc != want.Promisc,
		LinkAllMulti: have.AllMulti != want.AllMulti,
	} {
		if differs {
			f |= field
		}
	}
	return f
}
