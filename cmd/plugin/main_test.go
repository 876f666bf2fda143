package main_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/weft-cni/weft/test/single"
	"github.com/weft-cni/weft/test/testns"
)

// bin is the directory with the plugin, as it is installed.
var bin string

func TestMain(m *testing.M) { os.Exit(buildAndRun(m)) }

func buildAndRun(m *testing.M) int {
	dir, err := os.MkdirTemp("", "weft-bin-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	bin = dir
	if err := single.Build(context.Background(), dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// outcome is what a run of the plugin leaves behind.
type outcome struct {
	stdout, stderr string
	code           int
}

func (o outcome) String() string {
	return fmt.Sprintf("exit status %d\n--- stdout\n%s--- stderr\n%s", o.code, o.stdout, o.stderr)
}

// weft runs the plugin in the calling thread's namespace.
func weft(t *testing.T, env map[string]string, stdin string, args ...string) outcome {
	t.Helper()
	cmd := exec.Command(filepath.Join(bin, "weft"), args...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	for k, v := range env {
		cmd.Env = append(cmd.Env, k+"="+v)
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return outcome{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// config is a network configuration with further keys.
func config(t *testing.T, n *single.Node, more string) string {
	t.Helper()
	keys := map[string]any{}
	if more != "" {
		must(t, json.Unmarshal([]byte(more), &keys))
	}
	return string(n.Config(t, keys))
}

func env(command string, pod *testns.NS) map[string]string {
	return map[string]string{
		"CNI_COMMAND": command, "CNI_CONTAINERID": "a1b2c3", "CNI_NETNS": pod.Path, "CNI_IFNAME": "eth0", "CNI_PATH": bin,
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestByHand(t *testing.T) {
	for _, c := range []struct {
		name string
		args []string
		env  map[string]string
	}{
		{"about", nil, nil},
		{"version", []string{"--version"}, nil},
		{"VERSION", nil, map[string]string{"CNI_COMMAND": "VERSION"}},
	} {
		testns.Golden(t, "byhand/"+c.name+".golden", weft(t, c.env, "", c.args...).String())
	}
}

// hide replaces what differs from run to run.
func hide(s string, n *single.Node, pod *testns.NS) string {
	s = strings.NewReplacer(n.Dir, "DIR", pod.Path, "NETNS").Replace(s)
	return regexp.MustCompile(`time=\S+ `).ReplaceAllString(s, "")
}

// TestRefused: what the runtime gets is one JSON object on standard output,
// and the log goes elsewhere.
func TestRefused(t *testing.T) {
	for name, c := range map[string]struct {
		command string
		config  string // "" is a good one
		more    string
		env     map[string]string
	}{
		"unknown-command":    {command: "ATTACH"},
		"no-container":       {command: "ADD", env: map[string]string{"CNI_CONTAINERID": ""}},
		"no-stdin":           {command: "ADD", config: " "},
		"not-json":           {command: "ADD", config: "cniVersion: 1.1.0"},
		"unknown-version":    {command: "ADD", more: `{"cniVersion": "2.0.0"}`},
		"misspelt-key":       {command: "ADD", more: `{"cniVersion": "0.4.0", "defaultroute": false}`},
		"check-before-0.4.0": {command: "CHECK", more: `{"cniVersion": "0.3.1"}`},
		"gc-before-1.1.0":    {command: "GC", more: `{"cniVersion": "1.0.0", "cni.dev/valid-attachments": []}`},
		"status-before-1.1":  {command: "STATUS", more: `{"cniVersion": "0.4.0"}`},
		"address-outside":    {command: "ADD", more: `{"runtimeConfig": {"ips": ["192.0.2.1"]}}`},
		"check-unattached":   {command: "CHECK", more: `{"prevResult": {"cniVersion": "1.1.0"}}`},
	} {
		t.Run(name, func(t *testing.T) {
			n, pod := single.New(t), testns.New(t)
			if c.config == "" {
				c.config = config(t, n, c.more)
			}
			e := env(c.command, pod)
			for k, v := range c.env {
				e[k] = v
			}
			got := weft(t, e, c.config)
			testns.Golden(t, "refused/"+name+".golden", hide(got.String(), n, pod))
			var object struct {
				CNIVersion string
				Code       uint
				Msg        string
			}
			if err := json.Unmarshal([]byte(got.stdout), &object); err != nil || object.Code == 0 || object.CNIVersion == "" || object.Msg == "" {
				t.Errorf("%v: %s", err, got.stdout)
			}
			if left := n.Dump(t) + pod.Dump(t); left != "" {
				t.Errorf("left behind:\n%s", left)
			}
		})
	}
}

func TestLogFile(t *testing.T) {
	n, pod := single.New(t), testns.New(t)
	file := filepath.Join(n.Dir, "weft.log")
	more := fmt.Sprintf(`{"logFile": %q, "logLevel": "debug"}`, file)
	add := weft(t, env("ADD", pod), config(t, n, more))
	again := weft(t, env("ADD", pod), config(t, n, more))
	if add.code != 0 || again.code != 1 || add.stderr != "" || again.stderr != "" {
		t.Errorf("first ADD: %s\nsecond ADD: %s", add, again)
	}
	log, err := os.ReadFile(file)
	must(t, err)
	for _, want := range []string{"level=DEBUG msg=attached", "level=ERROR", "attached already", "container=a1b2c3 interface=eth0"} {
		if !strings.Contains(string(log), want) {
			t.Errorf("%q is missing in\n%s", want, log)
		}
	}
	more = fmt.Sprintf(`{"logFile": %q}`, filepath.Join(n.Dir, "no/such/dir/log"))
	if del := weft(t, env("DEL", pod), config(t, n, more)); del.code != 0 || !strings.Contains(del.stderr, "logging to standard error") {
		t.Errorf("with a log file that can't be opened: %s", del)
	}
}

// TestUndeliverable: an ADD whose result can't be printed leaves nothing.
func TestUndeliverable(t *testing.T) {
	n, pod := single.New(t), testns.New(t)
	r, w, err := os.Pipe()
	must(t, err)
	must(t, r.Close())
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(bin, "weft"))
	for k, v := range env("ADD", pod) {
		cmd.Env = append(cmd.Env, k+"="+v)
	}
	var stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(config(t, n, "")), w, &stderr
	err = cmd.Run()
	must(t, w.Close())
	if err == nil || cmd.ProcessState.ExitCode() != 1 || !strings.Contains(stderr.String(), "print the result: write /dev/stdout: broken pipe") {
		t.Errorf("%v: %s", err, stderr.String())
	}
	if left := n.Dump(t) + pod.Dump(t); left != "" {
		t.Errorf("left behind:\n%s", left)
	}
}
