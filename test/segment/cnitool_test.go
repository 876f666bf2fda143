package segment_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/weft-cni/weft/test/cluster"
)

// tool is cnitool on a node: it attaches network namespaces as an administrator
// does by hand.
type tool struct {
	node *cluster.Node
	path string
}

// newTool builds cnitool, of the module that the product is built with.
func newTool(t *testing.T, n *cluster.Node) tool {
	t.Helper()
	path := filepath.Join(t.TempDir(), "cnitool")
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-o", path, "github.com/containernetworking/cni/cnitool")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return tool{node: n, path: path}
}

// run runs a command for the network of this name in the node's configuration
// directory.
func (c tool) run(ctx context.Context, command, network string, p *cluster.Pod, env ...string) (out []byte, err error) {
	err = c.node.Do(func() error {
		var problems bytes.Buffer
		cmd := exec.CommandContext(ctx, c.path, command, network, p.Netns)
		cmd.Env = slices.Concat([]string{"PATH=" + os.Getenv("PATH"), "CNI_PATH=/opt/cni/bin", "CNI_IFNAME=net1"}, env)
		cmd.Stderr = &problems
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		var runErr error
		if out, runErr = cmd.Output(); runErr != nil {
			return fmt.Errorf("cnitool %s: %w: %s%s", command, runErr, out, problems.Bytes())
		}
		return nil
	})
	return out, err
}

// TestCNITool attaches a network namespace on each node with nothing but
// cnitool: with the runtime's arguments (runtimeConfig) on one, with CNI_ARGS on
// the other.
func TestCNITool(t *testing.T) {
	l := newLab(t, 2)
	conf := bytes.Replace(tenant(1001, ""), []byte(`"mode"`), []byte(`"capabilities":{"ips":true,"mac":true},"mode"`), 1)
	asked := []struct{ env, ip4, ip6, mac string }{
		{`CAP_ARGS={"ips":["192.168.7.20/24","fd00:7::20/64"],"mac":"02:00:00:00:07:20"}`, "192.168.7.20", "fd00:7::20", "02:00:00:00:07:20"},
		{"CNI_ARGS=IP=192.168.7.40,fd00:7::40;MAC=02:00:00:00:07:40", "192.168.7.40", "fd00:7::40", "02:00:00:00:07:40"},
	}
	var pods []*cluster.Pod
	var tools []tool
	for i, n := range l.Nodes() {
		if err := n.Do(func() error { return os.WriteFile("/etc/cni/net.d/50-tenant.conflist", conf, 0o600) }); err != nil {
			t.Fatal(err)
		}
		p, err := n.NewPod(fmt.Sprint("pod", i), cluster.PodOptions{IfName: "net1"})
		if err != nil {
			t.Fatal(err)
		}
		c := newTool(t, n)
		pods, tools = append(pods, p), append(tools, c)
		out, err := c.run(within(t, 30*time.Second), "add", "tenant1001", p, asked[i].env)
		if err != nil {
			t.Fatal(err)
		}
		p.Result = &current.Result{}
		if err := json.Unmarshal(out, p.Result); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		if got := fmt.Sprint(p.IPs()); got != fmt.Sprintf("[%s %s]", asked[i].ip4, asked[i].ip6) {
			t.Errorf("addresses are %s:\n%s", got, out)
		}
		pod := p.Result.Interfaces[len(p.Result.Interfaces)-1]
		if pod.Name != "net1" || pod.Mac != asked[i].mac || pod.Sandbox != p.Netns {
			t.Errorf("the pod's interface is %+v", pod)
		}
	}
	l.reach(pods[0], pods[1])
	for i, p := range pods {
		for _, command := range []string{"check", "del", "del"} { // DEL may come twice
			if _, err := tools[i].run(within(t, 30*time.Second), command, "tenant1001", p, asked[i].env); err != nil {
				t.Error(err)
			}
		}
		if err := p.DestroyNetns(); err != nil {
			t.Error(err)
		}
	}
	l.empty()
}
