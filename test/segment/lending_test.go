package segment_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weft-cni/weft/api/v1alpha1"
	"github.com/weft-cni/weft/pkg/attach"
	"github.com/weft-cni/weft/test/cluster"
)

// lending is a network with small blocks: a node needs several.
var lending = []byte(`{"cniVersion":"1.1.0","name":"lending","plugins":[{"type":"weft","mode":"overlay","vni":1021,"capabilities":{"ips":true},
	"ipam":{"type":"weft","ranges":[{"subnet":"192.168.21.0/24","blockSize":8},{"subnet":"fd00:21::/64","blockSize":8}]}}]}`)

// ask attaches a new pod that wants addresses, and gives an error of code 11 back.
func (l *lab) ask(n *cluster.Node, name string, addrs ...netip.Addr) (*cluster.Pod, error) {
	l.t.Helper()
	return n.AttachPod(within(l.t, 30*time.Second), name, cluster.PodOptions{
		ConfList: lending, IfName: "net1", NoRetry: true, CapabilityArgs: map[string]any{"ips": addrs},
	})
}

func (l *lab) mustAsk(n *cluster.Node, name string, addrs ...netip.Addr) *cluster.Pod {
	l.t.Helper()
	p, err := l.ask(n, name, addrs...)
	if err != nil {
		l.t.Fatal(err)
	}
	if got := p.IPs(); !slices.Equal(got, addrs) {
		l.t.Fatalf("%s has %v, not %v", name, got, addrs)
	}
	return p
}

// refusedWith: an ADD failed with a code, and its message has these words.
func refusedWith(t *testing.T, err error, code uint, words ...string) {
	t.Helper()
	cniErr, ok := errors.AsType[*types.Error](err)
	if !ok || cniErr.Code != code {
		t.Fatalf("want an error of code %d, got %v", code, err)
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("%v: not a word of %q", err, word)
		}
	}
}

// blocks are the leased blocks of the network, by their CIDR.
func (l *lab) blocks() map[netip.Prefix]v1alpha1.IPBlockSpec {
	l.t.Helper()
	list, err := l.api.IPBlocks().List(l.t.Context(), metav1.ListOptions{})
	if err != nil {
		l.t.Fatal(err)
	}
	all := map[netip.Prefix]v1alpha1.IPBlockSpec{}
	for i := range list.Items {
		all[netip.MustParsePrefix(list.Items[i].Spec.CIDR)] = list.Items[i].Spec
	}
	return all
}

// beside gives the addresses beside a pod's in the blocks that it is in, of each
// family, that have this place there.
func (l *lab) beside(p *cluster.Pod, place int) (addrs []netip.Addr) {
	l.t.Helper()
	all := l.blocks()
	for _, ip := range p.IPs() {
		block := netip.PrefixFrom(ip, ip.BitLen()-3).Masked()
		if _, leased := all[block]; !leased {
			l.t.Fatalf("%s is in no block of %v", ip, all)
		}
		addr := block.Addr()
		for range place {
			addr = addr.Next()
		}
		if addr == ip {
			addr = block.Addr().Next()
		}
		addrs = append(addrs, addr)
	}
	return addrs
}

// fill attaches more pods to a node than a block has addresses: none gets one of
// these. They are detached again.
func (l *lab) fill(n *cluster.Node, what string, none ...netip.Addr) {
	l.t.Helper()
	var pods []*cluster.Pod
	for i := range 12 {
		p := l.attach(n, fmt.Sprint(what, i), lending)
		for _, ip := range p.IPs() {
			if slices.Contains(none, ip) {
				l.t.Errorf("%s: a pod on %s got %s", what, n.Name, ip)
			}
		}
		pods = append(pods, p)
	}
	for _, p := range pods {
		l.detach(p)
	}
}

func (l *lab) detach(p *cluster.Pod) {
	l.t.Helper()
	if err := p.Detach(within(l.t, 30*time.Second)); err != nil {
		l.t.Error(err)
	}
}

// returned waits until no node has or lends addresses alone.
func (l *lab) returned() {
	l.t.Helper()
	eventually(l.t, 20*time.Second, func() error {
		for block, spec := range l.blocks() {
			if block.IsSingleIP() || len(spec.Lent) > 0 {
				return fmt.Errorf("%s: %+v", block, spec)
			}
		}
		return nil
	})
}

// TestLending: a pod gets addresses that it asks for from another node's blocks;
// nobody else gets them meanwhile, whatever daemon dies, and they return.
func TestLending(t *testing.T) {
	l := newLab(t, 2)
	owner, borrower := l.Node(1), l.Node(2)
	a := l.attach(owner, "a", lending)
	lent := l.beside(a, 3)
	b := l.mustAsk(borrower, "b", lent...)
	l.reach(a, b)
	l.fill(owner, "lent", lent...)

	t.Run("to one only", func(t *testing.T) {
		_, err := l.ask(owner, "second", lent...)
		refusedWith(t, err, attach.CodeAddrInUse, lent[0].String(), "node "+borrower.Name)
		_, err = l.ask(borrower, "third", lent...)
		refusedWith(t, err, attach.CodeAddrInUse, lent[0].String())
		_, err = l.ask(borrower, "fourth", a.IPs()...)
		refusedWith(t, err, attach.CodeAddrInUse, a.IP(4).String(), "node "+owner.Name)
	})
	t.Run("the owner's daemon dies", func(t *testing.T) {
		l.daemons[0].Kill()
		_, err := l.ask(owner, "without", lent...)
		refusedWith(t, err, attach.CodeTryAgain)
		l.daemons[0] = owner.Weftd(t)
		l.fill(owner, "owner", lent...)
	})
	t.Run("the borrower's daemon dies", func(t *testing.T) {
		l.daemons[1].Kill()
		l.daemons[1] = borrower.Weftd(t)
		l.fill(owner, "borrower", lent...)
		l.fill(borrower, "itself", lent...)
		if err := b.Check(t.Context()); err != nil {
			t.Error(err)
		}
		l.reach(a, b)
	})
	t.Run("returned", func(t *testing.T) {
		e := l.attach(borrower, "e", lending)
		defer l.detach(e)
		l.detach(b)
		l.returned()
		c := l.mustAsk(owner, "c", lent...)
		_, err := l.ask(borrower, "d", lent...)
		refusedWith(t, err, attach.CodeAddrInUse, lent[0].String(), "node "+owner.Name)
		l.detach(c)
	})
	l.detach(a)
	l.empty()
}

// TestLendingRandomWalk attaches pods that ask for addresses, and pods that don't,
// to two nodes in random order, and detaches them, while daemons die. No address
// is with two pods, and nothing is left.
func TestLendingRandomWalk(t *testing.T) {
	const steps, addresses = 60, 30
	l := newLab(t, 2)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	stay := []*cluster.Pod{l.attach(l.Node(1), "stays1", lending), l.attach(l.Node(2), "stays2", lending)}
	pods, on, lent := slices.Clone(stay), map[*cluster.Pod]uint32{}, 0
	for step := range steps {
		n := r.IntN(2)
		switch i := r.IntN(20); {
		case i == 0:
			l.daemons[n].Kill()
			l.daemons[n] = l.Node(n + 1).Weftd(t)
		case i < 5:
			pods = append(pods, l.attach(l.Node(n+1), fmt.Sprint("any", step), lending))
		case i < 13:
			last := 2 + r.IntN(addresses)
			p, err := l.ask(l.Node(n+1), fmt.Sprint("asks", step), netip.AddrFrom4([4]byte{192, 168, 21, byte(last)}), netip.MustParseAddr(fmt.Sprintf("fd00:21::%x", last)))
			if cniErr, ok := errors.AsType[*types.Error](err); ok && (cniErr.Code == attach.CodeAddrInUse || cniErr.Code == attach.CodeTryAgain) {
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			if spec, single := l.blocks()[netip.PrefixFrom(p.IP(4), 32)]; single && spec.Node == l.Node(n+1).Name {
				lent++
			}
			pods = append(pods, p)
		case len(pods) > len(stay):
			at := len(stay) + r.IntN(len(pods)-len(stay))
			l.detach(pods[at])
			pods = slices.Delete(pods, at, at+1)
		}
		unique(t, pods, on)
	}
	t.Logf("%d addresses were lent", lent)
	for i := range pods {
		l.detach(pods[len(pods)-1-i])
	}
	l.empty()
}

// TestLendingLater: nobody lends while the owner's daemon or the API server is
// away, which a later ADD gets over; what is lent meanwhile returns when they are
// back.
func TestLendingLater(t *testing.T) {
	l := newLab(t, 2)
	owner, borrower := l.Node(1), l.Node(2)
	a := l.attach(owner, "a", lending)
	want := l.beside(a, 3)

	l.daemons[0].Kill()
	_, err := l.ask(borrower, "b", want...)
	refusedWith(t, err, attach.CodeTryAgain, want[0].String(), "leased to node "+owner.Name, "hasn't lent it yet")
	l.daemons[0] = owner.Weftd(t)
	b := l.mustAsk(borrower, "b", want...)
	l.reach(a, b)

	l.API.Stop()
	_, err = l.ask(borrower, "c", l.beside4(a, 5))
	refusedWith(t, err, attach.CodeTryAgain)
	l.detach(b) // which nobody hears of yet
	l.daemons[1].Kill()
	if err := l.API.Start(within(t, time.Minute)); err != nil {
		t.Fatal(err)
	}
	l.fill(owner, "later", want...)
	l.daemons[1] = borrower.Weftd(t)
	l.returned()
	l.detach(a)
	l.empty()
}

// beside4 is beside without asking the API server.
func (*lab) beside4(p *cluster.Pod, place int) netip.Addr {
	addr := netip.PrefixFrom(p.IP(4), 29).Masked().Addr()
	for range place {
		addr = addr.Next()
	}
	return addr
}

// TestLenderRemoved: when the Node of a block's owner is deleted, what it lent
// stays with the pod, and who leases the block next gives it to nobody.
func TestLenderRemoved(t *testing.T) {
	l := newLab(t, 3)
	owner, borrower, next := l.Node(1), l.Node(2), l.Node(3)
	a := l.attach(owner, "a", lending)
	lent, other := l.beside(a, 3), l.beside(a, 5)
	b := l.mustAsk(borrower, "b", lent...)
	if err := owner.Remove(within(t, 30*time.Second)); err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, func() error {
		for block, spec := range l.blocks() {
			if spec.Node == owner.Name {
				return fmt.Errorf("%s stays", block)
			}
		}
		return nil
	})
	c := l.mustAsk(next, "c", other...)
	block := netip.PrefixFrom(other[0], 29).Masked()
	if spec := l.blocks()[block]; spec.Node != next.Name || len(spec.Lent) != 1 || spec.Lent[0].Node != borrower.Name {
		t.Errorf("%s: %+v", block, spec)
	}
	l.fill(next, "next", lent...)
	if err := b.Check(t.Context()); err != nil {
		t.Error(err)
	}
	l.reach(b, c)

	// A borrower that is removed is known to have nothing any more.
	if err := borrower.Remove(within(t, 30*time.Second)); err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, func() error {
		_, err := l.api.IPBlocks().Get(t.Context(), "1021."+lent[0].String()+"-32", metav1.GetOptions{})
		if !apierrors.IsNotFound(err) {
			return fmt.Errorf("its lease: %w", err)
		}
		return nil
	})
	var d *cluster.Pod
	eventually(t, 20*time.Second, func() (err error) {
		d, err = l.ask(next, "d", lent...)
		return err
	})
	l.detach(c)
	l.detach(d)
	l.empty()
}

// unique: no address is given twice on a segment.
func unique(t *testing.T, pods []*cluster.Pod, on map[*cluster.Pod]uint32) {
	t.Helper()
	seen := map[string]string{}
	for _, p := range pods {
		for _, c := range p.Result.IPs {
			key := fmt.Sprint(on[p], c.Address.IP)
			if other, twice := seen[key]; twice {
				t.Errorf("%s and %s have %s", other, p.Name, c.Address.IP)
			}
			seen[key] = p.Name
		}
	}
}
