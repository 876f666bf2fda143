package netconf

import "net/netip"

// Paths on the node. The daemon and the plugin agree on them; a test cluster
// gives each node its own by mount namespaces.
const (
	RunDir      = "/run/weft"     // node.json; gone after a reboot
	DataDir     = "/var/lib/weft" // records; kept over a reboot
	NodeFile    = "node.json"     // in RunDir
	BinDir      = "/opt/cni/bin"
	ConfDir     = "/etc/cni/net.d"
	ConfList    = "10-weft.conflist"
	Type        = "weft" // of the plugin, in a network configuration
	ClusterName = "weft" // of the cluster network in ConfList
	LinkStart   = "weft" // every host end of a pod's veth starts so
)

// The link-local next hops of every pod. Each pod has a permanent neighbour
// entry for them, so no ARP or ND is ever sent and the host need not own them.
var (
	Gateway4 = netip.MustParseAddr("169.254.1.1")
	Gateway6 = netip.MustParseAddr("fe80::1")
)

// HostMAC is the Ethernet address of the host end of every pod's veth. Each
// is a link of its own with one pod on it, so one address serves all.
const HostMAC = "ee:ee:ee:ee:ee:ee"

// Node is what the plugin needs to know of its node. The daemon writes it to
// RunDir/NodeFile, atomically, once its first sync since boot is done, and
// again whenever it changes.
type Node struct {
	Name string `json:"name"`
	// BootID is /proc/sys/kernel/random/boot_id when the file was written: a
	// file from before a reboot is as good as none, also where RunDir is on a
	// disk.
	BootID string `json:"bootID"`
	// PodCIDRs are the ranges that pods' addresses come from, both families,
	// in the order of the Node object. The first address of each is the
	// node's own.
	PodCIDRs []netip.Prefix `json:"podCIDRs"`
	// MTU is the MTU of pods' interfaces in bytes.
	MTU int `json:"mtu"`
}
