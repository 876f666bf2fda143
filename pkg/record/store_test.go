package record_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/netconf"
	"github.com/weft-cni/weft/pkg/record"
	"github.com/weft-cni/weft/pkg/sriov"
	"github.com/weft-cni/weft/test/testns"
)

var byValue = cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})

func example() record.Attachment {
	return record.Attachment{
		Version:      record.Version,
		ContainerID:  "0123abcd",
		IfName:       "eth0",
		Network:      "weft",
		Netns:        "/run/netns/pod",
		Mode:         "cluster",
		PodNamespace: "default",
		PodName:      "web-0",
		PodUID:       "u",
		VNI:          1001,
		Port:         netconf.PortOptions{MACs: []kernel.MAC{{0, 0, 0x5e, 0, 1, 10}}, IPs: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}},
		HostLink:     "weft0123",
		PodMAC:       kernel.MAC{2, 0, 0, 0, 0, 1},
		MTU:          1450,
		Addrs:        []netip.Addr{netip.MustParseAddr("10.244.1.5"), netip.MustParseAddr("fd00::5")},
		Routes:       []netconf.Route{{Dst: netip.MustParsePrefix("0.0.0.0/0"), GW: netconf.Gateway4, MTU: 1400}},
		VF: &record.VF{
			Device: sriov.Device{
				Address: "0000:01:10.0", Parent: "0000:01:10.0", Driver: "igbvf", PF: "0000:01:00.0", PFLink: "eth0",
				Link: "eth2", NUMANode: -1,
			},
			Original: sriov.State{
				Link: &sriov.Link{Place: sriov.Host, Name: "eth2", AltNames: []string{"enp1s16"}, MTU: 1500},
				Port: &sriov.Port{SpoofCheck: sriov.On, Trust: sriov.Off},
			},
			Wanted: sriov.State{
				Link: &sriov.Link{Place: sriov.Pod, Name: "net1", AltNames: []string{"enp1s16"}, MTU: 1500, Up: true},
				Port: &sriov.Port{VLAN: sriov.VLAN{ID: 100, Proto: sriov.Proto8021Q}, SpoofCheck: sriov.On, Trust: sriov.Off},
			},
			Prefixes: []netip.Prefix{netip.MustParsePrefix("10.244.1.5/24")},
			InfoFile: "/run/info.json",
		},
		IPAM:    "weft",
		Config:  json.RawMessage(`{}`),
		Args:    "IgnoreUnknown=1",
		Created: time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC),
		BootID:  "b",
	}
}

// golden is the file that example makes, by hand: a change of the format that
// older records don't survive shows up here.
const golden = "record.golden"

func store(t *testing.T) record.Store {
	t.Helper()
	return record.Store{Dir: filepath.Join(t.TempDir(), "weft", record.Dir)}
}

func put(t *testing.T, s record.Store, all ...record.Attachment) {
	t.Helper()
	for _, a := range all {
		if err := s.Put(a); err != nil {
			t.Fatal(err)
		}
	}
}

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}

func TestPutGetDelete(t *testing.T) {
	s := store(t)
	a := example()
	if _, err := s.Get(a.ContainerID, a.IfName); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("before Put: %v", err)
	}
	if err := s.Delete(a.ContainerID, a.IfName); err != nil {
		t.Errorf("delete before Put: %v", err)
	}
	put(t, s, a)
	a.HostLink = "weft9999"
	put(t, s, a) // replaces
	got, err := s.Get(a.ContainerID, a.IfName)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(a, got, byValue); d != "" {
		t.Error(d)
	}
	for range 2 {
		if err := s.Delete(a.ContainerID, a.IfName); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Get(a.ContainerID, a.IfName); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("after Delete: %v", err)
		}
	}
}

// A field that is written and not read would be lost.
// TestWrite: what was written is there before it is flushed, and replaces what
// was there before.
func TestWrite(t *testing.T) {
	s := store(t)
	a := example()
	put(t, s, a)
	a.PodName = "web-1"
	flush, err := s.Write(a)
	if err != nil {
		t.Fatal(err)
	}
	got, err := s.Get(a.ContainerID, a.IfName)
	if err != nil || got.PodName != "web-1" {
		t.Errorf("before the flush: %q, %v", got.PodName, err)
	}
	if err = flush(); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(s.Dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("%d files, %v", len(entries), err)
	}
	a.MTU = -1
	if _, err := s.Write(a); err == nil {
		t.Error("wrote a record that is not valid")
	}
}

func TestExampleHasEveryField(t *testing.T) {
	v := reflect.ValueOf(example())
	for i := range v.NumField() {
		if v.Field(i).IsZero() {
			t.Errorf("%s is not in the example", v.Type().Field(i).Name)
		}
	}
}

func TestFile(t *testing.T) {
	s := store(t)
	put(t, s, example())
	path := filepath.Join(s.Dir, "0123abcd:eth0")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	testns.Golden(t, golden, string(data))
	for path, want := range map[string]fs.FileMode{path: 0o600, s.Dir: 0o700 | fs.ModeDir} {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode() != want {
			t.Errorf("%s has mode %v, want %v", path, info.Mode(), want)
		}
	}
}

func TestAttachmentsAreKeptApart(t *testing.T) {
	s := store(t)
	var want []record.Attachment
	for _, name := range [][2]string{{"a", "eth0"}, {"a", "net1"}, {"a.net1", "eth0"}, {"b", "eth0"}} {
		a := example()
		a.ContainerID, a.IfName = name[0], name[1]
		want = append(want, a)
	}
	put(t, s, want...)
	if err := s.Delete("b", "eth0"); err != nil {
		t.Fatal(err)
	}
	got, err := s.List()
	if err != nil {
		t.Fatal(err)
	}
	less := cmpopts.SortSlices(func(a, b record.Attachment) bool { return a.ContainerID+a.IfName < b.ContainerID+b.IfName })
	if d := cmp.Diff(want[:3], got, byValue, less); d != "" {
		t.Error(d)
	}
}

func TestNoDirectory(t *testing.T) {
	s := store(t)
	if all, err := s.List(); err != nil || len(all) != 0 {
		t.Errorf("List: %v, %v", all, err)
	}
	if err := s.Clean(); err != nil {
		t.Errorf("Clean: %v", err)
	}
}

// A Put that was killed leaves the record as it was and a file that is in
// nobody's way.
func TestInterruptedPut(t *testing.T) {
	s := store(t)
	a, b := example(), example()
	b.ContainerID = "other"
	put(t, s, a, b)
	for _, name := range []string{".0123abcd:eth0", ".gone:eth0"} {
		if err := os.WriteFile(filepath.Join(s.Dir, name), []byte(`{"version":1,"con`), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if all, err := s.List(); err != nil || len(all) != 2 {
		t.Errorf("List: %v, %v", all, err)
	}
	if _, err := s.Get(a.ContainerID, a.IfName); err != nil {
		t.Errorf("Get: %v", err)
	}
	if err := s.Delete(a.ContainerID, a.IfName); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{".gone:eth0", "other:eth0"}, names(t, s.Dir)); d != "" {
		t.Errorf("after Delete: %s", d)
	}
	if err := s.Clean(); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"other:eth0"}, names(t, s.Dir)); d != "" {
		t.Errorf("after Clean: %s", d)
	}
}

// goodKeys are those of a record that is read.
const goodKeys = `"version":1,"containerID":"0123abcd","ifName":"eth0","network":"weft","netns":"/run/netns/pod",` +
	`"mode":"cluster","hostLink":"weft0123","podMAC":"02:00:00:00:00:01","mtu":1450,"addrs":["10.244.1.5"],` +
	`"ipam":"weft","created":"2026-01-02T03:04:05Z","bootID":"b"`

func record1(keys string) string { return "{" + goodKeys + keys + "}" }

var corrupt = []string{
	``,
	"\x00\x00\x00\x00",
	`{"version":1,"containerID":"0123`,
	`[]`,
	`{}`,
	record1(`}`),
	record1(`,"version":2`),
	record1(`,"version":"1"`),
	`{"containerID":"0123abcd","ifName":"eth0"}`,
	record1(`,"containerID":""`),
	record1(`,"containerID":"../../etc/passwd"`),
	record1(`,"containerID":"another"`),
	record1(`,"ifName":"eth/0"`),
	record1(`,"ifName":"net1"`),
	record1(`,"network":""`),
	record1(`,"network":"a/b"`),
	record1(`,"netns":"netns/pod"`),
	record1(`,"mode":""`),
	record1(`,"hostLink":"a name that is too long"`),
	record1(`,"podMAC":"02:00"`),
	record1(`,"mtu":-1`),
	record1(`,"mtu":"1450"`),
	record1(`,"addrs":["10.244.1.256"]`),
	record1(`,"addrs":["10.244.1.5","10.244.1.5"]`),
	record1(`,"addrs":["fe80::1%eth0"]`),
	record1(`,"addrs":[""]`),
	record1(`,"routes":{}`),
	record1(`,"routes":[{"dst":"10.0.0.0/33"}]`),
	record1(`,"routes":[{"gw":"169.254.1.1"}]`),
	record1(`,"ipam":""`),
	record1(`,"created":"yesterday"`),
	record1(`,"bootID":""`),
}

func TestCorrupt(t *testing.T) {
	s := store(t)
	good := example()
	good.ContainerID = "good"
	put(t, s, good)
	path := filepath.Join(s.Dir, "0123abcd:eth0")
	var b strings.Builder
	for _, in := range corrupt {
		if err := os.WriteFile(path, []byte(in), 0o600); err != nil {
			t.Fatal(err)
		}
		a, err := s.Get("0123abcd", "eth0")
		if err == nil {
			t.Errorf("%s: accepted as %+v", in, a)
			continue
		}
		if c := (*record.CorruptError)(nil); !errors.As(err, &c) || c.Path != path {
			t.Errorf("%s: %#v", in, err)
		}
		fmt.Fprintf(&b, "%s\n%s\n\n", strings.ReplaceAll(strings.ReplaceAll(in, "\x00", `\x00`), goodKeys, "..."), strings.ReplaceAll(err.Error(), s.Dir, "/var/lib/weft/attachments"))

		all, err := s.List()
		if len(all) != 1 || all[0].ContainerID != "good" {
			t.Errorf("%s: hides other records: %v", in, all)
		}
		bad := record.Corrupt(err)
		if len(bad) != 1 || bad[0].Path != path {
			t.Fatalf("%s: List says %v", in, err)
		}
		if id, ifName, ok := bad[0].Attachment(); id != "0123abcd" || ifName != "eth0" || !ok {
			t.Errorf("%s: is of %s/%s, %v", in, id, ifName, ok)
		}
	}
	testns.Golden(t, "corrupt.golden", b.String())

	if err := s.Delete("0123abcd", "eth0"); err != nil {
		t.Fatal(err)
	}
	if all, err := s.List(); err != nil || len(all) != 1 {
		t.Errorf("after Delete: %v, %v", all, err)
	}
}

func TestStrangeFile(t *testing.T) {
	s := store(t)
	put(t, s, example())
	for _, name := range []string{"notes.txt", "a:b:c"} {
		if err := os.WriteFile(filepath.Join(s.Dir, name), []byte(record1(``)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(s.Dir, "folder"), 0o700); err != nil {
		t.Fatal(err)
	}
	all, err := s.List()
	if len(all) != 1 {
		t.Errorf("List: %v", all)
	}
	bad := record.Corrupt(err)
	if len(bad) != 3 {
		t.Errorf("List says %v", err)
	}
	for _, c := range bad {
		if id, ifName, ok := c.Attachment(); ok {
			t.Errorf("%s is taken for the record of %s/%s", c.Path, id, ifName)
		}
	}
}

func TestRefusesNames(t *testing.T) {
	s := store(t)
	for _, name := range [][2]string{{"", "eth0"}, {"..", "eth0"}, {"a/b", "eth0"}, {"a", ""}, {"a", "../b"}, {"a:b", "c"}} {
		a := example()
		a.ContainerID, a.IfName = name[0], name[1]
		if err := s.Put(a); err == nil {
			t.Errorf("Put %q", name)
		}
		if _, err := s.Get(name[0], name[1]); err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Get %q: %v", name, err)
		}
		if err := s.Delete(name[0], name[1]); err == nil {
			t.Errorf("Delete %q", name)
		}
	}
	if _, err := os.Stat(s.Dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("something was written: %v", err)
	}
}

// A failed Put leaves nothing of itself.
func TestPutFails(t *testing.T) {
	s := store(t)
	put(t, s, example())
	a := example()
	a.ContainerID = "other"
	if err := os.MkdirAll(filepath.Join(s.Dir, "other:eth0", "in the way"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := s.Put(a); err == nil {
		t.Fatal("a directory was replaced")
	}
	if d := cmp.Diff([]string{"0123abcd:eth0", "other:eth0"}, names(t, s.Dir)); d != "" {
		t.Error(d)
	}
}
