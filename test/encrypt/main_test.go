// Package encrypt_test runs real daemons with encryption between them: on the
// kernel's WireGuard where that has it, on `weftd wireguard` otherwise.
package encrypt_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weft-cni/weft/api/v1alpha1"
	weft "github.com/weft-cni/weft/pkg/client/versioned/typed/api/v1alpha1"
	"github.com/weft-cni/weft/pkg/encrypt"
	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/kernel/rtnl"
	"github.com/weft-cni/weft/test/cluster"
	"github.com/weft-cni/weft/test/probe"
)

const manifests = "../../manifests/base"

func TestMain(m *testing.M) { cluster.Main(m) }

// lab is a cluster with encryption.
type lab struct {
	*cluster.Cluster
	t       *testing.T
	daemons []*cluster.Weftd
	backlog uint64 // at the start
}

// newLab makes a cluster whose nodes have WireGuard, and no daemon yet.
func newLab(t *testing.T, o cluster.Options) *lab {
	t.Helper()
	o.Manifests = []string{manifests}
	l := &lab{Cluster: cluster.New(t, o), t: t, backlog: backlog(t)}
	t.Cleanup(func() {
		if t.Failed() {
			l.show()
		}
	})
	l.daemons = make([]*cluster.Weftd, len(l.Nodes()))
	for i := range l.Nodes() {
		l.Node(i + 1).WireGuard(t)
	}
	return l
}

// show logs what the nodes' kernels hold, what their devices have seen, and
// what was lost in queues.
func (l *lab) show() {
	l.t.Logf("the machine's CPUs dropped %d packets meanwhile", backlog(l.t)-l.backlog)
	for _, n := range l.Nodes() {
		err := n.Do(func() error {
			h, err := rtnl.Open()
			if err != nil {
				return err
			}
			defer h.Close()
			s, err := h.Read(rtnl.Names(encrypt.Names))
			if err != nil {
				return err
			}
			seen, err := h.PeerTraffic(encrypt.Links())
			l.t.Logf("%s:\n%s%+v\n%s", n.Name, s, seen, drops())
			return err
		})
		if err != nil {
			l.t.Logf("%s: %v", n.Name, err)
		}
	}
}

// drops shows what full queues of the namespace's links and sockets have lost.
func drops() string {
	var b strings.Builder
	links, err := netlink.LinkList()
	for _, l := range links {
		if s := l.Attrs().Statistics; s != nil && s.RxDropped+s.TxDropped > 0 {
			fmt.Fprintf(&b, "%s dropped %d to receive, %d to send\n", l.Attrs().Name, s.RxDropped, s.TxDropped)
		}
	}
	for _, file := range []string{"snmp", "snmp6"} {
		data, e := os.ReadFile("/proc/thread-self/net/" + file)
		err = errors.Join(err, e)
		for line := range strings.Lines(string(data)) {
			if strings.HasPrefix(line, "Udp:") || strings.HasPrefix(line, "Udp6RcvbufErrors") {
				b.WriteString(line)
			}
		}
	}
	if err != nil {
		fmt.Fprintln(&b, err)
	}
	return b.String()
}

// backlog is how many packets the machine's CPUs have had no room for: all
// namespaces share their queues (net.core.netdev_max_backlog).
func backlog(t testing.TB) (dropped uint64) {
	t.Helper()
	data, err := os.ReadFile("/proc/net/softnet_stat")
	must(t, err)
	for line := range strings.Lines(string(data)) {
		if fields := strings.Fields(line); len(fields) > 1 {
			n, err := strconv.ParseUint(fields[1], 16, 32)
			must(t, err)
			dropped += n
		}
	}
	return dropped
}

// daemon starts the daemon of a node anew.
func (l *lab) daemon(i int, args ...string) *cluster.Weftd {
	l.t.Helper()
	if d := l.daemons[i-1]; d != nil {
		d.Kill()
	}
	l.daemons[i-1] = l.Node(i).Weftd(l.t, args...)
	return l.daemons[i-1]
}

// all starts the daemons of all nodes.
func (l *lab) all(args ...string) {
	l.t.Helper()
	for i := range l.Nodes() {
		l.daemon(i+1, args...)
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// within is a context for what has to be done in time.
func within(t testing.TB, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// eventually waits until check gives no error, for at most d.
func eventually(t testing.TB, d time.Duration, check func() error) {
	t.Helper()
	start := time.Now()
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Since(start) > d {
			t.Fatalf("after %v: %v", d, err)
		}
		<-ticker.C
	}
}

// state is what the node's kernel holds of ours.
func state(t testing.TB, n *cluster.Node) kernel.State {
	t.Helper()
	var s kernel.State
	eventually(t, 2*time.Second, func() (err error) {
		s, err = n.Kernel(rtnl.Names(encrypt.Names))
		return err
	})
	return s
}

// has checks that the node's kernel has an object with all of the texts.
func has(t testing.TB, n *cluster.Node, texts ...string) func() error {
	return func() error {
		s := state(t, n).String()
	lines:
		for line := range strings.Lines(s) {
			for _, text := range texts {
				if !strings.Contains(line, text) {
					continue lines
				}
			}
			return nil
		}
		return fmt.Errorf("nothing with %q on %s:\n%s", texts, n.Name, s)
	}
}

// talk checks that pods reach each other over all families.
func talk(t testing.TB, pods ...*cluster.Pod) {
	t.Helper()
	for _, from := range pods {
		for _, to := range pods {
			for _, ip := range to.IPs() {
				if _, err := probe.Ping(within(t, 15*time.Second), from, ip); err != nil {
					t.Fatalf("%s to %s at %s: %v", from.Name, to.Name, ip, err)
				}
			}
		}
	}
}

func (l *lab) vteps() weft.VTEPInterface {
	l.t.Helper()
	client, err := weft.NewForConfig(l.API.Config)
	must(l.t, err)
	return client.VTEPs()
}

// published waits until the node's VTEP is as ok wants it.
func (l *lab) published(name string, d time.Duration, ok func(*v1alpha1.VTEP) bool) (v *v1alpha1.VTEP) {
	l.t.Helper()
	eventually(l.t, d, func() error {
		var err error
		if v, err = l.vteps().Get(l.t.Context(), name, metav1.GetOptions{}); err == nil && !ok(v) {
			err = fmt.Errorf("VTEP %s is %+v", v.Name, v.Spec.WireGuard)
		}
		return err
	})
	return v
}

// metric sums the series of a metric, or gives the one whose labels are named.
func metric(t testing.TB, d *cluster.Weftd, name string) (sum float64) {
	t.Helper()
	body, err := d.Get(within(t, 5*time.Second), "/metrics")
	must(t, err)
	for lines := bufio.NewScanner(bytes.NewReader(body)); lines.Scan(); {
		series, value, ok := strings.Cut(lines.Text(), " ")
		if metric, _, _ := strings.Cut(series, "{"); !ok || series != name && metric != name {
			continue
		}
		v, err := strconv.ParseFloat(value, 64)
		must(t, err)
		sum += v
	}
	return sum
}

// told waits for an Event about the node.
func (l *lab) told(n *cluster.Node, reason string) (found corev1.Event) {
	l.t.Helper()
	eventually(l.t, 15*time.Second, func() error {
		list, err := l.API.Client.CoreV1().Events("default").List(l.t.Context(), metav1.ListOptions{
			FieldSelector: "reason=" + reason + ",involvedObject.name=" + n.Name,
		})
		if err != nil {
			return err
		}
		if len(list.Items) == 0 {
			return fmt.Errorf("no Event %s about %s", reason, n.Name)
		}
		found = list.Items[0]
		return nil
	})
	return found
}

var (
	getOptions    = metav1.GetOptions{}
	updateOptions = metav1.UpdateOptions{}
)

// forms are the ways in which a key could be printed.
func forms(raw [32]byte) []string {
	decimal := strings.Trim(fmt.Sprint(raw[:6]), "[]")
	return []string{
		base64.StdEncoding.EncodeToString(raw[:])[:20], hex.EncodeToString(raw[:8]), decimal, strings.ReplaceAll(decimal, " ", ", "),
	}
}
