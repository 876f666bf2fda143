package kernel

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestSecretsAreNotPrinted prints a device and a peer in every way that code
// does by accident.
func TestSecretsAreNotPrinted(t *testing.T) {
	private := NewPrivateKey()
	raw := private.Reveal()
	device := WireGuard{Name: "wg", Port: 51820, MTU: 1440, Private: private}
	peer := WireGuardPeer{Link: "wg", PublicKey: private.Public(), PresharedKey: private, AllowedIPs: "10.0.1.0/24"}
	type hidden struct{ device WireGuard } // fmt calls no methods of unexported fields
	var out bytes.Buffer
	for _, v := range []any{private, &private, device, peer, hidden{device}, []any{device}, map[string]Secret{"a": private}, Op{Want: device, Have: peer}, NewState(device, peer)} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%b", "%o", "%c", "%U", "%t", "%g"} {
			fmt.Fprintf(&out, verb+"\n", v)
		}
		fmt.Fprintln(&out, fmt.Errorf("wrapped: %w", fmt.Errorf("%v", v)))
		slog.New(slog.NewTextHandler(&out, nil)).Info("text", "v", v)
		slog.New(slog.NewJSONHandler(&out, nil)).Info("json", "v", v)
		if b, err := json.Marshal(v); err == nil {
			out.Write(b)
		}
	}
	decimal := strings.Trim(fmt.Sprint(raw[:8]), "[]")
	for _, form := range []string{
		base64.StdEncoding.EncodeToString(raw[:])[:16], hex.EncodeToString(raw[:8]), strings.ToUpper(hex.EncodeToString(raw[:8])),
		decimal, strings.ReplaceAll(decimal, " ", ", "), string(raw[:8]),
	} {
		if strings.Contains(out.String(), form) {
			t.Errorf("the key is printed as %q", form)
		}
	}
}

func TestSecrets(t *testing.T) {
	k := NewPrivateKey()
	raw := k.Reveal()
	if same, err := ParseSecret(base64.StdEncoding.EncodeToString(raw[:]) + "\n"); err != nil || same != k {
		t.Errorf("read back as another: %v", err)
	}
	if k == NewPrivateKey() || k.Hash() == NewPrivateKey().Hash() {
		t.Error("two keys are one")
	}
	if !(Secret{}).IsZero() || (Secret{}).Public() != (PublicKey{}) || (Secret{}).Hash() != "" || SecretOf([32]byte{}) != (Secret{}) {
		t.Error("none is some")
	}
	for _, bad := range []string{"", "c2hvcnQ=", "secretsecretsecretsecretsecretsecretsecrets!", strings.Repeat("A", 45)} {
		_, err := ParseSecret(bad)
		if err == nil {
			t.Errorf("%q is taken", bad)
		} else if bad != "" && strings.Contains(err.Error(), bad) {
			t.Errorf("the error quotes what may be a key: %v", err)
		}
	}
}

// TestPeerDiff: what a peer's entry asks for, and what of that roaming hides.
func TestPeerDiff(t *testing.T) {
	want := WireGuardPeer{
		Link: "wg", PublicKey: PublicKey{1}, Endpoint: netip.MustParseAddrPort("192.0.2.2:51820"), Keepalive: 25,
		AllowedIPs: PrefixListOf([]netip.Prefix{netip.MustParsePrefix("fd00::/64"), netip.MustParsePrefix("10.0.1.0/24")}),
	}
	roamed := want
	roamed.Endpoint, roamed.Learned = netip.MustParseAddrPort("198.51.100.1:1024"), true
	silent := roamed
	silent.Learned = false
	altered := roamed
	altered.Keepalive = 0
	for name, c := range map[string]struct {
		have Object
		ops  int
	}{
		"the same": {want, 0}, "roamed": {roamed, 0}, "roamed, and silent since": {silent, 1}, "roamed and altered": {altered, 1},
	} {
		if ops := Diff(NewState(want), NewState(c.have), nil); len(ops) != c.ops {
			t.Errorf("%s: %s", name, verbs(ops))
		}
	}
	device := WireGuard{Name: "wg", MTU: 1440}
	if d := cmp.Diff("- peer", verbs(Diff(State{}, NewState(want), Keys{device.Key(): {}}))[:6]); d != "" {
		t.Error("a device's key doesn't cover its peers:", d)
	}
	other := device
	other.Userspace = true
	ops := Diff(NewState(device, want), NewState(other, want), nil)
	if len(ops) != 2 || ops[0].Verb != Recreate || ops[1].Verb != Add {
		t.Errorf("another kind of device: %s", verbs(ops))
	}
	if d := cmp.Diff(want.AllowedIPs, PrefixListOf(want.AllowedIPs.Prefixes())); d != "" {
		t.Error(d)
	}
}
