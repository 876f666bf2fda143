package netconf

import (
	"fmt"
	"math/bits"
	"net/netip"
	"slices"

	"github.com/weft-cni/weft/pkg/kernel"
)

// MaxVNI is the largest VXLAN network identifier: 24 bits, of which 0 is none
// (RFC 7348 section 5).
const MaxVNI = 1<<24 - 1

// Names in the kernel that the daemon and the plugin agree on.
const (
	BridgeStart  = "br-weft"     // every segment's bridge starts so, and its VNI follows
	SegmentTable = "bridge weft" // family and name of the nftables table
)

// GatewayMAC is that of all segments' gateways, on all nodes: a pod that is
// elsewhere later, or has another segment, needs no other.
var GatewayMAC = kernel.MAC{0x02, 'w', 'e', 'f', 't', 1}

// BridgeOf is the name of a segment's bridge.
func BridgeOf(vni uint32) string { return fmt.Sprintf("%s%d", BridgeStart, vni) }

// Segment is what a network of ModeOverlay asks for.
type Segment struct {
	VNI uint32 `json:"vni"`
	// Ranges are where Weft's own addresses come from, at most one of each
	// family; none where the pods have no addresses, or another IPAM plugin's.
	Ranges []Range `json:"ranges,omitempty"`
	// Tunnels is how it spans the nodes.
	Tunnels Tunnels `json:"tunnels"`
	// Snooping has multicast frames go only to pods that asked for them.
	Snooping bool `json:"snooping,omitempty"`
	// Gateway has each node be the ranges' gateway for the pods that it has
	// itself, and masquerade what they send.
	Gateway bool `json:"gateway,omitempty"`
	// Port is about the attachment alone.
	Port PortOptions `json:"-"`
}

// String names the segment, with the VLANs that are asked for.
func (s Segment) String() string {
	name := fmt.Sprintf("segment %d", s.VNI)
	if vlans := s.Port.VLANText(); vlans != "" {
		name += ", " + vlans
	}
	return name
}

// Gateways are the addresses that nodes are a gateway under.
func (s Segment) Gateways() (all []netip.Addr) {
	for _, r := range s.Ranges {
		if s.Gateway && r.Gateway.IsValid() {
			all = append(all, r.Gateway)
		}
	}
	return all
}

// Range is a segment's range of addresses.
type Range struct {
	Subnet  netip.Prefix   `json:"subnet"`            // masked
	Gateway netip.Addr     `json:"gateway,omitzero"`  // never a pod's; may be invalid
	Exclude []netip.Prefix `json:"exclude,omitempty"` // never pods'
	// BlockSize is how many addresses a node leases at a time: a power of two.
	BlockSize int `json:"blockSize"`
}

// defaultBlockSize is a /28 of IPv4 and a /124 of IPv6.
const defaultBlockSize = 16

// BlockBits is the length of the prefix of a block.
func (r Range) BlockBits() int {
	return max(r.Subnet.Addr().BitLen()-bits.TrailingZeros(uint(r.BlockSize)), r.Subnet.Bits())
}

// Usable reports whether a pod can have addr: it is in the range, and neither
// its network address, its broadcast address in IPv4, its gateway nor excluded.
func (r Range) Usable(addr netip.Addr) bool {
	switch {
	case !r.Subnet.Contains(addr), addr == r.Subnet.Addr(), addr == r.Gateway:
		return false
	case addr.Is4() && !r.Subnet.Contains(addr.Next()):
		return false
	}
	return !slices.ContainsFunc(r.Exclude, func(p netip.Prefix) bool { return p.Contains(addr) })
}

// overlayKeys are the keys of a configuration of ModeOverlay.
var overlayKeys = []string{
	"cniVersion", "name", "type", "mode", "vni", "encapsulation", "discovery", "vteps", "group", "port", "encrypt", "mtu", "mac", "defaultRoute", "routes", "dns", "ipam",
	"allowedMACs", "allowedIPs", "allowRA", "allowDHCPServer", "isolatePorts", "multicastSnooping", "gateway", "vlan", "trunk",
	"logLevel", "logFile", "dataDir", "runDir", "capabilities", "runtimeConfig", "args", "prevResult",
}

// readSegment reads the segment of a network of ModeOverlay.
func (n *Network) readSegment(f fields) error {
	if n.Mode != ModeOverlay {
		return nil
	}
	n.Segment = &Segment{Tunnels: Tunnels{Discovery: DiscoverKubernetes}}
	var vni int64
	want := fmt.Sprintf("a VXLAN network identifier, 1 to %d", MaxVNI)
	if err := f.decode("vni", &vni, want); err != nil {
		return err
	}
	if vni < 1 || vni > MaxVNI {
		return f.bad("vni", want)
	}
	n.Segment.VNI = uint32(vni)
	var err error
	if n.Segment.Tunnels, err = readTunnels(f); err != nil {
		return err
	}
	if err = n.Segment.Tunnels.checkVNI(f, vni); err != nil {
		return err
	}
	if err = f.decode("multicastSnooping", &n.Segment.Snooping, "true or false"); err != nil {
		return err
	}
	if n.Segment.Port, err = readPort(f); err != nil {
		return err
	}
	n.Segment.Tunnels.VLANs = n.Segment.Port.VLANs() != kernel.VLANs{}
	if err = n.readRanges(f); err != nil {
		return err
	}
	return n.Segment.readGateway(f)
}

// readGateway reads who is the segment's gateway, beside its ranges.
func (s *Segment) readGateway(f fields) error {
	var word string
	want := `"node", or none: a gateway that is a pod or a router of the segment`
	if err := f.decode("gateway", &word, want); err != nil {
		return err
	}
	if !f.has("gateway") {
		return nil
	}
	if word != "node" {
		return f.bad("gateway", want)
	}
	if s.Tunnels.VLANs {
		return f.bad("gateway", "none with vlan or trunk: a gateway is a pod or a router in each VLAN")
	}
	s.Gateway, s.Port.Gateway = true, true
	if len(s.Gateways()) == 0 {
		return f.bad("gateway", "none where no range of ipam has a gateway: its address is the node's on the segment")
	}
	return nil
}

// readRanges reads the ranges of Weft's own IPAM.
func (n *Network) readRanges(f fields) error {
	if !n.IPAM.Own() {
		return nil
	}
	ipam, err := f.object("ipam", wantSegmentIPAM)
	if err != nil {
		return err
	}
	if err = ipam.only([]string{"type", "ranges", "routes"}, nil); err != nil {
		return err
	}
	all, err := ipam.objects("ranges", wantRanges)
	if err != nil {
		return err
	}
	for _, f := range all {
		r, err := readRange(f)
		if err != nil {
			return err
		}
		if slices.ContainsFunc(n.Segment.Ranges, func(o Range) bool { return o.Subnet.Addr().Is4() == r.Subnet.Addr().Is4() }) {
			return f.bad("subnet", "a range of the other family: a segment has one of each at most")
		}
		n.Segment.Ranges = append(n.Segment.Ranges, r)
	}
	if len(n.Segment.Ranges) == 0 {
		return ipam.bad("ranges", wantRanges)
	}
	return nil
}

const (
	wantSegmentIPAM = "an object with type, ranges and routes"
	wantRanges      = "a list of one range, or one of each family: objects with subnet, gateway, exclude, blockSize"
)

// maxBlockSize is the most addresses that a node leases at a time.
const maxBlockSize = 4096

func readRange(f fields) (r Range, err error) {
	if err = f.only([]string{"subnet", "gateway", "exclude", "blockSize"}, nil); err != nil {
		return r, err
	}
	var subnet, gateway string
	want := "a network such as 192.168.0.0/16 or fd00:1::/64, with no bits set behind its length, of a /30 or /126 at least"
	if err = f.decode("subnet", &subnet, want); err != nil {
		return r, err
	}
	if r.Subnet, err = netip.ParsePrefix(subnet); err != nil || !validCIDRs([]netip.Prefix{r.Subnet}) {
		return r, f.bad("subnet", want)
	}
	want = "an address of the range"
	if err = f.decode("gateway", &gateway, want); err != nil {
		return r, err
	}
	if gateway != "" {
		if r.Gateway, err = netip.ParseAddr(gateway); err != nil || !r.Subnet.Contains(r.Gateway) || r.Gateway == r.Subnet.Addr() {
			return r, f.bad("gateway", want)
		}
	}
	var exclude []string
	want = "a list of addresses and networks in the range"
	if err = f.decode("exclude", &exclude, want); err != nil {
		return r, err
	}
	for _, word := range exclude {
		p, bad := netip.ParsePrefix(word)
		if addr, single := netip.ParseAddr(word); single == nil {
			p, bad = addr.Prefix(addr.BitLen())
		}
		if bad != nil || p != p.Masked() || !r.Subnet.Overlaps(p) || p.Bits() < r.Subnet.Bits() {
			return r, f.bad("exclude", want)
		}
		r.Exclude = append(r.Exclude, p)
	}
	r.BlockSize = defaultBlockSize
	want = fmt.Sprintf("a power of two from 1 to %d", maxBlockSize)
	if err = f.decode("blockSize", &r.BlockSize, want); err != nil {
		return r, err
	}
	if r.BlockSize < 1 || r.BlockSize > maxBlockSize || bits.OnesCount(uint(r.BlockSize)) != 1 {
		return r, f.bad("blockSize", want)
	}
	return r, nil
}
