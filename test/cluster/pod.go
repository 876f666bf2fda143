package cluster

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"
	"golang.org/x/sys/unix"
)

// Paths of a node, as a container runtime is configured with them.
const (
	confDir  = "/etc/cni/net.d"
	binDir   = "/opt/cni/bin"
	netnsDir = "/run/netns"
)

// PodOptions say how a pod is attached. The zero value is what kubelet and
// containerd do for a plain pod.
type PodOptions struct {
	Namespace string // "default" where empty
	IfName    string // "eth0" where empty
	// ConfList is the network configuration list; the first of the node's
	// /etc/cni/net.d where nil.
	ConfList []byte
	// BinDirs are searched for plugins before the node's /opt/cni/bin. They
	// are paths of the node.
	BinDirs []string
	// CapabilityArgs are the runtime's arguments (runtimeConfig).
	CapabilityArgs map[string]any
	// Args are further CNI_ARGS.
	Args [][2]string
	// NoRetry gives errors of code 11 ("try again later") back. Otherwise ADD
	// is tried again until the context ends.
	NoRetry bool
}

// Pod is a pod's network namespace and its attachment.
type Pod struct {
	Name, Namespace, UID string
	ContainerID          string
	// Netns is the path of the network namespace in the node.
	Netns string
	Node  *Node
	// Result is what ADD gave; nil before and after.
	Result *current.Result

	opts  PodOptions
	space *space
}

// NewPod makes a pod's network namespace, with nothing but lo in it.
func (n *Node) NewPod(name string, opts PodOptions) (*Pod, error) {
	opts.Namespace = cmp.Or(opts.Namespace, "default")
	opts.IfName = cmp.Or(opts.IfName, "eth0")
	id, err := os.ReadFile("/proc/sys/kernel/random/uuid")
	if err != nil {
		return nil, err
	}
	uid := strings.TrimSpace(string(id))
	p := &Pod{
		Name: name, Namespace: opts.Namespace, UID: uid, Node: n, opts: opts,
		ContainerID: strings.ReplaceAll(uid, "-", ""),
		Netns:       filepath.Join(netnsDir, "cni-"+uid),
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if _, ok := n.pods[name]; ok {
		return nil, fmt.Errorf("pod %s on %s: exists", name, n.Name)
	}
	if err := n.Do(p.makeNetns); err != nil {
		return nil, fmt.Errorf("make the network namespace of pod %s on %s: %w", name, n.Name, err)
	}
	n.pods[name] = p
	return p, nil
}

// makeNetns makes the pod's network namespace and binds it to its path. It
// runs in the node.
func (p *Pod) makeNetns() error {
	var err error
	if p.space, err = newSpace(unix.CLONE_NEWNET, func() error { return linkUp("lo") }); err != nil {
		return err
	}
	p.space.mnt = p.Node.space.mnt
	if err = os.WriteFile(p.Netns, nil, 0o600); err != nil {
		return err
	}
	return unix.Mount(fmt.Sprintf("/proc/self/fd/%d", p.space.net.Fd()), p.Netns, "", unix.MS_BIND, "")
}

// AttachPod makes a pod and attaches it: what kubelet and the container
// runtime do. On an error nothing of the pod is left but what the plugin left.
func (n *Node) AttachPod(ctx context.Context, name string, opts PodOptions) (*Pod, error) {
	p, err := n.NewPod(name, opts)
	if err != nil {
		return nil, err
	}
	if err := p.Add(ctx); err != nil {
		return nil, errors.Join(err, p.DestroyNetns())
	}
	return p, nil
}

// Attach is AttachPod for a test, which fails where the pod can't be attached.
func (n *Node) Attach(t testing.TB, name string) *Pod {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	p, err := n.AttachPod(ctx, name, PodOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// Do implements Place. The files are those of the pod's node.
func (p *Pod) Do(f func() error) error { return p.space.do(f) }

// IPs are the pod's addresses, as ADD gave them.
func (p *Pod) IPs() []netip.Addr {
	if p.Result == nil {
		return nil
	}
	var ips []netip.Addr
	for _, ip := range p.Result.IPs {
		if addr, ok := netip.AddrFromSlice(ip.Address.IP); ok {
			ips = append(ips, addr.Unmap())
		}
	}
	return ips
}

// IP is the pod's first address of a family, 4 or 6.
func (p *Pod) IP(family int) netip.Addr {
	for _, ip := range p.IPs() {
		if ip.Is4() == (family == 4) {
			return ip
		}
	}
	return netip.Addr{}
}

// Add runs ADD and keeps its result. Errors of the plugin are *types.Error.
func (p *Pod) Add(ctx context.Context) error {
	for {
		err := p.cni(func(c *libcni.CNIConfig, list *libcni.NetworkConfigList, rt *libcni.RuntimeConf) error {
			result, err := c.AddNetworkList(ctx, list, rt)
			if err != nil {
				return fmt.Errorf("ADD of pod %s on %s: %w", p.Name, p.Node.Name, err)
			}
			p.Result, err = current.NewResultFromResult(result)
			return err
		})
		cniErr, ok := errors.AsType[*types.Error](err)
		if !ok || cniErr.Code != types.ErrTryAgainLater || p.opts.NoRetry {
			return err
		}
		select {
		case <-ctx.Done():
			return errors.Join(err, ctx.Err())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// Del runs DEL.
func (p *Pod) Del(ctx context.Context) error {
	return p.cni(func(c *libcni.CNIConfig, list *libcni.NetworkConfigList, rt *libcni.RuntimeConf) error {
		if err := c.DelNetworkList(ctx, list, rt); err != nil {
			return fmt.Errorf("DEL of pod %s on %s: %w", p.Name, p.Node.Name, err)
		}
		p.Result = nil
		return nil
	})
}

// Check runs CHECK against what ADD gave.
func (p *Pod) Check(ctx context.Context) error {
	return p.cni(func(c *libcni.CNIConfig, list *libcni.NetworkConfigList, rt *libcni.RuntimeConf) error {
		if err := c.CheckNetworkList(ctx, list, rt); err != nil {
			return fmt.Errorf("CHECK of pod %s on %s: %w", p.Name, p.Node.Name, err)
		}
		return nil
	})
}

// Detach runs DEL and removes the pod's network namespace: the end of a pod.
func (p *Pod) Detach(ctx context.Context) error {
	if err := p.Del(ctx); err != nil {
		return err
	}
	return p.DestroyNetns()
}

// DestroyNetns removes the pod's network namespace without DEL, as when a
// node's runtime has crashed. Del still works afterwards.
func (p *Pod) DestroyNetns() error {
	p.Node.mu.Lock()
	defer p.Node.mu.Unlock()
	if p.Node.pods[p.Name] == p {
		delete(p.Node.pods, p.Name)
	}
	if p.space.net == nil {
		return nil
	}
	p.closeNetns()
	return p.Node.Do(func() error {
		if err := unix.Unmount(p.Netns, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount %s: %w", p.Netns, err)
		}
		return os.Remove(p.Netns)
	})
}

// closeNetns lets go of the namespace. The mount namespace is the node's.
func (p *Pod) closeNetns() {
	(&space{net: p.space.net}).close()
	p.space = &space{}
}

// cni runs a CNI operation on the pod in its node.
func (p *Pod) cni(f func(*libcni.CNIConfig, *libcni.NetworkConfigList, *libcni.RuntimeConf) error) error {
	rt := &libcni.RuntimeConf{
		ContainerID: p.ContainerID, NetNS: p.Netns, IfName: p.opts.IfName,
		Args: slices.Concat([][2]string{
			{"IgnoreUnknown", "1"},
			{"K8S_POD_NAMESPACE", p.Namespace},
			{"K8S_POD_NAME", p.Name},
			{"K8S_POD_INFRA_CONTAINER_ID", p.ContainerID},
			{"K8S_POD_UID", p.UID},
		}, p.opts.Args),
		CapabilityArgs: p.opts.CapabilityArgs,
	}
	return p.Node.cni(p.opts, func(c *libcni.CNIConfig, list *libcni.NetworkConfigList) error { return f(c, list, rt) })
}

// GC runs GC of the cluster network with the attachments that are to stay.
func (n *Node) GC(ctx context.Context, valid ...*Pod) error { return n.GCOf(ctx, nil, valid...) }

// GCOf runs GC of the network of a configuration list with the attachments to it
// that are to stay.
func (n *Node) GCOf(ctx context.Context, confList []byte, valid ...*Pod) error {
	args := &libcni.GCArgs{ValidAttachments: []types.GCAttachment{}}
	for _, p := range valid {
		args.ValidAttachments = append(args.ValidAttachments,
			types.GCAttachment{ContainerID: p.ContainerID, IfName: p.opts.IfName})
	}
	return n.cni(PodOptions{ConfList: confList}, func(c *libcni.CNIConfig, list *libcni.NetworkConfigList) error {
		if err := c.GCNetworkList(ctx, list, args); err != nil {
			return fmt.Errorf("GC of %s on %s: %w", list.Name, n.Name, err)
		}
		return nil
	})
}

// Status runs STATUS.
func (n *Node) Status(ctx context.Context) error {
	return n.cni(PodOptions{}, func(c *libcni.CNIConfig, list *libcni.NetworkConfigList) error {
		if err := c.GetStatusNetworkList(ctx, list); err != nil {
			return fmt.Errorf("STATUS on %s: %w", n.Name, err)
		}
		return nil
	})
}

// cni runs f in the node with libcni and a network configuration list.
func (n *Node) cni(opts PodOptions, f func(*libcni.CNIConfig, *libcni.NetworkConfigList) error) error {
	return n.Do(func() error {
		var list *libcni.NetworkConfigList
		var err error
		if opts.ConfList != nil {
			list, err = libcni.NetworkConfFromBytes(opts.ConfList)
		} else {
			list, err = firstConfList()
		}
		if err != nil {
			return fmt.Errorf("network configuration of %s: %w", n.Name, err)
		}
		dirs := slices.Concat(opts.BinDirs, []string{binDir})
		return f(libcni.NewCNIConfig(dirs, &pluginExec{}), list)
	})
}

// firstConfList is the network that a container runtime picks.
func firstConfList() (*libcni.NetworkConfigList, error) {
	files, err := libcni.ConfFiles(confDir, []string{".conflist"})
	if err != nil {
		return nil, err
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("%s has none: %w", confDir, os.ErrNotExist)
	}
	slices.Sort(files)
	return libcni.NetworkConfFromFile(files[0])
}

// pluginExec runs plugins as libcni's own invoke.Exec does, and has them
// killed with this process.
type pluginExec struct{ version.PluginDecoder }

func (*pluginExec) FindInPath(plugin string, paths []string) (string, error) {
	return invoke.FindInPath(plugin, paths)
}

func (*pluginExec) ExecPlugin(ctx context.Context, path string, stdin []byte, env []string) ([]byte, error) {
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, path)
	cmd.Env = env
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), &stdout, &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
	if err == nil {
		return stdout.Bytes(), nil
	}
	cniErr := &types.Error{}
	if json.Unmarshal(stdout.Bytes(), cniErr) == nil && cniErr.Msg != "" {
		return nil, cniErr
	}
	return nil, fmt.Errorf("%s: %w: %s%s", path, err, stdout.Bytes(), stderr.Bytes())
}
