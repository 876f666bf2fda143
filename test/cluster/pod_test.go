package cluster_test

import (
	"errors"
	"os"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/weft-cni/weft/test/cluster"
	"github.com/weft-cni/weft/test/probe"
	"github.com/weft-cni/weft/test/programs"
)

// A network of the reference plugins, to see the cluster itself at work.
const bridgeNetwork = `{"cniVersion": "1.1.0", "name": "reference", "plugins": [{
	"type": "bridge", "bridge": "br0", "isGateway": true,
	"ipam": {"type": "host-local", "ranges": [[{"subnet": "10.99.0.0/24"}], [{"subnet": "fd99::/64"}]]}}]}`

func referencePlugins(t *testing.T) cluster.PodOptions {
	t.Helper()
	dir, err := programs.Plugins(t.Context(), t.Output())
	if err != nil {
		t.Fatal(err)
	}
	return cluster.PodOptions{BinDirs: []string{dir}}
}

func TestPodsAreAttachedInTheirNode(t *testing.T) {
	c := cluster.New(t, cluster.Options{Nodes: 2, NoAPI: true})
	ctx, n, opts := within(t, time.Minute), c.Node(1), referencePlugins(t)
	if err := n.WriteFile("/etc/cni/net.d/10-reference.conflist", []byte(bridgeNetwork), 0o600); err != nil {
		t.Fatal(err)
	}
	a, err := n.AttachPod(ctx, "a", opts)
	if err != nil {
		t.Fatal(err)
	}
	b, err := n.AttachPod(ctx, "b", opts)
	if err != nil {
		t.Fatal(err)
	}
	for _, ip := range b.IPs() {
		if _, err := probe.Ping(ctx, a, ip); err != nil {
			t.Error(err)
		}
	}
	if len(b.IPs()) != 2 || !b.IP(4).Is4() || !b.IP(6).Is6() {
		t.Errorf("addresses of b: %s", b.IPs())
	}
	if _, err := os.Stat(a.Netns); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the machine sees %s: %v", a.Netns, err)
	}
	if err := a.Check(ctx); err != nil {
		t.Error(err)
	}
	if err := a.Detach(ctx); err != nil {
		t.Error(err)
	}
	if err := b.DestroyNetns(); err != nil {
		t.Error(err)
	}
	if err := b.Del(ctx); err != nil {
		t.Errorf("DEL without a network namespace: %v", err)
	}
	if names, err := readDir(n, "/run/netns"); err != nil || len(names) != 0 {
		t.Errorf("network namespaces are left: %q, %v", names, err)
	}
}

func TestAPodWithoutANetworkConfiguration(t *testing.T) {
	c := cluster.New(t, cluster.Options{Nodes: 1, NoAPI: true})
	_, err := c.Node(1).AttachPod(t.Context(), "a", cluster.PodOptions{})
	if !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	if names, err := readDir(c.Node(1), "/run/netns"); err != nil || len(names) != 0 {
		t.Errorf("network namespaces are left: %q, %v", names, err)
	}
}

func TestErrorsOfAPluginHaveTheirCode(t *testing.T) {
	c := cluster.New(t, cluster.Options{Nodes: 1, NoAPI: true})
	opts := referencePlugins(t)
	opts.ConfList = []byte(`{"cniVersion": "1.1.0", "name": "x", "plugins": [{"type": "bridge", "ipam": {"type": "static", "addresses": [{"address": "nonsense"}]}}]}`)
	_, err := c.Node(1).AttachPod(within(t, time.Minute), "a", opts)
	if cniErr, ok := errors.AsType[*types.Error](err); !ok || cniErr.Code == 0 {
		t.Errorf("%#v", err)
	}
}
