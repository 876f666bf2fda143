// Package wireguard_test runs weftd and weftd wireguard together, replaces and
// kills them under traffic, and looks at what is on the wire meanwhile.
package wireguard_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	weft "github.com/weft-cni/weft/pkg/client/versioned/typed/api/v1alpha1"
	"github.com/weft-cni/weft/pkg/encrypt"
	"github.com/weft-cni/weft/pkg/leak"
	"github.com/weft-cni/weft/test/cluster"
	"github.com/weft-cni/weft/test/probe"
)

func TestMain(m *testing.M) { cluster.Main(m) }

const (
	manifests = "../../manifests/base"
	strict    = "--encryption=wireguard"
	userspace = "--wireguard-implementation=userspace"
)

// lab is a cluster with userspace WireGuard and a pod on each node.
type lab struct {
	*cluster.Cluster
	t         *testing.T
	daemons   []*cluster.Weftd
	processes []*cluster.WireGuard
	pods      []*cluster.Pod
}

func newLab(t *testing.T, o cluster.Options) *lab {
	t.Helper()
	o.Manifests = []string{manifests}
	l := &lab{Cluster: cluster.New(t, o), t: t}
	for _, n := range l.Nodes() {
		l.processes = append(l.processes, n.WireGuard(t, userspace))
		l.daemons = append(l.daemons, n.Weftd(t, strict, userspace))
		l.pods = append(l.pods, n.Attach(t, "pod-"+n.Name))
	}
	l.talk()
	return l
}

// talk checks that all pods reach each other.
func (l *lab) talk() {
	l.t.Helper()
	for _, from := range l.pods {
		for _, to := range l.pods {
			for _, ip := range to.IPs() {
				if _, err := probe.Ping(within(l.t, 30*time.Second), from, ip); err != nil {
					l.t.Fatalf("%s to %s: %v", from.Name, to.Name, err)
				}
			}
		}
	}
}

// pings are streams of echoes from one pod to another, one for each family.
type pings []*probe.Pings

func (l *lab) ping(from, to int) (all pings) {
	l.t.Helper()
	for _, ip := range l.pods[to].IPs() {
		p, err := probe.StartPings(l.pods[from], ip, time.Millisecond)
		if err != nil {
			l.t.Fatal(err)
		}
		all = append(all, p)
	}
	return all
}

// more waits until each stream has had so many more replies.
func (p pings) more(t testing.TB, count int) {
	t.Helper()
	var want []int
	for _, one := range p {
		want = append(want, one.Received()+count)
	}
	eventually(t, time.Minute, func() error {
		for i, one := range p {
			if got := one.Received(); got < want[i] {
				return fmt.Errorf("%d replies are missing", want[i]-got)
			}
		}
		return nil
	})
}

func (p pings) stop() (reports []probe.Report) {
	for _, one := range p {
		reports = append(reports, one.Stop())
	}
	return reports
}

// capture looks at a node's underlay until the test's end, or stop.
func (l *lab) capture(n *cluster.Node) *leak.Capture {
	l.t.Helper()
	network := &leak.Net{Pods: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10:244::/48")}}
	for i := range uint16(encrypt.Ports) {
		network.WireGuardPorts = append(network.WireGuardPorts, 51820+i)
	}
	var c *leak.Capture
	err := n.Do(func() (err error) {
		c, err = leak.Start(network, cluster.NICName)
		return err
	})
	if err != nil {
		l.t.Fatal(err)
	}
	return c
}

// sealed checks that nothing leaked, and that there was something to see.
func sealed(t *testing.T, c *leak.Capture) {
	t.Helper()
	report, err := c.Stop()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("on the wire:\n%s", report)
	if report.Leaks() > 0 {
		t.Errorf("%d packets of pods could be read", report.Leaks())
	}
	if report.Encrypted() == 0 {
		t.Error("nothing was encrypted")
	}
	if report.Missed > 0 {
		t.Errorf("%d packets were missed", report.Missed)
	}
}

// keysStaySecret looks for private keys in all logs.
func (l *lab) keysStaySecret() {
	l.t.Helper()
	logs, err := filepath.Glob(filepath.Join(l.Dir(), "log", "*.log"))
	if err != nil || len(logs) == 0 {
		l.t.Fatalf("no logs: %v", err)
	}
	for _, n := range l.Nodes() {
		keys := privateKeys(l.t, n)
		if len(keys) == 0 {
			l.t.Errorf("no keys on %s", n.Name)
		}
		for _, path := range logs {
			log, err := os.ReadFile(path)
			if err != nil {
				l.t.Fatal(err)
			}
			for _, key := range keys {
				for _, text := range []string{
					base64.StdEncoding.EncodeToString(key), hex.EncodeToString(key), strings.ToUpper(hex.EncodeToString(key)), fmt.Sprint(key), string(key),
				} {
					if bytes.Contains(log, []byte(text)) {
						l.t.Errorf("%s has a private key of %s", path, n.Name)
					}
				}
			}
		}
	}
}

// privateKeys are those that the node's daemon keeps.
func privateKeys(t *testing.T, n *cluster.Node) (keys [][]byte) {
	t.Helper()
	err := n.Do(func() error {
		return filepath.WalkDir(filepath.Join("/var/lib/weft", encrypt.KeyDir), func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			info, err := d.Info()
			if err != nil {
				return err
			}
			if info.Mode() != 0o600 {
				t.Errorf("%s is %v", path, info.Mode())
			}
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			var file struct{ PrivateKey []byte }
			err = json.Unmarshal(data, &file)
			keys = append(keys, file.PrivateKey)
			return err
		})
	})
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return keys
}

// rotate asks for a new key of a node, and waits until peers know it.
func (l *lab) rotate(n *cluster.Node) {
	l.t.Helper()
	client, err := weft.NewForConfig(l.API.Config)
	if err != nil {
		l.t.Fatal(err)
	}
	patch := fmt.Sprintf(`{"metadata":{"annotations":{"weft.dev/rotate-keys-before":%q}}}`, time.Now().UTC().Format(time.RFC3339))
	old, err := client.VTEPs().Patch(l.t.Context(), n.Name, types.MergePatchType, []byte(patch), metav1.PatchOptions{})
	if err != nil {
		l.t.Fatal(err)
	}
	before := old.Spec.WireGuard.Keys[0].PublicKey
	eventually(l.t, time.Minute, func() error {
		now, err := client.VTEPs().Get(l.t.Context(), n.Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if keys := now.Spec.WireGuard.Keys; keys[0].PublicKey == before {
			return fmt.Errorf("keys of %s: %+v", n.Name, keys)
		}
		return nil
	})
}

func within(t testing.TB, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// eventually waits until check gives no error, for at most d.
func eventually(t testing.TB, d time.Duration, check func() error) {
	t.Helper()
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	for start := time.Now(); ; <-ticker.C {
		err := check()
		if err == nil {
			return
		}
		if time.Since(start) > d {
			t.Fatalf("after %v: %v", d, err)
		}
	}
}
