package netconf_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/weft-cni/weft/pkg/netconf"
	"github.com/weft-cni/weft/test/testns"
)

// conf is a configuration with keys added to what each must have.
func conf(keys string) string {
	if keys != "" {
		keys = "," + keys
	}
	return `{"cniVersion":"1.1.0","name":"weft","type":"weft"` + keys + `}`
}

// vf is a configuration of a VF with further keys.
func vf(keys string) string { return conf(`"mode":"sriov","deviceID":"0000:01:10.0",` + keys) }

// segment is a configuration of a segment with an ipam.
func segment(ipam string) string { return conf(`"mode":"overlay","vni":1001,"ipam":` + ipam) }

func env(command string) netconf.Env {
	return netconf.Env{
		Command:     command,
		ContainerID: "0123abcd",
		Netns:       "/run/netns/pod",
		IfName:      "eth0",
		Path:        "/opt/cni/bin",
	}
}

// kinds are the errors that callers give different codes to. The first that
// holds counts.
var kinds = map[string]error{
	"config":      netconf.ErrConfig,
	"decode":      netconf.ErrDecode,
	"env":         netconf.ErrEnv,
	"node":        netconf.ErrNode,
	"stale":       netconf.ErrStale,
	"unsupported": netconf.ErrUnsupported,
	"version":     netconf.ErrVersion,
}

func kindOf(err error) string {
	var is []string
	for _, name := range []string{"decode", "config", "env", "node", "stale", "unsupported", "version"} {
		if errors.Is(err, kinds[name]) {
			is = append(is, name)
		}
	}
	return strings.Join(is, "+")
}

var badConfigs = []string{
	// no configuration at all
	``,
	`null`,
	`[]`,
	`"weft"`,
	`{"cniVersion":"1.1.0",`,
	conf(``) + `}`,
	// what the specification wants
	`{"name":"weft","type":"weft"}`,
	`{"cniVersion":"0.2.0","name":"weft","type":"weft"}`,
	`{"cniVersion":"1.2.0","name":"weft","type":"weft"}`,
	`{"cniVersion":1.1,"name":"weft","type":"weft"}`,
	`{"cniVersion":"1.1.0","type":"weft"}`,
	`{"cniVersion":"1.1.0","name":"../etc","type":"weft"}`,
	`{"cniVersion":"1.1.0","name":"` + strings.Repeat("n", 201) + `","type":"weft"}`,
	// unknown keys
	conf(`"mut":1400`),
	conf(`"MTU":1400`),
	conf(`"bridge":"cni0"`),
	conf(`"isDefaultGateway":true`),
	conf(`"ipMasq":true`),
	conf(`"runtimeConfig":{"portMappings":[{"hostPort":8080,"containerPort":80}]}`),
	// the interface
	conf(`"mode":"overlay"`),
	conf(`"mode":"overlay","vni":0`),
	conf(`"mode":"overlay","vni":16777216`),
	conf(`"mode":"overlay","vni":"1001"`),
	conf(`"mode":"overlay","vni":1001,"discovery":"gossip"`),
	conf(`"mode":"overlay","vni":1001,"encapsulation":"gre"`),
	conf(`"mode":"overlay","vni":1001,"encapsulation":""`),
	conf(`"mode":"overlay","vni":1001,"encapsulation":6081`),
	conf(`"mode":"overlay","vni":1001,"encapsulation":"geneve","discovery":"multicast","group":"239.1.1.1"`),
	conf(`"mode":"overlay","vni":1001,"encapsulation":"geneve","encrypt":true`),
	conf(`"mode":"overlay","vni":1001,"encapsulation":"geneve","port":0`),
	conf(`"mode":"overlay","vni":10001,"encapsulation":"nvgre","discovery":"multicast","group":"239.1.1.1"`),
	conf(`"mode":"overlay","vni":10001,"encapsulation":"nvgre","encrypt":true`),
	conf(`"mode":"overlay","vni":10001,"encapsulation":"nvgre","port":6081`),
	conf(`"mode":"overlay","vni":4095,"encapsulation":"nvgre"`),
	conf(`"mode":"overlay","vni":16777215,"encapsulation":"nvgre"`),
	conf(`"mode":"overlay","vni":1001,"encapsulate":"geneve"`),
	conf(`"encapsulation":"geneve"`),
	conf(`"mode":"overlay","vni":1001,"discovery":"static"`),
	conf(`"mode":"overlay","vni":1001,"discovery":"static","vteps":[]`),
	conf(`"mode":"overlay","vni":1001,"vteps":["192.0.2.7","fd30::7"]`),
	conf(`"mode":"overlay","vni":1001,"vteps":["239.1.1.1"]`),
	conf(`"mode":"overlay","vni":1001,"vteps":["router"]`),
	conf(`"mode":"overlay","vni":1001,"encrypt":"yes"`),
	conf(`"mode":"overlay","vni":1001,"encrypt":true,"vteps":["192.0.2.7"]`),
	conf(`"mode":"overlay","vni":1001,"encrypt":true,"discovery":"static","vteps":["192.0.2.7"]`),
	conf(`"mode":"overlay","vni":1001,"encrypt":true,"discovery":"multicast","group":"239.1.1.1"`),
	conf(`"mode":"overlay","vni":1001,"encrypt":true,"port":4790`),
	conf(`"mode":"overlay","vni":1001,"discovery":"multicast"`),
	conf(`"mode":"overlay","vni":1001,"discovery":"multicast","group":"192.0.2.7"`),
	conf(`"mode":"overlay","vni":1001,"discovery":"multicast","group":"239.1.1.1","vteps":["192.0.2.7"]`),
	conf(`"mode":"overlay","vni":1001,"group":"239.1.1.1"`),
	conf(`"mode":"overlay","vni":1001,"port":0`),
	conf(`"mode":"overlay","vni":1001,"port":65536`),
	conf(`"mode":"overlay","vni":1001,"vlan":0`),
	conf(`"mode":"overlay","vni":1001,"vlan":4095`),
	conf(`"mode":"overlay","vni":1001,"vlan":"10"`),
	conf(`"mode":"overlay","vni":1001,"vlan":-1`),
	conf(`"mode":"overlay","vni":1001,"vlan":70000`),
	conf(`"mode":"overlay","vni":1001,"trunk":[]`),
	conf(`"mode":"overlay","vni":1001,"trunk":"10"`),
	conf(`"mode":"overlay","vni":1001,"trunk":[10]`),
	conf(`"mode":"overlay","vni":1001,"trunk":[{}]`),
	conf(`"mode":"overlay","vni":1001,"trunk":[{"id":0}]`),
	conf(`"mode":"overlay","vni":1001,"trunk":[{"id":4095}]`),
	conf(`"mode":"overlay","vni":1001,"trunk":[{"minID":20}]`),
	conf(`"mode":"overlay","vni":1001,"trunk":[{"maxID":20}]`),
	conf(`"mode":"overlay","vni":1001,"trunk":[{"minID":20,"maxID":10}]`),
	conf(`"mode":"overlay","vni":1001,"trunk":[{"minID":20,"maxID":4095}]`),
	conf(`"mode":"overlay","vni":1001,"trunk":[{"id":"10"}]`),
	conf(`"mode":"overlay","vni":1001,"trunk":[{"ID":10}]`),
	conf(`"mode":"overlay","vni":1001,"vlan":10,"trunk":[{"id":10}]`),
	conf(`"mode":"overlay","vni":1001,"vlanTrunk":[{"id":10}]`),
	conf(`"mode":"overlay","vni":1001,"trunk":[{"id":10}],"isolatePorts":true`),
	conf(`"mode":"overlay","vni":1001,"vlan":10,"gateway":"node","ipam":{"type":"weft","ranges":[{"subnet":"10.1.0.0/16","gateway":"10.1.0.1"}]}`),
	conf(`"trunk":[{"id":10}]`),
	conf(`"vni":1001`),
	segment(`{"type":"weft"}`),
	segment(`{"type":"weft","ranges":[]}`),
	segment(`{"type":"weft","ranges":[{"subnet":"10.1.0.1/16"}]}`),
	segment(`{"type":"weft","ranges":[{"subnet":"10.1.0.0/31"}]}`),
	segment(`{"type":"weft","ranges":[{"subnet":"224.0.0.0/24"}]}`),
	segment(`{"type":"weft","ranges":[{"subnet":"10.1.0.0/16"},{"subnet":"10.2.0.0/16"}]}`),
	segment(`{"type":"weft","ranges":[{"subnet":"10.1.0.0/16","gateway":"10.2.0.1"}]}`),
	segment(`{"type":"weft","ranges":[{"subnet":"10.1.0.0/16","gateway":"10.1.0.0"}]}`),
	segment(`{"type":"weft","ranges":[{"subnet":"10.1.0.0/16","exclude":["10.2.0.1"]}]}`),
	segment(`{"type":"weft","ranges":[{"subnet":"10.1.0.0/16","exclude":["10.0.0.0/8"]}]}`),
	segment(`{"type":"weft","ranges":[{"subnet":"10.1.0.0/16","blockSize":12}]}`),
	segment(`{"type":"weft","ranges":[{"subnet":"10.1.0.0/16","blockSize":8192}]}`),
	segment(`{"type":"weft","ranges":[{"subnet":"10.1.0.0/16","size":16}]}`),
	segment(`{"type":"weft","range":"10.1.0.0/16"}`),
	segment(`{"type":"weft","ranges":[{"subnet":"10.1.0.0/16"}],"routes":[{"dst":"10.9.0.0/16","gw":"fd00::1"}]}`),
	conf(`"mode":"overlay","vni":1001,"allowedMACs":"any"`),
	conf(`"mode":"overlay","vni":1001,"allowedMACs":["01:00:5e:00:00:01"]`),
	conf(`"mode":"overlay","vni":1001,"allowedIPs":["10.1.0.1/16"]`),
	conf(`"mode":"overlay","vni":1001,"allowedIPs":["all"]`),
	conf(`"mode":"overlay","vni":1001,"allowRA":"yes"`),
	conf(`"mode":"overlay","vni":1001,"allowDHCPServer":1`),
	conf(`"mode":"overlay","vni":1001,"multicastSnooping":"on"`),
	conf(`"mode":"overlay","vni":1001,"isolatePorts":true,"allowedMACs":["any"]`),
	conf(`"mode":"overlay","vni":1001,"gateway":"192.168.7.1"`),
	conf(`"mode":"overlay","vni":1001,"gateway":"node","ipam":{"type":"weft","ranges":[{"subnet":"192.168.7.0/24"}]}`),
	conf(`"mode":"overlay","vni":1001,"macspoofchk":false`),
	conf(`"allowedMACs":["00:00:5e:00:01:0a"]`),
	conf(`"mode":1`),
	conf(`"mtu":"1400"`),
	conf(`"mtu":1400.5`),
	conf(`"mtu":-1`),
	conf(`"mtu":575`),
	conf(`"mtu":65536`),
	conf(`"defaultRoute":"yes"`),
	conf(`"mac":"02:00:5e:10:00"`),
	conf(`"mac":"01:00:5e:00:00:01"`),
	conf(`"mac":"00:00:00:00:00:00"`),
	conf(`"mac":7`),
	conf(`"args":{"cni":{"mac":"ff:ff:ff:ff:ff:ff"}}`),
	conf(`"runtimeConfig":{"mac":"02-00"}`),
	// virtual functions
	conf(`"mode":"sriov"`),
	conf(`"mode":"sriov","deviceID":"01:10.0"`),
	conf(`"mode":"sriov","deviceID":"0000:01:10.8"`),
	conf(`"mode":"sriov","deviceID":7`),
	vf(`"runtimeConfig":{"deviceID":"a/b"}`),
	vf(`"runtimeConfig":{"CNIDeviceInfoFile":"info.json"}`),
	vf(`"runtimeConfig":{"portMappings":[]}`),
	vf(`"vlan":-1`),
	vf(`"vlan":4095`),
	vf(`"vlan":"100"`),
	vf(`"vlan":100,"vlanQoS":8`),
	vf(`"vlanQoS":3`),
	vf(`"vlanProto":"802.1q"`),
	vf(`"vlan":0,"vlanQoS":3`),
	vf(`"vlan":0,"vlanProto":"802.1ad"`),
	vf(`"vlan":100,"vlanProto":"802.1x"`),
	vf(`"spoofchk":"yes"`),
	vf(`"spoofchk":true`),
	vf(`"trust":"ON"`),
	vf(`"link_state":"up"`),
	vf(`"min_tx_rate":-1`),
	vf(`"max_tx_rate":4294967296`),
	vf(`"min_tx_rate":200,"max_tx_rate":100`),
	vf(`"bridge":"a bridge"`),
	vf(`"mac":"01:00:5e:00:00:01"`),
	vf(`"mtu":70000`),
	vf(`"ipam":{"type":"weft"}`),
	vf(`"spoofchck":"on"`),
	vf(`"defaultRoute":true`),
	vf(`"routes":[{"dst":"10.0.0.0/8"}]`),
	vf(`"logLevel":"loud"`),
	conf(`"vlan":100`),
	// addresses
	conf(`"runtimeConfig":{"ips":"10.244.1.5"}`),
	conf(`"runtimeConfig":{"ips":["10.244.1.256"]}`),
	conf(`"runtimeConfig":{"ips":["10.244.1.5/33"]}`),
	conf(`"runtimeConfig":{"ips":["10.244.1.5","10.244.1.6"]}`),
	conf(`"runtimeConfig":{"ips":["fd00::5","fd00::5"]}`),
	conf(`"runtimeConfig":{"ips":["10.244.1.5","::ffff:10.244.1.6"]}`),
	conf(`"runtimeConfig":{"ips":["fe80::5"]}`),
	conf(`"runtimeConfig":{"ips":["fd00::5%eth0"]}`),
	conf(`"args":{"cni":{"ips":["224.0.0.1"]}}`),
	conf(`"args":{"cni":{"ips":["0.0.0.0"]}}`),
	conf(`"runtimeConfig":[]`),
	conf(`"args":"K=V"`),
	// IPAM
	conf(`"ipam":"host-local"`),
	conf(`"ipam":{"type":""}`),
	conf(`"ipam":{"type":"../../bin/sh"}`),
	conf(`"ipam":{"subnet":"10.244.1.0/24"}`),
	conf(`"ipam":{"type":"weft","route":[{"dst":"10.0.0.0/8"}]}`),
	conf(`"ipam":{"routes":[{"dst":"10.0.0.0/33"}]}`),
	// routes
	conf(`"routes":{"dst":"10.0.0.0/8"}`),
	conf(`"routes":[{"gw":"169.254.1.1"}]`),
	conf(`"routes":[{"dst":"10.0.0.1/8"}]`),
	conf(`"routes":[{"dst":"10.0.0.0"}]`),
	conf(`"routes":[{"dst":"::ffff:10.0.0.0/104"}]`),
	conf(`"routes":[{"dst":"10.0.0.0/8"},{"dst":"192.168.0.0/16","gw":"10.244.1.1"}]`),
	conf(`"routes":[{"dst":"fd01::/64","gw":"169.254.1.1"}]`),
	conf(`"routes":[{"dst":"10.0.0.0/8","metric":5}]`),
	conf(`"routes":[{"dst":"10.0.0.0/8","priority":-5}]`),
	conf(`"routes":[{"dst":"10.0.0.0/8","mtu":70000}]`),
	conf(`"routes":[{"dst":"10.0.0.0/8"}],"ipam":{"routes":[{"dst":"10.0.0.0/8"}]}`),
	// DNS
	conf(`"dns":["10.96.0.10"]`),
	conf(`"dns":{"nameservers":["dns.example"]}`),
	conf(`"dns":{"nameserver":["10.96.0.10"]}`),
	conf(`"dns":{"search":"svc.cluster.local"}`),
	// places
	conf(`"logLevel":"verbose"`),
	conf(`"logLevel":0`),
	conf(`"logFile":"weft.log"`),
	conf(`"dataDir":""`),
	conf(`"dataDir":"var/lib/weft"`),
	conf(`"runDir":["/run/weft"]`),
	// a result
	conf(`"prevResult":{"cniVersion":"9.9.9"}`),
	conf(`"prevResult":[]`),
	conf(`"prevResult":{"ips":[{"address":"10.244.1.5"}]}`),
}

func TestParseRefuses(t *testing.T) {
	var b strings.Builder
	for _, in := range badConfigs {
		n, err := netconf.Parse([]byte(in), env(netconf.Add))
		if err == nil {
			t.Errorf("%s: accepted as %+v", in, n)
			continue
		}
		fmt.Fprintf(&b, "%s\n%s: %v\n\n", in, kindOf(err), err)
	}
	testns.Golden(t, "bad-config.golden", b.String())
}

func TestParseRefusesGC(t *testing.T) {
	var b strings.Builder
	for _, in := range []string{
		conf(``),
		conf(`"cni.dev/valid-attachments":"none"`),
		conf(`"cni.dev/valid-attachments":[{"containerID":"a","ifname":"eth0"},{"containerID":"","ifname":"eth0"}]`),
		conf(`"cni.dev/valid-attachments":[{"containerID":"a"}]`),
	} {
		_, err := netconf.Parse([]byte(in), env(netconf.GC))
		fmt.Fprintf(&b, "%s\n%s: %v\n\n", in, kindOf(err), err)
	}
	testns.Golden(t, "bad-gc.golden", b.String())
}

var badEnvs = []map[string]string{
	{},
	{"CNI_COMMAND": "add"},
	{"CNI_COMMAND": "UPDATE"},
	{"CNI_CONTAINERID": ""},
	{"CNI_CONTAINERID": "-a"},
	{"CNI_CONTAINERID": "a/b"},
	{"CNI_CONTAINERID": "ü"},
	{"CNI_CONTAINERID": strings.Repeat("c", 201)},
	{"CNI_IFNAME": ""},
	{"CNI_IFNAME": "interface-number0"},
	{"CNI_IFNAME": "eth/0"},
	{"CNI_IFNAME": "eth:0"},
	{"CNI_IFNAME": "eth 0"},
	{"CNI_IFNAME": ".."},
	{"CNI_IFNAME": "eth\xff"},
	{"CNI_NETNS": ""},
	{"CNI_NETNS": "netns/pod"},
	{"CNI_ARGS": "IP"},
	{"CNI_ARGS": "IP=10.244.1.300"},
	{"CNI_ARGS": "IP=10.244.1.5,10.244.1.6"},
	{"CNI_ARGS": "MAC=02:00:5e:10:00:01:02:03"},
	{"CNI_ARGS": "IgnoreUnknown=maybe"},
	{"CNI_ARGS": "K8S_POD_NAME=web-0;FOO=BAR"},
	{"CNI_ARGS": "=x"},
}

func TestParseRefusesEnv(t *testing.T) {
	var b strings.Builder
	for _, in := range badEnvs {
		vars := map[string]string{
			"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "0123abcd", "CNI_NETNS": "/run/netns/pod",
			"CNI_IFNAME": "eth0", "CNI_PATH": "/opt/cni/bin",
		}
		what := "no variable at all"
		for name, value := range in {
			vars[name] = value
			what = fmt.Sprintf("%s=%q", name, value)
		}
		if len(in) == 0 {
			clear(vars)
		}
		_, err := netconf.Parse([]byte(conf(``)), netconf.EnvFrom(func(name string) string { return vars[name] }))
		if err == nil {
			t.Errorf("%v: accepted", in)
		}
		fmt.Fprintf(&b, "%s\n%s: %v\n\n", what, kindOf(err), err)
	}
	testns.Golden(t, "bad-env.golden", b.String())
}

func node(keys string) string {
	return `{"name":"node-1","bootID":"b","podCIDRs":["10.244.1.0/24"],"mtu":1450` + keys + `}`
}

var badNodes = []string{
	``,
	`{"name":"node-1"`,
	`[]`,
	`{}`,
	node(`,"name":""`),
	node(`,"name":5`),
	node(`,"bootID":null`),
	node(`,"bootID":""`),
	node(`,"bootID":"an earlier boot"`),
	node(`,"podCIDRs":null`),
	node(`,"podCIDRs":[]`),
	node(`,"podCIDRs":"10.244.1.0/24"`),
	node(`,"podCIDRs":["10.244.1.0"]`),
	node(`,"podCIDRs":["10.244.1.1/24"]`),
	node(`,"podCIDRs":["10.244.1.0/31"]`),
	node(`,"podCIDRs":["10.244.1.1/32"]`),
	node(`,"podCIDRs":["fd00::/127"]`),
	node(`,"podCIDRs":["224.0.0.0/24"]`),
	node(`,"podCIDRs":["fe80::/64"]`),
	node(`,"podCIDRs":["::ffff:10.244.1.0/120"]`),
	node(`,"podCIDRs":["10.244.0.0/16","10.244.1.0/24"]`),
	node(`,"podCIDRs":[""]`),
	node(`,"mtu":0`),
	node(`,"mtu":"1450"`),
	node(`,"mtu":1e9`),
}

func TestReadNodeRefuses(t *testing.T) {
	dir := t.TempDir()
	var b strings.Builder
	for _, in := range badNodes {
		if err := os.WriteFile(filepath.Join(dir, netconf.NodeFile), []byte(in), 0o600); err != nil {
			t.Fatal(err)
		}
		n, err := netconf.ReadNode(dir, "b")
		if err == nil {
			t.Errorf("%s: accepted as %+v", in, n)
			continue
		}
		text := strings.ReplaceAll(err.Error(), dir, "/run/weft")
		fmt.Fprintf(&b, "%s\n%s: %s\n\n", in, kindOf(err), text)
	}
	testns.Golden(t, "bad-node.golden", b.String())
}
