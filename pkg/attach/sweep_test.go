package attach_test

import (
	"testing"
	"time"

	"github.com/weft-cni/weft/pkg/netconf"
)

// TestSweep: of pods that went without a DEL nothing is left, and their addresses
// are others'; what is of the others, and what may be an ADD's that is under way,
// stays.
func TestSweep(t *testing.T) {
	n := newNode(t)
	sweep := func() {
		t.Helper()
		must(t, n.plugin.Sweep(t.Context(), &netconf.Network{RunDir: n.RunDir(), DataDir: n.DataDir()}))
	}
	alive, gone, young := newPod(t, "alive", ""), newPod(t, "gone", ""), newPod(t, "young", "")
	unlinked, earlier := newPod(t, "unlinked", ""), newPod(t, "earlier", "")
	result := n.attach(alive)
	for _, p := range []pod{gone, young, unlinked, earlier} {
		n.attach(p)
		rec, err := n.store().Get(p.id, p.ifName)
		must(t, err)
		if p.id != young.id {
			rec.Created = rec.Created.Add(-time.Minute)
		}
		if p.id == earlier.id {
			rec.BootID = "another"
		}
		must(t, n.store().Put(rec))
		if p.id == unlinked.id {
			must(t, n.Handle.LinkDel(link(t, n.NS, rec.HostLink)))
			continue
		}
		p.Close()
		for end := time.Now().Add(10 * time.Second); ; {
			if _, err := n.Handle.LinkByName(rec.HostLink); err != nil {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("%s outlives its pod", rec.HostLink)
			}
		}
	}
	sweep()
	var left []string
	recs, err := n.store().List()
	must(t, err)
	for _, rec := range recs {
		left = append(left, rec.ContainerID)
	}
	if got := text(t, left); got != text(t, []string{"alive", "earlier", "unlinked", "young"}) {
		t.Errorf("records after the sweep: %s", got)
	}
	if err := n.check(alive, result); err != nil {
		t.Error(err)
	}
	for _, p := range []pod{alive, young, unlinked, earlier} {
		n.detach(p)
	}
	if got := n.dump(); got != "# node\n" {
		t.Errorf("left behind:\n%s", got)
	}
}
