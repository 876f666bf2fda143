package netconf_test

import (
	"encoding/json"
	"log/slog"
	"net/netip"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/netconf"
	"github.com/weft-cni/weft/pkg/sriov"
)

var byValue = cmp.Options{
	cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}),
	cmpopts.IgnoreFields(netconf.Network{}, "Raw", "Env"),
}

func mustMAC(t *testing.T, s string) kernel.MAC {
	t.Helper()
	mac, err := kernel.ParseMAC(s)
	if err != nil {
		t.Fatal(err)
	}
	return mac
}

func mustParse(t *testing.T, stdin string, e netconf.Env) *netconf.Network {
	t.Helper()
	n, err := netconf.Parse([]byte(stdin), e)
	if err != nil {
		t.Fatalf("%s: %v", stdin, err)
	}
	return n
}

func addrs(s ...string) []netip.Addr {
	var all []netip.Addr
	for _, s := range s {
		all = append(all, netip.MustParseAddr(s))
	}
	return all
}

func TestParseDefaults(t *testing.T) {
	got := mustParse(t, conf(``), env(netconf.Add))
	want := &netconf.Network{
		CNIVersion:   "1.1.0",
		Name:         "weft",
		Mode:         netconf.ModeCluster,
		DefaultRoute: true,
		IPAM:         netconf.IPAM{Type: "weft"},
		DataDir:      "/var/lib/weft",
		RunDir:       "/run/weft",
	}
	if d := cmp.Diff(want, got, byValue); d != "" {
		t.Error(d)
	}
}

func TestParseEverything(t *testing.T) {
	const stdin = `{
		"cniVersion": "0.4.0", "name": "tenant-a", "type": "weft", "mode": "cluster",
		"mtu": 1400, "mac": "02:00:5e:10:00:01", "defaultRoute": false,
		"routes": [{"dst": "10.0.0.0/8", "gw": "169.254.1.1", "mtu": 1300, "advmss": 1260, "priority": 5, "table": 100}],
		"ipam": {"type": "weft", "routes": [{"dst": "fd01::/64"}]},
		"dns": {"nameservers": ["10.96.0.10", "fd00::a"], "domain": "cluster.local", "search": ["svc"], "options": ["ndots:5"]},
		"logLevel": "debug", "logFile": "/var/log/weft.log", "dataDir": "/data", "runDir": "/volatile",
		"capabilities": {"mac": true, "ips": true},
		"runtimeConfig": {"ips": ["10.244.1.5/24", "fd00::5"]},
		"prevResult": {"ips": [{"version": "4", "address": "10.244.1.5/32"}]}
	}`
	e := env(netconf.Check)
	e.Args = "IgnoreUnknown=1;FOO=BAR;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=0123;K8S_POD_UID=u"
	got := mustParse(t, stdin, e)
	if got.PrevResult == nil || got.PrevResult.IPs[0].Address.String() != "10.244.1.5/32" {
		t.Errorf("prevResult is %v", got.PrevResult)
	}
	got.PrevResult = nil
	want := &netconf.Network{
		CNIVersion: "0.4.0",
		Name:       "tenant-a",
		Mode:       netconf.ModeCluster,
		MTU:        1400,
		MAC:        mustMAC(t, "02:00:5e:10:00:01"),
		Addrs:      addrs("10.244.1.5", "fd00::5"),
		Routes: []netconf.Route{
			{
				Dst: netip.MustParsePrefix("10.0.0.0/8"), GW: netconf.Gateway4,
				MTU: 1300, AdvMSS: 1260, Priority: 5, Table: 100,
			},
			{Dst: netip.MustParsePrefix("fd01::/64")},
		},
		DNS: types.DNS{
			Nameservers: []string{"10.96.0.10", "fd00::a"}, Domain: "cluster.local",
			Search: []string{"svc"}, Options: []string{"ndots:5"},
		},
		IPAM:     netconf.IPAM{Type: "weft"},
		Pod:      netconf.Pod{Namespace: "default", Name: "web-0", UID: "u", InfraContainerID: "0123"},
		LogLevel: slog.LevelDebug,
		LogFile:  "/var/log/weft.log",
		DataDir:  "/data",
		RunDir:   "/volatile",
	}
	if d := cmp.Diff(want, got, byValue); d != "" {
		t.Error(d)
	}
	if string(got.Raw) != stdin || got.Env != e {
		t.Error("the input is not kept as it came")
	}
}

// What the runtime asks for in several places: the first of runtimeConfig,
// args.cni, CNI_ARGS and the configuration counts.
func TestParsePrecedence(t *testing.T) {
	const (
		config = `"mac":"02:00:00:00:00:04"`
		args   = `"args":{"cni":{"mac":"02:00:00:00:00:02","ips":["10.0.0.2"],"labels":[]},"other":1}`
		run    = `"runtimeConfig":{"mac":"02:00:00:00:00:01","ips":["10.0.0.1"]}`
		vars   = "IP=10.0.0.3/24,fd00::3;MAC=02:00:00:00:00:03"
	)
	for _, c := range []struct {
		name, keys, vars, mac string
		addrs                 []netip.Addr
	}{
		{"configuration", config, "", "02:00:00:00:00:04", nil},
		{"CNI_ARGS", config, vars, "02:00:00:00:00:03", addrs("10.0.0.3", "fd00::3")},
		{"args.cni", config + "," + args, vars, "02:00:00:00:00:02", addrs("10.0.0.2")},
		{"runtimeConfig", config + "," + args + "," + run, vars, "02:00:00:00:00:01", addrs("10.0.0.1")},
		{"runtimeConfig without ips", args + `,"runtimeConfig":{"ips":[]}`, vars, "02:00:00:00:00:02", addrs("10.0.0.2")},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := env(netconf.Add)
			e.Args = c.vars
			n := mustParse(t, conf(c.keys), e)
			if n.MAC.String() != c.mac {
				t.Errorf("MAC is %s, want %s", n.MAC, c.mac)
			}
			if d := cmp.Diff(c.addrs, n.Addrs, byValue); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestParseAccepts(t *testing.T) {
	for _, keys := range []string{
		`"cni.dev/attachments":[],"cni.dev/something-new":{"a":1}`, // from the runtime
		`"example.com/team":"a","_comment":"why","$schema":"x"`,
		`"deviceID":"0000:01:10.0","pciBusID":"0000:01:10.0","resourceName":"intel/sriov"`, // from Multus
		`"mtu":null,"routes":null,"dns":null,"ipam":null,"runtimeConfig":null,"args":null,"prevResult":null`,
		`"dns":{},"ipam":{},"args":{"cni":{}}`,
		`"mtu":0,"ipam":{"type":"weft"}`,
		`"ipam":{"type":"host-local","ranges":[[{"subnet":"10.0.0.0/24"}]],"routes":[{"dst":"0.0.0.0/0","gw":"10.0.0.1"}]}`,
		`"routes":[{"dst":"0.0.0.0/0"},{"dst":"0.0.0.0/0","table":100},{"dst":"::/0","gw":"fe80::1"}]`,
	} {
		mustParse(t, conf(keys), env(netconf.Add))
	}
	for _, v := range netconf.Versions {
		mustParse(t, `{"cniVersion":"`+v+`","name":"weft","type":"weft"}`, env(netconf.Add))
	}
	e := env(netconf.Del)
	e.Netns = ""
	mustParse(t, conf(``), e)
}

// A delegate reads its own addresses: any number of them.
func TestParseLeavesAddressesToDelegate(t *testing.T) {
	n := mustParse(t, conf(`"ipam":{"type":"static"},"runtimeConfig":{"ips":["10.0.0.1/24","10.0.0.2/24"]}`), env(netconf.Add))
	if n.IPAM.Own() || n.IPAM.Type != "static" || n.Addrs != nil {
		t.Errorf("IPAM %+v, addresses %v", n.IPAM, n.Addrs)
	}
}

// A pod whose network configuration is wrong, by a change or from the start,
// must still go away.
func TestParseDelBearsWithConfiguration(t *testing.T) {
	for _, in := range badConfigs {
		var f map[string]any
		if json.Unmarshal([]byte(in), &f) != nil || f["cniVersion"] != "1.1.0" || f["name"] != "weft" {
			continue
		}
		n := mustParse(t, in, env(netconf.Del))
		if n.Mode == netconf.ModeCluster && n.IPAM.Type == "" || n.Mode == netconf.ModeSRIOV && n.VF == nil ||
			n.Mode == netconf.ModeOverlay && n.Segment == nil || n.DataDir == "" || n.RunDir == "" {
			t.Errorf("%s: DEL would run on %+v", in, n)
		}
	}
}

func TestParseGC(t *testing.T) {
	for keys, want := range map[string][]types.GCAttachment{
		`"cni.dev/valid-attachments":null`: {},
		`"cni.dev/valid-attachments":[]`:   {},
		`"cni.dev/valid-attachments":[{"containerID":"a","ifname":"eth0"}]`: {
			{ContainerID: "a", IfName: "eth0"},
		},
	} {
		n := mustParse(t, conf(keys), netconf.Env{Command: netconf.GC})
		if d := cmp.Diff(want, n.ValidAttachments); d != "" {
			t.Errorf("%s: %s", keys, d)
		}
	}
}

func TestPodMTU(t *testing.T) {
	node := netconf.Node{MTU: 1450}
	for _, c := range []struct {
		keys string
		want int
	}{
		{``, 1450}, {`"mtu":0`, 1450}, {`"mtu":1450`, 1450}, {`"mtu":1400`, 1400}, {`"mtu":1500`, 0},
	} {
		got, err := mustParse(t, conf(c.keys), env(netconf.Add)).PodMTU(node)
		if got != c.want || (err != nil) != (c.want == 0) {
			t.Errorf("%s: %d, %v; want %d", c.keys, got, err, c.want)
		}
	}
	const text = "invalid network configuration: mtu is 1500; accepted: 0 (automatic) or at most 1450 on this node"
	if _, err := mustParse(t, conf(`"mtu":1500`), env(netconf.Add)).PodMTU(node); err == nil || err.Error() != text {
		t.Errorf("got %v\nwant %s", err, text)
	}
}

func TestRouteRoundTrip(t *testing.T) {
	for _, r := range []netconf.Route{
		{Dst: netip.MustParsePrefix("0.0.0.0/0"), GW: netconf.Gateway4},
		{Dst: netip.MustParsePrefix("fd01::/64"), GW: netconf.Gateway6, MTU: 1400, AdvMSS: 1300, Priority: 7, Table: 100},
		{Dst: netip.MustParsePrefix("10.0.0.0/8")},
	} {
		data, err := json.Marshal(r.CNI())
		if err != nil {
			t.Fatal(err)
		}
		var c types.Route
		if err = json.Unmarshal(data, &c); err != nil {
			t.Fatal(err)
		}
		got, err := netconf.RouteFrom(&c)
		if err != nil || got != r {
			t.Errorf("%s: %+v, %v; want %+v", data, got, err, r)
		}
	}
	bad := &types.Route{}
	if _, err := netconf.RouteFrom(bad); err == nil {
		t.Error("a route without a destination is accepted")
	}
}

func TestParseResult(t *testing.T) {
	for _, c := range []struct{ data, version string }{
		{`{"cniVersion":"0.3.1","ips":[{"version":"4","address":"10.0.0.5/24","gateway":"10.0.0.1"}]}`, "1.1.0"},
		{`{"cniVersion":"0.4.0","ips":[{"version":"4","address":"10.0.0.5/24","gateway":"10.0.0.1"}]}`, "1.1.0"},
		{`{"cniVersion":"1.0.0","ips":[{"address":"10.0.0.5/24","gateway":"10.0.0.1"}]}`, "0.3.1"},
		{`{"ips":[{"address":"10.0.0.5/24","gateway":"10.0.0.1"}]}`, "1.1.0"},
		{`{"cniVersion":"","ips":[{"version":"4","address":"10.0.0.5/24","gateway":"10.0.0.1"}]}`, "0.3.1"},
	} {
		r, err := netconf.ParseResult([]byte(c.data), c.version)
		if err != nil {
			t.Errorf("%s: %v", c.data, err)
			continue
		}
		ip := r.IPs[0]
		if r.CNIVersion != "1.1.0" || ip.Address.String() != "10.0.0.5/24" || ip.Gateway.String() != "10.0.0.1" {
			t.Errorf("%s: %+v %+v", c.data, r, ip)
		}
	}
	for _, data := range []string{``, `null`, `[]`, `{"cniVersion":2}`, `{"cniVersion":"0.2.0"}`, `{"ips":1}`} {
		if r, err := netconf.ParseResult([]byte(data), "1.1.0"); err == nil {
			t.Errorf("%s: accepted as %+v", data, r)
		}
	}
}

// TestParseVF: every key of sriov-cni, and where the runtime's wins.
func TestParseVF(t *testing.T) {
	got := mustParse(t, conf(`"mode":"sriov","deviceID":"0000:01:10.0","vlan":100,"vlanQoS":3,"vlanProto":"802.1AD",
		"mac":"02:00:00:00:00:01","mtu":1400,"spoofchk":"on","trust":"off","link_state":"disable","min_tx_rate":10,"max_tx_rate":100,
		"bridge":"br0","logLevel":"panic","ipam":{"type":"static","addresses":[]},"resourceName":"weft.dev/netdev",
		"runtimeConfig":{"deviceID":"0000:01:10.2","mac":"02:00:00:00:00:02","ips":["192.0.2.1/24"],"CNIDeviceInfoFile":"/run/info.json"}`),
		env(netconf.Add))
	state, low, high := sriov.StateDisable, 10, 100
	want := &netconf.VF{
		Device: "0000:01:10.2", InfoFile: "/run/info.json",
		Settings: sriov.Settings{
			MAC: mustMAC(t, "02:00:00:00:00:02"), MTU: 1400, VLAN: &sriov.VLAN{ID: 100, QoS: 3, Proto: sriov.Proto8021AD},
			SpoofCheck: sriov.On, Trust: sriov.Off, LinkState: &state, MinRate: &low, MaxRate: &high, Bridge: "br0",
		},
	}
	if d := cmp.Diff(want, got.VF); d != "" {
		t.Error(d)
	}
	if got.Mode != netconf.ModeSRIOV || got.DefaultRoute || got.IPAM.Type != "static" || got.LogLevel != slog.LevelError {
		t.Errorf("%+v", got)
	}
	least := mustParse(t, conf(`"mode":"sriov","deviceID":"ens6","ipam":{},"spoofchk":"","trust":"","link_state":""`), env(netconf.Add))
	if d := cmp.Diff(&netconf.VF{Device: "ens6"}, least.VF); d != "" || !least.IPAM.None() {
		t.Error(d)
	}
}
