package segment_test

import (
	"bytes"
	"fmt"
	"os"
	"regexp"
	"testing"

	"github.com/weft-cni/weft/test/cluster"
)

// TestDocumentedNetworks attaches pods on two nodes with each configuration of
// docs/networks.md: they reach each other, or are told that the kernel lacks what
// it takes.
func TestDocumentedNetworks(t *testing.T) {
	text, err := os.ReadFile("../../docs/networks.md")
	if err != nil {
		t.Fatal(err)
	}
	confs := regexp.MustCompile("(?s)```json\n(.*?)```").FindAllSubmatch(text, -1)
	if len(confs) < 3 {
		t.Fatalf("%d configurations; the page has more", len(confs))
	}
	l := newSealedLab(t, 2)
	for i, conf := range confs {
		if e := encapsulationOf(conf[1]); devices[e] != "" && lacks(t, e) {
			l.lacking(l.Node(1), conf[1])
			continue
		}
		if hasVLANs(conf[1]) && !filters(t) {
			l.unfiltered(l.Node(1), conf[1], "")
			continue
		}
		var pods []*cluster.Pod
		for _, n := range l.Nodes() {
			pods = append(pods, l.attach(n, fmt.Sprintf("doc%d-%s", i, n.Name), conf[1]))
			// Isolated pods reach the one that isn't.
			conf[1] = bytes.Replace(conf[1], []byte(`"isolatePorts": true`), []byte(`"isolatePorts": false`), 1)
		}
		a, b := l.wire(pods[0], local), l.wire(pods[1], local)
		eventually(t, reachTime, func() error {
			a.send(t, a.mac, everyone, local, []byte("here"))
			if got := b.heard(t); len(got) == 0 {
				return fmt.Errorf("configuration %d: nothing heard", i)
			}
			return nil
		})
		for _, p := range pods {
			if err := p.Check(t.Context()); err != nil {
				t.Error(err)
			}
		}
		if len(pods[0].IPs()) == 2 {
			l.reach(pods[0], pods[1])
		}
		for _, p := range pods {
			if err := p.Detach(t.Context()); err != nil {
				t.Error(err)
			}
		}
	}
	l.empty()
}
