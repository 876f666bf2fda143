package encrypt_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/weft-cni/weft/test/cluster"
	"github.com/weft-cni/weft/test/probe"
)

const wireguard = "--encryption=wireguard"

// TestAllPairs: every pod reaches every other, and every node, over each family
// that there is, through tunnels alone.
func TestAllPairs(t *testing.T) {
	for name, c := range map[string]struct {
		families cluster.Families
		mtu      int // of pods
	}{"dual": {cluster.Dual, 1440}, "ipv4": {cluster.IPv4Only, 1440}, "ipv6": {cluster.IPv6Only, 1420}} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t, cluster.Options{Nodes: 3, Families: c.families})
			l.all(wireguard)
			var pods []*cluster.Pod
			for _, n := range l.Nodes() {
				pods = append(pods, n.Attach(t, "pod-"+n.Name))
			}
			talk(t, pods...)
			for _, pod := range pods {
				for _, n := range l.Nodes() {
					for _, ip := range n.Underlay() {
						if _, err := probe.Ping(within(t, 5*time.Second), pod, ip); err != nil {
							t.Errorf("%s to node %s at %s: %v", pod.Name, n.Name, ip, err)
						}
					}
				}
				for _, ip := range pod.IPs() {
					if _, err := probe.Ping(within(t, 5*time.Second), l.Node(1), ip); err != nil {
						t.Errorf("node n1 to %s at %s: %v", pod.Name, ip, err)
					}
				}
			}
			for i, n := range l.Nodes() {
				s := state(t, n).String()
				if strings.Contains(s, "vxlan") && strings.Contains(s, "type vxlan") {
					t.Errorf("%s has a VXLAN device:\n%s", n.Name, s)
				}
				if err := has(t, n, "link wg-weft0", fmt.Sprintf("mtu %d", c.mtu))(); err != nil {
					t.Error(err)
				}
				for _, peer := range l.Nodes() {
					if peer == n {
						continue
					}
					if got := metric(t, l.daemons[i], `weft_wireguard_peer_state{peer="`+peer.Name+`",state="encrypted"}`); got != 1 {
						t.Errorf("%s counts %s as encrypted: %v", n.Name, peer.Name, got)
					}
				}
			}
		})
	}
}
