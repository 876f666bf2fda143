package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/weft-cni/weft/test/programs"
)

const (
	apiPort      = 6443
	etcdURL      = "http://127.0.0.1:2379"
	etcdPeerURL  = "http://127.0.0.1:2380"
	readyTimeout = time.Minute
)

// API is the cluster's control plane: etcd and kube-apiserver, in the switch's
// network namespace, with the authorizers Node and RBAC and the admission
// plugin NodeRestriction.
type API struct {
	// Client has an administrator's rights and no rate limit.
	Client kubernetes.Interface
	// Config is Client's. Its Dial leads into the switch's namespace.
	Config *rest.Config
	// Server is the URL by which nodes reach the API server.
	Server string
	// Kubeconfig is the path of an administrator's kubeconfig for programs
	// outside of the cluster (kubectl), by a port on 127.0.0.1.
	Kubeconfig string

	cluster   *Cluster
	dir       string
	ca        *authority
	binaries  programs.Set
	collects  string // path of the garbage collector; empty for none
	forward   net.Listener
	etcd      *Process
	apiserver *Process
	collector *Process
}

func newAPI(ctx context.Context, c *Cluster) (*API, error) {
	a := &API{cluster: c, dir: filepath.Join(c.dir, "api")}
	if err := mkdirs(a.dir); err != nil {
		return nil, err
	}
	var err error
	if a.binaries, err = programs.Find(ctx, c.opts.Log); err != nil {
		return nil, fmt.Errorf("find kube-apiserver and etcd: %w", err)
	}
	if c.opts.GarbageCollector {
		if a.collects, err = programs.GarbageCollector(ctx, c.opts.Log); err != nil {
			return nil, err
		}
	}
	if a.ca, err = newAuthority(); err != nil {
		return nil, err
	}
	address := switchPrefixes(c.opts.Families)[0].Addr()
	a.Server = "https://" + netip.AddrPortFrom(address, apiPort).String()
	if err := a.writePKI(); err != nil {
		return nil, fmt.Errorf("make the API server's certificates: %w", err)
	}
	if err := a.makeClient(); err != nil {
		return nil, err
	}
	return a, a.startForward(ctx)
}

func (a *API) writePKI() error {
	addrs := []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("10.96.0.1")}
	for _, p := range switchPrefixes(Dual) {
		addrs = append(addrs, p.Addr())
	}
	server, err := a.ca.server(addrs...)
	if err != nil {
		return err
	}
	// Any key pair does for signing service accounts' tokens.
	tokens, err := a.ca.client("service-accounts")
	if err != nil {
		return err
	}
	return errors.Join(
		server.write(a.dir, "server"),
		tokens.write(a.dir, "service-accounts"),
		os.WriteFile(a.file("ca.crt"), a.ca.pem, 0o600),
	)
}

func (a *API) file(name string) string { return filepath.Join(a.dir, name) }

// makeClient fills Config and Client.
func (a *API) makeClient() error {
	admin, err := a.ca.client("admin", "system:masters")
	if err != nil {
		return err
	}
	a.Config = &rest.Config{
		Host:            a.Server,
		TLSClientConfig: rest.TLSClientConfig{CAData: a.ca.pem, CertData: admin.cert, KeyData: admin.key},
		QPS:             -1,
		Dial:            a.dial,
	}
	a.Client, err = kubernetes.NewForConfig(a.Config)
	return err
}

// dial connects from the switch's namespace.
func (a *API) dial(ctx context.Context, network, address string) (conn net.Conn, err error) {
	err = a.cluster.sw.do(func() error {
		conn, err = (&net.Dialer{}).DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// startForward makes the API server reachable on a port of 127.0.0.1, for
// programs outside of the cluster, and writes the kubeconfig.
func (a *API) startForward(ctx context.Context) error {
	var err error
	a.forward, err = (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	go func() {
		for {
			conn, err := a.forward.Accept()
			if err != nil {
				return // closed
			}
			go a.forwardOne(conn)
		}
	}()
	a.Kubeconfig = a.file("admin.kubeconfig")
	return writeKubeconfig(a.Kubeconfig, "https://"+a.forward.Addr().String(), a.ca.pem, &clientcmdapi.AuthInfo{
		ClientCertificateData: a.Config.CertData,
		ClientKeyData:         a.Config.KeyData,
	})
}

func (a *API) forwardOne(client net.Conn) {
	defer client.Close()
	server, err := a.dial(context.Background(), "tcp", a.Server[len("https://"):])
	if err != nil {
		return // the client sees its connection closed
	}
	defer server.Close()
	ended := make(chan struct{}, 2)
	for _, way := range [][2]net.Conn{{client, server}, {server, client}} {
		go func() {
			_, _ = io.Copy(way[0], way[1]) // an end in either direction ends both
			ended <- struct{}{}
		}()
	}
	<-ended
}

// Start starts the API server, and etcd where it isn't running, and waits
// until it is ready: about 4 s. Data outlive Stop.
func (a *API) Start(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	var err error
	if a.etcd == nil {
		if a.etcd, err = a.run("etcd", a.binaries.Etcd, a.etcdFlags()...); err != nil {
			return err
		}
	}
	if a.apiserver, err = a.run("kube-apiserver", a.binaries.APIServer, a.apiserverFlags()...); err != nil {
		return err
	}
	return a.waitReady(ctx)
}

// Stop kills the API server. etcd runs on.
func (a *API) Stop() {
	if a.apiserver != nil {
		a.apiserver.Kill()
		a.apiserver = nil
	}
}

func (a *API) close() {
	for _, p := range []*Process{a.collector, a.apiserver, a.etcd} {
		if p != nil {
			p.Kill()
		}
	}
	a.collector, a.apiserver, a.etcd = nil, nil, nil
	if a.forward != nil {
		_ = a.forward.Close() // a listener that is closed twice is closed
	}
}

func (a *API) etcdFlags() []string {
	return []string{
		"--data-dir=" + a.file("etcd"), "--unsafe-no-fsync", "--log-level=warn",
		"--listen-client-urls=" + etcdURL, "--advertise-client-urls=" + etcdURL,
		"--listen-peer-urls=" + etcdPeerURL, "--initial-advertise-peer-urls=" + etcdPeerURL,
		"--initial-cluster=default=" + etcdPeerURL,
	}
}

func (a *API) apiserverFlags() []string {
	services := "10.96.0.0/16"
	if a.cluster.opts.Families == IPv6Only {
		services = "fd00:10:96::/112"
	}
	address := switchPrefixes(a.cluster.opts.Families)[0].Addr()
	return []string{
		"--etcd-servers=" + etcdURL,
		"--bind-address=" + address.String(), "--advertise-address=" + address.String(),
		fmt.Sprintf("--secure-port=%d", apiPort),
		"--tls-cert-file=" + a.file("server.crt"), "--tls-private-key-file=" + a.file("server.key"),
		"--client-ca-file=" + a.file("ca.crt"),
		"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file=" + a.file("service-accounts.key"),
		"--service-account-signing-key-file=" + a.file("service-accounts.key"),
		"--service-cluster-ip-range=" + services,
		"--allow-privileged=true",
	}
}

// run starts a program of the control plane with its output in a log.
func (a *API) run(name, path string, args ...string) (*Process, error) {
	log, err := a.cluster.logFile(name)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(path, args...) //nolint:noctx // it ends by close
	cmd.Dir = a.dir
	cmd.Stdout, cmd.Stderr = log, log
	return a.cluster.sw.start(cmd)
}

func (a *API) waitReady(ctx context.Context) error {
	var last error
	err := poll(ctx, 20*time.Millisecond, func() bool {
		_, last = a.Client.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(ctx)
		return last == nil || a.apiserver.ended() || a.etcd.ended()
	})
	switch {
	case a.apiserver.ended() || a.etcd.ended():
		return fmt.Errorf("the API server ended at its start:\n%s", a.cluster.logTail("etcd", "kube-apiserver"))
	case err != nil:
		return fmt.Errorf("wait for the API server to be ready: %w: %w\n%s", err, last, a.cluster.logTail("kube-apiserver"))
	}
	return nil
}

func (a *API) startGarbageCollector() error {
	// It runs beside the API server, in the switch's namespace.
	config := a.file("garbage-collector.kubeconfig")
	err := writeKubeconfig(config, a.Server, a.ca.pem, &clientcmdapi.AuthInfo{
		ClientCertificateData: a.Config.CertData,
		ClientKeyData:         a.Config.KeyData,
	})
	if err != nil {
		return err
	}
	a.collector, err = a.run("garbage-collector", a.collects, "--kubeconfig="+config)
	return err
}

func writeKubeconfig(path, server string, ca []byte, user *clientcmdapi.AuthInfo) error {
	config := kubeconfig(server, ca, user)
	if err := clientcmd.WriteToFile(*config, path); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

func kubeconfig(server string, ca []byte, user *clientcmdapi.AuthInfo) *clientcmdapi.Config {
	config := clientcmdapi.NewConfig()
	config.Clusters["weft"] = &clientcmdapi.Cluster{Server: server, CertificateAuthorityData: bytes.Clone(ca)}
	config.AuthInfos["weft"] = user
	config.Contexts["weft"] = &clientcmdapi.Context{Cluster: "weft", AuthInfo: "weft"}
	config.CurrentContext = "weft"
	return config
}

// poll calls done until it is true, or gives ctx's error.
func poll(ctx context.Context, interval time.Duration, done func() bool) error {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for !done() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		}
	}
	return nil
}
