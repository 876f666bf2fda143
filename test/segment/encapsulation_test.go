package segment_test

import (
	"errors"
	"fmt"
	"net"
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

// devices are the kinds of link by which nodes of the test cluster, whose first
// underlay is IPv4, have an encapsulation.
var devices = map[string]string{"geneve": "geneve", "nvgre": "gretap"}

// lacks reports whether this machine's kernel has no such devices.
func lacks(t *testing.T, encapsulation string) bool {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "probe"
	var link netlink.Link = &netlink.Geneve{LinkAttrs: attrs, ID: 1, Remote: net.IPv4(192, 0, 2, 1)}
	if devices[encapsulation] == "gretap" {
		link = &netlink.Gretap{LinkAttrs: attrs, Local: net.IPv4(192, 0, 2, 1), Remote: net.IPv4(192, 0, 2, 2)}
	}
	err := testns.New(t).Handle.LinkAdd(link)
	if err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		t.Fatal(err)
	}
	return err != nil
}

// encapsulationOf is the one that a configuration names.
func encapsulationOf(conf []byte) string {
	if m := regexp.MustCompile(`"encapsulation": ?"(\w+)"`).FindSubmatch(conf); m != nil {
		return string(m[1])
	}
	return "vxlan"
}

// lacking attaches a pod by a configuration whose encapsulation the kernel has no
// devices for: the error says so.
func (l *lab) lacking(n *cluster.Node, conf []byte) {
	l.t.Helper()
	_, err := n.AttachPod(within(l.t, 30*time.Second), fmt.Sprint("p", time.Now().UnixNano()), cluster.PodOptions{ConfList: conf, IfName: "net1", NoRetry: true})
	e := encapsulationOf(conf)
	want := fmt.Sprintf("encapsulation is %q; accepted on this node: %q: its kernel has no devices of type %s", e, "vxlan", devices[e])
	refusal := (*types.Error)(nil)
	if !errors.As(err, &refusal) || refusal.Code != types.ErrInvalidNetworkConfig || !strings.Contains(err.Error(), want) {
		l.t.Errorf("%v\nis not of code 7: %s", err, want)
	}
}

// TestEncapsulation: pods reach each other in whatever encapsulation the kernel
// has; where it has none such, an ADD says so and leaves nothing.
func TestEncapsulation(t *testing.T) {
	l := newLab(t, 2)
	for encapsulation := range devices {
		conf := tenant(5000, fmt.Sprintf(`,"encapsulation":%q`, encapsulation))
		if lacks(t, encapsulation) {
			for _, n := range l.Nodes() {
				l.lacking(n, conf)
			}
			l.empty()
			continue
		}
		a, b := l.attach(l.Node(1), "a-"+encapsulation, conf), l.attach(l.Node(2), "b-"+encapsulation, conf)
		l.reach(a, b)
		for _, p := range []*cluster.Pod{a, b} {
			if err := p.Detach(t.Context()); err != nil {
				t.Error(err)
			}
		}
		l.empty()
	}
}

// TestEncapsulationsDisagree: what a segment has on another node is asked for by
// the others too, and the API takes only what there is.
func TestEncapsulationsDisagree(t *testing.T) {
	l := newLab(t, 1)
	member := &v1alpha1.SegmentMember{
		ObjectMeta: metav1.ObjectMeta{Name: "5001.elsewhere", Labels: map[string]string{v1alpha1.VNILabel: "5001", v1alpha1.NodeLabel: "elsewhere"}},
		Spec: v1alpha1.SegmentMemberSpec{
			VNI: 5001, Node: "elsewhere", Tunnels: &v1alpha1.SegmentTunnels{Discovery: "kubernetes", Encapsulation: "gre"},
		},
	}
	_, err := l.api.SegmentMembers().Create(t.Context(), member, metav1.CreateOptions{})
	if err == nil || !strings.Contains(err.Error(), `spec.tunnels.encapsulation: Unsupported value: "gre"`) {
		t.Errorf("of encapsulation gre: %v", err)
	}
	member.Spec.Tunnels.Encapsulation = "geneve"
	if _, err = l.api.SegmentMembers().Create(t.Context(), member, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	_, err = l.Node(1).AttachPod(within(t, 30*time.Second), "other", cluster.PodOptions{ConfList: tenant(5001, ""), IfName: "net1", NoRetry: true})
	const want = "encapsulation is vxlan; accepted: geneve, as the segment has it on node elsewhere"
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("%v\nis not: %s", err, want)
	}
	if err = l.api.SegmentMembers().Delete(t.Context(), member.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	l.empty()
}
