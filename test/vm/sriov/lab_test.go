//go:build vm

// Package sriov tests virtual functions on the emulated NICs of the test VM,
// with the real plugin: docs/vm.md.
package sriov

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/attach"
	"github.com/weft-cni/weft/pkg/netconf"
	"github.com/weft-cni/weft/pkg/sriov"
	"github.com/weft-cni/weft/test/testns"
)

// vfs are the VFs that tests use, of the first NIC; far is one of the second.
// Tests that run in parallel take different ones.
var (
	vfs []string
	far string
)

var sysfs sriov.Sysfs

// bin has weft and, in cni/, the reference plugins.
var bin = os.Getenv("WEFT_BIN_DIR")

func TestMain(m *testing.M) {
	// An RDMA device belongs to one namespace here. The kernel changes that
	// only as long as there is one.
	err := exec.Command("modprobe", "rdma_rxe").Run()
	if err == nil {
		err = netlink.RdmaSystemSetNetnsMode("exclusive")
	}
	if err == nil {
		err = makeVFs()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func makeVFs() error {
	for _, pf := range []string{"eth0", "eth1"} {
		made, err := sysfs.Find(pf)
		if err != nil {
			return err
		}
		if err = setVFs(made.Address, numVFs[pf]); err != nil {
			return err
		}
		all, err := sysfs.VFs(made.Address)
		if err != nil {
			return err
		}
		for _, d := range all {
			if pf == "eth1" {
				far = d.Address
				break
			}
			vfs = append(vfs, d.Address)
		}
	}
	return nil
}

// numVFs is how many VFs each NIC has here.
var numVFs = map[string]int{"eth0": 7, "eth1": 2}

// setVFs makes VFs, and waits for their network devices. They get names that
// the kernel gives to none by itself, as udev would do it.
func setVFs(pf string, n int) error {
	d, err := sysfs.Device(pf)
	if err != nil {
		return err
	}
	link, err := netlink.LinkByName(d.Link)
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return err
	}
	if err := os.WriteFile("/sys/bus/pci/devices/"+pf+"/sriov_numvfs", []byte(strconv.Itoa(n)), 0); err != nil {
		return err
	}
	return until(func() error {
		all, err := sysfs.VFs(pf)
		if err == nil && len(all) != n {
			err = fmt.Errorf("%s has %d VFs", d, len(all))
		}
		for _, vf := range all {
			if err == nil && vf.Link == "" {
				err = fmt.Errorf("%s has no network device", vf)
			}
			if err == nil {
				err = rename(vf.Link, fmt.Sprintf("%sv%d", d.Link, vf.Index))
			}
		}
		return err
	})
}

// rename gives a network device of the node, which is down, another name.
func rename(from, to string) error {
	if from == to {
		return nil
	}
	link, err := netlink.LinkByName(from)
	if err != nil {
		return err
	}
	return netlink.LinkSetName(link, to)
}

// lab is a node on which pods get devices.
type lab struct {
	t         *testing.T
	dir       string
	data, run string // dataDir and runDir
}

func newLab(t *testing.T) *lab {
	t.Helper()
	dir := t.TempDir()
	return &lab{t: t, dir: dir, data: dir + "/data", run: dir + "/run"}
}

// pod is what a runtime calls the plugin for.
type pod struct {
	*testns.NS
	id, ifName string
	config     map[string]any
}

func newPod(t *testing.T, id string, config map[string]any) pod {
	t.Helper()
	p := pod{NS: testns.New(t), id: id, ifName: "net1", config: config}
	f, err := os.CreateTemp("/run/netns", id)
	must(t, err)
	must(t, f.Close())
	must(t, unix.Mount(p.Path, f.Name(), "", unix.MS_BIND, ""))
	p.Path = f.Name()
	t.Cleanup(p.Close)
	return p
}

// Close removes the pod's namespace, as container runtimes do.
func (p pod) Close() {
	_ = unix.Unmount(p.Path, unix.MNT_DETACH) // a second time it isn't there
	_ = os.Remove(p.Path)
	p.NS.Close()
}

// vfConfig is a configuration for a device with further keys.
func vfConfig(device string, keys ...any) map[string]any {
	config := map[string]any{"deviceID": device}
	for i := 0; i < len(keys); i += 2 {
		config[fmt.Sprint(keys[i])] = keys[i+1]
	}
	return config
}

func (l *lab) stdin(command string, p pod, more map[string]any) []byte {
	config := map[string]any{
		"cniVersion": "1.1.0", "name": "vfs", "type": "weft", "mode": "sriov", "logLevel": "warning",
		"dataDir": l.data, "runDir": l.run,
	}
	if command == netconf.GC {
		config["cni.dev/valid-attachments"] = []any{}
	}
	for _, m := range []map[string]any{p.config, more} {
		for k, v := range m {
			config[k] = v
		}
	}
	data, err := json.Marshal(config)
	must(l.t, err)
	return data
}

func env(command string, p pod) []string {
	return []string{
		"CNI_COMMAND=" + command, "CNI_CONTAINERID=" + p.id, "CNI_NETNS=" + p.Path, "CNI_IFNAME=" + p.ifName,
		"CNI_PATH=" + bin + ":" + bin + "/cni", "PATH=" + os.Getenv("PATH"),
	}
}

// do executes the plugin; the error is what it printed.
func (l *lab) do(command string, p pod, more map[string]any) ([]byte, error) {
	cmd := exec.Command(filepath.Join(bin, "weft"))
	var stdout, stderr bytes.Buffer
	cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = env(command, p), bytes.NewReader(l.stdin(command, p, more)), &stdout, &stderr
	err := cmd.Run()
	if stderr.Len() > 0 {
		l.t.Logf("%s %s: %s", command, p.id, bytes.TrimSpace(stderr.Bytes()))
	}
	if err == nil {
		return stdout.Bytes(), nil
	}
	var object struct {
		Code int
		Msg  string
	}
	if json.Unmarshal(stdout.Bytes(), &object) != nil {
		return nil, fmt.Errorf("%w: %s", err, stdout.Bytes())
	}
	return nil, fmt.Errorf("%d: %s", object.Code, strings.ReplaceAll(object.Msg, l.dir, "DIR"))
}

func (l *lab) must(command string, p pod, more map[string]any) []byte {
	l.t.Helper()
	out, err := l.do(command, p, more)
	if err != nil {
		l.t.Fatalf("%s %s: %v", command, p.id, err)
	}
	return out
}

// add attaches a pod, and CHECK is content with it.
func (l *lab) add(p pod) *types100.Result {
	l.t.Helper()
	out := l.must(netconf.Add, p, nil)
	l.check(p, out)
	r := &types100.Result{}
	must(l.t, json.Unmarshal(out, r))
	return r
}

func (l *lab) check(p pod, result []byte) {
	l.t.Helper()
	l.must(netconf.Check, p, map[string]any{"prevResult": json.RawMessage(result)})
}

// inside is the plugin in the test's own process, with another sysfs.
func (l *lab) inside(s sriov.Sysfs) *attach.Plugin {
	l.t.Helper()
	boot, err := netconf.BootID(netconf.BootIDFile)
	must(l.t, err)
	return &attach.Plugin{Log: slog.New(slog.DiscardHandler), BootID: boot, Sysfs: s}
}

// network is what the plugin reads of a command.
func (l *lab) network(command string, p pod, more map[string]any) *netconf.Network {
	l.t.Helper()
	n, err := netconf.Parse(l.stdin(command, p, more), netconf.Env{
		Command: command, ContainerID: p.id, Netns: p.Path, IfName: p.ifName, Path: bin,
	})
	must(l.t, err)
	return n
}

// files lists what is kept of attachments.
func (l *lab) files() string {
	l.t.Helper()
	var list []string
	for _, dir := range []string{l.dir, l.data, l.run} {
		must(l.t, filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
			if errors.Is(err, os.ErrNotExist) {
				return nil
			}
			name := d.Name()
			if err != nil || d.IsDir() || strings.HasSuffix(name, ".lock") || strings.Contains(name, ".slot") || name == "lock" || name == "weftd.sock" {
				return err
			}
			list = append(list, path)
			return nil
		}))
	}
	return strings.Join(list, "\n")
}

// view shows a VF as others see it, in the words of ip(8): by netlink alone,
// past the product's code.
func view(t *testing.T, address string) string {
	t.Helper()
	var b strings.Builder
	h, err := netlink.NewHandle() // the package's own asks for no VFs
	must(t, err)
	defer h.Close()
	d, err := sysfs.Device(address)
	must(t, err)
	fmt.Fprintf(&b, "driver %s\n", d.Driver)
	if d.Link != "" {
		link, err := h.LinkByName(d.Link)
		must(t, err)
		a := link.Attrs()
		fmt.Fprintf(&b, "link %s altnames %v address %s mtu %d alias %q up %t promisc %t\n",
			a.Name, a.AltNames, a.HardwareAddr, a.MTU, a.Alias, a.RawFlags&unix.IFF_UP != 0, a.RawFlags&unix.IFF_PROMISC != 0)
		addrs, err := netlink.AddrList(link, netlink.FAMILY_ALL)
		must(t, err)
		for _, addr := range addrs {
			fmt.Fprintf(&b, "addr %s\n", addr.IPNet)
		}
	}
	if d.PFLink != "" {
		pf, err := h.LinkByName(d.PFLink)
		must(t, err)
		for _, vf := range pf.Attrs().Vfs {
			if vf.ID == d.Index {
				fmt.Fprintf(&b, "vf %d mac %s vlan %d qos %d proto %#x spoofchk %t trust %d state %d rate %d to %d\n",
					vf.ID, vf.Mac, vf.Vlan, vf.Qos, vf.VlanProto, vf.Spoofchk, vf.Trust, vf.LinkState, vf.MinTxRate, vf.MaxTxRate)
			}
		}
	}
	return b.String()
}

// back makes sure that a VF becomes what it was, and that nothing is kept.
func (l *lab) back(address, was, after string) {
	l.t.Helper()
	eventually(l.t, func() error {
		if now := view(l.t, address); now != was {
			return fmt.Errorf("%s: not as it was:\n%s--- want\n%s", after, now, was)
		}
		return nil
	})
	if left := l.files(); left != "" {
		l.t.Fatalf("%s: left behind:\n%s", after, left)
	}
}

// eventually waits until f is content.
func eventually(t *testing.T, f func() error) {
	t.Helper()
	must(t, until(f))
}

// until waits until f is content, and gives its last error where that takes
// too long.
func until(f func() error) (err error) {
	ticks := time.NewTicker(20 * time.Millisecond)
	defer ticks.Stop()
	for deadline := time.Now().Add(2 * time.Minute); time.Now().Before(deadline); <-ticks.C {
		if err = f(); err == nil {
			return nil
		}
	}
	return err
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
