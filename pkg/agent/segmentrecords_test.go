package agent

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/netconf"
	"github.com/weft-cni/weft/pkg/record"
)

func segmentRecord(pod string, vni uint32, boot string) record.Attachment {
	return record.Attachment{
		ContainerID: pod, IfName: "net1", Network: "tenant", Netns: "/run/netns/" + pod, Mode: string(netconf.ModeOverlay), VNI: vni,
		HostLink: "weft" + pod, PodMAC: kernel.MAC{2, 0, 0, 0, 0, 1}, MTU: 1450, IPAM: netconf.Type,
		Addrs:  []netip.Addr{netip.MustParseAddr("192.168.7.2")},
		Config: fmt.Appendf(nil, `{"cniVersion":"1.1.0","name":"tenant","type":"weft","mode":"overlay","vni":%d}`, vni),
		BootID: boot, Created: time.Unix(1, 0),
	}
}

// TestRecords has records come, change and go, and another daemon's view of the
// same directory, which is told of nothing and looks at all files, beside ours.
func TestRecords(t *testing.T) {
	dir := t.TempDir()
	store := record.Store{Dir: filepath.Join(dir, record.Dir)}
	told, looks := newRecords(dir, "boot", slog.Default()), newRecords(dir, "boot", slog.Default())
	ctx, cancel := context.WithCancel(t.Context())
	changed := make(chan struct{}, 100)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil && told.watch(ctx, func() { changed <- struct{}{} }) == nil {
			continue // the directory has been made
		}
	}()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	expect := func(what string, dirty []uint32, ports ...string) {
		t.Helper()
		for name, r := range map[string]*records{"told": told, "looks": looks} {
			got, err := r.take(false)
			must(err)
			for _, vni := range dirty {
				if _, ok := got[vni]; !ok {
					t.Errorf("%s: %s: segment %d isn't dirty", what, name, vni)
				}
			}
			if len(got) != len(dirty) {
				t.Errorf("%s: %s: %v are dirty, not %v", what, name, got, dirty)
			}
			var links []string
			for _, a := range r.attachedTo(1001) {
				links = append(links, a.port.HostLink)
				if vni, ok := r.segmentOf(a.port.HostLink); !ok || vni != 1001 || a.segment == nil || a.claim == nil {
					t.Errorf("%s: %s: %+v", what, name, a)
				}
			}
			if !slices.Equal(links, ports) {
				t.Errorf("%s: %s: attached are %v, not %v", what, name, links, ports)
			}
		}
	}
	expect("no directory", nil)
	must(store.Put(segmentRecord("a", 1001, "boot")))
	<-changed // the directory's
	expect("a record", []uint32{1001}, "wefta")
	expect("nothing more", nil, "wefta")
	cluster := segmentRecord("c", 0, "boot")
	cluster.Mode = string(netconf.ModeCluster)
	must(store.Put(cluster))
	must(store.Put(segmentRecord("before", 1001, "earlier boot")))
	must(os.WriteFile(filepath.Join(store.Dir, "torn:net1"), []byte("{"), 0o600))
	expect("others", nil, "wefta")
	must(store.Put(segmentRecord("b", 1001, "boot")))
	must(store.Put(segmentRecord("d", 1002, "boot")))
	expect("two more", []uint32{1001, 1002}, "wefta", "weftb")
	must(store.Put(segmentRecord("a", 1003, "boot")))
	expect("another segment", []uint32{1001, 1003}, "weftb")
	must(store.Delete("b", "net1"))
	for _, r := range []*records{told, looks} {
		if used, err := r.uses(1001); used || err != nil {
			t.Errorf("after the last: %v, %v", used, err)
		}
	}
	expect("gone", []uint32{1001})
	must(os.RemoveAll(store.Dir))
	expect("no directory any more", []uint32{1002, 1003})
	cancel()
	<-done
}
