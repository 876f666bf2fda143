//go:build vm

package sriov

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/netconf"
)

// costConfig is what is measured: a VLAN and a MAC, no addresses, so that
// nobody waits for carrier.
func costConfig() map[string]any {
	return vfConfig(vfs[1], "vlan", 100, "mac", "02:00:00:00:0e:01")
}

// TestMessages counts what an ADD and a DEL say to the kernel by netlink.
func TestMessages(t *testing.T) {
	l := newLab(t)
	p := newPod(t, "a", costConfig())
	for command, most := range map[string]int{netconf.Add: 9, netconf.Del: 16} {
		if command == netconf.Del {
			l.must(netconf.Add, p, nil)
		}
		counts := map[string]int{}
		sends := 0
		for _, s := range l.disturbed(command, p, undisturbed).Steps {
			if s.Call == "send" {
				sends++
				counts[s.On]++
			}
		}
		l.must(netconf.Del, p, nil)
		t.Logf("%s: %d netlink messages: %v", command, sends, counts)
		if sends == 0 || sends > most {
			t.Errorf("%s: %d netlink messages, want at most %d", command, sends, most)
		}
	}
}

// costLimit is how many times the bare kernel's cost ours may be.
const costLimit = 1.3

// TestCost compares an attach and a detach with the same changes made by a
// program that knows all there is to know beforehand. A machine that is busy
// with something else can make one measurement bad, and not all of them.
func TestCost(t *testing.T) {
	const most = 4
	for try := 1; ; try++ {
		attach, detach := measure(t)
		if attach <= costLimit && detach <= costLimit {
			return
		}
		if try == most {
			t.Fatalf("%d measurements are above %.1f times the bare kernel's cost", most, costLimit)
		}
	}
}

// measure gives what an attach and a detach take, in units of the bare kernel's.
func measure(t *testing.T) (attach, detach float64) {
	t.Helper()
	const rounds = 9
	l := newLab(t)
	plugin := l.inside(sysfs)
	b := newBare(t)
	var ours, bare [2][]time.Duration
	timed := func(to *[]time.Duration, f func() error) {
		start := time.Now()
		must(t, f())
		*to = append(*to, time.Since(start))
	}
	for range rounds {
		p := newPod(t, "a", costConfig())
		add, del := l.network(netconf.Add, p, nil), l.network(netconf.Del, p, nil)
		view(t, vfs[1]) // what the detach before left to the kernel isn't this attach's cost
		timed(&ours[0], func() error { _, err := plugin.Attach(t.Context(), add); return err })
		timed(&ours[1], func() error { return plugin.Detach(t.Context(), del) })
		view(t, vfs[1])
		timed(&bare[0], func() error { return b.attach(p) })
		timed(&bare[1], func() error { return b.detach() })
		p.Close()
	}
	var ratios [2]float64
	for i, what := range []string{"attach", "detach"} {
		slices.Sort(ours[i])
		slices.Sort(bare[i])
		ratios[i] = float64(ours[i][rounds/2]) / float64(bare[i][rounds/2])
		t.Logf("%s: %s, bare kernel %s, %.2f times (medians of %d)", what,
			ours[i][rounds/2].Round(10*time.Microsecond), bare[i][rounds/2].Round(10*time.Microsecond), ratios[i], rounds)
	}
	return ratios[0], ratios[1]
}

// bare makes the changes of costConfig with as few calls as there are.
type bare struct {
	h             *netlink.Handle
	pf            netlink.Link
	index         int
	link          netlink.Link
	address, name string
	mac           []byte
}

func newBare(t *testing.T) *bare {
	t.Helper()
	d, err := sysfs.Device(vfs[1])
	must(t, err)
	b := &bare{address: d.Address, name: d.Link, index: d.Index}
	b.h, err = netlink.NewHandle()
	must(t, err)
	t.Cleanup(func() { must(t, b.h.Close()) })
	b.pf, err = b.h.LinkByName(d.PFLink)
	must(t, err)
	link, err := b.h.LinkByName(b.name)
	must(t, err)
	b.mac = link.Attrs().HardwareAddr
	return b
}

func (b *bare) attach(p pod) error {
	link, err := b.h.LinkByName(b.name)
	if err != nil {
		return err
	}
	fd, err := netns.GetFromPath(p.Path)
	if err != nil {
		return err
	}
	defer fd.Close()
	mac := []byte{2, 0, 0, 0, 0x0e, 1}
	for _, do := range []func() error{
		func() error { return b.h.LinkSetVfTrust(b.pf, b.index, true) },
		func() error { return b.h.LinkSetVfHardwareAddr(b.pf, b.index, mac) },
		func() error { return b.h.LinkSetVfVlan(b.pf, b.index, 100) },
		func() error { return b.h.LinkSetHardwareAddr(link, mac) },
		func() error { return b.h.LinkSetVfTrust(b.pf, b.index, false) },
		func() error { return b.h.LinkSetNsFd(link, int(fd)) },
	} {
		if err = do(); err != nil {
			return err
		}
	}
	if b.link, err = p.Handle.LinkByName(b.name); err != nil {
		return err
	}
	if err := p.Handle.LinkSetName(b.link, p.ifName); err != nil {
		return err
	}
	return p.Handle.LinkSetUp(b.link)
}

func (b *bare) detach() error {
	dir := "/sys/bus/pci/devices/" + b.address
	for path, value := range map[string]string{dir + "/driver/unbind": b.address} {
		if err := os.WriteFile(path, []byte(value), 0); err != nil {
			return err
		}
	}
	if err := os.WriteFile(dir+"/reset", []byte("1"), 0); err != nil {
		return err
	}
	if err := os.WriteFile("/sys/bus/pci/drivers_probe", []byte(b.address), 0); err != nil {
		return err
	}
	d, err := sysfs.Device(b.address)
	if err != nil {
		return err
	}
	link, err := b.h.LinkByName(d.Link)
	if err != nil {
		return fmt.Errorf("%s: %w", d, err)
	}
	for _, do := range []func() error{
		func() error { return b.h.LinkSetVfTrust(b.pf, b.index, true) },
		func() error { return b.h.LinkSetVfVlan(b.pf, b.index, 0) },
		func() error { return b.h.LinkSetVfHardwareAddr(b.pf, b.index, b.mac) },
		func() error { return b.h.LinkSetHardwareAddr(link, b.mac) },
		func() error { return b.h.LinkSetVfTrust(b.pf, b.index, false) },
		func() error { return b.h.LinkSetName(link, b.name) },
	} {
		if err := do(); err != nil && !errors.Is(err, unix.EEXIST) {
			return err
		}
	}
	return nil
}
