//go:build e2e

package kind

import (
	"flag"
	"os"
	"testing"
	"time"
)

var (
	short   = flag.Bool("e2e.short", false, "leave out what takes minutes")
	dumpDir = flag.String("e2e.dump", "", "`directory` for what the cluster looks like after a failure")
	next    = flag.String("e2e.next", "", "`name` of the image to upgrade to")
	multus  = flag.String("e2e.multus", "", "`archive` of Multus' image")

	encrypted = flag.Bool("e2e.encrypted", false, "with encryption between nodes")

	policy      = flag.String("e2e.policy", "", "`archive` of the policy engine's image")
	policyRules = flag.String("e2e.policy-rules", "", "`file` of rules that it needs on nodes of this kernel")
)

// steps are the tests, in order: each finds the cluster as those before it left
// it. Those about encryption have nothing to do without.
var steps = []struct {
	name string
	run  func(*testing.T, *cluster)
	long bool
}{
	{"nodes are ready after the first sync", becomeReady, false},
	{"the daemon has the rights of its manifest only", confined, false},
	{"pods on all nodes reach each other", podToPod, false},
	{"cluster IPs and node ports", services, false},
	{"DNS and headless services", names, false},
	{"exec, logs, port-forward", throughKubelet, false},
	{"host ports", hostPorts, false},
	{"host network to pods and back, pods to nodes", hostNetwork, false},
	{"leaving the cluster", masquerade, false},
	{"packets of the whole MTU", largePackets, false},
	{"a second attachment through Multus", secondAttachment, false},
	{"tenants' networks through Multus", tenants, false},
	{"tenants' pods come and go", tenantChurn, false},
	{"a node is drained, deleted and added again", nodeReplaced, true},
	{"tenants leave, and Multus", tenantsLeave, false},
	{"network policies", policies, false},
	{"nothing of pods can be read between nodes", sealed, false},
	{"upgrade and rollback under load", upgrade, false},
	{"encryption off and on again under load", offAndOn, false},
	{"pods come and go", churn, false},
	{"API server and kubelet restarted under load", controlPlaneRestart, true},
	{"a node reboots", nodeReboots, true},
	{"uninstall", uninstall, false},
}

func TestE2E(t *testing.T) {
	c := connect(t)
	took := make([]time.Duration, len(steps))
	for i, s := range steps {
		if s.long && *short {
			t.Logf("not in the short set: %s", s.name)
			continue
		}
		started := time.Now()
		ok := t.Run(s.name, func(t *testing.T) { s.run(t, c) })
		took[i] = time.Since(started)
		t.Logf("%7.1f s  %s", took[i].Seconds(), s.name)
		if !ok {
			c.dump(t)
			break // what comes next would fail as well, and say less
		}
	}
	t.Log("in short:")
	for i, s := range steps {
		t.Logf("%7.1f s  %s", took[i].Seconds(), s.name)
	}
}

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(m.Run())
}
