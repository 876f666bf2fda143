package netconf_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/weft-cni/weft/pkg/netconf"
)

// Whatever a runtime passes, Parse refuses it with one of its kinds of error
// or gives something that holds what its fields promise.
func FuzzParse(f *testing.F) {
	for _, in := range badConfigs {
		f.Add([]byte(in), "IP=10.244.1.5;IgnoreUnknown=1", "ADD")
	}
	f.Add([]byte(conf(`"cni.dev/valid-attachments":[{"containerID":"a","ifname":"eth0"}]`)), "", "GC")
	f.Add([]byte(conf(`"routes":[{"dst":"10.0.0.0/8"}],"runtimeConfig":{"ips":["fd00::5/64"]}`)), "", "CHECK")
	f.Fuzz(func(t *testing.T, stdin []byte, args, command string) {
		e := env(command)
		e.Args = args
		n, err := netconf.Parse(stdin, e)
		if err != nil {
			if kindOf(err) == "" {
				t.Fatalf("an error of no kind: %v", err)
			}
			return
		}
		whole := map[netconf.Mode]bool{
			netconf.ModeCluster: n.IPAM.Type != "" && len(n.Addrs) <= 2,
			netconf.ModeOverlay: n.Segment != nil,
			netconf.ModeSRIOV:   n.VF != nil,
		}
		if !netconf.IsName(n.Name) || !whole[n.Mode] ||
			!filepath.IsAbs(n.DataDir) || !filepath.IsAbs(n.RunDir) || n.MTU < 0 || n.MAC[0]&1 != 0 {
			t.Fatalf("accepted: %+v", n)
		}
		for _, r := range n.Routes {
			if back, err := netconf.RouteFrom(r.CNI()); err != nil || back != r {
				t.Fatalf("route %+v comes back as %+v, %v", r, back, err)
			}
		}
		if command == netconf.GC && n.ValidAttachments == nil {
			t.Fatal("a GC without a list of what to keep")
		}
	})
}

// What ReadNode takes, WriteNode writes and ReadNode gives back.
func FuzzReadNode(f *testing.F) {
	for _, in := range badNodes {
		f.Add([]byte(in))
	}
	good, err := json.Marshal(exampleNode())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Fuzz(func(t *testing.T, data []byte) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, netconf.NodeFile), data, 0o600); err != nil {
			t.Fatal(err)
		}
		const boot = "b"
		n, err := netconf.ReadNode(dir, boot)
		if err != nil {
			if kindOf(err) == "" {
				t.Fatalf("an error of no kind: %v", err)
			}
			return
		}
		if _, err = netconf.WriteNode(dir, n); err != nil {
			t.Fatal(err)
		}
		again, err := netconf.ReadNode(dir, boot)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(n, again, byValue); d != "" {
			t.Fatal(d)
		}
	})
}
