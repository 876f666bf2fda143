//go:build vm

package sriov

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/netconf"
	"github.com/weft-cni/weft/test/testns"
)

// mishap is something that happens to a device while a pod has it.
type mishap struct {
	name   string
	check  string // what CHECK says
	do     func(t *testing.T, device, pf string)
	repair func(t *testing.T, device, pf string) // what an operator does
	// anew is set where all VFs are gone: those that come may be different.
	anew bool
}

// sysfsWrite writes to a file below /sys/bus/pci.
func sysfsWrite(t *testing.T, path, value string) {
	t.Helper()
	must(t, os.WriteFile("/sys/bus/pci/"+path, []byte(value), 0))
}

func probeDriver(t *testing.T, device, _ string) { sysfsWrite(t, "drivers_probe", device) }

func makeAgain(t *testing.T, _, pf string) {
	t.Helper()
	eventually(t, func() error {
		d, err := sysfs.Device(pf)
		if err == nil && d.Link != "eth1" {
			err = fmt.Errorf("%s is %q", pf, d.Link)
		}
		return err
	})
	must(t, setVFs(pf, numVFs["eth1"]))
}

var (
	unbound = mishap{"the VF loses its driver", `driver is "", want "igbvf"`, func(t *testing.T, device, _ string) {
		sysfsWrite(t, "devices/"+device+"/driver/unbind", device)
	}, probeDriver, false}
	rebound = mishap{"the VF loses its driver and gets it again", "network device is not in the pod", func(t *testing.T, device, _ string) {
		unbound.do(t, device, "")
		sysfsWrite(t, "drivers_probe", device)
	}, func(*testing.T, string, string) {}, false}
	toVFIO = mishap{"the VF gets another driver", `driver is "vfio-pci", want "igbvf"`, func(t *testing.T, device, _ string) {
		must(t, exec.Command("modprobe", "vfio-pci").Run())
		bind(t, device, "vfio-pci")
	}, func(t *testing.T, device, _ string) {
		bind(t, device, "")
		d, err := sysfs.Device(device)
		must(t, err)
		must(t, rename(d.Link, fmt.Sprintf("%sv%d", d.PFLink, d.Index)))
	}, false}
	noVFs = mishap{"the PF's VFs are removed", "no such device", func(t *testing.T, _, pf string) {
		sysfsWrite(t, "devices/"+pf+"/sriov_numvfs", "0")
	}, makeAgain, true}
	pfUnbound = mishap{"the PF loses its driver", "no such device", func(t *testing.T, _, pf string) {
		sysfsWrite(t, "devices/"+pf+"/driver/unbind", pf)
	}, func(t *testing.T, device, pf string) {
		sysfsWrite(t, "drivers_probe", pf)
		makeAgain(t, device, pf)
	}, true}
	pfRemoved = mishap{"the PF is removed from the bus", "no such device", func(t *testing.T, _, pf string) {
		sysfsWrite(t, "devices/"+pf+"/remove", "1")
	}, func(t *testing.T, device, pf string) {
		sysfsWrite(t, "rescan", "1")
		makeAgain(t, device, pf)
	}, true}
)

// pfHidden takes the PF's network device to another namespace: nobody can
// reach what it holds of its VFs, so a VLAN stays, and DEL says so.
func pfHidden() mishap {
	var elsewhere *testns.NS
	return mishap{"the PF's network device is taken away", "PF is missing", func(t *testing.T, _, _ string) {
		elsewhere = testns.New(t)
		fd, err := unix.Open(elsewhere.Path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		must(t, err)
		defer unix.Close(fd)
		link, err := netlink.LinkByName("eth1")
		must(t, err)
		must(t, netlink.LinkSetNsFd(link, fd))
	}, func(t *testing.T, _, _ string) {
		link, err := elsewhere.Handle.LinkByName("eth1")
		must(t, err)
		must(t, elsewhere.Handle.LinkSetNsPid(link, 1))
		link, err = netlink.LinkByName("eth1")
		must(t, err)
		must(t, netlink.LinkSetUp(link))
	}, false}
}

// TestMishaps: whatever happens to a device or its PF while a pod has it, CHECK
// tells of it, DEL, GC and the daemon's start leave nothing, and the next pod
// can have the device. What is put right before they run is given back as it
// was.
func TestMishaps(t *testing.T) { // alone: other tests' VFs would take the PF's name while that is away
	for _, c := range []struct {
		mishap
		cleanup      string
		repairBefore bool
	}{
		{unbound, netconf.Del, false},
		{unbound, netconf.GC, false},
		{unbound, "weftd", true},
		{rebound, netconf.Del, false},
		{rebound, netconf.GC, false},
		{rebound, "weftd", false},
		{toVFIO, netconf.Del, false},
		{toVFIO, netconf.GC, true},
		{noVFs, netconf.Del, true},
		{noVFs, netconf.GC, false},
		{pfUnbound, netconf.Del, false},
		{pfUnbound, netconf.GC, true},
		{pfRemoved, netconf.Del, true},
		{pfRemoved, "weftd", false},
		{pfHidden(), netconf.Del, true},
	} {
		what := fmt.Sprintf("%s, then %s", c.name, c.cleanup)
		if c.repairBefore {
			what = fmt.Sprintf("%s, all is put right, then %s", c.name, c.cleanup)
		}
		t.Log(what)
		d, err := sysfs.Device(far)
		must(t, err)
		l, was := newNodeLab(t), view(t, far)
		p := newPod(t, "a", vfConfig(far, "vlan", 100, "trust", "on", "mac", "02:00:00:00:0b:01", "mtu", 1400))
		result := l.must(netconf.Add, p, nil)
		c.do(t, far, d.PF)
		_, err = l.do(netconf.Check, p, map[string]any{"prevResult": json.RawMessage(result)})
		if err == nil || !strings.Contains(err.Error(), c.check) {
			t.Errorf("%s: CHECK: %v, not %s", what, err, c.check)
		}
		if c.repairBefore {
			c.repair(t, far, d.PF)
		}
		p.Close()
		log := l.cleanup(c.cleanup, p)
		if c.anew && !c.repairBefore && c.cleanup != "weftd" && !strings.Contains(log, "the device has gone") {
			t.Errorf("%s: the log says %s", what, log)
		}
		if !c.repairBefore {
			c.repair(t, far, d.PF)
		}
		if c.anew && !c.repairBefore {
			was = view(t, far)
			if !strings.Contains(was, "mtu 1500 ") || !strings.Contains(was, " vlan 0 ") || !strings.Contains(was, "trust 0 ") {
				t.Errorf("%s: the new VF is like the old one:\n%s", what, was)
			}
		}
		l.back(far, was, what)
		next := newPod(t, "next", vfConfig(far, "vlan", 200))
		l.add(next)
		l.must(netconf.Del, next, nil)
		l.back(far, was, what+", and another pod")
	}
}

// newNodeLab is a lab with the files where the daemon looks for them.
func newNodeLab(t *testing.T) *lab {
	t.Helper()
	l := newLab(t)
	l.data, l.run = netconf.DataDir, netconf.RunDir
	return l
}

// cleanup does what comes after a pod: DEL, GC, or the daemon's start, which
// is followed by a DEL. It gives what they logged.
func (l *lab) cleanup(how string, p pod) string {
	l.t.Helper()
	if how != "weftd" {
		return l.logged(how, p)
	}
	log := l.weftd()
	l.must(netconf.Del, p, nil)
	return log
}

// logged runs the plugin, and gives the messages of its log.
func (l *lab) logged(command string, p pod) string {
	l.t.Helper()
	cmd := exec.Command(filepath.Join(bin, "weft"))
	var stdout, stderr bytes.Buffer
	cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = env(command, p), bytes.NewReader(l.stdin(command, p, nil)), &stdout, &stderr
	if err := cmd.Run(); err != nil {
		l.t.Fatalf("%s %s: %v: %s%s", command, p.id, err, stdout.Bytes(), stderr.Bytes())
	}
	return messages(stderr.String())
}

// messages are those of a log, without when and where.
func messages(log string) string {
	var all []string
	for line := range strings.Lines(log) {
		if _, m, ok := strings.Cut(line, `msg="`); ok {
			m, _, _ = strings.Cut(m, `"`)
			all = append(all, m)
		}
	}
	return strings.Join(all, "; ")
}

// weftd runs the daemon until it has looked at all devices, on a node whose
// API server doesn't answer.
func (l *lab) weftd() string {
	l.t.Helper()
	kubeconfig := filepath.Join(l.t.TempDir(), "kubeconfig")
	must(l.t, os.WriteFile(kubeconfig, []byte(`{"apiVersion": "v1", "kind": "Config", "current-context": "c",
		"contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}], "users": [{"name": "u"}],
		"clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:1"}}]}`), 0o600))
	ctx, cancel := context.WithCancel(l.t.Context())
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(bin, "weftd"), "--kubeconfig", kubeconfig, "--node-name", "n", "--sysfs", "/sys")
	log, err := os.Create(filepath.Join(l.t.TempDir(), "log"))
	must(l.t, err)
	defer log.Close()
	cmd.Stderr = log
	must(l.t, cmd.Start())
	var text []byte
	eventually(l.t, func() error {
		text, err = os.ReadFile(log.Name())
		if err == nil && !strings.Contains(string(text), "what pods had that have gone") {
			err = fmt.Errorf("weftd says:\n%s", text)
		}
		return err
	})
	cancel()
	_ = cmd.Wait() // it was killed
	var about []string
	for line := range strings.Lines(string(text)) {
		if strings.Contains(line, "device") {
			about = append(about, line)
		}
	}
	return messages(strings.Join(about, ""))
}

// TestSweep: at its start the daemon gives back the VF of a pod that went
// without a DEL, and leaves alone that of one that is there. The DEL that comes
// late doesn't touch the pod that has the VF by then.
func TestSweep(t *testing.T) {
	l := newNodeLab(t)
	was, wasOther := view(t, vfs[0]), view(t, vfs[1])
	alive, dead := newPod(t, "alive", vfConfig(vfs[1], "vlan", 100)), newPod(t, "dead", vfConfig(vfs[0], "vlan", 100, "mtu", 1400))
	next := newPod(t, "next", vfConfig(vfs[0], "vlan", 200))
	result := l.must(netconf.Add, alive, nil)
	l.add(dead)
	_, err := l.do(netconf.Add, next, nil)
	if err == nil || !strings.Contains(err.Error(), "device is in use by dead/net1") {
		t.Errorf("before the sweep: %v", err)
	}
	dead.Close()
	eventually(t, func() error {
		d, err := sysfs.Device(vfs[0])
		if err == nil && d.Link == "" {
			err = fmt.Errorf("%s is on its way from the pod's namespace", d)
		}
		return err
	})
	t.Log(l.weftd())
	eventually(t, func() error {
		if now := view(t, vfs[0]); now != was {
			return fmt.Errorf("after the sweep:\n%s--- want\n%s", now, was)
		}
		return nil
	})
	l.check(alive, result)
	after := l.must(netconf.Add, next, nil)
	l.must(netconf.Del, dead, nil)
	l.check(next, after)
	for _, p := range []pod{next, alive} {
		l.must(netconf.Del, p, nil)
	}
	l.back(vfs[0], was, "sweep, another pod, and a late DEL")
	l.back(vfs[1], wasOther, "DEL of the pod that was there all the time")
}
