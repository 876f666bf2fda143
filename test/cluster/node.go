package cluster

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// maxNodes is what the underlay's subnets and the pod CIDRs have room for.
const maxNodes = 200

// Node is one node. See the package's documentation for what it consists of.
type Node struct {
	// Name is the node's name: n1, n2, ...
	Name string
	// PodCIDRs are the node's pod address ranges, IPv4 first.
	PodCIDRs []netip.Prefix

	cluster   *Cluster
	number    int
	disk      string
	space     *space
	processes processes

	mu    sync.Mutex
	pods  map[string]*Pod // by name
	ports map[string]bool // of the switch, by name
}

// AddNode makes a node and registers it with the API server.
func (c *Cluster) AddNode(ctx context.Context) (*Node, error) {
	c.mu.Lock()
	c.number++
	number := c.number
	c.mu.Unlock()
	if number > maxNodes {
		return nil, fmt.Errorf("node %d: a cluster has at most %d", number, maxNodes)
	}
	name := fmt.Sprintf("n%d", number)
	n := &Node{
		Name:    name,
		cluster: c,
		number:  number,
		disk:    filepath.Join(c.dir, "nodes", name),
		pods:    map[string]*Pod{},
		ports:   map[string]bool{},
		PodCIDRs: c.opts.Families.of(
			netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(number), 0}), 24),
			netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 0, 0, 0x10, 2, 0x44, 0, byte(number)}), 64),
		),
	}
	if err := mkdirs(n.disk); err != nil {
		return nil, err
	}
	if err := n.boot(); err != nil {
		return nil, fmt.Errorf("node %s: %w", name, errors.Join(err, os.RemoveAll(n.disk)))
	}
	c.mu.Lock()
	c.nodes = append(c.nodes, n)
	c.mu.Unlock()
	if c.API == nil {
		return n, nil
	}
	return n, n.Register(ctx)
}

// boot makes the node's namespaces and plugs it into the switch.
func (n *Node) boot() error {
	var err error
	n.space, err = newSpace(unix.CLONE_NEWNET|unix.CLONE_NEWNS, func() error {
		return errors.Join(mountRoot(n.disk), linkUp("lo"))
	})
	if err != nil {
		return err
	}
	return n.PlugIn(n.DefaultNIC())
}

// halt ends the node's processes, pods and namespaces, as a power cut does.
// What is on its disk stays.
func (n *Node) halt() error {
	n.processes.kill()
	err := n.unplugAll()
	n.mu.Lock()
	for _, p := range n.pods {
		p.closeNetns()
	}
	clear(n.pods)
	n.mu.Unlock()
	n.space.close()
	return err
}

// Reboot is a power cut and a new start: processes, pods, links and /run are
// gone; the disk, the name and the Node object stay. Nothing else may be done
// with the node meanwhile.
func (n *Node) Reboot() error {
	if err := errors.Join(n.halt(), n.boot()); err != nil {
		return fmt.Errorf("reboot node %s: %w", n.Name, err)
	}
	return nil
}

// Remove halts the node, deletes its Node object and forgets it.
func (n *Node) Remove(ctx context.Context) error {
	c := n.cluster
	c.mu.Lock()
	for i, other := range c.nodes {
		if other == n {
			c.nodes = append(c.nodes[:i:i], c.nodes[i+1:]...)
		}
	}
	c.mu.Unlock()
	return errors.Join(n.halt(), n.Unregister(ctx), os.RemoveAll(n.disk))
}

// Do implements Place.
func (n *Node) Do(f func() error) error { return n.space.do(f) }

// Start starts a program in the node. Its path is one of the node's file
// system. It ends with the node.
func (n *Node) Start(cmd *exec.Cmd) (*Process, error) {
	p, err := n.space.start(cmd)
	if err != nil {
		return nil, fmt.Errorf("node %s: %w", n.Name, err)
	}
	n.processes.add(p)
	return p, nil
}

// Run runs a program in the node to its end and gives what it wrote to its
// standard output. The error holds what it wrote to standard error.
func (n *Node) Run(ctx context.Context, name string, args ...string) ([]byte, error) {
	var out []byte
	err := n.Do(func() error {
		var stderr strings.Builder
		cmd := exec.CommandContext(ctx, name, args...)
		cmd.Stderr = &stderr
		var err error
		if out, err = cmd.Output(); err != nil {
			return fmt.Errorf("node %s: %s %s: %w: %s", n.Name, name, strings.Join(args, " "), err, stderr.String())
		}
		return nil
	})
	return out, err
}

// ReadFile reads a file of the node.
func (n *Node) ReadFile(name string) (data []byte, err error) {
	err = n.Do(func() error {
		data, err = os.ReadFile(name)
		return err
	})
	return data, err
}

// WriteFile writes a file of the node, making its directory where needed.
func (n *Node) WriteFile(name string, data []byte, mode os.FileMode) error {
	return n.Do(func() error {
		if err := mkdirs(filepath.Dir(name)); err != nil {
			return err
		}
		return os.WriteFile(name, data, mode)
	})
}

// Underlay are the node's addresses on the underlay as it was made, IPv4
// first.
func (n *Node) Underlay() []netip.Addr {
	var addrs []netip.Addr
	for _, p := range n.DefaultNIC().Addrs {
		addrs = append(addrs, p.Addr())
	}
	return addrs
}

// Register creates the Node object, with the node's pod CIDRs and addresses.
// It has a new UID each time.
func (n *Node) Register(ctx context.Context) error {
	nodes := n.cluster.API.Client.CoreV1().Nodes()
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{
		Name:   n.Name,
		Labels: map[string]string{"kubernetes.io/hostname": n.Name, "kubernetes.io/os": "linux"},
	}}
	for _, cidr := range n.PodCIDRs {
		node.Spec.PodCIDRs = append(node.Spec.PodCIDRs, cidr.String())
	}
	if len(node.Spec.PodCIDRs) > 0 {
		node.Spec.PodCIDR = node.Spec.PodCIDRs[0]
	}
	node, err := nodes.Create(ctx, node, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("register node %s: %w", n.Name, err)
	}
	node.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeHostName, Address: n.Name}}
	for _, addr := range n.Underlay() {
		node.Status.Addresses = append(node.Status.Addresses,
			corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: addr.String()})
	}
	node.Status.Conditions = []corev1.NodeCondition{{
		Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "TestCluster",
		LastHeartbeatTime: metav1.Now(), LastTransitionTime: metav1.Now(),
	}}
	if _, err := nodes.UpdateStatus(ctx, node, metav1.UpdateOptions{}); err != nil {
		return fmt.Errorf("register node %s: %w", n.Name, err)
	}
	return nil
}

// Unregister deletes the Node object, where it is still there.
func (n *Node) Unregister(ctx context.Context) error {
	if n.cluster.API == nil {
		return nil
	}
	err := n.cluster.API.Client.CoreV1().Nodes().Delete(ctx, n.Name, metav1.DeleteOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete node %s: %w", n.Name, err)
	}
	return nil
}
