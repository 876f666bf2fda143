package cluster_test

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/weft-cni/weft/test/cluster"
)

// victimEnv makes TestVictim run, and marks its process and all its children.
const victimEnv = "WEFT_CLUSTER_VICTIM"

// TestVictim is no test of its own: it is what TestNothingIsLeftBehind ends.
func TestVictim(t *testing.T) {
	mark := os.Getenv(victimEnv)
	if mark == "" {
		return
	}
	c := cluster.New(t, cluster.Options{Nodes: 2})
	if _, err := c.Node(1).NewPod("p", cluster.PodOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Node(2).Start(exec.CommandContext(t.Context(), "sleep", "1000")); err != nil {
		t.Fatal(err)
	}
	fmt.Printf("victim is up in %s\n", c.Dir())
	if mark != "ends" {
		select {}
	}
}

func TestNothingIsLeftBehind(t *testing.T) {
	for name, end := range map[string]func(*testing.T, *exec.Cmd){
		"ends":    func(*testing.T, *exec.Cmd) {},
		"SIGINT":  func(t *testing.T, cmd *exec.Cmd) { t.Helper(); send(t, cmd, syscall.SIGINT) },
		"SIGTERM": func(t *testing.T, cmd *exec.Cmd) { t.Helper(); send(t, cmd, syscall.SIGTERM) },
		"SIGKILL": func(t *testing.T, cmd *exec.Cmd) { t.Helper(); send(t, cmd, syscall.SIGKILL) },
	} {
		t.Run(name, func(t *testing.T) {
			tmp := t.TempDir()
			mark := name
			if name != "ends" {
				mark = fmt.Sprintf("%s-%d", name, time.Now().UnixNano())
			}
			cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestVictim$", "-test.v")
			cmd.Env = append(os.Environ(), victimEnv+"="+mark, "TMPDIR="+tmp)
			up := startVictim(t, cmd)
			<-up
			end(t, cmd)
			_ = cmd.Wait() // the status is that of a signal
			eventually(t, "its processes end", func() bool { return len(marked(t, mark)) == 0 })
			if got := mounts(t, tmp, "/run/netns/cni-"); got != "" {
				t.Errorf("mounts are left:\n%s", got)
			}
			if name == "SIGKILL" {
				t.Setenv("TMPDIR", tmp)
				again := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestVictim$")
				again.Env = append(os.Environ(), victimEnv+"=ends")
				if out, err := again.CombinedOutput(); err != nil {
					t.Fatalf("the next cluster: %v\n%s", err, out)
				}
			}
			if left, err := filepath.Glob(tmp + "/*"); err != nil || len(left) > 0 {
				t.Errorf("files are left: %s %v", left, err)
			}
		})
	}
}

// startVictim starts cmd; the channel is closed when its cluster is up, or it
// has ended.
func startVictim(t *testing.T, cmd *exec.Cmd) <-chan struct{} {
	t.Helper()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	up := make(chan struct{})
	go func() {
		defer close(up)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if strings.HasPrefix(lines.Text(), "victim is up") {
				return
			}
		}
	}()
	return up
}

func send(t *testing.T, cmd *exec.Cmd, sig os.Signal) {
	t.Helper()
	if err := cmd.Process.Signal(sig); err != nil {
		t.Fatal(err)
	}
}

// marked are the processes that have mark in their environment.
func marked(t *testing.T, mark string) []string {
	t.Helper()
	environs, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(environs, func(file string) bool {
		env, err := os.ReadFile(file)
		return err != nil || !bytes.Contains(env, []byte(victimEnv+"="+mark+"\x00"))
	})
}

// mounts are those that this process sees with one of the paths in them.
func mounts(t *testing.T, paths ...string) string {
	t.Helper()
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	var found strings.Builder
	for line := range strings.Lines(string(info)) {
		if slices.ContainsFunc(paths, func(path string) bool { return strings.Contains(line, path) }) {
			found.WriteString(line)
		}
	}
	return found.String()
}

// eventually waits until done is true.
func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	for deadline := time.Now().Add(20 * time.Second); !done(); {
		if time.Now().After(deadline) {
			t.Fatalf("not within 20 s: %s", what)
		}
		<-ticker.C
	}
}

// TestWithoutRoot runs a test as an ordinary user.
func TestWithoutRoot(t *testing.T) {
	if os.Getenv("WEFT_CLUSTER_USERNS") != "" {
		return // all of them run so already
	}
	const nobody = 65534
	// By descriptor: the directory of the test binary is closed to others.
	exe, err := os.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer exe.Close()
	cmd := exec.CommandContext(t.Context(), "/proc/self/fd/3", "-test.run=^TestNodesReachEachOtherOverTheSwitch$", "-test.v")
	cmd.ExtraFiles = []*os.File{exe}
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), "TMPDIR=/var/tmp")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	out, err := cmd.CombinedOutput()
	switch {
	case strings.Contains(string(out), "needs root, or a kernel that lets this user make user namespaces"):
		t.Logf("this kernel keeps user namespaces to root, and that is what is said: %s", out)
	case err != nil || !strings.Contains(string(out), "PASS: TestNodesReach"):
		t.Errorf("%v\n%s", err, out)
	}
}
