package vf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/sriov"
)

// Read gives the state that the device is in, wherever it is. It looks its
// names up again: they may have changed since the device was found. There is
// no Link where neither the node nor the pod has the network device.
func (v *VF) Read() (sriov.State, error) {
	d, err := v.node.Sysfs.Device(v.Device.Address)
	if err != nil {
		return sriov.State{}, err
	}
	v.Device = d
	var s sriov.State
	link, place, err := v.find()
	if err != nil {
		return s, err
	}
	v.seen = located{}
	if link != nil {
		s.Link = linkState(link.Attrs(), place)
		v.seen = located{place: place, index: link.Attrs().Index, altNames: link.Attrs().AltNames}
	}
	if d.PFLink != "" {
		if s.Port, err = v.readPort(); err != nil {
			return s, err
		}
	}
	if s.Representor, err = v.readRepresentor(); err != nil {
		return s, err
	}
	s.RDMA, err = v.findRDMA()
	return s, err
}

// find looks for the network device by its parent: on the node, then in the
// pod. link is nil where neither has it.
func (v *VF) find() (link netlink.Link, place sriov.Place, err error) {
	if v.Device.Link != "" {
		link, err = v.node.host.LinkByName(v.Device.Link)
		if err == nil && link.Attrs().ParentDev == v.Device.Parent {
			return link, sriov.Host, nil
		}
		if err != nil && !isNotFound(err) {
			return nil, sriov.Nowhere, fmt.Errorf("network device of %s: %w", v.Device, err)
		}
	}
	if v.pod == nil {
		return nil, sriov.Nowhere, nil
	}
	links, err := v.pod.LinkList()
	if err != nil {
		return nil, sriov.Nowhere, fmt.Errorf("the pod's links: %w", err)
	}
	for _, l := range links {
		if l.Attrs().ParentDev == v.Device.Parent {
			return l, sriov.Pod, nil
		}
	}
	return nil, sriov.Nowhere, nil
}

// located is where the network device was seen last.
type located struct {
	place    sriov.Place
	index    int
	altNames []string
}

// locate gives the place of the network device, as it was seen last or, where
// it has moved since, as it is now.
func (v *VF) locate(in sriov.Place) (*conn, located, error) {
	c, err := v.at(in)
	if err != nil || v.seen.place == in {
		return c, v.seen, err
	}
	link, err := v.moved(c)
	if err != nil {
		return nil, located{}, err
	}
	v.seen = located{place: in, index: link.Attrs().Index, altNames: link.Attrs().AltNames}
	return c, v.seen, nil
}

// moved finds the network device where it has just been moved to, by its name
// there or else by its parent.
func (v *VF) moved(c *conn) (netlink.Link, error) {
	if link, err := c.LinkByName(v.movedAs); err == nil && link.Attrs().ParentDev == v.Device.Parent {
		return link, nil
	}
	var err error
	if v.Device, err = v.node.Sysfs.Device(v.Device.Address); err != nil {
		return nil, err
	}
	link, place, err := v.find()
	if err != nil {
		return nil, err
	}
	if there, e := v.at(place); link == nil || e != nil || there != c {
		return nil, fmt.Errorf("network device of %s is not there: %w", v.Device, unix.ENODEV)
	}
	return link, nil
}

func isNotFound(err error) bool {
	var notFound netlink.LinkNotFoundError
	return errors.As(err, &notFound)
}

func linkState(a *netlink.LinkAttrs, place sriov.Place) *sriov.Link {
	l := &sriov.Link{
		Place: place, Name: a.Name, Alias: a.Alias, MTU: a.MTU,
		Up:       a.RawFlags&unix.IFF_UP != 0,
		Promisc:  a.RawFlags&unix.IFF_PROMISC != 0,
		AllMulti: a.RawFlags&unix.IFF_ALLMULTI != 0,
		AltNames: slices.Sorted(slices.Values(a.AltNames)),
	}
	l.MAC = macOf(a.HardwareAddr)
	return l
}

// macOf is zero for what isn't an Ethernet address.
func macOf(hw net.HardwareAddr) kernel.MAC {
	if len(hw) != len(kernel.MAC{}) {
		return kernel.MAC{}
	}
	return kernel.MAC(hw)
}

// nlaTypeMask is NLA_TYPE_MASK of linux/netlink.h: the rest of the type are
// flags.
const nlaTypeMask = 0x3fff

// rtextFilterSkipStats is RTEXT_FILTER_SKIP_STATS of linux/rtnetlink.h.
const rtextFilterSkipStats = 1 << 3

// readPort asks the PF for its VFs, and picks this one.
func (v *VF) readPort() (*sriov.Port, error) {
	r := v.node.host.request(unix.RTM_GETLINK, unix.NLM_F_REQUEST, 0)
	r.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(v.Device.PFLink)))
	r.AddData(nl.NewRtAttr(unix.IFLA_EXT_MASK, nl.Uint32Attr(nl.RTEXT_FILTER_VF|rtextFilterSkipStats)))
	answers, err := r.Execute(unix.NETLINK_ROUTE, 0)
	if err != nil {
		return nil, fmt.Errorf("PF %s: %w", v.Device.PFLink, err)
	}
	for _, a := range answers {
		v.pf = int(nl.DeserializeIfInfomsg(a).Index)
		attrs, err := nl.ParseRouteAttr(a[unix.SizeofIfInfomsg:])
		if err != nil {
			return nil, fmt.Errorf("PF %s: %w", v.Device.PFLink, err)
		}
		for _, attr := range attrs {
			if attr.Attr.Type&nlaTypeMask != unix.IFLA_VFINFO_LIST {
				continue
			}
			if p := portIn(attr.Value, v.Device.Index); p != nil {
				return p, nil
			}
		}
	}
	return nil, fmt.Errorf("PF %s tells nothing of its VF %d: %w", v.Device.PFLink, v.Device.Index, sriov.ErrNoDevice)
}

// portIn finds a VF in an IFLA_VFINFO_LIST; nil where it isn't there.
func portIn(list []byte, index int) *sriov.Port {
	infos, err := nl.ParseRouteAttr(list)
	if err != nil {
		return nil
	}
	for _, info := range infos {
		attrs, err := nl.ParseRouteAttr(info.Value)
		if err != nil {
			continue
		}
		p, mine := &sriov.Port{}, false
		for _, a := range attrs {
			// Each begins with the VF's number.
			if len(a.Value) < 8 || a.Attr.Type&nlaTypeMask != nl.IFLA_VF_VLAN_LIST && number(a.Value, 0) != index {
				continue
			}
			mine = mine || a.Attr.Type&nlaTypeMask != nl.IFLA_VF_VLAN_LIST
			readPortAttr(p, int(a.Attr.Type&nlaTypeMask), a.Value)
		}
		if mine {
			return p
		}
	}
	return nil
}

func number(b []byte, at int) int { return int(binary.NativeEndian.Uint32(b[at:])) }

// readPortAttr reads one attribute of a VF (linux/if_link.h, IFLA_VF_*).
func readPortAttr(p *sriov.Port, kind int, b []byte) {
	onOff := func() sriov.Switch {
		if v := number(b, 4); v == 0 || v == 1 {
			return sriov.SwitchOf(v == 1)
		}
		return sriov.Unknown // -1: the driver has no such thing
	}
	switch kind {
	case nl.IFLA_VF_MAC:
		if len(b) >= 10 {
			p.MAC = kernel.MAC(b[4:10])
		}
	case nl.IFLA_VF_VLAN_LIST:
		inner, err := nl.ParseRouteAttr(b)
		if err != nil || len(inner) == 0 || len(inner[0].Value) < 14 {
			return
		}
		v := inner[0].Value
		p.VLAN = sriov.VLAN{ID: number(v, 4), QoS: number(v, 8), Proto: binary.BigEndian.Uint16(v[12:])}
	case nl.IFLA_VF_RATE:
		if len(b) >= 12 {
			p.Rate = sriov.Rate{Min: number(b, 4), Max: number(b, 8)}
		}
	case nl.IFLA_VF_SPOOFCHK:
		p.SpoofCheck = onOff()
	case nl.IFLA_VF_TRUST:
		p.Trust = onOff()
	case nl.IFLA_VF_LINK_STATE:
		p.LinkState = sriov.LinkState(number(b, 4))
	}
}
