package veth

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/netconf"
	"github.com/weft-cni/weft/pkg/podns"
	"github.com/weft-cni/weft/pkg/rtmsg"
)

// Port is the veth pair of an attachment to a segment: its host end is a port
// of the segment's bridge.
type Port struct {
	HostLink, PodLink, Alias string     // as Pair's
	MAC                      kernel.MAC // of the pod end
	MTU                      int        // bytes, of both ends
	VNI                      uint32
	Addrs                    []netip.Prefix // with the segment's subnets' lengths
	// Routes are the pod's; one without a next hop is on the link. Default routes
	// go before those of the pod's other links, in IPv6 by their metric.
	Routes []netconf.Route
	// Gateways are the addresses under which the node is the pod's gateway.
	Gateways []netip.Addr
	Options  netconf.PortOptions
}

func (p Port) bridge() string { return netconf.BridgeOf(p.VNI) }

// ips are the addresses alone.
func (p Port) ips() []netip.Addr {
	var ips []netip.Addr
	for _, a := range p.Addrs {
		ips = append(ips, a.Addr())
	}
	return ips
}

// grants are what the pod may send from.
func (p Port) grants() []netconf.Grant { return netconf.Grants(p.MAC, p.ips(), p.Options) }

// pair is what makes both ends.
func (p Port) pair() Pair {
	return Pair{HostLink: p.HostLink, PodLink: p.PodLink, Alias: p.Alias, MAC: p.MAC, MTU: p.MTU, DefaultRoute: true}
}

// Host gives the port's objects in the node's network namespace, but for the
// elements of sets.
func (p Port) Host() kernel.State {
	s := kernel.NewState(
		Link{Name: p.HostLink, MAC: hostMAC, MTU: p.MTU, Up: true, Peer: p.PodLink, Alias: p.Alias},
		kernel.BridgePort{Link: p.HostLink, Bridge: p.bridge(), Isolated: p.Options.Isolated, Learning: p.Options.Learns(), VLANs: p.Options.VLANs()},
	)
	s.Merge(p.Options.Station(p.HostLink, p.MAC))
	s.Merge(netconf.Stations(p.VNI, p.MAC, p.ips(), p.Options))
	return s
}

// Pod gives the port's objects in the pod's network namespace.
func (p Port) Pod() kernel.State {
	s := kernel.NewState(Link{Name: p.PodLink, MAC: p.MAC, MTU: p.MTU, Up: true, Peer: p.HostLink})
	for _, a := range p.Addrs {
		s.Put(kernel.Addr{Link: p.PodLink, Prefix: a})
	}
	for _, gw := range p.Gateways {
		s.Put(kernel.Neigh{Link: p.PodLink, IP: gw, MAC: netconf.GatewayMAC})
	}
	for _, r := range p.Routes {
		s.Put(Route{
			Link: p.PodLink, Dst: r.Dst, Via: r.GW,
			MTU: r.MTU, AdvMSS: r.AdvMSS, Priority: r.Priority, Table: r.Table,
		})
	}
	return s
}

// StationError is a MAC or address that a segment has already.
type StationError struct {
	VNI  uint32
	What string // the MAC, or the address and the MAC that has it
}

func (e *StationError) Error() string { return fmt.Sprintf("segment %d has %s already", e.VNI, e.What) }

// CreatePort makes the pair between the segment's bridge and pod. The pod's end
// goes up last, so nothing is sent that isn't checked. After an error nothing is
// left, unless the error says that too.
//
// The error is ErrExists where one of the names is taken, a *StationError where
// the segment knows the MAC or an address, and else a *KernelError.
func (n *Node) CreatePort(pod *podns.NS, p Port) error {
	bridge, err := n.conn.Index(p.bridge())
	if err != nil {
		return &KernelError{Object: "link " + p.bridge(), Err: err}
	}
	if err = n.free(p, bridge); err != nil {
		return err
	}
	inPod, err := dialIn(pod)
	if err != nil {
		return err
	}
	defer inPod.Close()
	err = p.pair().add(n.conn, inPod, pod)
	if errors.Is(err, ErrExists) {
		return err
	}
	if err == nil {
		err = p.configure(n, inPod, pod, bridge)
	}
	if err != nil {
		if undo := n.RemovePort(p); undo != nil {
			err = fmt.Errorf("%w; then, to remove the pair: %w", err, undo)
		}
	}
	return err
}

// RemovePort removes a port's pair, what it may send from, and where the node
// reaches it; it does nothing where nothing is left of them. Of p it takes the
// host link, the VNI, the MAC, the addresses and the options.
func (n *Node) RemovePort(p Port) error {
	return errors.Join(n.Remove(p.HostLink), revoke(p.HostLink, p.grants()), n.forget(p))
}

// forget removes the neighbour entries by which the node reaches a pod.
func (n *Node) forget(p Port) error {
	stations := netconf.Stations(p.VNI, p.MAC, p.ips(), p.Options)
	if len(stations) == 0 {
		return nil
	}
	bridge, err := n.conn.Index(p.bridge())
	if errors.Is(err, unix.ENODEV) {
		return nil
	}
	if err != nil {
		return &KernelError{Object: "link " + p.bridge(), Err: err}
	}
	for k := range stations {
		ip := k.Dst.Addr()
		body := rtmsg.AttrAddr(rtmsg.Neigh(rtmsg.Family(ip), bridge, 0, 0), unix.NDA_DST, ip)
		err := n.conn.Execute([]rtmsg.Request{{Type: unix.RTM_DELNEIGH, Body: body}})[0]
		if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EAFNOSUPPORT) {
			return &KernelError{Object: k.String(), Err: err}
		}
	}
	return nil
}

// free makes sure that no other station of the segment, here or behind a peer,
// has an address, or the MAC in the VLAN of frames without a tag.
func (n *Node) free(p Port, bridge int) error {
	body := rtmsg.Attr(rtmsg.Neigh(unix.AF_BRIDGE, bridge, 0, unix.NTF_SELF), unix.NDA_LLADDR, p.MAC[:])
	body = rtmsg.InVLAN(body, p.Options.VLAN)
	_, err := n.conn.Get(rtmsg.Request{Type: unix.RTM_GETNEIGH, Body: body})
	if err == nil {
		return &StationError{VNI: p.VNI, What: p.MAC.String()}
	}
	if !errors.Is(err, unix.ENOENT) {
		return &KernelError{Object: "fdb of " + p.bridge(), Err: err}
	}
	for _, ip := range p.ips() {
		body := rtmsg.AttrAddr(rtmsg.Neigh(rtmsg.Family(ip), bridge, 0, 0), unix.NDA_DST, ip)
		answer, err := n.conn.Get(rtmsg.Request{Type: unix.RTM_GETNEIGH, Body: body})
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EAFNOSUPPORT) {
			continue // none, or no such family here
		}
		if err != nil {
			return &KernelError{Object: fmt.Sprintf("neigh %s dev %s", ip, p.bridge()), Err: err}
		}
		if len(answer) < unix.SizeofNdMsg {
			continue
		}
		for typ, v := range rtmsg.Attrs(answer[unix.SizeofNdMsg:]) {
			if typ == unix.NDA_LLADDR {
				return &StationError{VNI: p.VNI, What: fmt.Sprintf("%s at %s", ip, macOf(v))}
			}
		}
	}
	return nil
}

// configure does what isn't in the message that makes the pair.
func (p Port) configure(n *Node, inPod *rtmsg.Conn, pod *podns.NS, bridge int) error {
	host := &end{conn: n.conn, h: n.h, name: p.HostLink, do: func(f func() error) error { return f() }}
	peer := &end{conn: inPod, name: p.PodLink, do: pod.Do, first: true}
	for _, e := range []*end{host, peer} {
		if err := e.find(); err != nil {
			return err
		}
	}
	set := func(what string, body []byte) {
		host.add(what+" of "+host.name, rtmsg.Request{Type: unix.RTM_SETLINK, Body: body})
	}
	set("addrgenmode", rtmsg.NoLinkLocal(rtmsg.Link(host.index, 0, 0)))
	set("alias", rtmsg.Attr(rtmsg.Link(host.index, 0, 0), unix.IFLA_IFALIAS, []byte(p.Alias)))
	set("master", rtmsg.AttrUint32(rtmsg.Link(host.index, 0, 0), unix.IFLA_MASTER, uint32(bridge)))
	host.add("port "+host.name, rtmsg.BridgePort(host.index, rtmsg.PodPort(p.Options.Isolated, p.Options.Learns())...))
	vlans := p.Options.VLANs()
	if vlans != (kernel.VLANs{}) {
		for _, r := range rtmsg.PortVLANs(host.index, vlans.Native, vlans.Tagged.Ranges(), nil) {
			host.add(fmt.Sprintf("VLANs %s of %s", vlans, host.name), r)
		}
	}
	for _, o := range p.Options.Station(host.name, p.MAC) {
		host.add(o.String(), rtmsg.Station(host.index, p.MAC, vlans.Native, false))
	}
	if err := host.put(kernel.State{}); err != nil {
		return err
	}
	onBridge := &end{conn: n.conn, name: p.bridge(), index: bridge, do: host.do}
	if err := onBridge.put(netconf.Stations(p.VNI, p.MAC, p.ips(), p.Options)); err != nil {
		return err
	}
	if err := grant(host.name, p.grants()); err != nil {
		return err
	}
	peer.add("link "+peer.name+" up", rtmsg.Request{
		Type: unix.RTM_SETLINK, Body: rtmsg.Link(peer.index, unix.IFF_UP, unix.IFF_UP),
	})
	if err := peer.put(p.Pod()); err != nil {
		return fmt.Errorf("in the pod: %w", err)
	}
	return nil
}

// ReadPort is Read for a Port.
func (n *Node) ReadPort(pod *podns.NS, p Port) (inHost, inPod kernel.State, err error) {
	ph, err := pod.Handle()
	if err != nil {
		return nil, nil, err
	}
	defer ph.Close()
	host, err := readEnd(n.h, p.HostLink)
	if err != nil {
		return nil, nil, err
	}
	peer, err := readEnd(ph, p.PodLink)
	if err != nil {
		return nil, nil, fmt.Errorf("in the pod: %w", err)
	}
	host.join(peer)
	onPort := func(have, _ kernel.State) error { return n.readPort(have, p, host.link.Attrs().Index) }
	onBridge := func(have, want kernel.State) error {
		on, failed := readEnd(n.h, p.bridge())
		if failed != nil || on.link == nil {
			return failed
		}
		return on.neighs(have, want)
	}
	inHost, err = host.read(p.Host(), onPort, onBridge)
	if err != nil {
		return nil, nil, err
	}
	if inPod, err = peer.read(p.Pod(), peer.addrs, peer.neighs, peer.routes); err != nil {
		return nil, nil, fmt.Errorf("in the pod: %w", err)
	}
	return inHost, inPod, nil
}

// readPort reads what a host end is for its bridge.
func (n *Node) readPort(have kernel.State, p Port, index int) error {
	bridge, err := n.conn.Index(p.bridge())
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return err
	}
	b, err := n.conn.Get(rtmsg.Request{Type: unix.RTM_GETLINK, Body: rtmsg.Link(index, 0, 0)})
	if err != nil {
		return &KernelError{Object: "link " + p.HostLink, Err: err}
	}
	master, flags := 0, map[uint16]byte{}
	for typ, v := range rtmsg.Attrs(b[unix.SizeofIfInfomsg:]) {
		if typ == unix.IFLA_MASTER && len(v) == 4 {
			master = int(binary.NativeEndian.Uint32(v))
		}
		if typ != unix.IFLA_LINKINFO {
			continue
		}
		for typ, v := range rtmsg.Attrs(v) {
			if typ != unix.IFLA_INFO_SLAVE_DATA {
				continue
			}
			for typ, v := range rtmsg.Attrs(v) {
				if len(v) > 0 {
					flags[typ] = v[0]
				}
			}
		}
	}
	if master == 0 || master != bridge {
		return nil
	}
	port := kernel.BridgePort{Link: p.HostLink, Bridge: p.bridge(), Isolated: flags[unix.IFLA_BRPORT_ISOLATED] != 0, Learning: flags[unix.IFLA_BRPORT_LEARNING] != 0}
	for _, f := range rtmsg.PodPort(port.Isolated, port.Learning) {
		if flags[f.Type] != f.Value {
			port.Detail = "other flags"
		}
	}
	if p.Options.VLANs() != (kernel.VLANs{}) {
		native, tagged, odd, err := n.conn.PortVLANs(index)
		if err != nil {
			return &KernelError{Object: "VLANs of " + p.HostLink, Err: err}
		}
		port.VLANs = kernel.VLANs{Native: native, Tagged: kernel.NewVLANList(tagged, 0)}
		if odd {
			port.Detail = "other flags of VLANs"
		}
	}
	have.Put(port)
	body := rtmsg.Attr(rtmsg.Neigh(unix.AF_BRIDGE, index, 0, unix.NTF_MASTER), unix.NDA_LLADDR, p.MAC[:])
	body = rtmsg.InVLAN(body, p.Options.VLAN)
	if _, err := n.conn.Get(rtmsg.Request{Type: unix.RTM_GETNEIGH, Body: body}); err == nil {
		have.Put(kernel.Station{Link: p.HostLink, MAC: p.MAC, VLAN: p.Options.VLAN})
	}
	return nil
}
