// Package netconf is the configuration that the plugin runs on: the CNI
// network configuration and environment that a runtime passes, and the node's
// file that the daemon writes. Each is parsed and validated once, here; what
// comes out needs no further checks.
package netconf

import (
	"cmp"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strconv"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/weft-cni/weft/pkg/kernel"
)

// Mode is what an attachment is made of.
type Mode string

// Modes.
const (
	ModeCluster Mode = "cluster" // the cluster network: a routed veth, the default
	ModeSRIOV   Mode = "sriov"   // a virtual function, or a whole NIC
	ModeOverlay Mode = "overlay" // a tenant's own network: a segment of its own VNI
)

// Versions are the CNI versions that the plugin speaks, the oldest first.
var Versions = []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"}

// Network is a network configuration together with what the runtime asks for
// one attachment. An address or MAC can be asked for in several places; the
// first of these that has one wins: runtimeConfig, args.cni, CNI_ARGS, the
// configuration itself.
type Network struct {
	Env Env

	CNIVersion string // one of Versions
	Name       string
	Mode       Mode
	// MTU of the pod's interface in bytes; 0 takes the node's.
	MTU int
	// MAC of the pod's interface; zero lets the plugin choose.
	MAC kernel.MAC
	// Addrs are addresses asked for, at most one of each family. A delegated
	// IPAM plugin finds them in Raw by itself.
	Addrs []netip.Addr
	// DefaultRoute is whether the pod's default routes lead through this
	// interface.
	DefaultRoute bool
	// Routes are further routes of the pod, those of ipam.routes included.
	Routes []Route
	// DNS is passed through to the result.
	DNS  types.DNS
	IPAM IPAM
	Pod  Pod
	// VF is what ModeSRIOV asks for; nil in other modes.
	VF *VF
	// Segment is what ModeOverlay asks for; nil in other modes.
	Segment *Segment

	// PrevResult is the result of the ADD on CHECK and DEL, nil where the
	// runtime gave none.
	PrevResult *types100.Result
	// ValidAttachments are what GC must keep; nil on other commands.
	ValidAttachments []types.GCAttachment

	LogLevel slog.Level // info by default
	LogFile  string     // an absolute path; empty is stderr
	DataDir  string     // records and addresses
	RunDir   string     // node.json and locks

	// Raw is the configuration as it came: what delegates and records get.
	Raw json.RawMessage
}

// IPAM says where addresses come from.
type IPAM struct {
	// Type is Type for Weft's own allocation, else the name of the plugin that
	// it is delegated to; empty where the interface gets no address.
	Type string
}

// None reports whether there are no addresses.
func (i IPAM) None() bool { return i.Type == "" }

// Own reports whether addresses come from the node's own ranges.
func (i IPAM) Own() bool { return i.Type == Type }

// Pod is the pod that the runtime attaches, as far as CNI_ARGS tell.
type Pod struct {
	Namespace        string // K8S_POD_NAMESPACE
	Name             string // K8S_POD_NAME
	UID              string // K8S_POD_UID
	InfraContainerID string // K8S_POD_INFRA_CONTAINER_ID
}

// Route is a route in the pod.
type Route struct {
	Dst netip.Prefix `json:"dst"` // masked
	// GW is the next hop; invalid means Gateway4 or Gateway6.
	GW       netip.Addr `json:"gw"`
	MTU      int        `json:"mtu,omitempty"`      // bytes; 0 is the interface's
	AdvMSS   int        `json:"advmss,omitempty"`   // bytes, of TCP; 0 is derived from the MTU
	Priority int        `json:"priority,omitempty"` // metric; 0 is the kernel's default
	Table    int        `json:"table,omitempty"`    // 0 is the main table
}

// RouteFrom reads a route of a result. It is an error where its addresses
// aren't; the scope is not taken over, since the kernel derives it.
func RouteFrom(c *types.Route) (Route, error) {
	addr, ok := netip.AddrFromSlice(c.Dst.IP)
	ones, size := c.Dst.Mask.Size()
	addr = addr.Unmap()
	if !ok || size == 0 || ones > addr.BitLen() {
		return Route{}, fmt.Errorf("route to %s: not a network", c.Dst.String())
	}
	r := Route{Dst: netip.PrefixFrom(addr, ones).Masked(), MTU: c.MTU, AdvMSS: c.AdvMSS, Priority: c.Priority}
	if c.Table != nil {
		r.Table = *c.Table
	}
	if len(c.GW) > 0 {
		gw, ok := netip.AddrFromSlice(c.GW)
		if r.GW = gw.Unmap(); !ok || r.GW.Is4() != addr.Is4() {
			return Route{}, fmt.Errorf("route to %s: %s is no next hop for it", r.Dst, c.GW)
		}
	}
	return r, nil
}

// CNI is the route as results carry it.
func (r Route) CNI() *types.Route {
	c := &types.Route{
		Dst:      net.IPNet{IP: r.Dst.Addr().AsSlice(), Mask: net.CIDRMask(r.Dst.Bits(), r.Dst.Addr().BitLen())},
		MTU:      r.MTU,
		AdvMSS:   r.AdvMSS,
		Priority: r.Priority,
	}
	if r.GW.IsValid() {
		c.GW = r.GW.AsSlice()
	}
	if r.Table != 0 {
		c.Table = &r.Table
	}
	return c
}

// Parse reads the network configuration on stdin and the environment, and
// checks both: names, paths, versions, ranges, and that no key is unknown. A
// DEL needs only the keys that it can't do without, so that a pod can be
// removed whatever else is wrong with its configuration.
//
// errors.Is holds for one of ErrDecode (ask for this before ErrConfig),
// ErrEnv, ErrVersion, ErrUnsupported and ErrConfig.
func Parse(stdin []byte, env Env) (*Network, error) {
	if err := env.validate(); err != nil {
		return nil, err
	}
	top, err := parseFields(stdin, ErrConfig)
	if err != nil {
		return nil, err
	}
	n := &Network{
		Env:          env,
		Mode:         ModeCluster,
		DefaultRoute: true,
		IPAM:         IPAM{Type: Type},
		DataDir:      DataDir,
		RunDir:       RunDir,
		Raw:          stdin,
	}
	if err := n.readIdentity(top); err != nil {
		return nil, err
	}
	for _, read := range []func(fields) error{
		n.readMode, n.readKeys, n.readPlaces, n.readInterface, n.readIPAM, n.readSegment, n.readRoutes, n.readDNS,
		n.readRequests, n.readVF, n.readPrevResult, n.readValidAttachments,
	} {
		if err := read(top); err != nil && env.Command != Del {
			return nil, err
		}
	}
	return n, nil
}

// PodMTU is the MTU of the pod's interface in bytes: its own, or the node's
// where the configuration leaves it open. One that is larger than the node's
// is an ErrConfig: its packets would not get through.
func (n *Network) PodMTU(node Node) (int, error) {
	if n.MTU > node.MTU {
		return 0, &InputError{
			Kind: ErrConfig, Key: "mtu", Value: strconv.Itoa(n.MTU),
			Want: fmt.Sprintf("0 (automatic) or at most %d on this node", node.MTU),
		}
	}
	return cmp.Or(n.MTU, node.MTU), nil
}
