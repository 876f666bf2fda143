package agent

import (
	"context"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"

	"github.com/weft-cni/weft/api/v1alpha1"
)

func vtep(name string) *v1alpha1.VTEP {
	return &v1alpha1.VTEP{
		ObjectMeta: metav1.ObjectMeta{Name: name, ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "x"}}},
		Spec: v1alpha1.VTEPSpec{
			NodeUID: "1", Underlay: []string{"192.0.2.9"}, MAC: "02:00:00:00:00:09", Port: 4789, PodCIDRs: []string{"10.244.9.0/24"},
		},
	}
}

func TestVTEPStore(t *testing.T) {
	in := newInbox()
	var own *v1alpha1.VTEP
	s := vtepStore("self", in, func(v *v1alpha1.VTEP) { own = v })
	malformed := vtep("bad")
	malformed.Spec.MAC = "nonsense"
	if err := s.Replace([]any{vtep("self"), vtep("a"), malformed}, "1"); err != nil {
		t.Fatal(err)
	}
	w := in.take()
	if !w.listed || len(w.peers) != 2 || w.peers["a"].peer == nil || w.peers["bad"].err == nil || own == nil {
		t.Errorf("a first list gives %+v, own %v", w, own)
	}
	for _, step := range []error{s.Add(vtep("b")), s.Delete(vtep("a")), s.Delete(vtep("self"))} {
		if step != nil {
			t.Fatal(step)
		}
	}
	w = in.take()
	if gone, ok := w.peers["a"]; w.listed || len(w.peers) != 2 || !ok || gone != (claim{}) || own != nil {
		t.Errorf("events give %+v, own %v", w, own)
	}
	// What goes while a list waits for its turn is not in the list.
	if err := s.Replace([]any{vtep("a"), vtep("b")}, "2"); err != nil {
		t.Fatal(err)
	}
	if err := s.Delete(vtep("a")); err != nil {
		t.Fatal(err)
	}
	if w = in.take(); !w.listed || len(w.peers) != 1 {
		t.Errorf("a list and a deletion give %+v", w)
	}
	stripped, err := s.Transformer()(vtep("a"))
	if v, ok := stripped.(*v1alpha1.VTEP); err != nil || !ok || v.ManagedFields != nil {
		t.Errorf("transformed: %v, %v", stripped, err)
	}
}

// TestFirstListIsCurrent: an API server that can't stream a first state gives
// one that is no older than the question.
func TestFirstListIsCurrent(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	asked := make(chan string, 1)
	lw := &cache.ListWatch{
		ListWithContextFunc: func(_ context.Context, o metav1.ListOptions) (runtime.Object, error) {
			asked <- o.ResourceVersion
			return &v1alpha1.VTEPList{ListMeta: metav1.ListMeta{ResourceVersion: "1"}}, nil
		},
		WatchFuncWithContext: func(_ context.Context, o metav1.ListOptions) (watch.Interface, error) {
			if o.SendInitialEvents != nil {
				return nil, apierrors.NewBadRequest("sendInitialEvents is forbidden")
			}
			return watch.NewFake(), nil
		},
	}
	in := newInbox()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		follow(ctx, "vteps", lw, &v1alpha1.VTEP{}, vtepStore("self", in, func(*v1alpha1.VTEP) {}), newMetrics("test"))
	}()
	if rv := <-asked; rv != "" {
		t.Errorf("the first list may be as old as version %q", rv)
	}
	stop()
	<-ended
}

func TestNodeStore(t *testing.T) {
	var got Node
	var failed error
	s := nodeStore("self", func(n Node, err error) { got, failed = n, err })
	object := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: "self", UID: "1"},
		Spec:       corev1.NodeSpec{PodCIDRs: []string{"10.244.1.0/24", "fd00::/64"}},
		Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{
			{Type: corev1.NodeHostName, Address: "self"},
			{Type: corev1.NodeExternalIP, Address: "203.0.113.1"},
			{Type: corev1.NodeInternalIP, Address: "::ffff:192.0.2.1"},
			{Type: corev1.NodeInternalIP, Address: "nonsense"},
			{Type: corev1.NodeInternalIP, Address: "2001:db8::1"},
		}},
	}
	want := Node{
		Name: "self", UID: "1",
		PodCIDRs:    []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("fd00::/64")},
		InternalIPs: []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")},
	}
	compare := cmp.Comparer(func(a, b Node) bool { return a.Equal(b) })
	if err := s.Replace([]any{object}, "1"); err != nil || failed != nil {
		t.Fatal(err, failed)
	}
	if d := cmp.Diff(want, got, compare); d != "" {
		t.Error(d)
	}
	for name, none := range map[string]func() error{
		"deleted":       func() error { return s.Delete(object) },
		"an empty list": func() error { return s.Replace(nil, "2") },
	} {
		if err := none(); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(Node{Name: "self"}, got, compare); d != "" {
			t.Errorf("%s: %s", name, d)
		}
	}
	object.Spec.PodCIDRs = []string{"10.244.1.0"}
	if err := s.Update(object); err != nil {
		t.Fatal(err)
	}
	if want := `node self: spec.podCIDRs[0]: "10.244.1.0" is not an address range`; failed == nil || failed.Error()[:len(want)] != want {
		t.Errorf("a malformed Node: %v", failed)
	}
}
