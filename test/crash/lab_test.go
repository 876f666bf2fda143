package crash_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/weft-cni/weft/pkg/netconf"
	"github.com/weft-cni/weft/test/crash"
	"github.com/weft-cni/weft/test/programs"
	"github.com/weft-cni/weft/test/single"
	"github.com/weft-cni/weft/test/testns"
)

// bin is the directory with the plugin, and path is CNI_PATH: that and the
// reference plugins.
var bin, path string

func TestMain(m *testing.M) { os.Exit(buildAndRun(m)) }

func buildAndRun(m *testing.M) int {
	dir, err := os.MkdirTemp("", "weft-bin-")
	if err == nil {
		defer func() { _ = os.RemoveAll(dir) }()
		bin = dir
		err = single.Build(context.Background(), dir)
	}
	if err == nil {
		var plugins string
		plugins, err = programs.Plugins(context.Background(), os.Stderr)
		path = bin + ":" + plugins
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// lab is a node on which one pod is attached over and over.
type lab struct {
	*single.Node
	t      *testing.T
	config map[string]any // further keys
	id     string         // of the container
	pod    *testns.NS
}

func newLab(t *testing.T, v variant) *lab {
	t.Helper()
	l := &lab{Node: single.New(t), t: t, id: "a1b2c3"}
	l.config = v.config(l)
	l.pod = testns.New(t)
	return l
}

// beside is another pod on the same node.
func (l *lab) beside(id string) *lab {
	other := *l
	other.id, other.pod = id, testns.New(l.t)
	return &other
}

// variant is a way to attach a pod.
type variant struct {
	name   string
	config func(*lab) map[string]any
}

var variants = []variant{
	{"own addresses", func(*lab) map[string]any { return nil }},
	{"no default route", func(*lab) map[string]any { return map[string]any{"defaultRoute": false} }},
	{"host-local", func(l *lab) map[string]any {
		return map[string]any{"ipam": map[string]any{
			"type": "host-local", "dataDir": filepath.Join(l.Dir, "host-local"),
			"ranges": [][]any{{map[string]any{"subnet": "10.22.0.0/16"}}},
		}}
	}},
}

// command is what a runtime starts: the environment and standard input, with
// the result of the ADD in it on CHECK.
func (l *lab) command(command string, result []byte) (env []string, stdin []byte) {
	l.t.Helper()
	keys := map[string]any{}
	env = []string{
		"PATH=" + os.Getenv("PATH"), "CNI_COMMAND=" + command, "CNI_CONTAINERID=" + l.id,
		"CNI_NETNS=" + l.pod.Path, "CNI_IFNAME=eth0", "CNI_PATH=" + path,
	}
	switch command {
	case netconf.GC:
		keys["cni.dev/valid-attachments"] = []any{}
	case netconf.Check:
		keys["prevResult"] = json.RawMessage(result)
	}
	return env, l.Config(l.t, l.config, keys)
}

// run runs the plugin undisturbed; it has to succeed.
func (l *lab) run(command string, result ...[]byte) []byte {
	l.t.Helper()
	env, stdin := l.command(command, slices.Concat(result...))
	cmd := exec.Command(filepath.Join(bin, "weft"))
	var stdout, stderr bytes.Buffer
	cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = env, bytes.NewReader(stdin), &stdout, &stderr
	if err := cmd.Run(); err != nil {
		l.t.Fatalf("%s: %v\n%s%s", command, err, stdout.Bytes(), stderr.Bytes())
	}
	return stdout.Bytes()
}

// disturbed runs the plugin and lets at decide on each of its steps.
func (l *lab) disturbed(command string, at func(int, crash.Step) crash.Verdict) (o crash.Outcome, stdout string) {
	l.t.Helper()
	env, stdin := l.command(command, nil)
	in, err := os.CreateTemp(l.t.TempDir(), "stdin")
	l.must(err)
	defer in.Close()
	_, err = in.Write(stdin)
	l.must(err)
	_, err = in.Seek(0, io.SeekStart)
	l.must(err)
	out, err := os.CreateTemp(l.t.TempDir(), "stdout")
	l.must(err)
	defer out.Close()
	o, err = crash.Run(crash.Program{Path: filepath.Join(bin, "weft"), Env: env, Stdin: in, Stdout: out, Stderr: out}, at)
	l.must(err)
	text, err := os.ReadFile(out.Name())
	l.must(err)
	return o, string(text)
}

// left is all there is of attachments.
func (l *lab) left() string {
	l.t.Helper()
	return l.Dump(l.t) + l.Files(l.t) + l.pod.Dump(l.t)
}

// clean makes sure that nothing is left, and that the pod can be attached as
// if nothing had been.
func (l *lab) clean(after string) {
	l.t.Helper()
	if left := l.left(); left != "" {
		l.t.Fatalf("%s: left behind:\n%s", after, left)
	}
	result := l.run(netconf.Add)
	l.run(netconf.Check, result)
	l.run(netconf.Del)
	if left := l.left() + l.unfinished(); left != "" {
		l.t.Fatalf("%s, and another ADD and DEL: left behind:\n%s", after, left)
	}
}

// unfinished lists files under temporary names.
func (l *lab) unfinished() string {
	l.t.Helper()
	var found []string
	l.must(filepath.WalkDir(l.Dir, func(path string, d os.DirEntry, err error) error {
		if strings.HasSuffix(path, ".new") || strings.HasPrefix(d.Name(), ".") {
			found = append(found, path)
		}
		return err
	}))
	return strings.Join(found, "\n")
}

func (l *lab) must(err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatal(err)
	}
}
