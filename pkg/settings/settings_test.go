package settings

import (
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/weft-cni/weft/pkg/encrypt"
	"github.com/weft-cni/weft/test/testns"
)

// compareSettings compares settings whole: regular expressions by their text.
var compareSettings = cmp.Options{
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
	cmp.Transformer("String", func(u Underlay) map[string]string {
		m := map[string]string{"family": string(u.Family)}
		if u.Interface != nil {
			m["interface"] = u.Interface.String()
		}
		for _, c := range u.CIDRs {
			m["cidrs"] += c.String() + " "
		}
		return m
	}),
}

func TestEmptyFileIsDefault(t *testing.T) {
	for _, file := range []string{"", "\n", "# nothing\n", "{}"} {
		s, err := Parse([]byte(file), nil)
		if err != nil {
			t.Fatalf("%q: %v", file, err)
		}
		if d := cmp.Diff(Default(), s, compareSettings); d != "" {
			t.Errorf("%q (-default +got):\n%s", file, d)
		}
	}
}

const full = `
vni: 4096
port: 8472
mtu: 8950
underlay:
  family: ipv6
  interface: bond0|eth[0-9]+
  cidrs: [2001:db8::/64]
directRouting: true
encryption: none
wireguard:
  port: 51900
  implementation: userspace
  rotateEvery: 24h
  persistentKeepalive: 25s
  presharedKeyFile: /etc/weft/psk
  clusterCIDRs: [10.244.0.0/16, "fd00:10:244::/48"]
masquerade: false
noMasquerade:
- 10.0.0.0/8
- fd00::/8
logLevel: debug
resync: 5m
listen: 0.0.0.0:9447
profiling: true
cni:
  binDir: /usr/lib/cni
  confDir: /var/lib/cni/conf
  portmap: true
  bandwidth: false
`

func TestFile(t *testing.T) {
	s, err := Parse([]byte(full), nil)
	if err != nil {
		t.Fatal(err)
	}
	if !s.Underlay.Interface.MatchString("eth12") || s.Underlay.Interface.MatchString("veth1") {
		t.Errorf("underlay.interface must match whole names, is %s", s.Underlay.Interface)
	}
	want := Default()
	want.Overlay.VNI, want.Overlay.Port, want.MTU = 4096, 8472, 8950
	want.Overlay.DirectRouting, want.Overlay.Masquerade = true, false
	want.Overlay.NoMasquerade = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")}
	want.Underlay = Underlay{Family: IPv6, Interface: s.Underlay.Interface, CIDRs: []netip.Prefix{netip.MustParsePrefix("2001:db8::/64")}}
	want.LogLevel, want.Resync = slog.LevelDebug, 5*time.Minute
	want.Listen, want.Profiling = "0.0.0.0:9447", true
	want.CNI = CNI{BinDir: "/usr/lib/cni", ConfDir: "/var/lib/cni/conf", Portmap: Always, Bandwidth: Never}
	want.Encrypt = encrypt.Config{
		Mode: encrypt.None, Port: 51900, Implementation: encrypt.Userspace, RotateEvery: 24 * time.Hour, Keepalive: 25 * time.Second,
		PresharedKeyFile: "/etc/weft/psk",
		ClusterCIDRs:     []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10:244::/48")},
	}
	if d := cmp.Diff(want, s, compareSettings); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
}

// A key that the full file lacks is a key that no test reads.
func TestFullFileHasAllKeys(t *testing.T) {
	values, err := flatten([]byte(full))
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range Keys() {
		if _, ok := values[k.Name]; !ok {
			t.Errorf("%s is not in it", k.Name)
		}
	}
}

func TestFlagsWin(t *testing.T) {
	s, err := Parse([]byte(full), []Flag{
		{"vni", "7"},
		{"mtu", "auto"},
		{"underlay.interface", ""},
		{"underlay.cidrs", "2001:db8:1::/64,2001:db8:2::/64"},
		{"noMasquerade", ""},
		{"directRouting", "false"},
		{"cni.portmap", "auto"},
		{"directRouting", "false"},
		{"encryption", "permissive"},
		{"wireguard.presharedKeyFile", ""},
		{"wireguard.persistentKeepalive", "0s"},
		{"vni", "8"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if s.Overlay.VNI != 8 || s.MTU != 0 || s.Underlay.Interface != nil || len(s.Underlay.CIDRs) != 2 ||
		s.Overlay.NoMasquerade != nil || s.Overlay.DirectRouting || s.CNI.Portmap != IfPresent ||
		s.Encrypt.Mode != encrypt.Permissive || s.Encrypt.PresharedKeyFile != "" || s.Encrypt.Keepalive != 0 {
		t.Errorf("flags don't win: %+v", s)
	}
	if s.Overlay.Port != 8472 {
		t.Errorf("port is %d; the file's stays where there is no flag", s.Overlay.Port)
	}
}

func TestFlagNames(t *testing.T) {
	want := map[string]string{
		"vni": "vni", "underlay.cidrs": "underlay-cidrs", "directRouting": "direct-routing", "cni.binDir": "cni-bin-dir",
		"noMasquerade": "no-masquerade", "logLevel": "log-level",
	}
	for key, name := range want {
		if got := FlagName(key); got != name {
			t.Errorf("%s: --%s, want --%s", key, got, name)
		}
	}
}

// Each file below testdata/bad is refused with the text of the golden file
// beside it.
func TestBadFiles(t *testing.T) {
	files, err := filepath.Glob("testdata/bad/*.yaml")
	if err != nil || len(files) < 10 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".yaml"), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			s, err := Parse(data, nil)
			if err == nil {
				t.Fatalf("accepted: %+v", s)
			}
			if !reflect.ValueOf(s).IsZero() {
				t.Errorf("settings beside the error: %+v", s)
			}
			testns.Golden(t, "bad/"+strings.TrimSuffix(filepath.Base(file), ".yaml")+".golden", err.Error()+"\n")
		})
	}
}

func TestBadFlags(t *testing.T) {
	_, err := Parse(nil, []Flag{
		{"vni", "16777216"}, {"underlay.cidrs", "192.0.2.1/24"}, {"masquerade", "maybe"}, {"resync", "60"}, {"listen", "localhost:80"},
	})
	if err == nil {
		t.Fatal("accepted")
	}
	testns.Golden(t, "flags.golden", err.Error()+"\n")
}

// Whatever the file holds, Parse gives settings in their ranges or an error.
func FuzzParse(f *testing.F) {
	f.Add([]byte(full))
	files, err := filepath.Glob("testdata/bad/*.yaml")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := Parse(data, nil)
		if err != nil {
			if err.Error() == "" || !reflect.ValueOf(s).IsZero() {
				t.Fatalf("error %q beside %+v", err, s)
			}
			return
		}
		if s.Overlay.VNI < 1 || s.Overlay.VNI >= 1<<24 || s.Overlay.Port == 0 || s.Resync < time.Second ||
			s.MTU != 0 && (s.MTU < 576 || s.MTU > 65535) || s.Listen == "" || !filepath.IsAbs(s.CNI.BinDir) {
			t.Fatalf("out of range: %+v", s)
		}
		for i, c := range s.Overlay.NoMasquerade {
			for _, other := range s.Overlay.NoMasquerade[:i] {
				if c.Overlaps(other) || c != c.Masked() {
					t.Fatalf("noMasquerade %s and %s", c, other)
				}
			}
		}
	})
}
