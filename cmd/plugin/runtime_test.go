package main_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"

	"github.com/weft-cni/weft/pkg/netconf"
	"github.com/weft-cni/weft/test/programs"
	"github.com/weft-cni/weft/test/single"
	"github.com/weft-cni/weft/test/testns"
)

// runtime is what containerd and CRI-O do with a list of plugins.
type runtime struct {
	cni  *libcni.CNIConfig
	list *libcni.NetworkConfigList
}

func newRuntime(t *testing.T, n *single.Node, version string, more ...string) runtime {
	t.Helper()
	plugins, err := programs.Plugins(t.Context(), io.Discard)
	must(t, err)
	own := map[string]any{}
	must(t, json.Unmarshal([]byte(config(t, n, `{"capabilities": {"ips": true, "mac": true}}`)), &own))
	delete(own, "cniVersion")
	delete(own, "name")
	first, err := json.Marshal(own)
	must(t, err)
	list, err := libcni.NetworkConfFromBytes(fmt.Appendf(nil, `{"cniVersion": %q, "name": "weft", "plugins": [%s]}`,
		version, strings.Join(append([]string{string(first)}, more...), ",")))
	must(t, err)
	return runtime{libcni.NewCNIConfigWithCacheDir([]string{bin, plugins}, filepath.Join(n.Dir, "cache"), nil), list}
}

func attachment(pod *testns.NS) *libcni.RuntimeConf {
	return &libcni.RuntimeConf{
		ContainerID: "a1b2c3", NetNS: pod.Path, IfName: "eth0",
		Args: [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", "default"}, {"K8S_POD_NAME", "web"}},
	}
}

// TestRuntime: ADD, CHECK, GC, STATUS and DEL as a runtime does them, in every
// version of CNI.
func TestRuntime(t *testing.T) {
	for _, version := range netconf.Versions {
		t.Run(version, func(t *testing.T) {
			ctx := t.Context()
			n, pod := single.New(t), testns.New(t)
			r := newRuntime(t, n, version)
			must(t, r.cni.GetStatusNetworkList(ctx, r.list))
			_, err := r.cni.ValidateNetworkList(ctx, r.list)
			must(t, err)
			rt := attachment(pod)
			rt.CapabilityArgs = map[string]any{"ips": []string{"10.244.1.9"}, "mac": "02:00:5e:10:00:01"}
			result, err := r.cni.AddNetworkList(ctx, r.list, rt)
			must(t, err)
			if result.Version() != version {
				t.Errorf("result in version %s", result.Version())
			}
			newest, err := types100.NewResultFromResult(result)
			must(t, err)
			if ip := newest.IPs[0].Address.String(); ip != "10.244.1.9/32" || newest.Interfaces[1].Mac != "02:00:5e:10:00:01" {
				t.Errorf("got %s and %s", ip, newest.Interfaces[1].Mac)
			}
			if version != "0.3.1" {
				must(t, r.cni.CheckNetworkList(ctx, r.list, rt))
			}
			keep := &libcni.GCArgs{ValidAttachments: []types.GCAttachment{{ContainerID: "a1b2c3", IfName: "eth0"}}}
			must(t, r.cni.GCNetworkList(ctx, r.list, keep))
			if !strings.Contains(pod.Dump(t), "addr 10.244.1.9/32 dev eth0") {
				t.Errorf("after GC:\n%s", pod.Dump(t))
			}
			if version == "1.1.0" {
				must(t, r.cni.GCNetworkList(ctx, r.list, &libcni.GCArgs{}))
				if left := n.Dump(t) + pod.Dump(t); left != "" {
					t.Errorf("after GC of everything:\n%s", left)
				}
			}
			must(t, r.cni.DelNetworkList(ctx, r.list, rt))
			if left := n.Dump(t) + pod.Dump(t); left != "" {
				t.Errorf("left behind:\n%s", left)
			}
		})
	}
}

// TestChained: portmap and bandwidth work behind weft: a port of the node
// leads to the pod, and the host end has the limit.
func TestChained(t *testing.T) {
	ctx := t.Context()
	n, pod := single.New(t), testns.New(t)
	must(t, os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0))
	r := newRuntime(t, n, "1.1.0",
		`{"type": "portmap", "capabilities": {"portMappings": true}, "snat": true, "backend": "nftables"}`,
		`{"type": "bandwidth", "capabilities": {"bandwidth": true}}`)
	rt := attachment(pod)
	rt.CapabilityArgs = map[string]any{
		"portMappings": []map[string]any{{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}},
		"bandwidth":    map[string]any{"ingressRate": 8_000_000, "ingressBurst": 8_000_000, "egressRate": 8_000_000, "egressBurst": 8_000_000},
	}
	result, err := r.cni.AddNetworkList(ctx, r.list, rt)
	must(t, err)
	newest, err := types100.NewResultFromResult(result)
	must(t, err)
	must(t, r.cni.CheckNetworkList(ctx, r.list, rt))

	host, err := n.Handle.LinkByName(newest.Interfaces[0].Name)
	must(t, err)
	qdiscs, err := n.Handle.QdiscList(host)
	must(t, err)
	limited := false
	for _, q := range qdiscs {
		limited = limited || q.Type() == "tbf"
	}
	if !limited {
		t.Errorf("no limit on %s: %v", host.Attrs().Name, qdiscs)
	}
	giveAddr(t, n, "192.0.2.1/32")
	if got := fetch(t, n, pod, "192.0.2.1:8080"); got != "hello from the pod" {
		t.Errorf("through the node's port: %q", got)
	}
	must(t, r.cni.DelNetworkList(ctx, r.list, rt))
	if left := pod.Dump(t); left != "" || strings.Contains(n.Dump(t), "type veth") {
		t.Errorf("left behind:\n%s%s", n.Dump(t), left)
	}
}

// fetch reads what a server in the pod, on port 80, says to a client on the
// node that dials addr.
func fetch(t *testing.T, n *single.Node, pod *testns.NS, addr string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	var server net.Listener
	must(t, pod.Do(func() (err error) {
		server, err = new(net.ListenConfig).Listen(ctx, "tcp4", ":80")
		return err
	}))
	defer server.Close()
	go func() {
		if c, err := server.Accept(); err == nil {
			_, _ = io.WriteString(c, "hello from the pod")
			_ = c.Close()
		}
	}()
	var text []byte
	must(t, n.Do(func() error {
		c, err := new(net.Dialer).DialContext(ctx, "tcp4", addr)
		if err != nil {
			return err
		}
		defer c.Close()
		deadline, _ := ctx.Deadline()
		if err = c.SetDeadline(deadline); err == nil {
			text, err = io.ReadAll(c)
		}
		return err
	}))
	return string(text)
}

func giveAddr(t *testing.T, n *single.Node, addr string) {
	t.Helper()
	lo, err := n.Handle.LinkByName("lo")
	must(t, err)
	a, err := netlink.ParseAddr(addr)
	must(t, err)
	must(t, n.Handle.AddrAdd(lo, a))
}
