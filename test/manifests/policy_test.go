package manifests_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weft-cni/weft/test/cluster"
	"github.com/weft-cni/weft/test/programs"
)

// A member is a pod that the API server knows, with a server on port that
// answers each client with the client's address.
type member struct {
	*cluster.Pod
	node *cluster.Node
}

const memberPort = 8080

// denyStrangers lets servers be reached by clients only.
const denyStrangers = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: servers, namespace: default}
spec:
  podSelector: {matchLabels: {role: server}}
  policyTypes: [Ingress]
  ingress:
  - from: [{podSelector: {matchLabels: {role: client}}}]
    ports: [{port: 8080, protocol: TCP}]
`

// denyEgress lets clients reach nothing.
const denyEgress = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: clients, namespace: default}
spec:
  podSelector: {matchLabels: {role: client}}
  policyTypes: [Egress]
`

// TestNetworkPolicy runs the policy engine as the component has it, with what
// Weft routes: pods of one node and of two, over both families.
func TestNetworkPolicy(t *testing.T) {
	program, err := programs.NetworkPolicy(t.Context(), t.Output())
	if err != nil {
		t.Fatal(err)
	}
	c := cluster.New(t, cluster.Options{Nodes: 2})
	manifest := objectsIn(t, readFile(t, weftYAML))
	apply(t, c, manifest)
	policy := objectsIn(t, readFile(t, "../../manifests/network-policy.yaml"))
	apply(t, c, policy)
	weft, engine := newKubelet(t, c, manifest, "weftd"), newKubelet(t, c, policy, "kube-network-policies")
	engine.image = []bind{{From: program.Program, To: "/bin/netpol", ReadOnly: true}}
	for _, n := range c.Nodes() {
		if program.Rules != "" {
			if out, err := n.Run(t.Context(), "nft", "--file", program.Rules); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
		}
		for _, k := range []*kubelet{weft, engine} {
			spec := &k.set.Spec.Template.Spec.Containers[0]
			d := k.start(t, n, spec)
			eventually(t, 30*time.Second, func() error { return d.probe(t, spec.ReadinessProbe) })
		}
	}
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}}
	if _, err := c.API.Client.CoreV1().ServiceAccounts("default").Create(t.Context(), account, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	client := newMember(t, c, 1, "client", "client")
	stranger := newMember(t, c, 1, "stranger", "stranger")
	servers := []*member{newMember(t, c, 1, "near", "server"), newMember(t, c, 2, "far", "server")}

	for _, s := range servers {
		for _, from := range []*member{client, stranger} {
			reaches(t, from, s)
		}
	}
	apply(t, c, objectsIn(t, []byte(denyStrangers)))
	for _, s := range servers {
		refused(t, stranger, s)
		reaches(t, client, s)
		reaches(t, s, stranger) // what the policy is not about
	}
	apply(t, c, objectsIn(t, []byte(denyEgress)))
	for _, s := range append(servers, stranger) {
		refused(t, client, s)
	}
	if err := c.API.Client.NetworkingV1().NetworkPolicies("default").DeleteCollection(
		t.Context(), metav1.DeleteOptions{}, metav1.ListOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, s := range servers {
		reaches(t, stranger, s)
		reaches(t, client, s)
	}
}

func newMember(t *testing.T, c *cluster.Cluster, node int, name, role string) *member {
	t.Helper()
	m := &member{Pod: c.Node(node).Attach(t, name), node: c.Node(node)}
	pods := c.API.Client.CoreV1().Pods("default")
	object, err := pods.Create(t.Context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"role": role}},
		Spec:       corev1.PodSpec{NodeName: m.node.Name, Containers: []corev1.Container{{Name: "c", Image: "i"}}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	object.Status.Phase = corev1.PodRunning
	for _, ip := range m.IPs() {
		object.Status.PodIPs = append(object.Status.PodIPs, corev1.PodIP{IP: ip.String()})
		m.serve(t, ip)
	}
	object.Status.PodIP = object.Status.PodIPs[0].IP
	if _, err = pods.UpdateStatus(t.Context(), object, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	return m
}

func (m *member) serve(t *testing.T, ip netip.Addr) {
	t.Helper()
	var listener net.Listener
	err := m.Do(func() (err error) {
		listener, err = new(net.ListenConfig).Listen(t.Context(), "tcp", net.JoinHostPort(ip.String(), strconv.Itoa(memberPort)))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			client, _, err := net.SplitHostPort(conn.RemoteAddr().String())
			if err != nil {
				return
			}
			_, _ = io.WriteString(conn, client)
			_ = conn.Close()
		}
	}()
}

// asks connects to an address of a member and gives what it answers.
func (m *member) asks(ctx context.Context, to netip.Addr) (answer string, err error) {
	var conn net.Conn
	err = m.Do(func() (err error) {
		dialer := net.Dialer{Timeout: 500 * time.Millisecond}
		conn, err = dialer.DialContext(ctx, "tcp", net.JoinHostPort(to.String(), strconv.Itoa(memberPort)))
		return err
	})
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if err = conn.SetDeadline(time.Now().Add(time.Second)); err != nil {
		return "", err
	}
	text, err := io.ReadAll(conn)
	return string(text), err
}

// reaches waits until one member is answered by another in each family, and
// sees that it is known there by its own address.
func reaches(t *testing.T, from, to *member) {
	t.Helper()
	for i, ip := range to.IPs() {
		eventually(t, 20*time.Second, func() error {
			answer, err := from.asks(t.Context(), ip)
			if err == nil && answer != from.IPs()[i].String() {
				err = fmt.Errorf("it is known as %s", answer)
			}
			if err != nil {
				return fmt.Errorf("%s on %s to %s on %s: %w", from.Name, from.node.Name, to.Name, to.node.Name, err)
			}
			return nil
		})
	}
}

// refused waits until connections of one member to another time out in each
// family: policies drop what they refuse.
func refused(t *testing.T, from, to *member) {
	t.Helper()
	for _, ip := range to.IPs() {
		eventually(t, 20*time.Second, func() error {
			_, err := from.asks(t.Context(), ip)
			if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() {
				return nil
			}
			if err == nil {
				err = errors.New("it is answered")
			}
			return fmt.Errorf("%s on %s is not refused by %s on %s: %w", from.Name, from.node.Name, ip, to.node.Name, err)
		})
	}
}
