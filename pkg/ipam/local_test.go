package ipam_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/weft-cni/weft/pkg/ipam"
	"github.com/weft-cni/weft/pkg/netconf"
	"github.com/weft-cni/weft/pkg/record"
)

// network is a configuration in directories of the test's own.
func network(t *testing.T, env netconf.Env, keys map[string]any) *netconf.Network {
	t.Helper()
	conf := map[string]any{"cniVersion": "1.1.0", "name": "weft", "type": "weft"}
	for k, v := range keys {
		conf[k] = v
	}
	data, err := json.Marshal(conf)
	must(t, err)
	n, err := netconf.Parse(data, env)
	must(t, err)
	return n
}

func podEnv(command string, o ipam.Owner) netconf.Env {
	return netconf.Env{Command: command, ContainerID: o.ContainerID, IfName: o.IfName, Netns: "/run/netns/pod"}
}

func exampleNode() netconf.Node {
	return netconf.Node{Name: "node-1", BootID: "b", PodCIDRs: ranges("10.244.1.0/24", "fd00::/64"), MTU: 1450}
}

func TestLocal(t *testing.T) {
	dir := t.TempDir()
	keys := map[string]any{"runDir": dir + "/run", "dataDir": dir + "/lib"}
	ctx := t.Context()

	first := ipam.New(network(t, podEnv(netconf.Add, owner(1)), keys), exampleNode())
	got, err := first.Add(ctx)
	must(t, err)
	want := ipam.Result{Addrs: []ipam.Addr{
		{Prefix: netip.MustParsePrefix("10.244.1.2/32")}, {Prefix: netip.MustParsePrefix("fd00::2/128")},
	}}
	if d := cmp.Diff(want, got, byValue); d != "" {
		t.Error(d)
	}
	same(t, got.IPs(), addrs("10.244.1.2", "fd00::2"))
	must(t, first.Check(ctx, got.IPs()))
	must(t, first.Status(ctx))

	keys["runtimeConfig"] = map[string]any{"ips": []string{"10.244.1.77/24"}}
	second := ipam.New(network(t, podEnv(netconf.Add, owner(2)), keys), exampleNode())
	got, err = second.Add(ctx)
	must(t, err)
	same(t, got.IPs(), addrs("10.244.1.77", "fd00::3"))

	// Everything but Add does without the node.
	delete(keys, "runtimeConfig")
	must(t, ipam.New(network(t, podEnv(netconf.Del, owner(1)), keys), netconf.Node{}).Del(ctx))
	if err = first.Check(ctx, addrs("10.244.1.2")); !errors.Is(err, ipam.ErrNotHeld) {
		t.Errorf("after Del: %v", err)
	}
	keys["cni.dev/valid-attachments"] = []any{}
	gc := ipam.New(network(t, netconf.Env{Command: netconf.GC}, keys), netconf.Node{})
	must(t, gc.GC(ctx, func(o ipam.Owner) bool { return o == owner(2) }))
	must(t, second.Check(ctx, got.IPs()))
	must(t, gc.GC(ctx, func(ipam.Owner) bool { return false }))
	if err = second.Check(ctx, got.IPs()); !errors.Is(err, ipam.ErrNotHeld) {
		t.Errorf("after GC: %v", err)
	}
}

// The networks of a node share its ranges, so no two attachments have one
// address.
func TestLocalNetworksShareTheNodesRanges(t *testing.T) {
	dir := t.TempDir()
	for i, name := range []string{"a", "b", "lock", "pool"} {
		keys := map[string]any{"name": name, "runDir": dir, "dataDir": dir}
		got, err := ipam.New(network(t, podEnv(netconf.Add, owner(i)), keys), exampleNode()).Add(t.Context())
		must(t, err)
		same(t, got.IPs(), addrs(fmt.Sprintf("10.244.1.%d", i+2), fmt.Sprintf("fd00::%d", i+2)))
	}
}

// The addresses of this boot's attachments come back from their records, and
// those alone: a pod from before a reboot has none any more.
func TestLocalRestoresFromRecords(t *testing.T) {
	dir := t.TempDir()
	store := record.Store{Dir: filepath.Join(dir, "lib", record.Dir)}
	rec := record.Attachment{
		IfName: "eth0", Network: "weft", Netns: "/run/netns/pod", Mode: "cluster",
		IPAM: "weft", BootID: "b", Created: time.Unix(0, 0),
	}
	for id, change := range map[string]func(*record.Attachment){
		"alive":     func(r *record.Attachment) { r.Addrs = addrs("10.244.1.2", "fd00::3") },
		"later":     func(r *record.Attachment) { r.Addrs = addrs("10.244.1.2") }, // one address twice
		"rebooted":  func(r *record.Attachment) { r.Addrs = addrs("10.244.1.3"); r.BootID = "a" },
		"elsewhere": func(r *record.Attachment) { r.Addrs = addrs("10.244.1.3"); r.Mode = "segment" },
		"delegated": func(r *record.Attachment) { r.Addrs = addrs("10.244.1.3"); r.IPAM = "host-local" },
		"bare":      func(*record.Attachment) {},
	} {
		r := rec
		r.ContainerID = id
		change(&r)
		must(t, store.Put(r))
	}
	must(t, os.WriteFile(filepath.Join(store.Dir, "corrupt:eth0"), []byte("{"), 0o600))

	keys := map[string]any{"runDir": dir + "/run", "dataDir": dir + "/lib"}
	got, err := ipam.New(network(t, podEnv(netconf.Add, owner(1)), keys), exampleNode()).Add(t.Context())
	must(t, err)
	same(t, got.IPs(), addrs("10.244.1.3", "fd00::2"))
	alive := ipam.Owner{ContainerID: "alive", IfName: "eth0"}
	must(t, ipam.New(network(t, podEnv(netconf.Check, alive), keys), netconf.Node{}).Check(t.Context(), addrs("10.244.1.2", "fd00::3")))
}
