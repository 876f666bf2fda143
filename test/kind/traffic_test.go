//go:build e2e

package kind

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// podToPod is the whole mesh, and what the other end sees.
func podToPod(t *testing.T, c *cluster) {
	apply(t, peers)
	for _, p := range c.peers(t) {
		if len(p.ips) != len(c.families) {
			t.Errorf("pod %s has %s", p.name, joined(p.ips))
		}
	}
	c.mesh(t)
}

// mesh sends from each peer to each, in all families; nobody's address is
// translated on the way.
func (c *cluster) mesh(t *testing.T) {
	t.Helper()
	all := c.peers(t)
	for _, from := range all {
		for _, to := range all {
			for _, ip := range to.ips {
				from.gets(t, url(ip, peerPort, "/hostname"), to.name)
				if from.name != to.name {
					from.gets(t, url(ip, peerPort, "/client"), in(ip, from.ips).String())
				}
			}
		}
	}
}

// services reaches every pod behind a Service, by its cluster IPs and by each
// node's port, from pods and from outside.
func services(t *testing.T, c *cluster) {
	service, err := c.api.CoreV1().Services(namespace).Get(t.Context(), "peer", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	all := c.peers(t)
	urls := make([]string, 0, 8)
	for _, ip := range service.Spec.ClusterIPs {
		urls = append(urls, url(netip.MustParseAddr(ip), 80, "/hostname"))
	}
	if len(urls) != len(c.families) {
		t.Errorf("the Service has %d cluster IPs", len(urls))
	}
	outside := len(urls)
	for _, node := range c.nodes {
		for _, ip := range c.nodeIPs(t, node) {
			urls = append(urls, url(ip, int(service.Spec.Ports[0].NodePort), "/hostname"))
		}
	}
	for _, p := range all {
		for _, u := range urls {
			reachesAll(t, u, all, func(ctx context.Context) (string, error) { return p.peer(ctx, "get", "-times=20", u) })
		}
	}
	for _, u := range urls[outside:] {
		reachesAll(t, u, all, func(ctx context.Context) (string, error) { return get(ctx, u) })
	}
}

// reachesAll asks until each of the pods has answered.
func reachesAll(t *testing.T, what string, all []pod, ask func(context.Context) (string, error)) {
	t.Helper()
	missing := map[string]bool{}
	for _, p := range all {
		missing[p.name] = true
	}
	eventually(t, 30*time.Second, func(ctx context.Context) error {
		names, err := ask(ctx)
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		for name := range strings.FieldsSeq(names) {
			delete(missing, name)
		}
		if len(missing) > 0 {
			return fmt.Errorf("%s leads never to %v", what, missing)
		}
		return nil
	})
}

// get is a request from this process, which is outside of the cluster.
func get(ctx context.Context, url string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return "", err
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return string(body), err
}

// names looks up a Service's cluster IPs and a headless Service's pods.
func names(t *testing.T, c *cluster) {
	service, err := c.api.CoreV1().Services(namespace).Get(t.Context(), "peer", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	all := c.peers(t)
	var pods []string
	for _, p := range all {
		for _, ip := range p.ips {
			pods = append(pods, ip.String())
		}
	}
	for _, p := range all {
		finds(t, p, "peer", service.Spec.ClusterIPs)
		finds(t, p, "headless.e2e.svc.cluster.local", pods)
	}
}

func finds(t *testing.T, p pod, name string, want []string) {
	t.Helper()
	want = slices.Sorted(slices.Values(want))
	eventually(t, 20*time.Second, func(ctx context.Context) error {
		out, err := p.peer(ctx, "lookup", name)
		if err != nil {
			return err
		}
		if got := slices.Sorted(slices.Values(strings.Fields(out))); !slices.Equal(got, want) {
			return fmt.Errorf("%s in pod %s is %v, not %v", name, p.name, got, want)
		}
		return nil
	})
}

// throughKubelet is what kubectl does by way of a node.
func throughKubelet(t *testing.T, c *cluster) {
	for _, p := range c.peers(t) {
		if logs := kubectl(t, "--namespace", p.namespace, "logs", p.name); !strings.Contains(logs, "serving on port") {
			t.Errorf("logs of %s: %q", p.name, logs)
		}
		out, err := p.peer(t.Context(), "get", "http://localhost:8080/hostname")
		if err != nil || out != p.name {
			t.Errorf("exec in %s: %q, %v", p.name, out, err)
		}
		forwarded(t, p)
	}
}

func forwarded(t *testing.T, p pod) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	cmd := exec.CommandContext(ctx, "kubectl", "--namespace", p.namespace, "port-forward", "pod/"+p.name, ":8080")
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		cancel()
		_ = cmd.Wait() // it was killed
	}()
	var port int
	if _, err = fmt.Fscanf(out, "Forwarding from 127.0.0.1:%d -> 8080\n", &port); err != nil {
		t.Fatalf("port-forward to %s: %v", p.name, err)
	}
	got, err := get(t.Context(), url(netip.MustParseAddr("127.0.0.1"), port, "/hostname"))
	if err != nil || got != p.name {
		t.Errorf("port-forward to %s: %q, %v", p.name, got, err)
	}
}

// hostPorts reaches a pod by a port of its node, from other nodes' pods, from
// its own and from outside.
func hostPorts(t *testing.T, c *cluster) {
	const port = 18080
	server := c.start(t, hosts, "host-port", c.workers()[0], []string{"serve"}, "", fmt.Sprintf("ports: [{containerPort: %d, hostPort: %d}],", peerPort, port))
	for _, ip := range c.nodeIPs(t, server.node) {
		u := url(ip, port, "/hostname")
		for _, p := range c.peers(t) {
			p.gets(t, u, server.name)
		}
		eventually(t, 10*time.Second, func(ctx context.Context) error {
			got, err := get(ctx, u)
			if err == nil && got != server.name {
				err = fmt.Errorf("%s: %q", u, got)
			}
			return err
		})
	}
}

// hostNetwork is traffic between a node's own namespace and pods.
func hostNetwork(t *testing.T, c *cluster) {
	const port = 18081
	all := c.peers(t)
	for i, node := range c.nodes {
		name := fmt.Sprintf("host-network-%d", i)
		server := c.start(t, hosts, name, node, []string{"serve", fmt.Sprintf("-port=%d", port)}, "hostNetwork: true, tolerations: [{operator: Exists}],", "")
		for _, p := range all {
			for _, ip := range p.ips {
				server.gets(t, url(ip, peerPort, "/hostname"), p.name)
			}
			for _, ip := range c.nodeIPs(t, node) {
				p.gets(t, url(ip, port, "/hostname"), node)
			}
		}
	}
}

// masquerade asks a server outside of the cluster, this process, who it is that
// asks: it has to be the pod's node.
func masquerade(t *testing.T, c *cluster) {
	outside := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, netip.MustParseAddrPort(r.RemoteAddr).Addr().Unmap().WithZone(""))
	}))
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	outside.Listener = listener
	outside.Start()
	defer outside.Close()
	port := int(netip.MustParseAddrPort(listener.Addr().String()).Port())
	for _, p := range c.peers(t) {
		for _, ip := range c.nodeIPs(t, p.node) {
			gateway, err := gatewayOf(t, p.node, ip)
			if err != nil {
				t.Fatal(err)
			}
			p.gets(t, url(gateway, port, "/"), ip.String())
		}
	}
}

// gatewayOf is a node's way out in the family of ip: an address of the machine
// that the nodes run on.
func gatewayOf(t *testing.T, node string, ip netip.Addr) (netip.Addr, error) {
	t.Helper()
	family := "-4"
	if ip.Is6() {
		family = "-6"
	}
	fields := strings.Fields(onNode(t, node, "ip", family, "route", "show", "default"))
	if i := slices.Index(fields, "via"); i >= 0 && i+1 < len(fields) {
		return netip.ParseAddr(fields[i+1])
	}
	return netip.Addr{}, errors.New(node + " has no default route")
}

// largePackets sends the largest packet that pods may, unfragmented, and one
// that is too large; and bodies that take thousands of packets.
func largePackets(t *testing.T, c *cluster) {
	all := c.peers(t)
	for _, from := range all {
		mtu := c.interfaces(t, from)["eth0"].MTU
		if mtu < 1280 {
			t.Fatalf("pod %s has an MTU of %d", from.name, mtu)
		}
		for _, to := range all {
			for _, ip := range to.ips {
				if to.name == from.name {
					continue
				}
				eventually(t, 10*time.Second, func(ctx context.Context) error {
					_, err := from.peer(ctx, "ping", fmt.Sprintf("-size=%d", mtu), ip.String())
					return err
				})
				if _, err := from.peer(t.Context(), "ping", fmt.Sprintf("-size=%d", mtu+1), ip.String()); err == nil {
					t.Errorf("a packet of %d bytes came from %s to %s", mtu+1, from.name, to.name)
				}
				const size = 5 << 20
				body, err := from.peer(t.Context(), "get", url(ip, peerPort, fmt.Sprintf("/blob?bytes=%d", size)))
				if err != nil || len(body) != size {
					t.Errorf("%d of %d bytes from %s: %v", len(body), size, ip, err)
				}
			}
		}
	}
	t.Logf("pods' MTU: %d", c.interfaces(t, all[0])["eth0"].MTU)
}
