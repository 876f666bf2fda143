package attach_test

import (
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/weft-cni/weft/pkg/attach"
	"github.com/weft-cni/weft/pkg/netconf"
	"github.com/weft-cni/weft/pkg/record"
	"github.com/weft-cni/weft/test/programs"
)

// TestDetach: a DEL removes everything, and succeeds, whatever is missing; a
// second one finds nothing to do.
func TestDetach(t *testing.T) {
	for name, before := range map[string]func(t *testing.T, n *node, p *pod){
		"as attached": func(*testing.T, *node, *pod) {},
		"netns gone": func(_ *testing.T, _ *node, p *pod) {
			p.Close()
		},
		"netns not told": func(_ *testing.T, _ *node, p *pod) {
			p.Close()
			p.NS = nil
		},
		"record missing": func(t *testing.T, n *node, p *pod) { must(t, n.store().Delete(p.id, p.ifName)) },
		"record unreadable": func(t *testing.T, n *node, p *pod) {
			must(t, os.WriteFile(filepath.Join(n.store().Dir, p.id+":"+p.ifName), []byte("{"), 0o600))
		},
		"daemon down since boot": func(t *testing.T, n *node, _ *pod) {
			must(t, os.Remove(filepath.Join(n.RunDir(), netconf.NodeFile)))
		},
		"run directory gone": func(t *testing.T, n *node, _ *pod) { must(t, os.RemoveAll(n.RunDir())) },
		"data directory gone": func(t *testing.T, n *node, _ *pod) {
			must(t, os.RemoveAll(n.DataDir()))
		},
		"host link deleted": func(t *testing.T, n *node, p *pod) {
			rec, err := n.store().Get(p.id, p.ifName)
			must(t, err)
			must(t, n.Handle.LinkDel(link(t, n.NS, rec.HostLink)))
		},
		"another configuration": func(_ *testing.T, _ *node, p *pod) {
			p.config = `{"name": "weft", "mtu": 99999, "ipam": {"type": "nowhere"}, "unknown": 1}`
			p.args = ""
		},
		"attached in an earlier boot": func(t *testing.T, n *node, p *pod) {
			rec, err := n.store().Get(p.id, p.ifName)
			must(t, err)
			rec.BootID = "another"
			must(t, n.store().Put(rec))
			must(t, n.Handle.LinkDel(link(t, n.NS, rec.HostLink)))
			must(t, os.RemoveAll(n.RunDir()))
		},
		"never attached": func(_ *testing.T, n *node, p *pod) { n.detach(*p) },
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			p := newPod(t, "a1b2c3", "")
			n.attach(p)
			before(t, n, &p)
			n.detach(p)
			if got := n.dump(); got != "# node\n" {
				t.Errorf("left behind:\n%s", got)
			}
			n.detach(p)
		})
	}
}

// TestDetachSparesOthers: a late DEL doesn't take the address of the pod that
// has it now.
func TestDetachSparesOthers(t *testing.T) {
	n := newNode(t)
	old := newPod(t, "old", `{"runtimeConfig": {"ips": ["10.244.1.7"]}}`)
	n.attach(old)
	rec, err := n.store().Get(old.id, old.ifName)
	must(t, err)
	n.detach(old)
	other := newPod(t, "other", `{"runtimeConfig": {"ips": ["10.244.1.7"]}}`)
	result := n.attach(other)
	must(t, n.store().Put(rec))
	n.detach(old)
	if err := n.check(other, result); err != nil {
		t.Error(err)
	}
}

// TestDelegate: with another IPAM plugin, every command reaches it, and a DEL
// finds it also when the configuration has changed since.
func TestDelegate(t *testing.T) {
	plugins, err := programs.Plugins(context.Background(), io.Discard)
	must(t, err)
	n := newNode(t)
	p := newPod(t, "a1b2c3", "")
	hostLocal := map[string]any{
		"type": "host-local", "dataDir": filepath.Join(n.Dir, "host-local"),
		"ranges": [][]any{{map[string]any{"subnet": "10.22.0.0/16"}}},
		"routes": []any{map[string]any{"dst": "192.0.2.0/24", "gw": "10.22.0.1"}},
	}
	ipam, err := json.Marshal(map[string]any{"ipam": hostLocal})
	must(t, err)
	p.config, p.path = string(ipam), plugins
	result := n.attach(p)
	got := n.dump(p)
	for _, want := range []string{
		"file host-local/weft/10.22.0.2\n", "addr 10.22.0.2/32 dev eth0\n", "route 192.0.2.0/24 via 169.254.1.1 dev eth0",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is missing in\n%s", want, got)
		}
	}
	if err := n.check(p, result); err != nil {
		t.Errorf("CHECK: %v", err)
	}
	if err := n.plugin.Status(t.Context(), n.network(netconf.Status, p)); err != nil {
		t.Errorf("STATUS: %v", err)
	}
	must(t, os.Remove(filepath.Join(n.Dir, "host-local/weft/10.22.0.2")))
	if err := n.check(p, result); err == nil || attach.Report(err).Code != attach.CodeDrift {
		t.Errorf("CHECK with the delegate's reservation gone: %v", err)
	}
	n.detach(p)
	n.attach(p)
	changed := p
	changed.config = ""
	n.detach(changed)
	if got := n.dump(); got != "# node\n" {
		t.Errorf("left behind:\n%s", got)
	}
	n.attach(p)
	gc := n.network(netconf.GC, p, map[string]any{"cni.dev/valid-attachments": []any{}})
	must(t, n.plugin.Collect(t.Context(), gc))
	if got := n.dump(); got != "# node\n" {
		t.Errorf("left behind by GC:\n%s", got)
	}
}

// TestCollect: GC removes all traces of attachments to its network that are no
// longer valid, and nothing else.
func TestCollect(t *testing.T) {
	n := newNode(t)
	valid, tenant := newPod(t, "valid", ""), newPod(t, "tenant", `{"name": "tenant"}`)
	lostValid := newPod(t, "valid-lost-record", "")
	gone := newPod(t, "gone", "")
	lost, torn := newPod(t, "lost-record", ""), newPod(t, "torn-record", "")
	tornTenant := newPod(t, "torn-tenant", `{"name": "tenant"}`)
	all := []pod{valid, tenant, lostValid, gone, lost, torn, tornTenant}
	for _, p := range all {
		n.attach(p)
	}
	for _, p := range []pod{lost, lostValid} {
		must(t, n.store().Delete(p.id, p.ifName))
	}
	for _, p := range []pod{torn, tornTenant} {
		must(t, os.WriteFile(filepath.Join(n.store().Dir, p.id+":"+p.ifName), []byte("{"), 0o600))
	}
	must(t, os.WriteFile(filepath.Join(n.store().Dir, ".half:eth0"), []byte("{"), 0o600))
	must(t, os.WriteFile(filepath.Join(n.store().Dir, "torn-and-linkless:eth0"), []byte("{"), 0o600))
	must(t, os.Symlink("claim-only/eth0", filepath.Join(n.RunDir(), "ipam/cluster/pool/claims/10.244.1.200")))

	gc := n.network(netconf.GC, pod{}, map[string]any{"cni.dev/valid-attachments": []types.GCAttachment{
		{ContainerID: "valid", IfName: "eth0"}, {ContainerID: "valid-lost-record", IfName: "eth0"}, {ContainerID: "unknown", IfName: "eth0"},
	}})
	if err := n.plugin.Collect(t.Context(), gc); err != nil {
		t.Fatal(err)
	}
	kept := []pod{valid, tenant, lostValid, tornTenant}
	for _, p := range []pod{gone, lost, torn} {
		if got := p.Dump(t); got != "" {
			t.Errorf("left in pod %s:\n%s", p.id, got)
		}
	}
	got := n.dump(kept...)
	for _, p := range kept {
		must(t, n.store().Delete(p.id, p.ifName))
		n.detach(p)
	}
	if rest := n.dump(); rest != "# node\n" {
		t.Errorf("left behind after detaching what was kept:\n%s", rest)
	}
	for _, p := range kept {
		if !strings.Contains(got, "pod=default/"+p.id+"\n") {
			t.Errorf("pod %s is gone:\n%s", p.id, got)
		}
	}
}

// TestCollectGoesOn: what can't be removed is reported and keeps its address,
// and the rest is removed all the same.
func TestCollectGoesOn(t *testing.T) {
	n := newNode(t)
	a, b := newPod(t, "a", ""), newPod(t, "b", "")
	n.attach(a)
	n.attach(b)
	rec, err := n.store().Get(a.id, a.ifName)
	must(t, err)
	must(t, n.Handle.LinkDel(link(t, n.NS, rec.HostLink)))
	addDummy(t, n.NS, rec.HostLink) // a link of another kind that has the name
	gc := n.network(netconf.GC, pod{}, map[string]any{"cni.dev/valid-attachments": nil})
	err = n.plugin.Collect(t.Context(), gc)
	want := "collect a/eth0: link " + rec.HostLink + " is a bridge link, not Weft's"
	if err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	if got := n.Files(t); !strings.Contains(got, "claims/10.244.1.2\n") || strings.Contains(got, "claims/10.244.1.3\n") {
		t.Errorf("files:\n%s", got)
	}
	must(t, n.Handle.LinkDel(link(t, n.NS, rec.HostLink)))
	must(t, n.plugin.Collect(t.Context(), gc))
	if got := n.dump(); got != "# node\n" {
		t.Errorf("left behind:\n%s", got)
	}
}

func TestStatus(t *testing.T) {
	n := newNode(t)
	status := func() uint {
		t.Helper()
		err := n.plugin.Status(t.Context(), n.network(netconf.Status, pod{}))
		if err == nil {
			return 0
		}
		return attach.Report(err).Code
	}
	if got := status(); got != 0 {
		t.Errorf("ready: code %d", got)
	}
	must(t, os.Remove(filepath.Join(n.RunDir(), netconf.NodeFile)))
	if got := status(); got != 50 {
		t.Errorf("before the daemon's first sync: code %d, want 50", got)
	}
	node := netconf.Node{Name: "node1", BootID: "another", MTU: 1450, PodCIDRs: prefixes("10.244.1.0/24")}
	n.Write(t, node)
	if got := status(); got != 50 {
		t.Errorf("node file of an earlier boot: code %d, want 50", got)
	}
	node.BootID = n.BootID
	n.Write(t, node)
	n.attach(newPod(t, "a", ""))
	must(t, os.Remove(filepath.Join(n.RunDir(), netconf.NodeFile)))
	if got := status(); got != 51 {
		t.Errorf("with pods there: code %d, want 51", got)
	}
}

// TestRecord: the record has what the commands that come later need.
func TestRecord(t *testing.T) {
	n := newNode(t)
	p := newPod(t, "a1b2c3", `{"routes": [{"dst": "192.0.2.0/24"}]}`)
	n.attach(p)
	rec, err := n.store().Get(p.id, p.ifName)
	must(t, err)
	if rec.Netns != p.Path || rec.PodName != "a1b2c3" || rec.PodNamespace != "default" || rec.BootID != n.BootID ||
		rec.Network != "weft" || rec.IPAM != "weft" || len(rec.Addrs) != 2 || len(rec.Routes) != 3 || rec.Args != p.args {
		t.Errorf("got %+v", rec)
	}
	if rec.Version != record.Version {
		t.Errorf("version %d", rec.Version)
	}
}
