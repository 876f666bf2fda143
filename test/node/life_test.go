package node_test

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/weft-cni/weft/api/v1alpha1"
	weft "github.com/weft-cni/weft/pkg/client/versioned/typed/api/v1alpha1"
	"github.com/weft-cni/weft/pkg/overlay"
	"github.com/weft-cni/weft/test/cluster"
	"github.com/weft-cni/weft/test/probe"
)

// TestTrafficOutlivesTheDaemon kills a daemon, starts and terminates it again
// and again while its pods send each other an echo request each millisecond.
func TestTrafficOutlivesTheDaemon(t *testing.T) {
	c := cluster.New(t, cluster.Options{Nodes: 2, Manifests: []string{manifests}})
	daemons := ready(t, c)
	n := c.Node(1)
	a, b := n.Attach(t, "a"), c.Node(2).Attach(t, "b")
	talk(t, a, b)
	before := state(t, n)
	var streams []*probe.Pings
	for _, ip := range b.IPs() {
		s, err := probe.StartPings(a, ip, time.Millisecond)
		if err != nil {
			t.Fatal(err)
		}
		streams = append(streams, s)
	}
	d := daemons[0]
	for range 3 {
		d.Kill()
		more(t, streams, 200)
		d = n.Weftd(t)
		more(t, streams, 200)
		if err := d.Terminate(within(t, 2*time.Second)); err != nil {
			t.Error(err)
		}
		more(t, streams, 200)
		d = n.Weftd(t)
	}
	if err := is(t, n, before)(); err != nil {
		t.Error(err)
	}
	if repairs := metric(t, d, "weft_drift_repairs_total"); repairs != 0 {
		t.Errorf("a new daemon repaired %v objects of the old one", repairs)
	}
	for _, s := range streams {
		if report := s.Stop(); report.Lost() > 0 {
			t.Errorf("echoes got lost: %s", report)
		} else {
			t.Log(report)
		}
	}
}

// more waits until each stream has had n more replies.
func more(t testing.TB, streams []*probe.Pings, n int) {
	t.Helper()
	for _, s := range streams {
		until := s.Received() + n
		eventually(t, 10*time.Second, func() error {
			if s.Received() < until {
				return errors.New("no more replies")
			}
			return nil
		})
	}
}

// TestAPIOutage stops the API server. Nothing changes, drift is repaired, pods
// come and go, and so do daemons; all goes on when the API server is back.
func TestAPIOutage(t *testing.T) {
	c := cluster.New(t, cluster.Options{Nodes: 3, Manifests: []string{manifests}})
	daemons := ready(t, c, "--resync=1s")
	n := c.Node(1)
	a, b := n.Attach(t, "a"), c.Node(2).Attach(t, "b")
	before := state(t, n)
	stream, err := probe.StartPings(a, b.IP(4), time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	c.API.Stop()
	eventually(t, 5*time.Second, func() error {
		if metric(t, daemons[0], "weft_api_watch_up") != 0 {
			return errors.New("the metric has the watches up")
		}
		return nil
	})
	talk(t, a, b, n.Attach(t, "c"), c.Node(2).Attach(t, "d"))
	err = n.Do(func() error {
		l, findErr := netlink.LinkByName(overlay.Link)
		if findErr != nil {
			return findErr
		}
		return changeNeighs(netlink.FAMILY_V4, netlink.NeighDel)(l)
	})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, repairTime, is(t, n, before))
	if _, err = daemons[0].Get(t.Context(), "/readyz"); err != nil {
		t.Errorf("an API outage made a node unready: %v", err)
	}
	// A daemon that starts now knows of no peer, and so leaves all as it is.
	daemons[0].Kill()
	bin, err := cluster.BinDir()
	if err != nil {
		t.Fatal(err)
	}
	blind := exec.CommandContext(t.Context(), filepath.Join(bin, "weftd"), "--kubeconfig=/etc/weft/kubeconfig", "--node-name="+n.Name)
	if _, err = n.Start(blind); err != nil {
		t.Fatal(err)
	}
	more(t, []*probe.Pings{stream}, 500)
	if err = is(t, n, before)(); err != nil {
		t.Error(err)
	}
	if err = c.API.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	late, err := c.AddNode(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	late.Weftd(t)
	v := published(t, c, late, func(*v1alpha1.VTEP) bool { return true })
	for _, n := range c.Nodes()[:3] {
		eventually(t, 30*time.Second, has(t, n, v))
	}
	if report := stream.Stop(); report.Lost() > 0 {
		t.Errorf("echoes got lost: %s", report)
	}
}

// TestOnceAndCleanup runs the commands that a person types.
func TestOnceAndCleanup(t *testing.T) {
	c := cluster.New(t, cluster.Options{Nodes: 2, Manifests: []string{manifests}})
	bin, err := cluster.BinDir()
	if err != nil {
		t.Fatal(err)
	}
	run := func(t *testing.T, n *cluster.Node, args ...string) string {
		t.Helper()
		out, err := n.Run(within(t, 20*time.Second), filepath.Join(bin, "weftd"), args...)
		if err != nil {
			t.Fatal(err)
		}
		return string(out)
	}
	once := func(n *cluster.Node, more ...string) []string {
		return append([]string{"--once", "--kubeconfig=/etc/weft/kubeconfig", "--node-name=" + n.Name, "--install-from=" + bin}, more...)
	}
	for _, n := range c.Nodes() {
		if err := n.WriteKubeconfig(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	n, other := c.Node(1), c.Node(2)
	links := func() (names []string) {
		err := n.Do(func() error {
			list, err := netlink.LinkList()
			for _, l := range list {
				names = append(names, l.Attrs().Name)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return names
	}
	untouched := links()

	plan := run(t, n, once(n, "--plan")...)
	for _, want := range []string{"+ link vxlan-weft type vxlan id 1 ", "+ addr 10.244.1.1/32 ", "+ table inet weft", "+ vtep n1 "} {
		if !strings.Contains(plan, want) {
			t.Errorf("--plan says no %q:\n%s", want, plan)
		}
	}
	if d := cmp.Diff(untouched, links()); d != "" {
		t.Errorf("--plan changed links:\n%s", d)
	}
	if _, err := n.ReadFile("/run/weft/node.json"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("--plan wrote the node file: %v", err)
	}

	run(t, n, once(n)...)
	run(t, other, once(other)...)
	run(t, n, once(n)...) // learns of the other
	if plan := run(t, n, once(n, "--plan")...); plan != "" {
		t.Errorf("after --once there is still to do:\n%s", plan)
	}
	a, b := n.Attach(t, "a"), other.Attach(t, "b")
	talk(t, a, b)
	checkConfList(t, n)

	// Pods are still there: the runtime needs the plugin to delete them.
	out := run(t, n, "cleanup")
	for _, want := range []string{"- file /etc/cni/net.d/10-weft.conflist", "- link vxlan-weft", "1 pods were attached"} {
		if !strings.Contains(out, want) {
			t.Errorf("cleanup says no %q:\n%s", want, out)
		}
	}
	if _, err := n.ReadFile("/opt/cni/bin/weft"); err != nil {
		t.Error(err)
	}
	run(t, n, "cleanup")
	if d := cmp.Diff(untouched, links()); d != "" {
		t.Errorf("cleanup left links (-before +after):\n%s", d)
	}
	if left := state(t, n).String(); strings.Contains(left, "route") || strings.Contains(left, "table") {
		t.Errorf("cleanup left:\n%s", left)
	}
	for _, name := range []string{"/run/weft", "/var/lib/weft/attachments", "/etc/cni/net.d/10-weft.conflist", "/opt/cni/bin/weft"} {
		err := n.Do(func() error { _, err := os.Stat(name); return err })
		if !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("cleanup left %s: %v", name, err)
		}
	}
	run(t, n, "cleanup") // there is nothing to do, and that is well
}

// checkConfList looks at what the runtime gets.
func checkConfList(t *testing.T, n *cluster.Node) {
	t.Helper()
	data, err := n.ReadFile("/etc/cni/net.d/10-weft.conflist")
	if err != nil {
		t.Fatal(err)
	}
	var list struct {
		CNIVersion  string
		CNIVersions []string
		Name        string
		Plugins     []struct{ Type string }
	}
	if err := json.Unmarshal(data, &list); err != nil {
		t.Fatal(err)
	}
	if list.CNIVersion != "1.0.0" || list.Name != "weft" || len(list.Plugins) != 1 || list.CNIVersions[len(list.CNIVersions)-1] != "1.1.0" {
		t.Errorf("the network configuration is\n%s", data)
	}
	if err := n.Status(t.Context()); err != nil { // STATUS came with 1.1.0
		t.Error(err)
	}
}

// TestDaemonsWriteTheirOwnVTEPOnly uses one node's token for another's VTEP.
func TestDaemonsWriteTheirOwnVTEPOnly(t *testing.T) {
	c := cluster.New(t, cluster.Options{Nodes: 2, Manifests: []string{manifests}})
	ready(t, c)
	token, err := c.API.Token(t.Context(), "n1")
	if err != nil {
		t.Fatal(err)
	}
	config := rest.AnonymousClientConfig(c.API.Config)
	config.BearerToken, config.Dial = token, c.API.Config.Dial
	client, err := weft.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	own, err := client.VTEPs().Get(t.Context(), "n1", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err = client.VTEPs().Update(t.Context(), own, metav1.UpdateOptions{}); err != nil {
		t.Errorf("its own VTEP: %v", err)
	}
	stolen := own.DeepCopy()
	stolen.ObjectMeta = metav1.ObjectMeta{Name: "n3"}
	_, created := client.VTEPs().Create(t.Context(), stolen, metav1.CreateOptions{})
	other, err := client.VTEPs().Get(t.Context(), "n2", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	other.Spec.Underlay = []string{"198.51.100.1"}
	_, updated := client.VTEPs().Update(t.Context(), other, metav1.UpdateOptions{})
	for name, err := range map[string]error{"n3": created, "n2": updated} {
		if want := "weftd on node n1 may write the VTEP n1 only, not " + name; err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("VTEP %s: %v, want %q", name, err, want)
		}
	}
	if err := client.VTEPs().Delete(t.Context(), "n2", metav1.DeleteOptions{}); err == nil {
		t.Error("it may delete another's VTEP")
	}
}
