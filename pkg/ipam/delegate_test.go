package ipam_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/google/go-cmp/cmp"

	"github.com/weft-cni/weft/pkg/ipam"
	"github.com/weft-cni/weft/pkg/netconf"
	"github.com/weft-cni/weft/test/programs"
	"github.com/weft-cni/weft/test/testns"
)

// reference is an environment with the reference plugins on CNI_PATH and a
// namespace for the pod, both of which they look at.
func reference(t *testing.T, command string, o ipam.Owner) netconf.Env {
	t.Helper()
	dir, err := programs.Plugins(t.Context(), os.Stderr)
	must(t, err)
	env := podEnv(command, o)
	env.Netns = testns.New(t).Path
	env.Path = dir
	return env
}

func prefixes(r ipam.Result) string {
	var words []string
	for _, a := range r.Addrs {
		words = append(words, fmt.Sprintf("%s via %s", a.Prefix, a.Gateway))
	}
	return strings.Join(words, ", ")
}

func TestHostLocal(t *testing.T) {
	dir := t.TempDir()
	ctx := t.Context()
	env := reference(t, netconf.Add, owner(1))
	keys := map[string]any{"ipam": map[string]any{
		"type": "host-local", "dataDir": dir,
		"ranges": []any{
			[]any{map[string]any{"subnet": "10.99.0.0/24"}},
			[]any{map[string]any{"subnet": "fd99::/64"}},
		},
		"routes": []any{map[string]any{"dst": "0.0.0.0/0"}, map[string]any{"dst": "10.0.0.0/8", "gw": "10.99.0.1"}},
	}}
	a := ipam.New(network(t, env, keys), exampleNode())
	must(t, a.Status(ctx))
	got, err := a.Add(ctx)
	must(t, err)
	if got, want := prefixes(got), "10.99.0.2/24 via 10.99.0.1, fd99::2/64 via fd99::1"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	want := []netconf.Route{
		{Dst: netip.MustParsePrefix("0.0.0.0/0")},
		{Dst: netip.MustParsePrefix("10.0.0.0/8"), GW: netip.MustParseAddr("10.99.0.1")},
	}
	if d := cmp.Diff(want, got.Routes, byValue); d != "" {
		t.Error(d)
	}
	must(t, a.Check(ctx, got.IPs()))
	must(t, a.GC(ctx, nil))

	_, err = a.Add(ctx)
	if err == nil || !strings.HasPrefix(err.Error(), "IPAM plugin host-local: ADD: ") {
		t.Errorf("a second ADD: %v", err)
	}
	if said := (*types.Error)(nil); !errors.As(err, &said) || said.Code != types.ErrInternal {
		t.Errorf("a second ADD: %#v", err)
	}

	for range 2 {
		env.Command = netconf.Del
		must(t, ipam.New(network(t, env, keys), netconf.Node{}).Del(ctx))
	}
	if err = a.Check(ctx, nil); err == nil || !strings.Contains(err.Error(), "IPAM plugin host-local: CHECK: ") {
		t.Errorf("CHECK after DEL: %v", err)
	}
}

// Any number of addresses, with the versions of CNI that say it differently.
func TestStatic(t *testing.T) {
	for _, version := range netconf.Versions {
		t.Run(version, func(t *testing.T) {
			env := reference(t, netconf.Add, owner(1))
			env.Args = "IgnoreUnknown=1;K8S_POD_NAME=web-0"
			keys := map[string]any{"cniVersion": version, "ipam": map[string]any{
				"type":      "static",
				"addresses": []any{map[string]any{"address": "192.0.2.5/24", "gateway": "192.0.2.1"}, map[string]any{"address": "192.0.2.6/24"}},
				"dns":       map[string]any{"nameservers": []string{"192.0.2.53"}},
			}}
			a := ipam.New(network(t, env, keys), netconf.Node{})
			got, err := a.Add(t.Context())
			must(t, err)
			if got, want := prefixes(got), "192.0.2.5/24 via 192.0.2.1, 192.0.2.6/24 via invalid IP"; got != want {
				t.Errorf("got %s, want %s", got, want)
			}
			if d := cmp.Diff(types.DNS{Nameservers: []string{"192.0.2.53"}}, got.DNS); d != "" {
				t.Error(d)
			}
			must(t, a.Status(t.Context()))
			must(t, a.Del(t.Context()))
		})
	}
}

// script makes an IPAM plugin that notes each call in a file and then does
// what body says; $CNI_COMMAND and the others are the shell's.
func script(t *testing.T, body string) (env netconf.Env, calls func() string) {
	t.Helper()
	dir := t.TempDir()
	log := filepath.Join(dir, "calls")
	text := "#!/bin/sh\necho $CNI_COMMAND $CNI_CONTAINERID $CNI_NETNS $CNI_IFNAME $CNI_ARGS >> " + log + "\n" + body + "\n"
	must(t, os.WriteFile(filepath.Join(dir, "custom"), []byte(text), 0o700))
	env = podEnv(netconf.Add, ipam.Owner{ContainerID: "c1", IfName: "eth0"})
	env.Path = "/nowhere:" + dir
	return env, func() string {
		data, err := os.ReadFile(log)
		must(t, err)
		return string(data)
	}
}

var custom = map[string]any{"ipam": map[string]any{"type": "custom"}}

func TestDelegateGetsConfigurationAndEnvironment(t *testing.T) {
	t.Setenv("CNI_COMMAND", "of this process")
	t.Setenv("CNI_CONTAINERID", "of this process")
	env, calls := script(t, `cat > "$(dirname "$0")/stdin"`)
	env.Args = "K8S_POD_NAME=web-0"
	n := network(t, env, custom)
	a := ipam.New(n, netconf.Node{})
	ctx := t.Context()
	must(t, a.Del(ctx))
	must(t, a.Check(ctx, nil))
	must(t, a.GC(ctx, nil))
	must(t, a.Status(ctx))
	const rest = " c1 /run/netns/pod eth0 K8S_POD_NAME=web-0\n"
	if d := cmp.Diff("DEL"+rest+"CHECK"+rest+"GC"+rest+"STATUS"+rest, calls()); d != "" {
		t.Error(d)
	}
	stdin, err := os.ReadFile(filepath.Join(filepath.SplitList(env.Path)[1], "stdin"))
	must(t, err)
	if string(stdin) != string(n.Raw) {
		t.Errorf("it got %s", stdin)
	}
}

// Versions of CNI in which a command isn't known yet: the plugin isn't asked.
func TestDelegateOldVersions(t *testing.T) {
	for version, want := range map[string]string{"0.3.1": "", "0.4.0": "CHECK", "1.0.0": "CHECK"} {
		env, calls := script(t, "")
		keys := map[string]any{"cniVersion": version, "ipam": custom["ipam"]}
		a := ipam.New(network(t, env, keys), netconf.Node{})
		must(t, a.Check(t.Context(), nil))
		must(t, a.GC(t.Context(), nil))
		must(t, a.Status(t.Context()))
		must(t, a.Del(t.Context()))
		got := strings.Fields(calls())
		if want == "" && got[0] != "DEL" || want != "" && (got[0] != want || strings.Contains(calls(), "GC")) {
			t.Errorf("%s: %q", version, calls())
		}
	}
}

func TestDelegateFails(t *testing.T) {
	for _, c := range []struct{ name, body, want string }{
		{
			"it says why", `echo '{"cniVersion":"1.1.0","code":11,"msg":"no lease yet","details":"timeout"}'; exit 1`,
			"IPAM plugin custom: ADD: no lease yet; timeout",
		},
		{
			"it says nothing", `echo oh dear >&2; exit 3`,
			`IPAM plugin custom: ADD: exit status 3: "oh dear"`,
		},
		{
			"it is killed", `kill -9 $$`,
			`IPAM plugin custom: ADD: signal: killed: ""`,
		},
		{
			"no address", `echo '{"cniVersion":"1.1.0"}'`,
			"IPAM plugin custom: its result has no address",
		},
		{
			"no result", `:`,
			"IPAM plugin custom: result: unexpected end of JSON input",
		},
		{
			"a version that isn't ours", `echo '{"cniVersion":"0.2.0","ip4":{"ip":"192.0.2.5/24"}}'`,
			`IPAM plugin custom: result: incompatible CNI version: cniVersion is "0.2.0"; accepted: 0.3.1, 0.4.0, 1.0.0, 1.1.0`,
		},
		{
			"a route that is none", `echo '{"cniVersion":"1.1.0","ips":[{"address":"192.0.2.5/24"}],"routes":[{"dst":"10.0.0.0/8","gw":"fe80::1"}]}'`,
			"IPAM plugin custom: its result has a route to 10.0.0.0/8: fe80::1 is no next hop for it",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			env, calls := script(t, `[ $CNI_COMMAND = DEL ] && exit 0`+"\n"+c.body)
			_, err := ipam.New(network(t, env, custom), netconf.Node{}).Add(t.Context())
			if err == nil || err.Error() != c.want {
				t.Errorf("got  %v\nwant %s", err, c.want)
			}
			if !strings.HasPrefix(calls(), "ADD ") || !strings.Contains(calls(), "\nDEL ") {
				t.Errorf("not undone: %q", calls())
			}
		})
	}
}

func TestDelegateUndoFails(t *testing.T) {
	env, _ := script(t, `echo '{"code":100,"msg":"'$CNI_COMMAND' broke"}'; exit 1`)
	_, err := ipam.New(network(t, env, custom), netconf.Node{}).Add(t.Context())
	want := "IPAM plugin custom: ADD: ADD broke (and undoing it: IPAM plugin custom: DEL: DEL broke)"
	if err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
}

// An ADD that takes too long is killed and undone.
func TestDelegateHangs(t *testing.T) {
	env, calls := script(t, `[ $CNI_COMMAND = DEL ] && exit 0; exec sleep 600`)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	_, err := ipam.New(network(t, env, custom), netconf.Node{}).Add(ctx)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if !strings.Contains(calls(), "\nDEL ") {
		t.Errorf("not undone: %q", calls())
	}
}

func TestNoPlugin(t *testing.T) {
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "custom"), nil, 0o600)) // not executable
	must(t, os.Mkdir(filepath.Join(dir, "folder"), 0o700))
	for _, name := range []string{"custom", "folder", "absent"} {
		env := podEnv(netconf.Add, owner(1))
		env.Path = dir
		a := ipam.New(network(t, env, map[string]any{"ipam": map[string]any{"type": name}}), netconf.Node{})
		want := fmt.Sprintf("no such IPAM plugin: %s is not in CNI_PATH (%s)", name, dir)
		if _, err := a.Add(t.Context()); !errors.Is(err, ipam.ErrNoPlugin) || err.Error() != want {
			t.Errorf("Add: got  %v\nwant %s", err, want)
		}
		if err := a.Status(t.Context()); !errors.Is(err, ipam.ErrNoPlugin) {
			t.Errorf("Status: %v", err)
		}
	}
}

// What a delegate gives goes through JSON in a result and comes back the same.
func TestDelegateResultKeepsRoutes(t *testing.T) {
	const route = `{"dst":"fd00::/8","gw":"fe80::9","mtu":1400,"advmss":1300,"priority":7,"table":100}`
	env, _ := script(t, `echo '{"cniVersion":"1.1.0","ips":[{"address":"fd00::5/64"}],"routes":[`+route+`]}'`)
	got, err := ipam.New(network(t, env, custom), netconf.Node{}).Add(t.Context())
	must(t, err)
	data, err := json.Marshal(got.Routes[0].CNI())
	must(t, err)
	if string(data) != route {
		t.Errorf("got  %s\nwant %s", data, route)
	}
}
