// Package netconf is the configuration that the plugin runs on: the CNI
// network configuration and environment that a runtime passes, and the node's
// file that the daemon writes. Each is parsed and validated once, here; what
// comes out needs no further checks.
package netconf

import (
	"encoding/json"
	"log/slog"
	"net"
	"net/netip"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/weft-cni/weft/pkg/kernel"
)

// Mode is what an attachment is made of.
type Mode string

// ModeCluster is the cluster network: a routed veth, the default.
const ModeCluster Mode = "cluster"

// Commands of the CNI specification, in CNI_COMMAND.
const (
	Add     = "ADD"
	Del     = "DEL"
	Check   = "CHECK"
	GC      = "GC"
	Status  = "STATUS"
	Version = "VERSION"
)

// Versions are the CNI versions that the plugin speaks, the oldest first.
var Versions = []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"}

// Env is the environment that a runtime runs the plugin with (CNI
// specification, section 2, "Parameters").
type Env struct {
	Command     string // CNI_COMMAND
	ContainerID string // CNI_CONTAINERID
	Netns       string // CNI_NETNS, an absolute path; empty on a DEL after the namespace is gone
	IfName      string // CNI_IFNAME
	Args        string // CNI_ARGS
	Path        string // CNI_PATH
}

// EnvFrom reads the environment by getenv (os.Getenv). It checks nothing:
// Parse does.
func EnvFrom(getenv func(string) string) Env {
	return Env{
		Command:     getenv("CNI_COMMAND"),
		ContainerID: getenv("CNI_CONTAINERID"),
		Netns:       getenv("CNI_NETNS"),
		IfName:      getenv("CNI_IFNAME"),
		Args:        getenv("CNI_ARGS"),
		Path:        getenv("CNI_PATH"),
	}
}

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
	// it is delegated to.
	Type string
}

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
	Dst netip.Prefix // masked
	// GW is the next hop; invalid means Gateway4 or Gateway6.
	GW       netip.Addr
	MTU      int // bytes; 0 is the interface's
	AdvMSS   int // bytes, of TCP; 0 is derived from the MTU
	Priority int // metric; 0 is the kernel's default
	Table    int // 0 is the main table
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
// errors.Is holds for one of ErrEnv, ErrDecode, ErrVersion, ErrUnsupported and
// ErrConfig.
func Parse(stdin []byte, env Env) (*Network, error) {
	return parse(stdin, env)
}
