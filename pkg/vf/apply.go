package vf

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/sriov"
)

// Apply carries operations out, in order, up to the first that fails: what is
// done then is for another Read and Plan to find out. The error is a
// *RefusedError that names the one change that the kernel refused, and
// ErrExists where the pod has an interface of the wanted name.
//
// Where the node has another link of the name that a device had, the device
// waits for it under a name that the kernel chooses, and keeps that one if the
// other doesn't go within nameTime.
func (v *VF) Apply(ops []sriov.Op) error {
	for _, op := range ops {
		err := v.do(op)
		if err != nil && !isTry(op) {
			err = v.one(op, err)
		}
		if err != nil && !isTry(op) {
			return err
		}
	}
	return nil
}

// isTry reports whether an operation may fail.
func isTry(op sriov.Op) bool {
	p, ok := op.(*sriov.PortOp)
	return ok && p.Try
}

// one finds out which part of an operation failed, by doing them one by one.
func (v *VF) one(op sriov.Op, err error) error {
	refused := func(op sriov.Op, err error) error {
		if errors.Is(err, ErrExists) {
			return err
		}
		return &RefusedError{Device: v.Device, Change: op.String(), Err: err}
	}
	parts := sriov.Split(op)
	if len(parts) == 1 || errors.Is(err, ErrExists) {
		return refused(op, err)
	}
	if l, ok := op.(*sriov.LinkOp); ok && l.Fields&sriov.LinkPlace != 0 {
		// The move comes first in the kernel: was it that which failed?
		v.seen = located{}
		if _, _, e := v.locate(l.To.Place); e == nil {
			parts[0] = &sriov.LinkOp{In: l.To.Place, Fields: sriov.LinkName, To: l.To}
		}
	}
	for _, part := range parts {
		if err := v.do(part); err != nil {
			return refused(part, err)
		}
	}
	return nil // together they were too much, one by one they aren't
}

func (v *VF) do(op sriov.Op) error {
	switch o := op.(type) {
	case *sriov.LinkOp:
		return v.setLink(o)
	case *sriov.AltNameOp:
		return v.setAltNames(o)
	case *sriov.PortOp:
		return v.setPort(o)
	case *sriov.RepresentorOp:
		return v.setRepresentor(o)
	case *sriov.RDMAOp:
		return v.moveRDMA(o)
	}
	return fmt.Errorf("%T is no operation on a VF", op)
}

// setLink changes the network device, and finds another way where a name is
// taken.
func (v *VF) setLink(o *sriov.LinkOp) error {
	c, at, err := v.locate(o.In)
	if err != nil {
		return err
	}
	if o.Fields&sriov.LinkPlace != 0 {
		v.seen, v.movedAs = located{}, o.To.Name
	}
	err = v.sendLink(c, at.index, o, o.To.Name)
	if !errors.Is(err, unix.EEXIST) || o.Fields&sriov.LinkName == 0 {
		return err
	}
	to, e := v.at(o.To.Place)
	if e != nil {
		return e
	}
	if dropped, e := dropTaken(c, at.index, at.altNames, to); e != nil {
		return e
	} else if dropped {
		v.node.Log.Warn("alternative names are in use where the device goes", "device", v.Device.Address, "names", at.altNames)
		if err = v.sendLink(c, at.index, o, o.To.Name); !errors.Is(err, unix.EEXIST) {
			return err
		}
	}
	if o.To.Place == sriov.Pod {
		return fmt.Errorf("%s in %s: %w", o.To.Name, v.pod.ns.Path(), ErrExists)
	}
	return v.awaitName(c, at.index, o)
}

// nameTime is how long a device waits for the name that it had. Drivers give
// new devices names that others had which are in pods just now; a device that
// is on its way back itself soon has its own again.
const nameTime = 5 * time.Second

// awaitName changes a network device whose name another has. It first takes
// any name, since the other may be waiting for the one that it has itself.
func (v *VF) awaitName(c *conn, index int, o *sriov.LinkOp) error {
	first, last := *o, *o
	first.Fields &^= sriov.LinkUp // before 6.3 a device that is up can't be renamed
	if err := v.sendLink(c, index, &first, "dev%d"); err != nil {
		return err
	}
	c, at, err := v.locate(o.To.Place)
	if err != nil {
		return err
	}
	last.Fields &= sriov.LinkName | sriov.LinkUp
	ticks := time.NewTicker(poll)
	defer ticks.Stop()
	for deadline := time.Now().Add(nameTime); time.Now().Before(deadline); <-ticks.C {
		if err = v.sendLink(c, at.index, &last, o.To.Name); !errors.Is(err, unix.EEXIST) {
			return err
		}
	}
	v.node.Log.Warn("another link has the device's name: it keeps the one that the kernel chose",
		"device", v.Device.Address, "name", o.To.Name)
	if last.Fields &^= sriov.LinkName; last.Fields == 0 {
		return nil
	}
	return v.sendLink(c, at.index, &last, "")
}

// dropTaken deletes those of a device's alternative names that other links
// have where it shall go.
func dropTaken(c *conn, index int, names []string, to *conn) (dropped bool, err error) {
	if c == to {
		return false, nil
	}
	taken := slices.DeleteFunc(slices.Clone(names), func(name string) bool {
		r := to.request(unix.RTM_GETLINK, unix.NLM_F_REQUEST, 0)
		r.AddData(nl.NewRtAttr(unix.IFLA_ALT_IFNAME, nl.ZeroTerminated(name)))
		_, e := r.Execute(unix.NETLINK_ROUTE, 0)
		return e != nil
	})
	return len(taken) > 0, c.altNames(index, unix.RTM_DELLINKPROP, taken)
}

// sendLink changes a network device in one message. The kernel moves it before
// all else (do_setlink), and takes name at once where the old one isn't free.
func (v *VF) sendLink(c *conn, index int, o *sriov.LinkOp, name string) error {
	r := nl.NewNetlinkRequest(unix.RTM_SETLINK, unix.NLM_F_ACK)
	r.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: c.socket}
	m := nl.NewIfInfomsg(unix.AF_UNSPEC)
	m.Index = int32(index)
	for flag, set := range map[uint32]struct {
		field sriov.LinkFields
		on    bool
	}{
		unix.IFF_UP:       {sriov.LinkUp, o.To.Up},
		unix.IFF_PROMISC:  {sriov.LinkPromisc, o.To.Promisc},
		unix.IFF_ALLMULTI: {sriov.LinkAllMulti, o.To.AllMulti},
	} {
		if o.Fields&set.field == 0 {
			continue
		}
		m.Change |= flag
		if set.on {
			m.Flags |= flag
		}
	}
	r.AddData(m)
	if o.Fields&sriov.LinkPlace != 0 {
		to, err := v.at(o.To.Place)
		if err != nil {
			return err
		}
		r.AddData(nl.NewRtAttr(unix.IFLA_NET_NS_FD, nl.Uint32Attr(uint32(to.ns.FD()))))
	}
	if o.Fields&sriov.LinkName != 0 {
		r.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))
	}
	if o.Fields&sriov.LinkMAC != 0 {
		r.AddData(nl.NewRtAttr(unix.IFLA_ADDRESS, o.To.MAC[:]))
	}
	if o.Fields&sriov.LinkMTU != 0 {
		r.AddData(nl.NewRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(o.To.MTU))))
	}
	if o.Fields&sriov.LinkAlias != 0 {
		r.AddData(nl.NewRtAttr(unix.IFLA_IFALIAS, []byte(o.To.Alias)))
	}
	_, err := r.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

func (v *VF) setAltNames(o *sriov.AltNameOp) error {
	c, at, err := v.locate(o.In)
	if err != nil {
		return err
	}
	if o.Delete {
		return c.altNames(at.index, unix.RTM_DELLINKPROP, o.Names)
	}
	// One that somebody else has by now must not cost the others.
	for _, name := range o.Names {
		err := c.altNames(at.index, unix.RTM_NEWLINKPROP, []string{name})
		if errors.Is(err, unix.EEXIST) {
			v.node.Log.Warn("another link has the device's alternative name", "device", v.Device.Address, "name", name)
			continue
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *conn) altNames(index, kind int, names []string) error {
	if len(names) == 0 {
		return nil
	}
	flags := unix.NLM_F_ACK
	if kind == unix.RTM_NEWLINKPROP {
		flags |= unix.NLM_F_CREATE | unix.NLM_F_APPEND
	}
	r := c.request(kind, flags, index)
	list := nl.NewRtAttr(unix.IFLA_PROP_LIST|unix.NLA_F_NESTED, nil)
	for _, n := range names {
		list.AddRtAttr(unix.IFLA_ALT_IFNAME, nl.ZeroTerminated(n))
	}
	r.AddData(list)
	_, err := r.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// setPort changes what the PF holds of the VF, in one message.
func (v *VF) setPort(o *sriov.PortOp) error {
	index, err := v.pfIndex()
	if err != nil {
		return err
	}
	r := v.node.host.request(unix.RTM_SETLINK, unix.NLM_F_ACK, index)
	list := nl.NewRtAttr(unix.IFLA_VFINFO_LIST, nil)
	info := list.AddRtAttr(nl.IFLA_VF_INFO, nil)
	words := func(kind int, values ...uint32) {
		b := nl.Uint32Attr(uint32(v.Device.Index))
		for _, value := range values {
			b = append(b, nl.Uint32Attr(value)...)
		}
		info.AddRtAttr(kind, b)
	}
	if o.Fields&sriov.PortMAC != 0 {
		info.AddRtAttr(nl.IFLA_VF_MAC, vfMAC(v.Device.Index, o.To.MAC))
	}
	if o.Fields&sriov.PortVLAN != 0 {
		addVLAN(info, v.Device.Index, o.To.VLAN)
	}
	if o.Fields&sriov.PortRate != 0 {
		words(nl.IFLA_VF_RATE, uint32(o.To.Rate.Min), uint32(o.To.Rate.Max))
	}
	if o.Fields&sriov.PortSpoofCheck != 0 {
		words(nl.IFLA_VF_SPOOFCHK, flag(o.To.SpoofCheck))
	}
	if o.Fields&sriov.PortLinkState != 0 {
		words(nl.IFLA_VF_LINK_STATE, uint32(o.To.LinkState))
	}
	if o.Fields&sriov.PortTrust != 0 {
		words(nl.IFLA_VF_TRUST, flag(o.To.Trust))
	}
	r.AddData(list)
	_, err = r.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

func flag(s sriov.Switch) uint32 {
	if s == sriov.On {
		return 1
	}
	return 0
}

// vfMAC is struct ifla_vf_mac: the MAC has 32 bytes.
func vfMAC(index int, mac kernel.MAC) []byte {
	b := make([]byte, 4+32)
	copy(b, nl.Uint32Attr(uint32(index)))
	copy(b[4:], mac[:])
	return b
}

// addVLAN adds a tag: in the old form, which all drivers take, or in the one
// that has a protocol.
func addVLAN(info *nl.RtAttr, index int, v sriov.VLAN) {
	b := slices.Concat(nl.Uint32Attr(uint32(index)), nl.Uint32Attr(uint32(v.ID)), nl.Uint32Attr(uint32(v.QoS)))
	if v.Proto != sriov.Proto8021AD {
		info.AddRtAttr(nl.IFLA_VF_VLAN, b)
		return
	}
	b = append(b, byte(v.Proto>>8), byte(v.Proto), 0, 0) // big endian, and padding
	info.AddRtAttr(nl.IFLA_VF_VLAN_LIST, nil).AddRtAttr(nl.IFLA_VF_VLAN_INFO, b)
}

func (v *VF) pfIndex() (int, error) {
	if v.pf != 0 {
		return v.pf, nil
	}
	if v.Device.PFLink == "" {
		return 0, sriov.ErrNoPF
	}
	link, err := v.node.host.LinkByName(v.Device.PFLink)
	if err != nil {
		return 0, fmt.Errorf("PF %s: %w", v.Device.PFLink, err)
	}
	return link.Attrs().Index, nil
}
