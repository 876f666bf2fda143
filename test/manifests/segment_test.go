package manifests_test

import (
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/weft-cni/weft/test/cluster"
	"github.com/weft-cni/weft/test/probe"
)

// tenant is a NetworkAttachmentDefinition of a segment; keys are further ones of
// its configuration.
func tenant(name string, vni int, keys string) string {
	return fmt.Sprintf(`
apiVersion: k8s.cni.cncf.io/v1
kind: NetworkAttachmentDefinition
metadata: {name: %[1]s, namespace: default}
spec:
  config: '{"cniVersion": "1.1.0", "name": "%[1]s", "type": "weft", "mode": "overlay", "vni": %[2]d, %[3]s
    "ipam": {"type": "weft", "ranges": [{"subnet": "192.168.7.0/24", "gateway": "192.168.7.1"}, {"subnet": "fd00:7::/64", "gateway": "fd00:7::1"}]}}'
`, name, vni, keys)
}

// TestMultusSegment asks Multus for segments, with addresses, MAC and the name
// of the interface in each way that its annotation has.
func TestMultusSegment(t *testing.T) {
	c := cluster.New(t, cluster.Options{Nodes: 2})
	n := c.Node(1)
	withMultus(t, c, n, "base", "multus")
	const asked = `"interface": "tenant0", "ips": ["192.168.7.20/24", "fd00:7::20/64"], "mac": "02:00:00:00:07:20"`
	for _, network := range []struct {
		name, keys, element string
		vni                 int
	}{
		{"capable", `"capabilities": {"ips": true, "mac": true}, "dns": {"nameservers": ["192.168.7.53"]},`, asked, 1001},
		{"plain", "", asked, 1002}, // without capabilities there is no runtimeConfig, but CNI_ARGS
		{"routed", `"defaultRoute": true,`, `"interface": "tenant0", "mac": "02:00:00:00:07:20",
			"default-route": ["192.168.7.1", "fd00:7::1"], "cni-args": {"ips": ["192.168.7.20", "fd00:7::20"]}`, 1003},
	} {
		name := network.name
		t.Run(name, func(t *testing.T) {
			apply(t, c, objectsIn(t, []byte(tenant(name, network.vni, network.keys))))
			pod, object := annotated(t, c, n, name, fmt.Sprintf(`[{"name": %q, %s}]`, name, network.element))
			toldOfTenant(t, name, statusOf(t, c, object)[1])
			reachedOnSegment(t, c, pod, network.vni)
			if got, is := firstLink(t, pod), name == "routed"; (got == "tenant0") != is {
				t.Errorf("the pod's default routes lead through %s first", got)
			}
			if err := pod.Check(t.Context()); err != nil { // of eth0: Multus checks no other
				t.Error(err)
			}
			if err := pod.Detach(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	if left, err := filesOn(n, "/var/lib/weft/attachments", "/run/weft/ipam/cluster/pool/claims"); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", slices.Collect(maps.Keys(left)), err)
	}
}

func toldOfTenant(t *testing.T, name string, got networkStatus) {
	t.Helper()
	want := networkStatus{
		Name: "default/" + name, Interface: "tenant0", Mac: "02:00:00:00:07:20", IPs: []string{"192.168.7.20", "fd00:7::20"},
	}
	switch name {
	case "capable":
		want.DNS.Nameservers = []string{"192.168.7.53"}
	case "routed":
		want.Gateway = []string{"192.168.7.1", "fd00:7::1"}
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("the network is said to be %+v, not %+v", got, want)
	}
}

// reachedOnSegment attaches a pod on another node to the same segment, and has
// it ask the addresses of the first.
func reachedOnSegment(t *testing.T, c *cluster.Cluster, pod *cluster.Pod, vni int) {
	t.Helper()
	conf := fmt.Appendf(nil, `{"cniVersion": "1.1.0", "name": "other", "plugins": [{"type": "weft", "mode": "overlay", "vni": %d,
		"ipam": {"type": "weft", "ranges": [{"subnet": "192.168.7.0/24"}, {"subnet": "fd00:7::/64"}]}}]}`, vni)
	other, err := c.Node(2).AttachPod(t.Context(), fmt.Sprint("other", vni), cluster.PodOptions{IfName: "net1", ConfList: conf})
	if err != nil {
		t.Fatal(err)
	}
	for _, ip := range []string{"192.168.7.20", "fd00:7::20"} {
		eventually(t, 10*time.Second, func() error {
			_, err := probe.Ping(t.Context(), other, netip.MustParseAddr(ip))
			return err
		})
	}
	if err := other.Detach(t.Context()); err != nil {
		t.Error(err)
	}
}

// firstLink is the link that the pod's way out of the cluster leads through, in
// both families.
func firstLink(t *testing.T, pod *cluster.Pod) string {
	t.Helper()
	names := map[string]bool{}
	err := pod.Do(func() error {
		for _, to := range []string{"192.0.2.1", "2001:db8::1"} {
			routes, err := netlink.RouteGet(netip.MustParseAddr(to).AsSlice())
			if err != nil {
				return err
			}
			link, err := netlink.LinkByIndex(routes[0].LinkIndex)
			if err != nil {
				return err
			}
			names[link.Attrs().Name] = true
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(slices.Sorted(maps.Keys(names)), " and ")
}

// TestDocumentedPods attaches the pods of docs/networks.md.
func TestDocumentedPods(t *testing.T) {
	c := cluster.New(t, cluster.Options{Nodes: 2})
	n := c.Node(1)
	withMultus(t, c, n, "base", "multus")
	blocks := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllSubmatch(readFile(t, "../../docs/networks.md"), -1)
	attached := 0
	for _, block := range blocks {
		for _, o := range objectsIn(t, block[1]) {
			o.SetNamespace("default")
			if o.GetKind() != "Pod" {
				apply(t, c, []*unstructured.Unstructured{o})
				continue
			}
			networks := o.GetAnnotations()["k8s.v1.cni.cncf.io/networks"]
			pod, object := annotated(t, c, n, o.GetName(), networks)
			if status, want := statusOf(t, c, object), 2+strings.Count(networks, ", routed"); len(status) != want {
				t.Errorf("pod %s has %d networks, not %d: %+v", o.GetName(), len(status), want, status)
			}
			if got := firstLink(t, pod); (got == "eth0") == strings.Contains(networks, "routed") {
				t.Errorf("the way out of pod %s is %s", o.GetName(), got)
			}
			attached++
		}
	}
	if attached < 3 {
		t.Errorf("%d pods were attached; the page has more", attached)
	}
}
