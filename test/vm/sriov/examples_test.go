//go:build vm

package sriov

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"k8s.io/apimachinery/pkg/util/yaml"

	"github.com/weft-cni/weft/pkg/netconf"
)

// examples are the networks of manifests/sriov/examples, by name.
func examples(t *testing.T) map[string]map[string]any {
	t.Helper()
	text, err := os.ReadFile("../../../manifests/sriov/examples/networks.yaml")
	must(t, err)
	all := map[string]map[string]any{}
	for documents := yaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(text))); ; {
		document, err := documents.Read()
		if errors.Is(err, io.EOF) {
			return all
		}
		must(t, err)
		var nad struct {
			Metadata struct{ Name string }
			Spec     struct{ Config string }
		}
		must(t, yaml.Unmarshal(document, &nad))
		config := map[string]any{}
		must(t, json.Unmarshal([]byte(nad.Spec.Config), &config))
		all[nad.Metadata.Name] = config
	}
}

// TestExamples attaches VFs as the examples' networks have it, with what Multus
// adds: the device that the device plugin chose, and the arguments of
// capabilities that the network has.
func TestExamples(t *testing.T) {
	must(t, exec.Command("modprobe", "vfio-pci").Run())
	own, err := sysfs.Device(vfs[2])
	must(t, err)
	renamed(t, vfs[2], own.Link) // again at the end
	bind(t, vfs[2], "vfio-pci")
	t.Cleanup(func() { bind(t, vfs[2], "") })
	networks := examples(t)
	if len(networks) != 2 {
		t.Fatalf("the examples are %v", networks)
	}
	for name, device := range map[string]string{"storage": vfs[0], "packets": vfs[2]} {
		l, was := newLab(t), view(t, device)
		config := networks[name]
		config["deviceID"] = device
		info := filepath.Join(l.dir, "info.json")
		run := map[string]any{"CNIDeviceInfoFile": info}
		capabilities, _ := config["capabilities"].(map[string]any)
		if capabilities["mac"] == true {
			run["mac"] = "02:00:00:00:0a:09"
		}
		config["runtimeConfig"] = run
		p := newPod(t, name, config)
		r := l.add(p)
		if i := r.Interfaces[0]; i.PciID != device || name == "storage" && (i.Mac != run["mac"] || len(r.IPs) != 2) {
			t.Errorf("%s: %+v", name, r)
		}
		if _, err := os.Stat(info); err != nil {
			t.Errorf("%s: device-info: %v", name, err)
		}
		l.must(netconf.Del, p, nil)
		l.back(device, was, name)
	}
}
