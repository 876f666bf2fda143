package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"reflect"
	"sync"
	"time"

	weft "github.com/weft-cni/weft/pkg/client/versioned/typed/api/v1alpha1"
	"github.com/weft-cni/weft/pkg/control"
	"github.com/weft-cni/weft/pkg/ipam"
	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/netconf"
	"github.com/weft-cni/weft/pkg/overlay"
	"github.com/weft-cni/weft/pkg/segment"
)

// segments keeps tenants' networks on this node: in the kernel as segment plans
// them, in the API (SegmentMembers, IPBlocks), and in the files that the plugin
// reads. What it wants follows from the records of attachments, from the API's
// objects, and from what the plugin has just asked for.
//
// Passes over the kernel, one at a time, and writes to the API are goroutines of
// their own: the kernel never waits for the API.
type segments struct {
	node           string
	config         overlay.Config
	runDir, bootID string
	resync         time.Duration
	kernel         Kernel
	log            *slog.Logger
	metrics        *metrics
	report         func(reason, note string)
	members        weft.SegmentMemberInterface
	blocks         weft.IPBlockInterface
	records        *records
	// sealed says whether the node is to be one with encrypted segments (inbox's
	// seal).
	sealed func(on bool, done chan<- error)

	wake    chan struct{} // has an element while there is work for a pass
	publish chan struct{} // likewise for the API

	life  context.Context //nolint:containedctx // of run: that of the watches that passes begin
	group *sync.WaitGroup

	passing sync.Mutex              // held by a pass
	plans   map[uint32]kernel.State // of the last pass, by segment
	kept    map[uint32]kernel.Keys  // what isn't planned and may not go yet, by segment
	mended  bool                    // the whole kernel has been compared once

	leasing  leasing
	grants   grants
	lendWait time.Duration // for other nodes to lend an address

	mu    sync.Mutex
	state segmentState
}

// segmentState is what passes start from.
type segmentState struct {
	self  *overlay.Self // nil until the node is in order
	owner *Node
	// dirty are the segments that a pass has to look at: true where not only
	// members have changed.
	dirty map[uint32]bool
	// unpublished are those of which the API's objects may have to change.
	unpublished map[uint32]struct{}
	peers       map[string]overlay.Peer
	listed      bool // peers has all that there are
	known       map[uint32]*knownSegment
	own         *ownObjects
	opened      map[uint32]opened
	// wanted are addresses that a pod is about to have, by segment, and until when
	// they are kept for it.
	wanted map[uint32]map[netip.Addr]time.Time
	// larger are blocks around this node's blocks that could be, by segment, as
	// they were when they were last in the way: making one inside is in vain.
	larger  map[uint32][]netip.Prefix
	sealing int          // requests for encrypted segments that aren't in opened yet
	drift   kernel.Keys  // where the kernel changed otherwise than planned
	all     bool         // anywhere
	want    kernel.State // all plans of the last pass
	// active are the segments of the last pass; nil before the first, when
	// nothing may be taken back.
	active map[uint32]activeSegment
}

// opened is a segment that the plugin has asked for: it stays until there is a
// record, or has been time for one.
type opened struct {
	segment netconf.Segment
	until   time.Time
}

// openTime is how long a segment without attachments stays after it was asked
// for: longer than an ADD takes.
const openTime = time.Minute

// activeSegment is a segment that this node takes part in.
type activeSegment struct {
	recorded bool // an attachment is on record
	tunnels  netconf.Tunnels
	ranges   []netconf.Range
	snooping bool
	gateway  bool // this node is to be one
	routed   bool // and is on record as that of an attachment
	learn    bool // others' stations may be behind a port
	// stations are what is told of to other nodes: those of all attachments on
	// record. Their ports are what is there of them yet: the record comes first,
	// and a station had better be known before it speaks.
	stations []segment.Endpoint
	ports    []segment.Port
	// claims are the addresses of ports that Weft gave.
	claims []ipam.Claim
}

func newSegments(o Options, members weft.SegmentMemberInterface, blocks weft.IPBlockInterface, m *metrics) *segments {
	return &segments{
		node: o.Node, config: o.Settings.Overlay, runDir: o.RunDir, bootID: o.BootID, resync: o.Settings.Resync,
		kernel: o.Kernel, log: o.Log, metrics: m, members: members, blocks: blocks,
		report:  func(string, string) {},
		sealed:  func(bool, chan<- error) {},
		records: newRecords(o.DataDir, o.BootID, o.Log),
		wake:    make(chan struct{}, 1), publish: make(chan struct{}, 1),
		plans: map[uint32]kernel.State{}, kept: map[uint32]kernel.Keys{},
		grants: grants{of: map[uint32]netconf.Leases{}}, lendWait: lendWait,
		state: segmentState{
			dirty: map[uint32]bool{}, unpublished: map[uint32]struct{}{},
			peers: map[string]overlay.Peer{}, known: map[uint32]*knownSegment{}, own: newOwnObjects(o.Node),
			opened: map[uint32]opened{}, wanted: map[uint32]map[netip.Addr]time.Time{}, larger: map[uint32][]netip.Prefix{},
			drift: kernel.Keys{}, want: kernel.State{},
		},
	}
}

// update changes what passes start from, and has one made.
func (s *segments) update(change func(*segmentState)) {
	s.mu.Lock()
	change(&s.state)
	s.mu.Unlock()
	poke(s.wake)
}

// touch has a pass look at a segment: at its attachments and files too where own
// is true. The caller holds the lock.
func (st *segmentState) touch(vni uint32, own bool) { st.dirty[vni] = st.dirty[vni] || own }

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// ready tells that the node is in order, and what it is.
func (s *segments) ready(n Node, self overlay.Self) {
	s.mu.Lock()
	st := &s.state
	same := st.self != nil && reflect.DeepEqual(*st.self, self) && reflect.DeepEqual(*st.owner, n)
	st.self, st.owner, st.all = &self, &n, st.all || !same
	s.mu.Unlock()
	if !same {
		poke(s.wake)
	}
}

// run makes passes until ctx ends. The kernel stays as it is then.
func (s *segments) run(ctx context.Context) {
	resync := time.NewTicker(s.resync)
	defer resync.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.wake:
		case <-resync.C:
			s.update(func(st *segmentState) { st.all = true })
		}
		s.inLine(ctx)
	}
}

// inLine makes a pass, and another later where one is needed.
func (s *segments) inLine(ctx context.Context) {
	again, err := s.pass(ctx)
	if err != nil && !errors.Is(err, errNotReady) {
		s.log.Warn("segments are not all in order", "err", err)
	}
	if again {
		time.AfterFunc(firstRetry, func() { poke(s.wake) })
		return
	}
	s.unseal()
}

// prepare does what the plugin asks for.
func (s *segments) prepare(ctx context.Context, r control.Request) error {
	vni := r.Segment.VNI
	switch {
	case vni < 1 || vni > segment.MaxVNI:
		return fmt.Errorf("%w: vni is %d; accepted: 1 to %d", control.ErrRefused, vni, segment.MaxVNI)
	case vni == s.config.VNI:
		return fmt.Errorf("%w: vni %d is the cluster network's", control.ErrRefused, vni)
	}
	if err := s.open(ctx, r.Segment); err != nil {
		return err
	}
	if err := s.lease(ctx, r); err != nil {
		s.log.Warn("no addresses for a segment", "vni", vni, "err", err)
		return err
	}
	s.inLine(ctx)
	if _, err := netconf.ReadSegment(s.runDir, vni, s.bootID); err != nil {
		return fmt.Errorf("%w: %w", control.ErrNotYet, err)
	}
	return nil
}
