package attach_test

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"net/netip"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/weft-cni/weft/pkg/attach"
	"github.com/weft-cni/weft/pkg/netconf"
	"github.com/weft-cni/weft/pkg/record"
	"github.com/weft-cni/weft/pkg/veth"
	"github.com/weft-cni/weft/test/single"
	"github.com/weft-cni/weft/test/testns"
)

// node is a node that pods are attached to in this process.
type node struct {
	*single.Node
	t      *testing.T
	plugin *attach.Plugin
	log    bytes.Buffer
}

func newNode(t *testing.T) *node {
	t.Helper()
	n := &node{Node: single.New(t), t: t}
	kernel, err := veth.Open()
	must(t, err)
	t.Cleanup(kernel.Close)
	n.plugin = &attach.Plugin{Log: slog.New(slog.NewTextHandler(&n.log, nil)), BootID: n.BootID, Node: kernel}
	return n
}

func (n *node) store() record.Store {
	return record.Store{Dir: filepath.Join(n.DataDir(), record.Dir)}
}

// pod is an attachment to be: a container with a namespace.
type pod struct {
	*testns.NS
	id, ifName string
	config     string // further keys of the network configuration, as JSON
	args       string // CNI_ARGS
	path       string // CNI_PATH
}

func newPod(t *testing.T, id, config string) pod {
	t.Helper()
	return pod{NS: testns.New(t), id: id, ifName: "eth0", config: config, args: "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=" + id}
}

// network is what Parse makes of a command on p. More keys of the
// configuration can be given.
func (n *node) network(command string, p pod, more ...map[string]any) *netconf.Network {
	n.t.Helper()
	config := map[string]any{}
	if p.config != "" {
		if err := json.Unmarshal([]byte(p.config), &config); err != nil {
			n.t.Fatalf("%s: %v", p.config, err)
		}
	}
	data := n.Config(n.t, append([]map[string]any{config}, more...)...)
	env := netconf.Env{Command: command, ContainerID: p.id, IfName: p.ifName, Args: p.args, Path: p.path}
	if p.NS != nil {
		env.Netns = p.Path
	}
	network, err := netconf.Parse(data, env)
	if err != nil {
		n.t.Fatal(err)
	}
	return network
}

// attach attaches p and gives the result.
func (n *node) attach(p pod) *types100.Result {
	n.t.Helper()
	result, err := n.plugin.Attach(context.Background(), n.network(netconf.Add, p))
	if err != nil {
		n.t.Fatal(err)
	}
	newest, err := netconf.ParseResult(result, "1.1.0")
	if err != nil {
		n.t.Fatal(err)
	}
	return newest
}

func (n *node) detach(p pod) {
	n.t.Helper()
	if err := n.plugin.Detach(context.Background(), n.network(netconf.Del, p)); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) check(p pod, prev *types100.Result) error {
	n.t.Helper()
	return n.plugin.Check(context.Background(), n.network(netconf.Check, p, map[string]any{"prevResult": prev}))
}

// dump shows all there is of attachments: on the node, in its directories and
// in the pods.
func (n *node) dump(pods ...pod) string {
	n.t.Helper()
	var b strings.Builder
	b.WriteString("# node\n" + n.Dump(n.t) + n.Files(n.t))
	for _, p := range pods {
		b.WriteString("# pod " + p.id + "\n" + p.Dump(n.t))
	}
	return b.String()
}

// hide replaces what differs from run to run.
func (n *node) hide(s string, pods ...pod) string {
	replace := []string{n.Dir, "DIR", n.BootID, "BOOT", n.Path, "NODE-NETNS"}
	for _, p := range pods {
		if p.NS != nil {
			replace = append(replace, p.Path, "NETNS-"+p.id)
		}
	}
	return times.ReplaceAllString(strings.NewReplacer(replace...).Replace(s), "TIME")
}

var times = regexp.MustCompile(`\d{4}-\d{2}-\d{2}T[0-9:]{8}Z`)

func text(t *testing.T, v any) string {
	t.Helper()
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func prefixes(list ...string) (ps []netip.Prefix) {
	for _, s := range list {
		ps = append(ps, netip.MustParsePrefix(s))
	}
	return ps
}
