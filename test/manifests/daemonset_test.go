package manifests_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"github.com/vishvananda/netlink"

	"github.com/weft-cni/weft/test/cluster"
	"github.com/weft-cni/weft/test/probe"
	"github.com/weft-cni/weft/test/testns"
)

// TestDaemonSet runs the daemon on two nodes with what its pod is given and no
// more, and then the cleanup.
func TestDaemonSet(t *testing.T) {
	c := cluster.New(t, cluster.Options{Nodes: 2})
	manifest := objectsIn(t, readFile(t, weftYAML))
	apply(t, c, manifest)
	before := map[string]map[string]string{}
	for _, n := range c.Nodes() {
		setSysctls(t, n, "0")
		// A container runtime is installed with these.
		if err := errors.Join(n.WriteFile("/opt/cni/bin/loopback", nil, 0o755), n.WriteFile("/etc/cni/net.d/README", nil, 0o644)); err != nil {
			t.Fatal(err)
		}
		before[n.Name] = snapshot(t, n)
	}

	kubelet := newKubelet(t, c, manifest, "weftd")
	spec := &kubelet.set.Spec.Template.Spec.Containers[0]
	daemons := make([]*running, 0, len(c.Nodes()))
	for _, n := range c.Nodes() {
		daemons = append(daemons, kubelet.start(t, n, spec))
	}
	for _, d := range daemons {
		eventually(t, 20*time.Second, func() error { return d.probe(t, spec.ReadinessProbe) })
		if err := d.probe(t, spec.LivenessProbe); err != nil {
			t.Error(err)
		}
		confined(t, d)
		for _, path := range sysctls {
			if value, err := d.node.ReadFile(path); err != nil || string(value) != "1\n" {
				t.Errorf("%s on %s: %q %v", path, d.node.Name, value, err)
			}
		}
	}
	a, b := c.Node(1).Attach(t, "a"), c.Node(2).Attach(t, "b")
	for _, ip := range b.IPs() {
		eventually(t, 10*time.Second, func() error {
			_, err := probe.Ping(t.Context(), a, ip)
			return err
		})
	}
	for _, n := range c.Nodes() {
		if err := n.Status(t.Context()); err != nil {
			t.Error(err)
		}
	}
	refusedNothing(t, daemons)

	for _, pod := range []*cluster.Pod{a, b} {
		if err := pod.Detach(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range daemons {
		d.Kill()
	}
	cleanup(t, c)
	for _, n := range c.Nodes() {
		setSysctls(t, n, "0") // they stay as they were set: others may rely on them by now
		if diff := cmp.Diff(before[n.Name], snapshot(t, n)); diff != "" {
			t.Errorf("left on %s (-before +after):\n%s", n.Name, diff)
		}
	}
}

// confined checks that the test takes away what the manifest does.
func confined(t *testing.T, d *running) {
	t.Helper()
	for key, want := range map[string]string{
		"CapEff":     fmt.Sprintf("%016x", 1<<capabilities["NET_ADMIN"]),
		"CapBnd":     fmt.Sprintf("%016x", 1<<capabilities["NET_ADMIN"]),
		"NoNewPrivs": "1",
	} {
		if got := d.status(t, key); got != want {
			t.Errorf("%s of weftd on %s is %s, not %s", key, d.node.Name, got, want)
		}
	}
	t.Logf("weftd on %s: resident %s", d.node.Name, d.status(t, "VmRSS"))
	root := fmt.Sprintf("/proc/%d/root", d.PID())
	for _, path := range []string{"/x", "/etc/weft/x", "/var/lib/weft/x", "/proc/sys/net/ipv4/ip_forward"} {
		if err := os.WriteFile(root+path, []byte("1"), 0o600); err == nil {
			t.Errorf("weftd on %s could write %s", d.node.Name, path)
		}
	}
}

// refusedNothing checks that no right was missing.
func refusedNothing(t *testing.T, daemons []*running) {
	t.Helper()
	for _, d := range daemons {
		metrics, err := get(t, d.node, "http://127.0.0.1:9447/metrics")
		if err != nil {
			t.Fatal(err)
		}
		for lines := bufio.NewScanner(bytes.NewReader(metrics)); lines.Scan(); {
			if series, value, _ := strings.Cut(lines.Text(), " "); strings.HasPrefix(series, "weft_sync_errors_total") && value != "0" {
				t.Errorf("%s: %s", d.node.Name, lines.Text())
			}
		}
		for line := range strings.Lines(d.output(t)) {
			if strings.Contains(line, "level=ERROR") || strings.Contains(line, "not permitted") || strings.Contains(line, "ermission denied") {
				t.Errorf("%s: %s", d.node.Name, line)
			}
		}
	}
}

// cleanup runs the init containers of manifests/cleanup.yaml, and what comes
// after them for a moment.
func cleanup(t *testing.T, c *cluster.Cluster) {
	t.Helper()
	manifest := objectsIn(t, readFile(t, cleanupYAML))
	apply(t, c, manifest)
	kubelet := newKubelet(t, c, manifest, "weft-cleanup")
	pod := &kubelet.set.Spec.Template.Spec
	for _, n := range c.Nodes() {
		r := kubelet.start(t, n, &pod.InitContainers[0])
		<-r.Done()
		if err := r.Wait(); err != nil {
			t.Errorf("cleanup on %s: %v\n%s", n.Name, err, r.output(t))
		}
		t.Logf("cleanup on %s:\n%s", n.Name, r.output(t))
		if cluster.Unprivileged() {
			continue // in its user namespace is no other user
		}
		done := kubelet.start(t, n, &pod.Containers[0])
		eventually(t, 5*time.Second, func() error {
			if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", done.PID())); err != nil || filepath.Base(exe) != "weftd" {
				return fmt.Errorf("it is %s: %w", exe, err)
			}
			return nil
		})
		select {
		case <-done.Done():
			t.Errorf("the pod on %s ended: %v\n%s", n.Name, done.Wait(), done.output(t))
		default:
		}
	}
}

// TestCapabilitiesAreNeeded takes away one capability at a time.
func TestCapabilitiesAreNeeded(t *testing.T) {
	c := cluster.New(t, cluster.Options{Nodes: 1})
	manifest := objectsIn(t, readFile(t, weftYAML))
	apply(t, c, manifest)
	kubelet := newKubelet(t, c, manifest, "weftd")
	spec := &kubelet.set.Spec.Template.Spec.Containers[0]
	all := spec.SecurityContext.Capabilities.Add
	for i, without := range all {
		t.Run("without "+string(without), func(t *testing.T) {
			spec.SecurityContext.Capabilities.Add = slices.Delete(slices.Clone(all), i, i+1)
			d := kubelet.start(t, c.Node(1), spec)
			eventually(t, 20*time.Second, func() error {
				if strings.Contains(d.output(t), "operation not permitted") {
					return nil
				}
				return fmt.Errorf("weftd doesn't miss it: %w", d.probe(t, spec.ReadinessProbe))
			})
			if d.probe(t, spec.ReadinessProbe) == nil {
				t.Error("weftd is ready")
			}
		})
	}
}

// sysctls are those that the daemon sets.
var sysctls = []string{"/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding"}

func setSysctls(t *testing.T, n *cluster.Node, value string) {
	t.Helper()
	for _, path := range sysctls {
		if err := n.WriteFile(path, []byte(value), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// snapshot is what is on a node that Weft could have left there: what is in
// the kernel, by kind of object, and files.
func snapshot(t *testing.T, n *cluster.Node) map[string]string {
	t.Helper()
	seen := map[string]string{}
	err := n.Do(func() error {
		handle, err := netlink.NewHandle()
		if err != nil {
			return err
		}
		defer handle.Close()
		seen["kernel"] = (&testns.NS{Handle: handle}).Dump(t)
		if seen["nftables"], err = tables(); err != nil {
			return err
		}
		files, err := filesBelow("/etc/cni", "/opt/cni", "/var/lib/weft", "/run")
		maps.Copy(seen, files)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return seen
}

// tables lists what nf_tables holds.
func tables() (string, error) {
	list, err := (&nftables.Conn{}).ListTables()
	var names []string
	for _, table := range list {
		names = append(names, fmt.Sprintf("%d %s", table.Family, table.Name))
	}
	slices.Sort(names)
	return strings.Join(names, "\n"), err
}

// filesOn is filesBelow on a node, but for the directories themselves.
func filesOn(n *cluster.Node, dirs ...string) (files map[string]string, err error) {
	err = n.Do(func() error {
		files, err = filesBelow(dirs...)
		for _, dir := range dirs {
			delete(files, dir)
		}
		return err
	})
	return files, err
}

// filesBelow lists files and directories with their contents.
func filesBelow(dirs ...string) (map[string]string, error) {
	files := map[string]string{}
	for _, dir := range dirs {
		err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
			switch {
			case errors.Is(err, fs.ErrNotExist):
				return nil
			case err != nil:
				return err
			case !entry.Type().IsRegular():
				files[path] = entry.Type().String()
				return nil
			}
			data, err := os.ReadFile(path)
			files[path] = string(data)
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return files, nil
}
