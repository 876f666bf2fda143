package agent

import (
	"context"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/netconf"
	"github.com/weft-cni/weft/pkg/overlay"
	"github.com/weft-cni/weft/pkg/record"
)

// isPodLink reports whether an object is a pod's: the host end of its veth, or
// on it. The plugin makes those; the daemon only restores what a record asks
// for, and leaves the rest to CHECK and GC.
func isPodLink(k kernel.Key) bool {
	return k.Kind >= kernel.KindLink && strings.HasPrefix(k.Name, netconf.LinkStart)
}

// links is a set of links, by name.
type links map[string]struct{}

// Delays before pods' links are looked at: an ADD or DEL changes several
// things on one, and isn't interfered with.
const (
	podDelay  = 500 * time.Millisecond // after an event
	podGrowth = 5 * time.Second        // an attachment's own time, from its record on
)

// gatherPods passes the names of pods' links that events are about on to the
// inbox, all of some time together.
func gatherPods(ctx context.Context, events <-chan string, in *inbox) {
	dirty := links{}
	timer := time.NewTimer(podDelay)
	timer.Stop()
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case name := <-events:
			if len(dirty) == 0 {
				timer.Reset(podDelay)
			}
			dirty[name] = struct{}{}
		case <-timer.C:
			in.pods(dirty)
			dirty = links{}
		}
	}
}

// restorePods puts routes and neighbours of pods back: of all pods, or of
// those on dirty links. Those that are too young are looked at again once they
// aren't. A pod isn't the node: what fails here is for the next resync.
func (r *runner) restorePods(all bool, dirty links) {
	attached, err := r.attachments()
	if err != nil {
		r.log.Warn("records of attachments that can't be read are left to GC", "err", err)
	}
	if all {
		r.stranded = stranded(attached, r.plan.self.PodCIDRs)
	}
	names, err := r.kernel.PodLinks()
	if err != nil {
		r.metrics.failed(stepRead)
		r.log.Warn("pods' links can't be read", "err", err)
	}
	want, young := kernel.State{}, links{}
	for _, a := range attached {
		_, isDirty := dirty[a.HostLink]
		switch {
		case a.VNI != 0: // a segment's are package segment's
		case !all && !isDirty || !slices.Contains(names, a.HostLink):
		case time.Since(a.Created) < podGrowth:
			young[a.HostLink] = struct{}{}
		default:
			want.Merge(overlay.PlanPod(a.HostLink, a.PodMAC, a.Addrs))
		}
	}
	if len(young) > 0 {
		time.AfterFunc(podGrowth, func() { r.inbox.pods(young) })
	}
	have, err := r.kernel.ReadKeys(want.Keys())
	if err != nil {
		r.metrics.failed(stepRead)
		r.log.Warn("pods' routes can't be read", "err", err)
		return
	}
	ops := kernel.Diff(want, have, nil)
	failed, _ := r.apply(ops) // none is the node's own
	r.repaired(slices.DeleteFunc(ops, func(op kernel.Op) bool { return failed.Covers(op.Key()) }))
}

// stranded names the pods on the cluster network whose address is in none of the
// node's pod CIDRs: a Node that was deleted and made anew may have been given
// others, and its pods live on.
func stranded(attached []record.Attachment, podCIDRs []netip.Prefix) (pods []string) {
	for _, a := range attached {
		for _, ip := range a.Addrs {
			inside := slices.ContainsFunc(podCIDRs, func(p netip.Prefix) bool { return p.Contains(ip) })
			if a.Mode == string(netconf.ModeCluster) && a.IPAM == netconf.Type && !inside {
				pods = append(pods, fmt.Sprintf("%s/%s with %s", a.PodNamespace, a.PodName, ip))
			}
		}
	}
	return pods
}

// attachmentsIn gives the attachments on record in dataDir that were made
// since the boot.
func attachmentsIn(dataDir, bootID string) func() ([]record.Attachment, error) {
	store := record.Store{Dir: filepath.Join(dataDir, record.Dir)}
	return func() ([]record.Attachment, error) {
		list, err := store.List()
		return slices.DeleteFunc(list, func(a record.Attachment) bool { return a.BootID != bootID }), err
	}
}
