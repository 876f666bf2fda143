package manifests_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/weft-cni/weft/test/cluster"
	"github.com/weft-cni/weft/test/probe"
	"github.com/weft-cni/weft/test/programs"
)

// second is a network that a pod may have beside its first.
const second = `
apiVersion: k8s.cni.cncf.io/v1
kind: NetworkAttachmentDefinition
metadata: {name: second, namespace: default}
spec:
  config: '{"cniVersion": "1.0.0", "name": "second", "type": "weft", "defaultRoute": false}'
`

// TestMultus runs Multus as the variant has it, and attaches a pod to the
// cluster network twice.
func TestMultus(t *testing.T) {
	c := cluster.New(t, cluster.Options{Nodes: 2})
	n := c.Node(1)
	withMultus(t, c, n, "base", "multus")
	apply(t, c, objectsIn(t, []byte(second)))
	attachTwice(t, c, n)
}

// withMultus applies variants, one with Multus, and runs the daemon on all nodes
// and Multus on one. It gives the daemons.
func withMultus(t *testing.T, c *cluster.Cluster, n *cluster.Node, variants ...string) (daemons []*running) {
	t.Helper()
	bin, err := programs.Multus(t.Context(), t.Output())
	if err != nil {
		t.Fatal(err)
	}
	var manifest []*unstructured.Unstructured
	for _, variant := range variants {
		manifest = append(manifest, objectsIn(t, kustomize(t, variant))...)
	}
	apply(t, c, manifest)
	weft, multus := newKubelet(t, c, manifest, "weftd"), newKubelet(t, c, manifest, "multus")
	multus.image = []bind{ // where the project's image has them
		{From: filepath.Join(bin, "thin_entrypoint"), To: "/thin_entrypoint", ReadOnly: true},
		{From: filepath.Join(bin, "multus"), To: "/usr/src/multus-cni/bin/multus", ReadOnly: true},
	}
	spec := &multus.set.Spec.Template.Spec.Containers[0]
	early := multus.start(t, n, spec)
	<-early.Done() // there is nothing yet to make a configuration of
	if _, err := n.ReadFile("/etc/cni/net.d/00-multus.conflist"); err == nil {
		t.Errorf("the node would be ready before Weft is:\n%s", early.output(t))
	}
	for _, node := range c.Nodes() {
		container := &weft.set.Spec.Template.Spec.Containers[0]
		d := weft.start(t, node, container)
		daemons = append(daemons, d)
		eventually(t, 20*time.Second, func() error { return d.probe(t, container.ReadinessProbe) })
	}
	multus.start(t, n, spec)
	eventually(t, 10*time.Second, func() error {
		_, err := n.ReadFile("/etc/cni/net.d/00-multus.conflist")
		return err
	})
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}}
	if _, err := c.API.Client.CoreV1().ServiceAccounts("default").Create(t.Context(), account, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	return daemons
}

// annotated attaches a pod to the networks that its annotation names.
func annotated(t *testing.T, c *cluster.Cluster, n *cluster.Node, name, networks string) (*cluster.Pod, *corev1.Pod) {
	t.Helper()
	object, err := c.API.Client.CoreV1().Pods("default").Create(t.Context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{"k8s.v1.cni.cncf.io/networks": networks}},
		Spec:       corev1.PodSpec{NodeName: n.Name, Containers: []corev1.Container{{Name: "c", Image: "i"}}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	pod, err := n.NewPod(name, cluster.PodOptions{})
	if err != nil {
		t.Fatal(err)
	}
	pod.UID = string(object.UID)
	// Tried again, as by kubelet: a daemon that has just started says "not yet",
	// for which Multus has no code.
	eventually(t, 20*time.Second, func() error { return pod.Add(t.Context()) })
	return pod, object
}

func attachTwice(t *testing.T, c *cluster.Cluster, n *cluster.Node) {
	t.Helper()
	pod, object := annotated(t, c, n, "twice", "second")
	for link, want := range map[string]int{"eth0": len(n.PodCIDRs), "net1": 0} {
		if got := defaultRoutes(t, pod, link); got != want {
			t.Errorf("%d default routes lead through %s", got, link)
		}
	}
	other := c.Node(2).Attach(t, "other")
	for _, ip := range pod.IPs() {
		eventually(t, 10*time.Second, func() error {
			_, err := probe.Ping(t.Context(), other, ip)
			return err
		})
	}
	told(t, c, object)
	if err := n.Status(t.Context()); err != nil {
		t.Error(err)
	}
	if err := pod.Detach(t.Context()); err != nil {
		t.Error(err)
	}
	if left, err := filesOn(n, "/var/lib/weft/attachments", "/run/weft/ipam/cluster/pool/claims"); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", slices.Collect(maps.Keys(left)), err)
	}
}

// networkStatus is what Multus tells of one of a pod's networks.
type networkStatus struct {
	Name, Interface, Mac string
	IPs, Gateway         []string
	Default              bool
	DNS                  struct{ Nameservers []string }
}

func statusOf(t *testing.T, c *cluster.Cluster, pod *corev1.Pod) (status []networkStatus) {
	t.Helper()
	now, err := c.API.Client.CoreV1().Pods(pod.Namespace).Get(t.Context(), pod.Name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(now.Annotations["k8s.v1.cni.cncf.io/network-status"]), &status); err != nil {
		t.Fatalf("%v in %v", err, now.Annotations)
	}
	return status
}

// told checks what Multus tells of a pod's networks.
func told(t *testing.T, c *cluster.Cluster, pod *corev1.Pod) {
	t.Helper()
	status := statusOf(t, c, pod)
	if len(status) != 2 || status[0].Interface != "eth0" || !status[0].Default || status[1].Name != "default/second" || status[1].Interface != "net1" || len(status[1].IPs) == 0 {
		t.Errorf("the pod's networks are said to be %+v", status)
	}
	eventually(t, 10*time.Second, func() error {
		list, err := c.API.Client.CoreV1().Events(pod.Namespace).List(t.Context(), metav1.ListOptions{FieldSelector: "reason=AddedInterface"})
		if err == nil && len(list.Items) != 2 {
			err = fmt.Errorf("%d Events of interfaces", len(list.Items))
		}
		return err
	})
}

func defaultRoutes(t *testing.T, pod *cluster.Pod, name string) (count int) {
	t.Helper()
	err := pod.Do(func() error {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		routes, err := netlink.RouteList(link, netlink.FAMILY_ALL)
		for _, r := range routes {
			if ones, _ := r.Dst.Mask.Size(); ones == 0 {
				count++
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return count
}

// TestNetworkAttachmentDefinition compares the CRD with the standard's own.
func TestNetworkAttachmentDefinition(t *testing.T) {
	const client = "github.com/k8snetworkplumbingwg/network-attachment-definition-client@v1.7.7"
	ours := objectsIn(t, readFile(t, "../../manifests/components/multus/crd.yaml"))[0]
	theirs := objectsIn(t, readFile(t, filepath.Join(moduleDir(t, client), "artifacts/networks-crd.yaml")))[0]
	for _, path := range [][]string{
		{"metadata", "name"}, {"spec", "group"}, {"spec", "scope"}, {"spec", "names", "kind"}, {"spec", "names", "plural"}, {"spec", "names", "singular"},
	} {
		a, _, _ := unstructured.NestedString(ours.Object, path...)
		b, _, _ := unstructured.NestedString(theirs.Object, path...)
		if a != b || a == "" {
			t.Errorf("%v is %q, not %q", path, a, b)
		}
	}
}
