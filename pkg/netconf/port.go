package netconf

import (
	"net/netip"
	"slices"

	"github.com/weft-cni/weft/pkg/kernel"
)

// PortOptions are what a pod may do on its segment beside what every pod may,
// or may not.
type PortOptions struct {
	// MACs are Ethernet addresses that it may send from beside its own; AnyMAC
	// says that these are all.
	MACs   []kernel.MAC `json:"macs,omitempty"`
	AnyMAC bool         `json:"anyMAC,omitempty"`
	// IPs are addresses that it may send from beside its own: masked, none in
	// another.
	IPs []netip.Prefix `json:"ips,omitempty"`
	// Router and DHCPServer let it send what only routers (router
	// advertisements, redirects) and DHCP servers do.
	Router     bool `json:"router,omitempty"`
	DHCPServer bool `json:"dhcpServer,omitempty"`
	// Isolated pods reach no other isolated ones.
	Isolated bool `json:"isolated,omitempty"`
	// Gateway pods reach the node, which is their way out.
	Gateway bool `json:"gateway,omitempty"`
	// VLAN is that of its frames without a tag, 0 for none, and Trunk are those
	// of frames with one, VLAN not among them. A segment's ports all have some,
	// or none has.
	VLAN  uint16          `json:"vlan,omitempty"`
	Trunk kernel.VLANList `json:"trunk,omitempty"`
}

// IsZero reports whether nothing is out of the ordinary.
func (o PortOptions) IsZero() bool {
	return !o.Learns() && len(o.IPs) == 0 && !o.Router && !o.DHCPServer && !o.Isolated && !o.Gateway && o.VLAN == 0
}

// Learns reports whether stations may be behind the port that only their
// frames tell of, or in VLANs that only their frames tell of.
func (o PortOptions) Learns() bool { return o.AnyMAC || len(o.MACs) > 0 || o.Trunk != "" }

// Moves reports whether addresses may turn up behind the port that were
// elsewhere.
func (o PortOptions) Moves() bool { return o.Learns() || len(o.IPs) > 0 }

// Sets of SegmentTable. Elements are names of pods' links, with what may be
// sent from behind them.
const (
	SetSenders4  = "senders4"  // addresses
	SetSenders6  = "senders6"  //
	SetNetworks4 = "networks4" // networks
	SetNetworks6 = "networks6" //
	SetStations  = "stations"  // Ethernet addresses, of the links in SetLearning
	SetLearning  = "learning"  // links that aren't locked to one Ethernet address
	SetRouters   = "routers"
	SetDHCP      = "dhcpservers"
	SetIsolated  = "isolated" // links of isolated pods
	SetRouted    = "routed"   // links of pods whose gateway the node is
	SetVLANs     = "vlans"    // links of segments with VLANs
	SetApart     = "apart"    // tunnels, with the stations of isolated pods behind them
)

// Grant is an element of a set of SegmentTable for a link: a prefix or an
// Ethernet address beside it, or neither.
type Grant struct {
	Set    string
	Prefix netip.Prefix
	MAC    kernel.MAC
}

// Grants are what a pod with this MAC, these addresses and options may send
// from: its own, the unspecified ones of a pod that has none yet, link-local
// ones of its Ethernet addresses, and what the options say.
func Grants(mac kernel.MAC, ips []netip.Addr, o PortOptions) []Grant {
	all := append(slices.Clone(ips), netip.IPv4Unspecified(), netip.IPv6Unspecified(), linkLocal(mac))
	for _, m := range o.MACs {
		all = append(all, linkLocal(m))
	}
	var grants []Grant
	grant := func(p netip.Prefix) {
		if g := (Grant{Set: senderSet(p), Prefix: p}); !slices.Contains(grants, g) {
			grants = append(grants, g)
		}
	}
	for _, ip := range all {
		grant(netip.PrefixFrom(ip, ip.BitLen()))
	}
	for _, p := range o.IPs {
		grant(p)
	}
	if o.AnyMAC && !slices.ContainsFunc(o.IPs, linkLocals.Overlaps) {
		grant(linkLocals)
	}
	if o.Learns() && !o.AnyMAC {
		grants = append(grants, Grant{Set: SetLearning}, Grant{Set: SetStations, MAC: mac})
		for _, m := range o.MACs {
			grants = append(grants, Grant{Set: SetStations, MAC: m})
		}
	}
	for _, is := range []struct {
		set string
		on  bool
	}{{SetRouters, o.Router}, {SetDHCP, o.DHCPServer}, {SetIsolated, o.Isolated}, {SetRouted, o.Gateway}, {SetVLANs, o.VLANs() != kernel.VLANs{}}} {
		if is.on {
			grants = append(grants, Grant{Set: is.set})
		}
	}
	return grants
}

func senderSet(p netip.Prefix) string {
	switch {
	case p.Addr().Is4() && p.IsSingleIP():
		return SetSenders4
	case p.Addr().Is4():
		return SetNetworks4
	case p.IsSingleIP():
		return SetSenders6
	}
	return SetNetworks6
}

// linkLocals are all addresses of linkLocal.
var linkLocals = netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfe, 0x80}), 64)

// linkLocal is the address that a station makes of its Ethernet address (RFC
// 4291 appendix A).
func linkLocal(mac kernel.MAC) netip.Addr {
	return netip.AddrFrom16([16]byte{
		0xfe, 0x80, 8: mac[0] ^ 2, mac[1], mac[2], 0xff, 0xfe, mac[3], mac[4], mac[5],
	})
}

// anything is the word for all Ethernet addresses, or all addresses.
const anything = "any"

// readPort reads the keys of PortOptions.
func readPort(f fields) (o PortOptions, err error) {
	for _, key := range []struct {
		name string
		to   *bool
	}{{"allowRA", &o.Router}, {"allowDHCPServer", &o.DHCPServer}, {"isolatePorts", &o.Isolated}} {
		if err = f.decode(key.name, key.to, "true or false"); err != nil {
			return o, err
		}
	}
	var words []string
	want := `a list of unicast Ethernet addresses such as "00:00:5e:00:01:0a", or ["any"]`
	if err = f.decode("allowedMACs", &words, want); err != nil {
		return o, err
	}
	for _, word := range words {
		if word == anything {
			o.AnyMAC = true
			continue
		}
		mac, bad := kernel.ParseMAC(word)
		if bad != nil || !mac.IsUnicast() {
			return o, f.bad("allowedMACs", want)
		}
		if !slices.Contains(o.MACs, mac) {
			o.MACs = append(o.MACs, mac)
		}
	}
	if err = o.readVLANs(f); err != nil {
		return o, err
	}
	if o.Isolated && o.Learns() {
		return o, f.bad("isolatePorts", "false beside allowedMACs or trunk: other nodes couldn't tell an isolated pod's frames")
	}
	o.IPs, err = readAllowedIPs(f)
	return o, err
}

func readAllowedIPs(f fields) (all []netip.Prefix, err error) {
	var words []string
	want := `a list of addresses and networks such as "192.168.7.100" and "10.0.0.0/8", or ["any"]`
	if err = f.decode("allowedIPs", &words, want); err != nil {
		return nil, err
	}
	for _, word := range words {
		p, bad := netip.ParsePrefix(word)
		if addr, single := netip.ParseAddr(word); single == nil && addr.Zone() == "" {
			p, bad = addr.Prefix(addr.BitLen())
		}
		switch {
		case word == anything:
			all = append(all, netip.PrefixFrom(netip.IPv4Unspecified(), 0), netip.PrefixFrom(netip.IPv6Unspecified(), 0))
		case bad != nil || p != p.Masked() || p.Addr().Is4In6():
			return nil, f.bad("allowedIPs", want)
		default:
			all = append(all, p)
		}
	}
	// The kernel takes no interval in another.
	slices.SortStableFunc(all, func(a, b netip.Prefix) int { return a.Bits() - b.Bits() })
	var kept []netip.Prefix
	for _, p := range all {
		if !slices.ContainsFunc(kept, p.Overlaps) {
			kept = append(kept, p)
		}
	}
	return kept, nil
}

// Stations are the neighbour entries by which a node that is a pod's gateway
// reaches it: on the segment's bridge, without asking anybody.
func Stations(vni uint32, mac kernel.MAC, ips []netip.Addr, o PortOptions) kernel.State {
	s := kernel.State{}
	for _, ip := range ips {
		if o.Gateway {
			s.Put(kernel.Neigh{Link: BridgeOf(vni), IP: ip, MAC: mac})
		}
	}
	return s
}
