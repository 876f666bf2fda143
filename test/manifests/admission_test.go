package manifests_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"

	"github.com/weft-cni/weft/test/cluster"
)

// peerCRD is a kind to come, with names that say nothing of a node.
const peerCRD = `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: externalpeers.weft.dev}
spec:
  group: weft.dev
  scope: Cluster
  names: {kind: ExternalPeer, plural: externalpeers}
  versions:
  - name: v1alpha1
    served: true
    storage: true
    schema:
      openAPIV3Schema:
        type: object
        properties: {spec: {type: object, properties: {vni: {type: integer}}}}
`

var (
	vteps         = schema.GroupVersionResource{Group: "weft.dev", Version: "v1alpha1", Resource: "vteps"}
	externalPeers = schema.GroupVersionResource{Group: "weft.dev", Version: "v1alpha1", Resource: "externalpeers"}
)

// An admission is a cluster whose daemons have all rights on all objects of
// weft.dev, so that nothing but the policy stands in their way.
type admission struct {
	cluster *cluster.Cluster
	admin   dynamic.Interface
	daemons map[string]dynamic.Interface // by node
}

func newAdmission(t *testing.T) *admission {
	t.Helper()
	a := &admission{cluster: cluster.New(t, cluster.Options{Nodes: 2}), daemons: map[string]dynamic.Interface{}}
	apply(t, a.cluster, objectsIn(t, readFile(t, weftYAML)))
	apply(t, a.cluster, objectsIn(t, []byte(peerCRD)))
	_, err := a.cluster.API.Client.RbacV1().ClusterRoles().Create(t.Context(), &rbacv1.ClusterRole{
		ObjectMeta: metav1.ObjectMeta{Name: "all"},
		Rules:      []rbacv1.PolicyRule{{APIGroups: []string{"weft.dev"}, Resources: []string{"*"}, Verbs: []string{"*"}}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = a.cluster.API.Client.RbacV1().ClusterRoleBindings().Create(t.Context(), &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "all"},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "all"},
		Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: "kube-system", Name: "weftd"}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	a.admin = client(t, a.cluster.API.Config)
	for _, n := range a.cluster.Nodes() {
		config, err := n.DaemonConfig(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		a.daemons[n.Name] = client(t, config)
	}
	// Policies and rights are in force a moment after they were made.
	for _, resource := range []schema.GroupVersionResource{vteps, externalPeers} {
		eventually(t, 10*time.Second, func() error {
			_, err := a.daemons["n1"].Resource(resource).Create(t.Context(), object(resource, "n2", "n2"), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
			if !policyRefused(err) {
				return fmt.Errorf("not refused by the policy: %w", err)
			}
			return nil
		})
	}
	return a
}

func client(t *testing.T, config *rest.Config) dynamic.Interface {
	t.Helper()
	c, err := dynamic.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func policyRefused(err error) bool {
	return apierrors.IsForbidden(err) && strings.Contains(err.Error(), "ValidatingAdmissionPolicy 'weft-own-objects'")
}

// object is a valid one that Nodes own.
func object(resource schema.GroupVersionResource, name string, owners ...string) *unstructured.Unstructured {
	o := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "weft.dev/v1alpha1", "kind": "ExternalPeer", "spec": map[string]any{"vni": int64(1)},
	}}
	if resource == vteps {
		o.Object["kind"] = "VTEP"
		o.Object["spec"] = map[string]any{
			"nodeUID": "1", "underlay": []any{"192.0.2.1"}, "mac": "02:00:00:00:00:01", "port": int64(4789),
			"podCIDRs": []any{"10.244.1.0/24"},
		}
	}
	o.SetName(name)
	var refs []metav1.OwnerReference
	for _, owner := range owners {
		refs = append(refs, metav1.OwnerReference{APIVersion: "v1", Kind: "Node", Name: owner, UID: "1"})
	}
	o.SetOwnerReferences(refs)
	return o
}

// changed gives o with another label.
func changed(o *unstructured.Unstructured) *unstructured.Unstructured {
	o = o.DeepCopy()
	o.SetLabels(map[string]string{"changed": "yes"})
	return o
}

func owned(o *unstructured.Unstructured, refs ...metav1.OwnerReference) *unstructured.Unstructured {
	o = o.DeepCopy()
	o.SetOwnerReferences(refs)
	return o
}

// TestAdmission tries what a daemon may write, and all that it may not.
func TestAdmission(t *testing.T) {
	a := newAdmission(t)
	t.Run("its own node's objects", a.itsOwn)
	t.Run("other nodes' objects", a.others)
	t.Run("messages", a.messages)
	t.Run("segments' objects", a.segments)
	t.Run("loans", a.loans)
}

// segments tries what names and labels of a segment's objects may say.
func (a *admission) segments(t *testing.T) {
	labelled := "n1"
	create := func(resource, kind, name, vni string, spec map[string]any) error {
		o := object(externalPeers, name, "n1")
		o.SetKind(kind)
		o.SetLabels(map[string]string{"weft.dev/vni": vni, "weft.dev/node": labelled})
		o.Object["spec"] = spec
		_, err := a.daemons["n1"].Resource(vteps.GroupVersion().WithResource(resource)).
			Create(t.Context(), o, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		return err
	}
	member := func(name, vni, node string) error {
		return create("segmentmembers", "SegmentMember", name, vni, map[string]any{"vni": int64(7), "node": node})
	}
	block := func(name, cidr, node string) error {
		return create("ipblocks", "IPBlock", name, "7", map[string]any{"vni": int64(7), "node": node, "cidr": cidr})
	}
	for what, err := range map[string]error{
		"own member": member("7.n1", "7", "n1"), "own block": block("7.192.168.0.16-28", "192.168.0.16/28", "n1"),
		"own IPv6 block": block("7.fd00--10-124", "fd00::10/124", "n1"),
	} {
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	for what, err := range map[string]error{
		"another node's member": member("7.n2", "7", "n2"), "another's name": member("7.n2", "7", "n1"),
		"another label": member("7.n1", "8", "n1"), "block for another node": block("7.192.168.0.16-28", "192.168.0.16/28", "n2"),
		"block by another name": block("7.192.168.0.17-28", "192.168.0.16/28", "n1"),
	} {
		if err == nil || !strings.Contains(err.Error(), "ValidatingAdmissionPolicy 'weft-own-objects'") {
			t.Errorf("%s: %v", what, err)
		}
	}
	labelled = "n2"
	for what, err := range map[string]error{
		"member by another's label": member("7.n1", "7", "n1"), "block by another's label": block("7.192.168.0.16-28", "192.168.0.16/28", "n1"),
	} {
		if err == nil || !strings.Contains(err.Error(), "the label weft.dev/node must be spec.node") {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// loans: a node lends of its own blocks, and asks for addresses of others'; it
// doesn't lend of theirs, nor end their loans.
func (a *admission) loans(t *testing.T) {
	blocks := schema.GroupVersionResource{Group: "weft.dev", Version: "v1alpha1", Resource: "ipblocks"}
	block := func(name, cidr, node string) *unstructured.Unstructured {
		o := object(externalPeers, name, node)
		o.SetKind("IPBlock")
		o.SetLabels(map[string]string{"weft.dev/vni": "7", "weft.dev/node": node})
		o.Object["spec"] = map[string]any{"vni": int64(7), "node": node, "cidr": cidr}
		return o
	}
	lend := func(o *unstructured.Unstructured, cidr, uid, node string) *unstructured.Unstructured {
		o = o.DeepCopy()
		lent := []any{map[string]any{"cidr": cidr, "uid": uid, "node": node}}
		if err := unstructured.SetNestedSlice(o.Object, lent, "spec", "lent"); err != nil {
			t.Fatal(err)
		}
		return o
	}
	one, two := a.daemons["n1"].Resource(blocks), a.daemons["n2"].Resource(blocks)
	make1 := func(o *unstructured.Unstructured, by dynamic.ResourceInterface) *unstructured.Unstructured {
		made, err := by.Create(t.Context(), o, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return made
	}
	whole := make1(block("7.192.168.0.16-28", "192.168.0.16/28", "n2"), two)
	part := block("7.192.168.0.20-32", "192.168.0.20/32", "n1")
	part.SetLabels(map[string]string{"weft.dev/vni": "7", "weft.dev/node": "n1", "weft.dev/lender": "n2"})
	part = make1(part, one)
	for what, try := range map[string]func() error{
		"lend of another's": func() error {
			_, err := one.Update(t.Context(), lend(whole, "192.168.0.20/32", string(part.GetUID()), "n1"), metav1.UpdateOptions{})
			return err
		},
		"take for another": func() error {
			_, err := one.Create(t.Context(), block("7.192.168.0.21-32", "192.168.0.21/32", "n2"), metav1.CreateOptions{})
			return err
		},
		"return for another": func() error { return two.Delete(t.Context(), part.GetName(), metav1.DeleteOptions{}) },
		"ask for another":    func() error { _, err := two.Update(t.Context(), changed(part), metav1.UpdateOptions{}); return err },
	} {
		if err := try(); !policyRefused(err) {
			t.Errorf("%s: %v", what, err)
		}
	}
	lent, err := two.Update(t.Context(), lend(whole, "192.168.0.20/32", string(part.GetUID()), "n1"), metav1.UpdateOptions{})
	if err != nil {
		t.Fatalf("lend of one's own: %v", err)
	}
	if err = unstructured.SetNestedField(lent.Object, "192.168.0.20/32", "spec", "cidr"); err != nil {
		t.Fatal(err)
	}
	if _, err = two.Update(t.Context(), lent, metav1.UpdateOptions{}); err == nil {
		t.Error("a lease has become that of another block")
	}
	a.renewed(t, one, part)
}

// renewed: a deletion that comes late finds what was written since.
func (*admission) renewed(t *testing.T, one dynamic.ResourceInterface, part *unstructured.Unstructured) {
	part.SetAnnotations(map[string]string{"weft.dev/renewed": part.GetResourceVersion()})
	now, err := one.Update(t.Context(), part, metav1.UpdateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	remove := func(o *unstructured.Unstructured) error {
		uid, version := o.GetUID(), o.GetResourceVersion()
		return one.Delete(t.Context(), o.GetName(), metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid, ResourceVersion: &version}})
	}
	if err := remove(part); !apierrors.IsConflict(err) {
		t.Errorf("return of what was renewed: %v", err)
	}
	if err := remove(now); err != nil {
		t.Errorf("return: %v", err)
	}
}

// itsOwn creates, changes and deletes.
func (a *admission) itsOwn(t *testing.T) {
	for resource, name := range map[schema.GroupVersionResource]string{vteps: "n1", externalPeers: "any"} {
		own := a.daemons["n1"].Resource(resource)
		o, err := own.Create(t.Context(), object(resource, name, "n1"), metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err = own.Update(t.Context(), changed(o), metav1.UpdateOptions{}); err != nil {
			t.Error(err)
		}
		if err := own.Delete(t.Context(), name, metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	}
	// What somebody has done to the node's VTEP can be put right.
	o, err := a.admin.Resource(vteps).Create(t.Context(), object(vteps, "n1"), metav1.CreateOptions{})
	if err != nil {
		t.Fatalf("an administrator may do what a daemon may not: %v", err)
	}
	o.SetOwnerReferences(object(vteps, "n1", "n1").GetOwnerReferences())
	if _, err := a.daemons["n1"].Resource(vteps).Update(t.Context(), o, metav1.UpdateOptions{}); err != nil {
		t.Error(err)
	}
	if err := a.admin.Resource(vteps).Delete(t.Context(), "n1", metav1.DeleteOptions{}); err != nil {
		t.Error(err)
	}
}

// others tries all ways.
func (a *admission) others(t *testing.T) {
	theirs, names := map[schema.GroupVersionResource]*unstructured.Unstructured{}, map[schema.GroupVersionResource]string{vteps: "n2", externalPeers: "any"}
	mine := map[schema.GroupVersionResource]*unstructured.Unstructured{}
	for resource, name := range names {
		var err error
		if theirs[resource], err = a.daemons["n2"].Resource(resource).Create(t.Context(), object(resource, name, "n2"), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		if mine[resource], err = a.daemons["n1"].Resource(resource).Create(t.Context(), object(resource, "n1", "n1"), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	node1 := object(vteps, "n1", "n1").GetOwnerReferences()[0]
	node2 := object(vteps, "n2", "n2").GetOwnerReferences()[0]
	namesake := metav1.OwnerReference{APIVersion: "example.com/v1", Kind: "Node", Name: "n1", UID: "1"}
	apply := func(r dynamic.ResourceInterface, o *unstructured.Unstructured) error {
		o = o.DeepCopy()
		o.SetManagedFields(nil)
		o.SetResourceVersion("")
		_, err := r.Apply(t.Context(), o.GetName(), o, metav1.ApplyOptions{FieldManager: "test", Force: true})
		return err
	}
	for resource, name := range names {
		r := a.daemons["n1"].Resource(resource)
		for what, try := range map[string]func() error{
			"create another's": func() error {
				_, err := r.Create(t.Context(), object(resource, "n3", "n3"), metav1.CreateOptions{})
				return err
			},
			"create without owner": func() error {
				_, err := r.Create(t.Context(), object(resource, "new"), metav1.CreateOptions{})
				return err
			},
			"create by a name that is made": func() error {
				o := object(resource, "", "n2")
				o.SetGenerateName("n1")
				_, err := r.Create(t.Context(), o, metav1.CreateOptions{})
				return err
			},
			"change": func() error {
				_, err := r.Update(t.Context(), changed(theirs[resource]), metav1.UpdateOptions{})
				return err
			},
			"make one's own": func() error {
				_, err := r.Update(t.Context(), owned(theirs[resource], node1), metav1.UpdateOptions{})
				return err
			},
			"patch": func() error {
				_, err := r.Patch(t.Context(), name, types.MergePatchType, []byte(`{"metadata":{"labels":{"a":"b"}}}`), metav1.PatchOptions{})
				return err
			},
			"apply":     func() error { return apply(r, changed(theirs[resource])) },
			"apply new": func() error { return apply(r, object(resource, "n4", "n2")) },
			"delete":    func() error { return r.Delete(t.Context(), name, metav1.DeleteOptions{}) },
			"delete all": func() error {
				return r.DeleteCollection(t.Context(), metav1.DeleteOptions{}, metav1.ListOptions{})
			},
			"give one's own away": func() error {
				_, err := r.Update(t.Context(), owned(mine[resource], node2), metav1.UpdateOptions{})
				return err
			},
			"share one's own": func() error {
				_, err := r.Update(t.Context(), owned(mine[resource], node1, node2), metav1.UpdateOptions{})
				return err
			},
			"disown": func() error {
				_, err := r.Update(t.Context(), owned(mine[resource]), metav1.UpdateOptions{})
				return err
			},
			"own by a namesake": func() error {
				_, err := r.Update(t.Context(), owned(mine[resource], namesake), metav1.UpdateOptions{})
				return err
			},
		} {
			if err := try(); !policyRefused(err) || !strings.Contains(err.Error(), "denied request: weftd on node n1 may write") {
				t.Errorf("%s %s: %v", what, resource.Resource, err)
			}
		}
		now, err := a.admin.Resource(resource).Get(t.Context(), name, metav1.GetOptions{})
		if err != nil || now.GetResourceVersion() != theirs[resource].GetResourceVersion() {
			t.Errorf("%s %s has changed: %+v %v", resource.Resource, name, now, err)
		}
	}
}

// messages shows what somebody sees who tries it by hand.
func (a *admission) messages(t *testing.T) {
	expire := int64(600)
	unbound, err := a.cluster.API.Client.CoreV1().ServiceAccounts("kube-system").CreateToken(t.Context(), "weftd",
		&authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &expire}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	config, err := a.cluster.Node(1).DaemonConfig(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	config.BearerToken = unbound.Status.Token
	for _, c := range []struct {
		client   dynamic.Interface
		resource schema.GroupVersionResource
		object   *unstructured.Unstructured
		want     string
	}{
		{a.daemons["n1"], vteps, object(vteps, "n2", "n2"), "weftd on node n1 may write the VTEP n1 only, not n2"},
		{a.daemons["n2"], vteps, object(vteps, "n1", "n1"), "weftd on node n2 may write the VTEP n2 only, not n1"},
		{a.daemons["n1"], externalPeers, object(externalPeers, "any", "n2"), "weftd on node n1 may write objects that the Node n1 alone owns, and externalpeers any has or had other owners"},
		{client(t, config), vteps, object(vteps, "n1", "n1"), "the token names no node; weftd needs one that is bound to its pod or node"},
	} {
		_, err := c.client.Resource(c.resource).Create(t.Context(), c.object, metav1.CreateOptions{})
		if !policyRefused(err) || !strings.HasSuffix(err.Error(), "denied request: "+c.want) {
			t.Errorf("want %q, got: %v", c.want, err)
		}
	}
}
