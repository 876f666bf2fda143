package manifests_test

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/weft-cni/weft/pkg/control"
	"github.com/weft-cni/weft/pkg/netconf"
	"github.com/weft-cni/weft/pkg/overlay"
	"github.com/weft-cni/weft/test/cluster"
)

// TestRightsAreExplained compares the rights that weftd has with the table in
// docs/install.md, verb by verb.
func TestRightsAreExplained(t *testing.T) {
	var given, explained []string
	for _, o := range objectsIn(t, readFile(t, weftYAML)) {
		if o.GetKind() != "ClusterRole" && o.GetKind() != "Role" {
			continue
		}
		role := rbacv1.Role{}
		convert(t, o, &role) // the fields are the same
		for _, rule := range role.Rules {
			if len(rule.ResourceNames) > 0 || len(rule.NonResourceURLs) > 0 {
				t.Errorf("%s has a rule of another kind: %v", role.Name, rule)
			}
			given = append(given, verbs(&role, rule)...)
		}
	}
	row := regexp.MustCompile("(?m)^\\| `([^`]+)`( in `[^`]+`)? \\| `([a-z]+)` \\| .+ \\|$")
	for _, match := range row.FindAllStringSubmatch(string(readFile(t, "../../docs/install.md")), -1) {
		explained = append(explained, match[1]+strings.ReplaceAll(match[2], "`", "")+" "+match[3])
	}
	slices.Sort(given)
	slices.Sort(explained)
	if diff := cmp.Diff(given, explained); diff != "" {
		t.Errorf("rights that weftd has (-), and that docs/install.md explains (+):\n%s", diff)
	}
}

func verbs(role *rbacv1.Role, rule rbacv1.PolicyRule) (all []string) {
	for _, group := range rule.APIGroups {
		for _, resource := range rule.Resources {
			if group != "" {
				resource += "." + group
			}
			if role.Namespace != "" {
				resource += " in " + role.Namespace
			}
			for _, verb := range rule.Verbs {
				all = append(all, resource+" "+verb)
			}
		}
	}
	return all
}

// TestRightsAreNeeded takes one verb away at a time: the daemon misses it. Not
// so get, which it needs when somebody else writes its VTEP in the same moment.
func TestRightsAreNeeded(t *testing.T) {
	c := cluster.New(t, cluster.Options{Nodes: 1})
	manifest := objectsIn(t, readFile(t, weftYAML))
	apply(t, c, manifest)
	kubelet := newKubelet(t, c, manifest, "weftd")
	client := c.API.Client.RbacV1()
	roles, events := client.ClusterRoles(), client.Roles("default")
	all, err := roles.Get(t.Context(), "weftd", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for i, rule := range all.Rules {
		for j, verb := range rule.Verbs {
			if verb == "get" {
				continue
			}
			t.Run(verb+" "+rule.Resources[0], func(t *testing.T) {
				less := all.DeepCopy()
				less.ResourceVersion = ""
				less.Rules[i].Verbs = slices.Delete(less.Rules[i].Verbs, j, j+1)
				if _, err := roles.Update(t.Context(), less, metav1.UpdateOptions{}); err != nil {
					t.Fatal(err)
				}
				misses(t, kubelet, verb, rule.Resources[0])
			})
		}
	}
	all.ResourceVersion = ""
	if _, err := roles.Update(t.Context(), all, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Run("create events", func(t *testing.T) {
		if err := events.Delete(t.Context(), "weftd-events", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		misses(t, kubelet, "create", "events")
	})
}

// misses starts a daemon and makes it use the right in question.
func misses(t *testing.T, k *kubelet, verb, resource string) {
	t.Helper()
	n := k.cluster.Node(1)
	admin := client(t, k.cluster.API.Config).Resource(vteps)
	if err := admin.Delete(t.Context(), n.Name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
		t.Fatal(err)
	}
	if verb == "update" {
		if _, err := admin.Create(t.Context(), object(vteps, n.Name, n.Name), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	spec := k.set.Spec.Template.Spec.Containers[0].DeepCopy()
	if verb == "list" {
		// As against an API server that doesn't send lists by watch.
		spec.Env = append(spec.Env, corev1.EnvVar{Name: "KUBE_FEATURE_WatchListClient", Value: "false"})
	}
	segmentObjects(t, k, verb)
	d := k.start(t, n, spec)
	defer d.Kill()
	want := fmt.Sprintf("cannot %s resource %q", verb, resource)
	eventually(t, 20*time.Second, func() error {
		if resource == "segmentmembers" || resource == "ipblocks" {
			askForSegment(t, n)
		}
		if resource == "events" && d.probe(t, spec.ReadinessProbe) == nil {
			deleteLink(t, n)
		}
		if log := strings.ReplaceAll(d.output(t), `\`, ""); !strings.Contains(log, want) {
			return fmt.Errorf("the log has no %q", want)
		}
		return nil
	})
}

// deleteLink gives the daemon something to tell of.
func deleteLink(t *testing.T, n *cluster.Node) {
	t.Helper()
	err := n.Do(func() error {
		link, err := netlink.LinkByName(overlay.Link)
		if _, ok := errors.AsType[netlink.LinkNotFoundError](err); ok {
			return nil
		}
		if err != nil {
			return err
		}
		return netlink.LinkDel(link)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// segmentObjects leaves what a daemon has to change, to delete and to lend.
func segmentObjects(t *testing.T, k *kubelet, verb string) {
	t.Helper()
	n := k.cluster.Node(1).Name
	admin := client(t, k.cluster.API.Config)
	for _, o := range []struct {
		resource, kind, name, vni string
		spec                      map[string]any
		now                       bool
	}{
		{"segmentmembers", "SegmentMember", "7." + n, "7", map[string]any{"vni": int64(7), "node": n}, verb == "update"},
		{"segmentmembers", "SegmentMember", "8." + n, "8", map[string]any{"vni": int64(8), "node": n}, verb == "delete"},
		{"ipblocks", "IPBlock", "8.192.168.8.16-28", "8", map[string]any{"vni": int64(8), "node": n, "cidr": "192.168.8.16/28"}, verb == "delete"},
		{"ipblocks", "IPBlock", "7.192.168.8.16-28", "7", nil, false},
		{"ipblocks", "IPBlock", "7.192.168.8.20-32", "7", map[string]any{"vni": int64(7), "node": "other", "cidr": "192.168.8.20/32"}, verb == "update"},
	} {
		r := admin.Resource(vteps.GroupVersion().WithResource(o.resource))
		if err := r.Delete(t.Context(), o.name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			t.Fatal(err)
		}
		if !o.now {
			continue
		}
		made := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "weft.dev/v1alpha1", "kind": o.kind, "spec": o.spec}}
		made.SetName(o.name)
		made.SetLabels(map[string]string{"weft.dev/vni": o.vni, "weft.dev/node": fmt.Sprint(o.spec["node"])})
		if _, err := r.Create(t.Context(), made, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
}

// askForSegment asks as the plugin does. It may be refused.
func askForSegment(t *testing.T, n *cluster.Node) {
	t.Helper()
	request := control.Request{Segment: netconf.Segment{VNI: 7, Ranges: []netconf.Range{
		{Subnet: netip.MustParsePrefix("192.168.8.16/28"), BlockSize: 16},
	}}}
	err := n.Do(func() error {
		_ = control.Prepare(t.Context(), netconf.RunDir, request)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
