// Package cluster is a real Kubernetes cluster for tests, benchmarks and the
// demo, in one process group and without containers: etcd and kube-apiserver
// as processes, and nodes that are network and mount namespaces joined by a
// switch. The real weftd runs in the nodes, and libcni runs the real weft
// plugin there. It needs nothing installed but Go.
//
//	func TestMain(m *testing.M) { cluster.Main(m) }
//
//	func TestPodsReachEachOther(t *testing.T) {
//		c := cluster.New(t, cluster.Options{Nodes: 2})
//		for _, n := range c.Nodes() {
//			n.Weftd(t) // the daemon, ready
//		}
//		a, b := c.Node(1).Attach(t, "a"), c.Node(2).Attach(t, "b")
//		rtt, err := probe.Ping(t.Context(), a, b.IPs()[0])
//		...
//	}
//
// Package probe measures between the places of a cluster: nodes, pods and the
// outside.
//
// # What a node is
//
// A [Node] has a network namespace with eth0 on the switch, and a mount
// namespace whose root shows the machine's files but for these of its own:
// /etc/cni, /etc/weft, /opt/cni, /var/lib/cni and /var/lib/weft on disk, an
// empty /run with a shared /run/netns, a /sys of its network namespace, and a
// boot ID. [Node.Do] runs a function in the node; [Node.Start] and [Node.Run]
// run programs there. [Node.Reboot] keeps the disk and nothing else.
//
// # Programs
//
// weft and weftd are those in $WEFT_BIN_DIR, or are built once a process. Where
// kube-apiserver and etcd come from, package programs says; $KUBEBUILDER_ASSETS
// names a directory that has them.
//
// # What is left behind
//
// Nothing. Namespaces are held by open files, and children are killed by the
// kernel when this process ends in whatever way. Files lie in one directory
// below /var/tmp (or $TMPDIR), locked by this process and removed by it, or,
// where it was killed, by the next that makes a cluster.
//
// # Rights
//
// Where the process is not root, [Main] and [Run] start it again as root of a
// user namespace; kernels that forbid those make it fail.
package cluster
