package agent

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weft-cni/weft/api/v1alpha1"
	"github.com/weft-cni/weft/pkg/control"
	"github.com/weft-cni/weft/pkg/netconf"
)

// twoNodes are an owner of blocks, with a pod, and a node that has none yet. Its
// blocks are the first of their ranges.
func twoNodes(t *testing.T) (w *walk, owner, borrower *walkNode) {
	t.Helper()
	w = newWalk(t, 1)
	owner, borrower = w.nodes[0], w.nodes[1]
	owner.add([]netip.Addr{netip.MustParseAddr("192.168.7.2"), netip.MustParseAddr("fd00:7::2")})
	w.settle()
	return w, owner, borrower
}

// ask is what the daemon says to a pod that wants these.
func (n *walkNode) ask(addrs ...string) error {
	r := control.Request{Segment: netconf.Segment{VNI: walkVNI, Ranges: n.ranges}}
	for _, addr := range addrs {
		r.Addrs = append(r.Addrs, netip.MustParseAddr(addr))
	}
	return n.s.lease(context.Background(), r)
}

// told has a daemon hear of everything, and act.
func (n *walkNode) told() error {
	n.hear(len(n.w.api.history))
	return n.keep()
}

func (n *walkNode) file() netconf.Leases {
	n.w.t.Helper()
	f, err := netconf.ReadSegment(n.s.runDir, walkVNI, n.s.bootID)
	if err != nil {
		n.w.t.Fatal(err)
	}
	return f.Leases
}

func TestLoan(t *testing.T) {
	w, owner, borrower := twoNodes(t)
	parts := []netip.Prefix{netip.MustParsePrefix("192.168.7.3/32"), netip.MustParsePrefix("fd00:7::3/128")}
	err := borrower.ask("192.168.7.3", "fd00:7::3")
	if !errors.Is(err, errUnlent) || !errors.Is(err, control.ErrNotYet) {
		t.Fatal(err)
	}
	for _, word := range []string{"192.168.7.3 on segment 7", "192.168.7.0/30", "fd00:7::3 on segment 7", "fd00:7::/126", "node n1"} {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("%v: not a word of %q", err, word)
		}
	}
	if f := borrower.file(); f.Has(parts[0].Addr()) || f.Has(parts[1].Addr()) {
		t.Errorf("used before it is lent: %v", f)
	}
	if err = owner.told(); err != nil {
		t.Fatal(err)
	}
	if f := owner.file(); !slices.Equal(f.Lent, parts) || f.Has(parts[0].Addr()) || !f.Has(parts[0].Addr().Prev()) {
		t.Errorf("the owner has %+v", f)
	}
	borrower.add([]netip.Addr{parts[0].Addr(), parts[1].Addr()})
	if len(borrower.pods) != 1 {
		t.Fatalf("the borrower has %+v", borrower.file())
	}
	if err = owner.ask("192.168.7.3"); !errors.Is(err, control.ErrTaken) || !strings.Contains(err.Error(), "node n2") {
		t.Error(err)
	}
	borrower.del()
	w.settle()
	if f := owner.file(); len(f.Lent) > 0 || !f.Has(parts[0].Addr()) {
		t.Errorf("not taken back: %+v", f)
	}
	w.rested()
}

// TestLoanWaits: a request waits for another node to lend, for a while.
func TestLoanWaits(t *testing.T) {
	w, owner, borrower := twoNodes(t)
	borrower.s.lendWait = 10 * time.Second
	lists := 0
	w.api.fault = func(verb string) fault {
		if verb == "list" {
			lists++
		}
		if verb == "list" && lists == 4 {
			if err := owner.told(); err != nil {
				t.Error(err)
			}
		}
		return noFault
	}
	if err := borrower.ask("192.168.7.3"); err != nil {
		t.Fatal(err)
	}
}

// TestNoLoan: what a pod of the owner has isn't lent, and the lease that asked for
// it goes.
func TestNoLoan(t *testing.T) {
	w, _, borrower := twoNodes(t)
	borrower.s.members = station{ip: "192.168.7.2"}
	err := borrower.ask("192.168.7.2")
	if !errors.Is(err, control.ErrTaken) || !strings.Contains(err.Error(), "192.168.7.2 on segment 7 is a pod's on node n1") {
		t.Fatal(err)
	}
	w.settle()
	if b := w.api.objects["7.192.168.7.2-32"]; b != nil {
		t.Errorf("left: %+v", b)
	}
}

// station are SegmentMembers with one address.
type station struct {
	noMembers
	ip string
}

func (s station) Get(context.Context, string, metav1.GetOptions) (*v1alpha1.SegmentMember, error) {
	return &v1alpha1.SegmentMember{Spec: v1alpha1.SegmentMemberSpec{Endpoints: []v1alpha1.Endpoint{{IPs: []string{s.ip}}}}}, nil
}

// TestGiveBack: a block whose deletion isn't answered is used by nobody before
// it is known what has become of it.
func TestGiveBack(t *testing.T) {
	for name, c := range map[string]struct {
		answer fault
		again  bool // the same block is used again
	}{
		"refused":               {refused, true},
		"not done":              {unavailable, true},
		"done without answer":   {doneUnsaid, false},
		"done late":             {delayed, true},
		"the daemon dies":       {crashBefore, true},
		"dies, and it is done":  {crashAfter, false},
		"dies, and it is later": {crashLate, true},
	} {
		t.Run(name, func(t *testing.T) {
			w, n, _ := twoNodes(t)
			n.del()
			n.s.state.active = map[uint32]activeSegment{}
			before := n.s.leasesIn(walkVNI, n.ranges[0].Subnet)[0]
			w.api.fault = func(verb string) fault {
				if verb == "delete" {
					return c.answer
				}
				return noFault
			}
			if err := n.keep(); err == nil {
				t.Error("no error")
			}
			if f := n.file(); slices.Contains(f.Blocks, before.block) {
				t.Errorf("%v are in use", f.Blocks)
			}
			n.s.state.active = map[uint32]activeSegment{}
			w.api.fault = func(string) fault { return noFault }
			if err := n.ask("192.168.7.2"); err != nil {
				t.Fatal(err)
			}
			for _, late := range w.api.late {
				late()
			}
			if now := w.api.objects[before.Name]; now == nil || (now.UID == before.UID) != c.again {
				t.Errorf("%+v, which was %+v", now, before.IPBlock)
			}
			if !n.file().Has(netip.MustParseAddr("192.168.7.2")) {
				t.Errorf("not in use: %+v", n.file())
			}
		})
	}
}
