//go:build e2e

package kind

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// tenant is a network by its NetworkAttachmentDefinition: all have the same
// ranges. keys are further ones of its configuration.
const tenant = `
apiVersion: k8s.cni.cncf.io/v1
kind: NetworkAttachmentDefinition
metadata: {name: %[1]s, namespace: e2e}
spec:
  config: '{"cniVersion": "1.1.0", "name": "%[1]s", "type": "weft", "mode": "overlay", "vni": %[2]d, %[3]s
    "capabilities": {"ips": true, "mac": true}, "ipam": {"type": "weft", "ranges": [%[4]s]}}'
`

// onEachNode is a pod of a tenant on each node.
const onEachNode = `
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: %[1]s, namespace: e2e}
spec:
  selector: {matchLabels: {app: %[1]s}}
  template:
    metadata: {labels: {app: %[1]s}, annotations: {k8s.v1.cni.cncf.io/networks: %[1]s}}
    spec:
      tolerations: [{operator: Exists}]
      terminationGracePeriodSeconds: 1
      containers: [{name: peer, image: %[2]s, args: [serve], securityContext: %[3]s}]
`

// tenantNames are those with a pod on each node, from the step tenants to the
// step tenantsLeave.
var tenantNames = []string{"red", "blue"}

// ranges are what all tenants have, in the families of the cluster, and the
// gateways of these.
func (c *cluster) ranges() (conf string, gateways []netip.Addr) {
	var all []string
	for _, family := range c.families {
		subnet, gateway := "192.168.7.0/24", "192.168.7.1"
		if family == corev1.IPv6Protocol {
			subnet, gateway = "fd00:7::/64", "fd00:7::1"
		}
		all = append(all, fmt.Sprintf(`{"subnet": %q, "gateway": %q}`, subnet, gateway))
		gateways = append(gateways, netip.MustParseAddr(gateway))
	}
	return strings.Join(all, ", "), gateways
}

// networkStatus is one of a pod's networks as Multus tells of them.
type networkStatus struct {
	Name, Interface, Mac string
	IPs, Gateway         []netip.Addr
	Default              bool
	DNS                  struct{ Nameservers []string }
}

// networks are those of a pod, the cluster network first.
func networks(p *corev1.Pod) (all []networkStatus, err error) {
	err = json.Unmarshal([]byte(p.Annotations["k8s.v1.cni.cncf.io/network-status"]), &all)
	if err == nil && (len(all) == 0 || !all[0].Default || all[0].Interface != "eth0") {
		err = fmt.Errorf("pod %s has the networks %+v", p.Name, all)
	}
	return all, err
}

// tenants gives two tenants with the same ranges a pod on each node: each
// reaches its own, and none the other's. With encryption the second's segment is
// encrypted too. A third one's pods ask for what their
// annotation may have.
func tenants(t *testing.T, c *cluster) {
	ranges, _ := c.ranges()
	for i, name := range tenantNames {
		keys := ""
		if i > 0 && *encrypted { // else kernels may have no WireGuard
			keys = `"encrypt": true,`
		}
		apply(t, fmt.Sprintf(tenant, name, 1001+i, keys, ranges))
		apply(t, fmt.Sprintf(onEachNode, name, peerImage, restricted))
	}
	c.tenantsReach(t)
	asked(t, c)
}

// tenantPods are a tenant's, with their addresses on its network.
func (c *cluster) tenantPods(t *testing.T, name string) (all []pod) {
	t.Helper()
	for _, p := range c.onEachNode(t, name) {
		status, err := networks(&p)
		if err != nil {
			t.Fatal(err)
		}
		on := newPod(&p)
		on.ips = status[1].IPs
		if status[1].Name != namespace+"/"+name || status[1].Interface != "net1" || status[1].Default || len(on.ips) != len(c.families) {
			t.Errorf("pod %s is told to have %+v", p.Name, status[1])
		}
		all = append(all, on)
	}
	return all
}

// tenantsReach asks each pod of a tenant from each of its own: it is that one
// which answers, also where the other tenant has a pod with this address. The
// addresses that only the other tenant has don't answer.
func (c *cluster) tenantsReach(t *testing.T) {
	t.Helper()
	red, blue := c.tenantPods(t, tenantNames[0]), c.tenantPods(t, tenantNames[1])
	for _, own := range [][]pod{red, blue} {
		for _, from := range own {
			for _, to := range own {
				for _, ip := range to.ips {
					from.gets(t, url(ip, peerPort, "/hostname"), to.name)
				}
			}
		}
	}
	for i, own := range [][]pod{red, blue} {
		other := [][]pod{blue, red}[i]
		for _, to := range other {
			for _, ip := range to.ips {
				if slices.ContainsFunc(own, func(p pod) bool { return slices.Contains(p.ips, ip) }) {
					continue
				}
				if out, err := own[0].peer(t.Context(), "get", url(ip, peerPort, "/hostname")); err == nil {
					t.Errorf("pod %s reached the other tenant's %s: %s", own[0].name, ip, out)
				}
			}
		}
	}
}

// asked has pods ask for addresses, a MAC, the name of the interface, and the
// default route.
func asked(t *testing.T, c *cluster) {
	t.Helper()
	ranges, gateways := c.ranges()
	apply(t, fmt.Sprintf(tenant, "routed", 1003, `"defaultRoute": true, "dns": {"nameservers": ["192.168.7.53"]},`, ranges))
	want := networkStatus{Name: namespace + "/routed", Interface: "tenant0", Mac: "02:00:00:00:07:20", Gateway: gateways}
	want.DNS.Nameservers = []string{"192.168.7.53"}
	for _, gateway := range gateways {
		ip := netip.MustParseAddr("192.168.7.20")
		if gateway.Is6() {
			ip = netip.MustParseAddr("fd00:7::20")
		}
		want.IPs = append(want.IPs, ip)
	}
	ips, err := json.Marshal(want.IPs)
	if err != nil {
		t.Fatal(err)
	}
	own, status := c.attached(t, "own-address", c.workers()[0],
		fmt.Sprintf(`[{"name": "routed", "interface": "tenant0", "mac": %q, "ips": %s}]`, want.Mac, ips))
	if got := status[1]; fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("the pod is told to have %+v, not %+v", got, want)
	}
	link := c.interfaces(t, own)["tenant0"]
	if link.MAC != want.Mac || len(link.Addresses) != len(want.IPs) {
		t.Errorf("the pod has %+v", link)
	}

	hops, err := json.Marshal(gateways)
	if err != nil {
		t.Fatal(err)
	}
	guest, status := c.attached(t, "guest", c.nodes[0], fmt.Sprintf(`[{"name": "routed", "default-route": %s}]`, hops))
	for i, ip := range want.IPs {
		guest.gets(t, url(ip, peerPort, "/client"), status[1].IPs[i].String())
		outside := "192.0.2.1"
		if ip.Is6() {
			outside = "2001:db8::1"
		}
		if source, err := guest.peer(t.Context(), "source", outside); err != nil || source != status[1].IPs[i].String() {
			t.Errorf("the way out of pod guest is by %s, not %s: %v", source, status[1].IPs[i], err)
		}
	}
	kubectl(t, "--namespace", namespace, "delete", "pod", own.name, guest.name)
	c.noSegments(t, "segment 1003 ")
	c.noLinks(t, "br-weft1003")
}

// attached makes a pod on a node with an annotation of networks, and gives what
// Multus tells of it.
func (c *cluster) attached(t *testing.T, name, node, annotation string) (pod, []networkStatus) {
	t.Helper()
	apply(t, fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %s, namespace: e2e, annotations: {k8s.v1.cni.cncf.io/networks: '%s'}}
spec: {nodeName: %s, terminationGracePeriodSeconds: 1, tolerations: [{operator: Exists}],
  containers: [{name: peer, image: %s, args: [serve], securityContext: %s}]}`,
		name, annotation, node, peerImage, restricted))
	p := c.await(t, namespace, name)
	object, err := c.api.CoreV1().Pods(namespace).Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	status, err := networks(object)
	if err != nil || len(status) != 2 {
		t.Fatalf("pod %s is told to have %+v: %v", name, status, err)
	}
	return p, status
}

// tenantChurn is churn on a tenant's network.
func tenantChurn(t *testing.T, c *cluster) {
	pods, rounds := 100, 5
	if *short {
		pods, rounds = 20, 1
	}
	c.churn(t, pods, rounds, tenantNames[0])
}

// segmentObjects are the stations and blocks that nodes publish, a line for each
// object.
func (c *cluster) segmentObjects(ctx context.Context) (lines []string, err error) {
	members, err := c.weft.WeftV1alpha1().SegmentMembers().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	for i := range members.Items {
		m := &members.Items[i]
		lines = append(lines, fmt.Sprintf("segment %d on %s: member %s: %+v", m.Spec.VNI, m.Spec.Node, m.Name, m.Spec.Endpoints))
	}
	blocks, err := c.weft.WeftV1alpha1().IPBlocks().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	for i := range blocks.Items {
		b := &blocks.Items[i]
		lines = append(lines, fmt.Sprintf("segment %d on %s: block %s", b.Spec.VNI, b.Spec.Node, b.Spec.CIDR))
	}
	slices.Sort(lines)
	return lines, nil
}

// noSegments waits until no object of tenants' networks has this in its line.
func (c *cluster) noSegments(t *testing.T, what string) {
	t.Helper()
	eventually(t, 90*time.Second, func(ctx context.Context) error {
		lines, err := c.segmentObjects(ctx)
		if err != nil {
			return err
		}
		if i := slices.IndexFunc(lines, func(line string) bool { return strings.Contains(line, what) }); i >= 0 {
			return fmt.Errorf("%s is still there", lines[i])
		}
		return nil
	})
}

// noLinks waits until no node has links of this name.
func (c *cluster) noLinks(t *testing.T, name string) {
	t.Helper()
	for _, node := range c.nodes {
		eventually(t, 90*time.Second, func(ctx context.Context) error {
			links, err := output(ctx, "docker", "exec", node, "ip", "-o", "link")
			if err == nil && strings.Contains(links, name) {
				err = fmt.Errorf("%s has %s:\n%s", node, name, links)
			}
			return err
		})
	}
}

// tenantsLeave takes the tenants away, and Multus after them.
func tenantsLeave(t *testing.T, c *cluster) {
	for _, name := range tenantNames {
		kubectl(t, "--namespace", namespace, "delete", "daemonset", name, "--ignore-not-found", "--cascade=foreground") // Multus is needed for their end
	}
	c.noSegments(t, "")
	c.noLinks(t, "br-weft")
	c.noLinks(t, "vx-weft")
	removeMultus(t, c)
}
