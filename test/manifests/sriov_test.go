package manifests_test

import (
	"encoding/json"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weft-cni/weft/test/cluster"
)

// absent is the PCI address of a device that no machine has.
const absent = "ffff:ff:1f.7"

// TestSRIOV runs the daemon as manifests/sriov has it, applies the examples,
// and attaches the first example's pod by Multus, with a device that kubelet
// says the device plugin chose: Weft looks for that device, and says that the
// node, which has none, has it not. The tests of test/vm have devices.
func TestSRIOV(t *testing.T) {
	c := cluster.New(t, cluster.Options{Nodes: 1})
	n := c.Node(1)
	d := withMultus(t, c, n, "sriov")[0]
	confined(t, d)
	if log := d.output(t); !strings.Contains(log, "what pods had that have gone is given back\" devices=true") {
		t.Errorf("the daemon didn't look for devices:\n%s", log)
	}
	const examples = "../../manifests/sriov/examples/"
	for _, file := range []string{"device-plugin.yaml", "networks.yaml"} {
		apply(t, c, objectsIn(t, readFile(t, examples+file)))
	}
	core := c.API.Client.CoreV1()
	pods := map[string]*corev1.Pod{}
	for _, o := range objectsIn(t, readFile(t, examples+"pods.yaml")) {
		example := &corev1.Pod{}
		convert(t, o, example)
		example.Spec.NodeName = n.Name
		pod, err := core.Pods("default").Create(t.Context(), example, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		pods[pod.Name] = pod
	}
	allocated(t, n, pods["reader"], "weft.dev/netdev")
	pod, err := n.NewPod("reader", cluster.PodOptions{})
	if err != nil {
		t.Fatal(err)
	}
	pod.UID = string(pods["reader"].UID)
	if err := pod.Add(t.Context()); err == nil || !strings.Contains(err.Error(), "PCI device "+absent+": no such device") {
		t.Errorf("ADD with a device that isn't there: %v", err)
	}
	if err := pod.Detach(t.Context()); err != nil {
		t.Error(err)
	}
	if left, err := filesOn(n, "/var/lib/weft/attachments", "/run/weft/devices"); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

// allocated makes kubelet's file of devices that pods have say that a pod has
// one of a resource.
func allocated(t *testing.T, n *cluster.Node, pod *corev1.Pod, resource string) {
	t.Helper()
	type entry struct {
		PodUID, ContainerName, ResourceName string
		DeviceIDs                           map[string][]string // by NUMA node
	}
	text, err := json.Marshal(map[string]any{"Data": map[string]any{"PodDeviceEntries": []entry{{
		PodUID: string(pod.UID), ContainerName: pod.Spec.Containers[0].Name, ResourceName: resource,
		DeviceIDs: map[string][]string{"-1": {absent}},
	}}}})
	if err == nil {
		err = n.WriteFile("/var/lib/kubelet/device-plugins/kubelet_internal_checkpoint", text, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}
