package agent

import (
	"context"
	"maps"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/overlay"
	"github.com/weft-cni/weft/pkg/record"
)

func TestPodsAreRestored(t *testing.T) {
	attachment := func(link, ip string, age time.Duration) record.Attachment {
		return record.Attachment{
			HostLink: link, PodMAC: kernel.MAC{2, 1}, Addrs: []netip.Addr{netip.MustParseAddr(ip)}, Created: time.Now().Add(-age),
		}
	}
	attached := []record.Attachment{
		attachment("weftold", "10.244.0.2", time.Hour),
		attachment("weftother", "10.244.0.3", time.Hour),
		attachment("weftyoung", "10.244.0.4", 0), // its ADD may not be through
		attachment("weftgone", "10.244.0.5", time.Hour),
	}
	pod := func(a record.Attachment) kernel.State { return overlay.PlanPod(a.HostLink, a.PodMAC, a.Addrs) }
	w := newWorld(t)
	w.runner.attachments = func() ([]record.Attachment, error) { return attached, nil }
	w.list()
	for _, a := range attached[:3] {
		w.kernel.state.Put(kernel.ForeignLink{Name: a.HostLink})
	}
	own := kernel.Route{Link: "weftold", Dst: netip.MustParsePrefix("203.0.113.0/24")} // somebody's wish
	w.kernel.state.Put(own)
	before := maps.Clone(w.kernel.state)

	w.runner.inbox.put(func(w *work) { w.pods = links{"weftold": {}, "weftyoung": {}, "weftgone": {}} })
	w.settle()
	want := maps.Clone(before)
	want.Merge(pod(attached[0]))
	if d := cmp.Diff(want.String(), w.kernel.state.String()); d != "" {
		t.Errorf("after an event (-want +got):\n%s", d)
	}
	if n := value(t, w.runner.metrics.repairs.WithLabelValues("route")); n != 1 {
		t.Errorf("%v routes repaired", n)
	}
	w.resync()
	want.Merge(pod(attached[1]))
	if d := cmp.Diff(want.String(), w.kernel.state.String()); d != "" {
		t.Errorf("after a resync (-want +got):\n%s", d)
	}
}

// A Node that was deleted and made anew may have other pod CIDRs than its pods.
func TestStrandedPodsAreTold(t *testing.T) {
	w := newWorld(t)
	w.list()
	inside := w.runner.node.PodCIDRs[0].Addr().Next()
	attached := []record.Attachment{
		{Mode: "cluster", IPAM: "weft", PodNamespace: "a", PodName: "here", Addrs: []netip.Addr{inside}},
		{Mode: "cluster", IPAM: "static", PodNamespace: "a", PodName: "delegated", Addrs: []netip.Addr{netip.MustParseAddr("198.51.100.7")}},
		{Mode: "cluster", IPAM: "weft", PodNamespace: "a", PodName: "lost", Addrs: []netip.Addr{netip.MustParseAddr("10.99.0.7")}},
	}
	w.runner.attachments = func() ([]record.Attachment, error) { return attached, nil }
	w.resync()
	note := w.runner.conditions["pods"].note
	if !strings.Contains(note, "1 pod (a/lost with 10.99.0.7)") {
		t.Errorf("told: %q", note)
	}
	attached = attached[:2]
	w.resync()
	if len(w.runner.conditions) > 0 {
		t.Errorf("still told: %v", w.runner.conditions)
	}
}

// What many ADDs change is looked at together.
func TestPodsAreGathered(t *testing.T) {
	in, events := newInbox(), make(chan string)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go gatherPods(ctx, events, in)
	for range 100 {
		events <- "weft1"
		events <- "weft2"
	}
	<-in.wake
	if w := in.take(); len(w.pods) != 2 {
		t.Errorf("gathered %v", w.pods)
	}
	select {
	case <-in.wake:
		t.Error("a second time")
	default:
	}
}
