package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/weft-cni/weft/test/testns"
)

// What a user sees of a wrong command line or settings file.
func TestBadInput(t *testing.T) {
	t.Setenv("NODE_NAME", "")
	file := filepath.Join(t.TempDir(), "weftd.yaml")
	if err := os.WriteFile(file, []byte("prot: 4789\nvni: 0\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, args := range [][]string{
		{},
		{"--node-name=n1", "--plan"},
		{"--node-name=n1", "--config=" + file},
		{"--node-name=n1", "--config=/nonexistent/weftd.yaml"},
		{"--node-name=n1", "--mtu=1"},
		{"--node-name=n1", "--prot=4790"},
		{"--node-name=n1", "--kubeconfig=/nonexistent/kubeconfig"},
		{"n1"},
		{"cleanup", "--cni-conf-dir=etc"},
		{"cleanup", "n1"},
		{"wireguard", "wg0"},
		{"wireguard", "--wireguard-implementation=kernal"},
		{"leak-test", "--pod-cidrs=10.244.0.0"},
		{"leak-test", "--run-dir=/nonexistent"},
		{"leak-test", "--pod-cidrs=10.244.0.0/16", "--interfaces=nosuch0"},
	} {
		c := command()
		c.SetArgs(args)
		c.SetOut(&bytes.Buffer{})
		err := c.Execute()
		if err == nil {
			t.Errorf("%q is taken", args)
			continue
		}
		line := "weftd " + strings.Join(args, " ") + "\n" + err.Error() + "\n\n"
		b.WriteString(strings.ReplaceAll(line, file, "/etc/weft/weftd.yaml"))
	}
	testns.Golden(t, "errors.golden", b.String())
}

func TestHelpAndVersion(t *testing.T) {
	t.Setenv("NODE_NAME", "")
	for _, name := range []string{"help", "version"} {
		var out bytes.Buffer
		c := command()
		c.SetArgs([]string{name})
		c.SetOut(&out)
		if err := c.Execute(); err != nil {
			t.Fatal(err)
		}
		testns.Golden(t, name+".golden", out.String())
	}
}
