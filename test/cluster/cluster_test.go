package cluster_test

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/weft-cni/weft/test/cluster"
	"github.com/weft-cni/weft/test/probe"
)

func TestMain(m *testing.M) { cluster.Main(m) }

// within is a context for what has to be quick.
func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func TestNodesReachEachOtherOverTheSwitch(t *testing.T) {
	for name, test := range map[string]struct {
		families cluster.Families
		addrs    int
	}{
		"dual stack": {cluster.Dual, 2},
		"IPv4":       {cluster.IPv4Only, 1},
		"IPv6":       {cluster.IPv6Only, 1},
	} {
		t.Run(name, func(t *testing.T) {
			c := cluster.New(t, cluster.Options{Nodes: 3, NoAPI: true, Families: test.families, MTU: 9000})
			for _, from := range c.Nodes() {
				if got := len(from.Underlay()); got != test.addrs {
					t.Errorf("%s has %d addresses, want %d", from.Name, got, test.addrs)
				}
				for _, to := range c.Nodes() {
					for _, addr := range to.Underlay() {
						if _, err := probe.Ping(within(t, 5*time.Second), from, addr); err != nil {
							t.Errorf("%s to %s: %v", from.Name, to.Name, err)
						}
					}
				}
			}
		})
	}
}

func TestNodesReachTheOutside(t *testing.T) {
	c := cluster.New(t, cluster.Options{Nodes: 1, NoAPI: true})
	for _, addr := range []netip.Addr{cluster.Outside4, cluster.Outside6} {
		if _, err := probe.Ping(within(t, 5*time.Second), c.Node(1), addr); err != nil {
			t.Error(err)
		}
	}
}

func TestANodeHasFilesOfItsOwn(t *testing.T) {
	c := cluster.New(t, cluster.Options{Nodes: 2, NoAPI: true})
	own := []string{"/etc/cni/net.d/x", "/etc/weft/x", "/opt/cni/bin/x", "/var/lib/cni/x", "/var/lib/weft/x", "/run/x", "/run/netns/x"}
	for _, name := range own {
		if err := c.Node(1).WriteFile(name, []byte("1"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Node(2).ReadFile(name); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s of n1 on n2: %v", name, err)
		}
		if _, err := os.Stat(name); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s of n1 on the machine: %v", name, err)
		}
	}
	if _, err := c.Node(1).ReadFile("/etc/passwd"); err != nil {
		t.Errorf("the machine's files: %v", err)
	}
	entries, err := readDir(c.Node(1), "/sys/class/net")
	if err != nil || strings.Join(entries, " ") != "eth0 lo" {
		t.Errorf("/sys/class/net: %q, %v", entries, err)
	}
}

func readDir(n *cluster.Node, dir string) (names []string, err error) {
	err = n.Do(func() error {
		var entries []os.DirEntry
		entries, err = os.ReadDir(dir)
		for _, e := range entries {
			names = append(names, e.Name())
		}
		return err
	})
	return names, err
}

func TestARebootKeepsTheDiskOnly(t *testing.T) {
	c := cluster.New(t, cluster.Options{Nodes: 2, NoAPI: true})
	n := c.Node(1)
	for _, name := range []string{"/var/lib/weft/kept", "/run/gone"} {
		if err := n.WriteFile(name, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	pod, err := n.NewPod("p", cluster.PodOptions{})
	if err != nil {
		t.Fatal(err)
	}
	before := bootID(t, n)
	if before != bootID(t, n) || before == bootID(t, c.Node(2)) {
		t.Error("a boot ID is the node's own")
	}
	if err := n.Reboot(); err != nil {
		t.Fatal(err)
	}
	if before == bootID(t, n) {
		t.Error("the boot ID outlives a reboot")
	}
	if _, err := n.ReadFile("/var/lib/weft/kept"); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"/run/gone", pod.Netns} {
		if _, err := n.ReadFile(name); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s after a reboot: %v", name, err)
		}
	}
	if _, err := probe.Ping(within(t, 5*time.Second), n, c.Node(2).Underlay()[0]); err != nil {
		t.Error(err)
	}
}

func bootID(t *testing.T, n *cluster.Node) string {
	t.Helper()
	id, err := n.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		t.Fatal(err)
	}
	return string(id)
}

func TestScriptsEnterAPlace(t *testing.T) {
	c := cluster.New(t, cluster.Options{Nodes: 1, NoAPI: true})
	n := c.Node(1)
	if err := n.WriteFile("/run/here", []byte("n1"), 0o600); err != nil {
		t.Fatal(err)
	}
	script, err := c.EnterScript(n, "n1")
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), script, "cat", "/run/here").CombinedOutput(); string(out) != "n1" || err != nil {
		t.Errorf("%s: %v", out, err)
	}
}

func TestTheUnderlayCanBeChanged(t *testing.T) {
	c := cluster.New(t, cluster.Options{Nodes: 2, NoAPI: true})
	n := c.Node(1)
	if err := n.Unplug(cluster.NICName); err != nil {
		t.Fatal(err)
	}
	addr := netip.MustParsePrefix("172.30.0.99/24")
	nic := cluster.NIC{Name: "eth1", MTU: 1400, Addrs: []netip.Prefix{addr}}
	if err := n.PlugIn(nic); err != nil {
		t.Fatal(err)
	}
	if _, err := probe.Ping(within(t, 5*time.Second), c.Node(2), addr.Addr()); err != nil {
		t.Error(err)
	}
	err := n.Do(func() error {
		link, err := netlink.LinkByName("eth1")
		if err == nil && link.Attrs().MTU != 1400 {
			t.Errorf("MTU of eth1 is %d", link.Attrs().MTU)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func TestTheAPIServerServes(t *testing.T) {
	c := cluster.New(t, cluster.Options{Nodes: 3, Manifests: []string{"../../manifests/base/crds"}, GarbageCollector: true})
	ctx := within(t, time.Minute)
	nodes, err := c.API.Client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil || len(nodes.Items) != 3 {
		t.Fatalf("%d nodes, %v", len(nodes.Items), err)
	}
	if got, want := nodes.Items[1].Spec.PodCIDRs, "10.244.2.0/24 fd00:10:244:2::/64"; strings.Join(got, " ") != want {
		t.Errorf("pod CIDRs of n2 are %s, want %s", got, want)
	}
	t.Run("after a stop and a start with its data", func(t *testing.T) {
		c.API.Stop()
		if _, err := c.API.Client.CoreV1().Nodes().List(within(t, time.Second), metav1.ListOptions{}); err == nil {
			t.Error("a stopped API server answers")
		}
		if err := c.API.Start(ctx); err != nil {
			t.Fatal(err)
		}
		if _, err := c.API.Client.CoreV1().Nodes().Get(ctx, "n3", metav1.GetOptions{}); err != nil {
			t.Error(err)
		}
	})
	t.Run("and what a deleted node owned goes", func(t *testing.T) { ownedObjectsGo(ctx, t, c) })
	t.Run("and programs outside of the cluster reach it", func(t *testing.T) {
		config, err := clientcmd.BuildConfigFromFlags("", c.API.Kubeconfig)
		if err != nil {
			t.Fatal(err)
		}
		client, err := kubernetes.NewForConfig(config)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := client.CoreV1().Nodes().Get(ctx, "n1", metav1.GetOptions{}); err != nil {
			t.Error(err)
		}
	})
}

func ownedObjectsGo(ctx context.Context, t *testing.T, c *cluster.Cluster) {
	t.Helper()
	node, err := c.API.Client.CoreV1().Nodes().Get(ctx, "n3", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	maps := c.API.Client.CoreV1().ConfigMaps("default")
	_, err = maps.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{
		Name:            "owned",
		OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: "n3", UID: node.UID}},
	}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Node(3).Remove(ctx); err != nil {
		t.Fatal(err)
	}
	if len(c.Nodes()) != 2 {
		t.Errorf("%d nodes are left", len(c.Nodes()))
	}
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for {
		_, err := maps.Get(ctx, "owned", metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		<-ticker.C
	}
}
