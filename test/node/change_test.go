package node_test

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"

	"github.com/weft-cni/weft/api/v1alpha1"
	"github.com/weft-cni/weft/pkg/overlay"
	"github.com/weft-cni/weft/test/cluster"
	"github.com/weft-cni/weft/test/probe"
)

// talk checks that pods reach each other over all families.
func talk(t testing.TB, pods ...*cluster.Pod) {
	t.Helper()
	for _, from := range pods {
		for _, to := range pods {
			for _, ip := range to.IPs() {
				if _, err := probe.Ping(within(t, 5*time.Second), from, ip); err != nil {
					t.Fatalf("%s to %s: %v", from.Name, to.Name, err)
				}
			}
		}
	}
}

// setAddresses gives the node's Node other InternalIPs, as its kubelet does.
func setAddresses(t testing.TB, c *cluster.Cluster, n *cluster.Node, addrs ...netip.Addr) {
	t.Helper()
	nodes := c.API.Client.CoreV1().Nodes()
	node, err := nodes.Get(t.Context(), n.Name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	node.Status.Addresses = nil
	for _, a := range addrs {
		node.Status.Addresses = append(node.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a.String()})
	}
	if _, err := nodes.UpdateStatus(t.Context(), node, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// TestUnderlayChanges takes a node's interface away, gives it another MTU,
// another name and other addresses.
func TestUnderlayChanges(t *testing.T) {
	c := cluster.New(t, cluster.Options{Nodes: 2, Manifests: []string{manifests}})
	daemons := ready(t, c, "--resync=1h")
	n, other := c.Node(1), c.Node(2)
	a, b := n.Attach(t, "a"), other.Attach(t, "b")
	talk(t, a, b)
	nic := n.DefaultNIC()

	t.Run("interface gone and back", func(t *testing.T) {
		before := state(t, n)
		if err := n.Unplug(cluster.NICName); err != nil {
			t.Fatal(err)
		}
		eventually(t, repairTime, func() error {
			if _, err := daemons[0].Get(t.Context(), "/readyz"); err == nil {
				return errors.New("still ready without an underlay")
			}
			return nil
		})
		if err := is(t, n, before)(); err != nil {
			t.Errorf("an underlay that is lost changed the kernel: %v", err)
		}
		if err := n.PlugIn(nic); err != nil {
			t.Fatal(err)
		}
		talk(t, a, b)
		eventually(t, repairTime, is(t, n, before))
		told(t, c, n, "UnderlayLost")
	})
	t.Run("MTU", func(t *testing.T) {
		for _, mtu := range []int{1400, nic.MTU} {
			err := n.Do(func() error {
				l, err := netlink.LinkByName(cluster.NICName)
				if err != nil {
					return err
				}
				return netlink.LinkSetMTU(l, mtu)
			})
			if err != nil {
				t.Fatal(err)
			}
			eventually(t, repairTime, func() error {
				return lacks(t, n, " mtu "+map[int]string{1400: "1450", nic.MTU: "1350"}[mtu]+" ")()
			})
			published(t, c, n, func(v *v1alpha1.VTEP) bool { return v.Spec.MTU == int32(mtu) })
			eventually(t, repairTime, func() error {
				file, err := n.ReadFile("/run/weft/node.json")
				if err == nil && !strings.Contains(string(file), map[int]string{1400: `"mtu": 1350`, nic.MTU: `"mtu": 1450`}[mtu]) {
					err = errors.New(string(file))
				}
				return err
			})
			talk(t, a, b)
		}
		told(t, c, n, "MTUMismatch")
	})
	t.Run("other name and addresses", func(t *testing.T) {
		moved := cluster.NIC{
			Name: "eth1", MTU: nic.MTU, Gateways: nic.Gateways,
			Addrs: []netip.Prefix{netip.MustParsePrefix("172.30.0.200/24"), netip.MustParsePrefix("fd30::200/64")},
		}
		if err := n.Unplug(cluster.NICName); err != nil {
			t.Fatal(err)
		}
		if err := n.PlugIn(moved); err != nil {
			t.Fatal(err)
		}
		setAddresses(t, c, n, moved.Addrs[0].Addr(), moved.Addrs[1].Addr())
		v := published(t, c, n, func(v *v1alpha1.VTEP) bool { return v.Spec.Underlay[0] == "172.30.0.200" })
		eventually(t, repairTime, has(t, other, v))
		eventually(t, repairTime, lacks(t, other, nic.Addrs[0].Addr().String()))
		talk(t, a, b)
	})
	t.Run("another family", func(t *testing.T) {
		setAddresses(t, c, n, netip.MustParseAddr("fd30::200"))
		v := published(t, c, n, func(v *v1alpha1.VTEP) bool { return v.Spec.Underlay[0] == "fd30::200" })
		eventually(t, repairTime, lacks(t, other, v.Spec.MAC)) // unreachable, and no other is harmed
		if got := metric(t, daemons[1], `weft_peers{state="unreachable"}`); got != 1 {
			t.Errorf("%v peers are unreachable", got)
		}
		setAddresses(t, c, other, other.Underlay()[1])
		talk(t, a, b)
		eventually(t, repairTime, lacks(t, other, "local 172.30"))
	})
}

// TestNodeComesBackAnother lets a node leave, with the garbage collector
// removing its VTEP, and come back with another UID and address; and lets it
// reboot.
func TestNodeComesBackAnother(t *testing.T) {
	c := cluster.New(t, cluster.Options{Nodes: 3, Manifests: []string{manifests}, GarbageCollector: true})
	daemons := ready(t, c, "--resync=1h")
	n := c.Node(1)
	before := published(t, c, n, func(*v1alpha1.VTEP) bool { return true })

	t.Run("Node deleted", func(t *testing.T) {
		if err := n.Unregister(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, other := range []*cluster.Node{c.Node(2), c.Node(3)} {
			eventually(t, 20*time.Second, lacks(t, other, before.Spec.MAC))
		}
		if _, err := daemons[0].Get(t.Context(), "/readyz"); err == nil {
			t.Error("a node without Node is ready")
		}
		// Its own traffic to the others goes on.
		eventually(t, repairTime, has(t, n, published(t, c, c.Node(2), func(*v1alpha1.VTEP) bool { return true })))
	})
	t.Run("Node registered again", func(t *testing.T) {
		if err := n.Register(t.Context()); err != nil {
			t.Fatal(err)
		}
		after := published(t, c, n, func(v *v1alpha1.VTEP) bool { return v.Spec.NodeUID != before.Spec.NodeUID })
		if after.Spec.MAC != before.Spec.MAC || string(after.OwnerReferences[0].UID) != after.Spec.NodeUID {
			t.Errorf("VTEP is %+v, was %+v", after, before)
		}
		for _, other := range []*cluster.Node{c.Node(2), c.Node(3)} {
			eventually(t, repairTime, has(t, other, after))
		}
		if err := daemons[0].WaitReady(within(t, repairTime)); err != nil {
			t.Error(err)
		}
	})
	t.Run("reboot", func(t *testing.T) {
		v := published(t, c, n, func(*v1alpha1.VTEP) bool { return true })
		if err := n.Reboot(); err != nil {
			t.Fatal(err)
		}
		n.Weftd(t)
		a, b := n.Attach(t, "a"), c.Node(2).Attach(t, "b")
		talk(t, a, b)
		if after := published(t, c, n, func(*v1alpha1.VTEP) bool { return true }); after.ResourceVersion != v.ResourceVersion {
			t.Errorf("VTEP was written again: %+v, was %+v", after, v)
		}
	})
	t.Run("node gone while a peer's daemon is down", func(t *testing.T) {
		down := daemons[2]
		down.Kill()
		if err := n.Remove(t.Context()); err != nil {
			t.Fatal(err)
		}
		eventually(t, 20*time.Second, lacks(t, c.Node(1), before.Spec.MAC)) // now the former second
		last := c.Node(2)
		if err := lacks(t, last, before.Spec.MAC)(); err == nil {
			t.Error("a daemon that is down removed something")
		}
		last.Weftd(t)
		if err := lacks(t, last, before.Spec.MAC)(); err != nil {
			t.Error(err)
		}
	})
}

// TestVTEPIsPublishedAgain lets an administrator delete and alter a node's VTEP.
func TestVTEPIsPublishedAgain(t *testing.T) {
	c := cluster.New(t, cluster.Options{Nodes: 2, Manifests: []string{manifests}})
	ready(t, c, "--resync=1h")
	n, other := c.Node(1), c.Node(2)
	before, client := published(t, c, n, func(*v1alpha1.VTEP) bool { return true }), vteps(t, c)
	spec := before.Spec.DeepCopy()
	for name, change := range map[string]func() error{
		"deleted": func() error { return client.Delete(t.Context(), n.Name, metav1.DeleteOptions{}) },
		"altered": func() error {
			v, err := client.Get(t.Context(), n.Name, metav1.GetOptions{})
			if err != nil {
				return err
			}
			v.Spec.Underlay, v.Spec.MAC = []string{"198.51.100.1"}, "02:00:00:00:00:01"
			_, err = client.Update(t.Context(), v, metav1.UpdateOptions{})
			return err
		},
		"disowned": func() error {
			v, err := client.Get(t.Context(), n.Name, metav1.GetOptions{})
			if err != nil {
				return err
			}
			v.OwnerReferences = nil
			_, err = client.Update(t.Context(), v, metav1.UpdateOptions{})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			if err := change(); err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			v := published(t, c, n, func(v *v1alpha1.VTEP) bool {
				return len(v.OwnerReferences) == 1 && v.Spec.MAC == spec.MAC && slices.Equal(v.Spec.Underlay, spec.Underlay)
			})
			if took := time.Since(start); took > repairTime {
				t.Errorf("published after %v", took)
			}
			eventually(t, repairTime, has(t, other, v))
		})
	}
}

// TestRivals lets a VTEP claim what is another's, and one be malformed in a
// way that the schema of its time let pass. Neither harms a third.
func TestRivals(t *testing.T) {
	c := cluster.New(t, cluster.Options{Nodes: 3, Manifests: []string{manifests}})
	daemons := ready(t, c, "--resync=1h")
	client, want := vteps(t, c), state(t, c.Node(3))
	rival := &v1alpha1.VTEP{
		ObjectMeta: metav1.ObjectMeta{Name: "rival"},
		Spec: v1alpha1.VTEPSpec{
			NodeUID: "1", Underlay: []string{"172.30.0.99"}, MAC: "02:00:00:00:00:99", Port: 4789,
			PodCIDRs: []string{c.Node(1).PodCIDRs[0].String(), "10.244.99.0/24"},
		},
	}
	if _, err := client.Create(t.Context(), rival, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	e := told(t, c, c.Node(1), "ClaimConflict")
	if !strings.Contains(e.Message, "peer rival claims") || !strings.Contains(e.Message, "n1") {
		t.Errorf("Event says %q", e.Message)
	}
	for i, d := range daemons {
		eventually(t, repairTime, func() error {
			if got := metric(t, d, `weft_peers{state="conflicting"}`); got != 1 {
				return errors.New("no conflict is counted")
			}
			return nil
		})
		if err := lacks(t, c.Nodes()[i], "02:00:00:00:00:99")(); err != nil {
			t.Error(err)
		}
	}
	if err := is(t, c.Node(3), want)(); err != nil {
		t.Error(err)
	}
	// The older goes: what it held is the rival's.
	daemons[0].Kill()
	if err := client.Delete(t.Context(), c.Node(1).Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, repairTime, has(t, c.Node(3), rival))
	if err := client.Delete(t.Context(), rival.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	c.Node(1).Weftd(t)
	eventually(t, repairTime, is(t, c.Node(3), want))

	// A VTEP that is older than its schema: a range without room for pods.
	relaxSchema(t, c)
	malformed := rival.DeepCopy()
	malformed.Spec.PodCIDRs = []string{"10.244.99.0/32"}
	eventually(t, 10*time.Second, func() error { // a schema takes a moment to apply
		_, err := client.Create(t.Context(), malformed, metav1.CreateOptions{})
		return err
	})
	eventually(t, repairTime, func() error {
		if got := metric(t, daemons[2], `weft_peers{state="malformed"}`); got != 1 {
			return errors.New("no malformed peer is counted")
		}
		return nil
	})
	if err := is(t, c.Node(3), want)(); err != nil {
		t.Error(err)
	}
	talk(t, c.Node(2).Attach(t, "a"), c.Node(3).Attach(t, "b"))
}

// relaxSchema takes the rules out of the CRD.
func relaxSchema(t *testing.T, c *cluster.Cluster) {
	t.Helper()
	client, err := dynamic.NewForConfig(c.API.Config)
	if err != nil {
		t.Fatal(err)
	}
	crds := client.Resource(schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"})
	crd, err := crds.Get(t.Context(), "vteps.weft.dev", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var relax func(v any)
	relax = func(v any) {
		switch v := v.(type) {
		case map[string]any:
			delete(v, "x-kubernetes-validations")
			for _, sub := range v {
				relax(sub)
			}
		case []any:
			for _, sub := range v {
				relax(sub)
			}
		}
	}
	relax(crd.Object)
	if _, err := crds.Update(t.Context(), crd, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// TestSettings runs daemons with settings that change what is in the kernel.
func TestSettings(t *testing.T) {
	c := cluster.New(t, cluster.Options{Nodes: 2, Manifests: []string{manifests}})
	file := "vni: 77\nport: 8472\nmtu: 1300\nunderlay: {family: ipv6, interface: 'eth.*'}\nmasquerade: true\nnoMasquerade: [192.0.2.0/24]\nresync: 1s\n"
	for _, n := range c.Nodes() {
		if err := n.WriteFile("/etc/weft/weftd.yaml", []byte(file), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	daemons := ready(t, c, "--config=/etc/weft/weftd.yaml", "--port=4790")
	s := state(t, c.Node(1)).String()
	for _, want := range []string{" id 77 ", " local fd30::", " dstport 4790 ", " mtu 1300 ", "element inet weft nomasq4 { 192.0.2.0/24 }"} {
		if !strings.Contains(s, want) {
			t.Errorf("no %q in\n%s", want, s)
		}
	}
	a, b := c.Node(1).Attach(t, "a"), c.Node(2).Attach(t, "b")
	talk(t, a, b)
	// What no event tells of is found by resync.
	const ra = "/proc/sys/net/ipv6/conf/eth0/accept_ra"
	if err := c.Node(1).Do(func() error { return writeFile(ra, "1") }); err != nil {
		t.Fatal(err)
	}
	eventually(t, 3*time.Second, func() error {
		value, err := c.Node(1).ReadFile(ra)
		if err == nil && strings.TrimSpace(string(value)) != "2" {
			err = errors.New("accept_ra is " + string(value))
		}
		return err
	})
	// The same nodes go over to direct routes, one by one.
	for _, d := range daemons {
		if err := d.Terminate(within(t, 2*time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range c.Nodes() {
		n.Weftd(t, "--config=/etc/weft/weftd.yaml", "--port=4790", "--direct-routing=true")
		talk(t, a, b)
	}
	if s := state(t, c.Node(1)).String(); !strings.Contains(s, "route "+c.Node(2).PodCIDRs[0].String()+" via 172.30.0.12") || strings.Contains(s, "fdb ") {
		t.Errorf("no direct route, or still a tunnel:\n%s", s)
	}
	before := state(t, c.Node(1))
	if err := c.Node(1).Do(func() error { return deleteRouteTo(c.Node(2).PodCIDRs[0]) }); err != nil {
		t.Fatal(err)
	}
	eventually(t, 500*time.Millisecond, is(t, c.Node(1), before)) // less than the resync's second
	talk(t, a, b)
	if v := published(t, c, c.Node(1), func(*v1alpha1.VTEP) bool { return true }); v.Spec.Port != 4790 || v.Spec.Underlay[0] != "fd30::11" || v.Spec.MAC != overlay.VTEPMAC("n1").String() {
		t.Errorf("published %+v", v.Spec)
	}
}

// TestFamilies runs clusters whose underlay and pods have one address family.
func TestFamilies(t *testing.T) {
	for name, families := range map[string]cluster.Families{"IPv4": cluster.IPv4Only, "IPv6": cluster.IPv6Only} {
		t.Run(name, func(t *testing.T) {
			c := cluster.New(t, cluster.Options{Nodes: 2, Manifests: []string{manifests}, Families: families})
			daemons := ready(t, c, "--resync=1h")
			a, b := c.Node(1).Attach(t, "a"), c.Node(2).Attach(t, "b")
			talk(t, a, b)
			before := state(t, c.Node(1))
			daemons[0].Kill()
			if repairs := metric(t, c.Node(1).Weftd(t), "weft_drift_repairs_total"); repairs != 0 {
				t.Errorf("a new daemon repaired %v objects", repairs)
			}
			if err := is(t, c.Node(1), before)(); err != nil {
				t.Error(err)
			}
		})
	}
}
