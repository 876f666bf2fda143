package segment_test

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weft-cni/weft/api/v1alpha1"
	"github.com/weft-cni/weft/test/cluster"
	"github.com/weft-cni/weft/test/testns"
)

// filters reports whether this machine's kernel has bridges that filter VLANs.
func filters(t *testing.T) bool {
	t.Helper()
	h := testns.New(t).Handle
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "probe"
	on := true
	err := h.LinkAdd(&netlink.Bridge{LinkAttrs: attrs, VlanFiltering: &on})
	if err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		t.Fatal(err)
	}
	return err == nil
}

// hasVLANs reports whether a configuration has VLANs.
func hasVLANs(conf []byte) bool { return regexp.MustCompile(`"(vlan|trunk)":`).Match(conf) }

// unfiltered attaches a pod with VLANs on a node whose kernel can't filter them:
// the error says so, and names what was asked for.
func (l *lab) unfiltered(n *cluster.Node, conf []byte, asked string) {
	l.t.Helper()
	l.refused(n, conf, asked+": weftd refuses the network: ", ": no vlan or trunk is accepted on this node: its kernel has no VLAN filtering of bridges")
}

// refused attaches a pod whose configuration isn't accepted, in these words.
func (l *lab) refused(n *cluster.Node, conf []byte, words ...string) {
	l.t.Helper()
	_, err := n.AttachPod(within(l.t, 30*time.Second), fmt.Sprint("p", time.Now().UnixNano()), cluster.PodOptions{ConfList: conf, IfName: "net1", NoRetry: true})
	refusal := (*types.Error)(nil)
	if !errors.As(err, &refusal) || refusal.Code != types.ErrInvalidNetworkConfig {
		l.t.Fatalf("not of code 7: %v", err)
	}
	for _, text := range words {
		if !strings.Contains(err.Error(), text) {
			l.t.Errorf("%v\nis without: %s", err, text)
		}
	}
}

// TestVLANs: pods of a VLAN reach each other and nobody else where the kernel
// filters VLANs; elsewhere an ADD says that it doesn't, and leaves nothing.
// test/vm/segment has all that can be told apart by frames.
func TestVLANs(t *testing.T) {
	l := newLab(t, 2)
	if !filters(t) {
		for keys, asked := range map[string]string{
			`,"vlan":10`: "segment 5100, vlan 10",
			`,"trunk":[{"id":20},{"minID":30,"maxID":39}]`: "segment 5100, trunk 20,30-39",
			`,"vlan":10,"trunk":[{"id":20}]`:               "segment 5100, vlan 10, trunk 20",
		} {
			for _, n := range l.Nodes() {
				l.unfiltered(n, tenant(5100, keys), asked)
			}
		}
		l.empty()
		return
	}
	a, b := l.attach(l.Node(1), "a", tenant(5100, `,"vlan":10`)), l.attach(l.Node(2), "b", tenant(5100, `,"vlan":10`))
	l.reach(a, b)
	l.refused(l.Node(1), tenant(5100, ""), "vlan is none; accepted: 1 to 4094, or trunk, as the segment has it on this node")
	for _, p := range []*cluster.Pod{a, b} {
		if err := errors.Join(p.Check(t.Context()), p.Detach(t.Context())); err != nil {
			t.Error(err)
		}
	}
	l.empty()
}

// TestVLANsDisagree: a segment that has VLANs on another node has them for all,
// and the API takes only such as there are.
func TestVLANsDisagree(t *testing.T) {
	l := newLab(t, 1)
	member := &v1alpha1.SegmentMember{
		ObjectMeta: metav1.ObjectMeta{Name: "5101.elsewhere", Labels: map[string]string{v1alpha1.VNILabel: "5101", v1alpha1.NodeLabel: "elsewhere"}},
		Spec: v1alpha1.SegmentMemberSpec{
			VNI: 5101, Node: "elsewhere", Tunnels: &v1alpha1.SegmentTunnels{Discovery: "kubernetes", VLANs: true},
			Endpoints: []v1alpha1.Endpoint{{MAC: "02:00:00:00:00:01", VLAN: 4095}},
		},
	}
	_, err := l.api.SegmentMembers().Create(t.Context(), member, metav1.CreateOptions{})
	if err == nil || !strings.Contains(err.Error(), `should be less than or equal to 4094`) {
		t.Errorf("of VLAN 4095: %v", err)
	}
	member.Spec.Endpoints[0].VLAN = 4094
	if _, err = l.api.SegmentMembers().Create(t.Context(), member, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	l.refused(l.Node(1), tenant(5101, ""), "vlan is none; accepted: 1 to 4094, or trunk, as the segment has it on node elsewhere")
	if err = l.api.SegmentMembers().Delete(t.Context(), member.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	l.empty()
}
