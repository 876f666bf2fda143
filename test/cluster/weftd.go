package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/weft-cni/weft/pkg/settings"
)

// The daemon's service account, as manifests/ has it.
const (
	daemonNamespace = "kube-system"
	daemonAccount   = "weftd"
)

// Paths of a node.
const (
	kubeconfigFile = "/etc/weft/kubeconfig"
	tokenFile      = "/etc/weft/token"
)

// BinDirEnv names a directory with weft and weftd to use in place of ones
// built from the sources.
const BinDirEnv = "WEFT_BIN_DIR"

// builtBinaries are built once a process.
var builtBinaries struct {
	once sync.Once
	dir  string
	err  error
}

// BinDir is a directory with the programs weft and weftd: the one that
// BinDirEnv names, else one that they are built into, once a process.
func BinDir() (string, error) {
	if dir := os.Getenv(BinDirEnv); dir != "" {
		return filepath.Abs(dir)
	}
	b := &builtBinaries
	b.once.Do(func() {
		if b.dir, b.err = processScratch.mkdir("bin"); b.err != nil {
			return
		}
		for name, pkg := range map[string]string{"weft": "plugin", "weftd": "daemon"} {
			cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(b.dir, name), //nolint:noctx // once for all
				"github.com/weft-cni/weft/cmd/"+pkg)
			cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
			if out, err := cmd.CombinedOutput(); err != nil {
				b.err = fmt.Errorf("build %s: %w\n%s", name, err, out)
				return
			}
		}
	})
	return b.dir, b.err
}

// Weftd is a running daemon.
type Weftd struct {
	*Process
	node *Node
	log  string // name
}

// PodRanges is the flag that tells a daemon what holds the pods of all nodes.
const PodRanges = "--wireguard-cluster-cidrs=10.244.0.0/16,fd00:10:244::/48"

// StartWeftd starts the daemon on the node, with its own service-account token
// and what args add to its flags. It doesn't wait until it is ready.
func (n *Node) StartWeftd(ctx context.Context, args ...string) (*Weftd, error) {
	bin, err := BinDir()
	if err != nil {
		return nil, err
	}
	if err = n.WriteKubeconfig(ctx); err != nil {
		return nil, err
	}
	d := &Weftd{node: n, log: "weftd-" + n.Name}
	log, err := n.cluster.logFile(d.log)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(filepath.Join(bin, "weftd"), append([]string{ //nolint:noctx // it ends with the node
		"--kubeconfig=" + kubeconfigFile,
		"--node-name=" + n.Name,
		"--install-from=" + bin,
		PodRanges,
	}, args...)...)
	cmd.Stdout, cmd.Stderr = log, log
	d.Process, err = n.Start(cmd)
	return d, err
}

// Weftd is StartWeftd and WaitReady for a test.
func (n *Node) Weftd(t testing.TB, args ...string) *Weftd {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	d, err := n.StartWeftd(ctx, args...)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	return d
}

// WaitReady waits until /readyz says so. The error of a daemon that ends holds
// the end of its log.
func (d *Weftd) WaitReady(ctx context.Context) error {
	var last error
	err := poll(ctx, 10*time.Millisecond, func() bool {
		_, last = d.Get(ctx, "/readyz")
		return last == nil || d.ended()
	})
	switch {
	case d.ended():
		return fmt.Errorf("weftd on %s ended: %w\n%s", d.node.Name, d.err, d.node.cluster.logTail(d.log))
	case err != nil:
		return fmt.Errorf("wait for weftd on %s: %w\n%s", d.node.Name, errors.Join(err, last), d.node.cluster.logTail(d.log))
	}
	return nil
}

// Get reads a path of the daemon's HTTP server, at its default address:
// /healthz, /readyz, /metrics. Any status but 200 is an error.
func (d *Weftd) Get(ctx context.Context, path string) ([]byte, error) {
	transport := &http.Transport{DisableKeepAlives: true, DialContext: d.node.Dial}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+settings.Default().Listen+path, http.NoBody)
	if err != nil {
		return nil, err
	}
	response, err := transport.RoundTrip(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, err
	}
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s: %s", path, response.Status, body)
	}
	return body, nil
}

// Terminate sends SIGTERM and waits for the end, as kubelet does.
func (d *Weftd) Terminate(ctx context.Context) error {
	if err := d.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-d.Done():
		return d.err
	case <-ctx.Done():
		return fmt.Errorf("weftd on %s after SIGTERM: %w", d.node.Name, ctx.Err())
	}
}

// Log is all that daemons on the node have logged.
func (d *Weftd) Log() ([]byte, error) {
	return os.ReadFile(filepath.Join(d.node.cluster.dir, "log", d.log+".log"))
}

// Dial connects from the node.
func (n *Node) Dial(ctx context.Context, network, address string) (conn net.Conn, err error) {
	err = n.Do(func() error {
		conn, err = (&net.Dialer{}).DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// WriteKubeconfig writes a new token of the daemon's service account, bound to
// a pod on the node, and a kubeconfig with it: /etc/weft/kubeconfig.
func (n *Node) WriteKubeconfig(ctx context.Context) error {
	token, err := n.cluster.API.Token(ctx, n.Name)
	if err != nil {
		return err
	}
	config := kubeconfig(n.cluster.API.Server, n.cluster.API.ca.pem, &clientcmdapi.AuthInfo{TokenFile: tokenFile})
	data, err := clientcmd.Write(*config)
	if err != nil {
		return err
	}
	return errors.Join(
		n.WriteFile(tokenFile, []byte(token), 0o600),
		n.WriteFile(kubeconfigFile, data, 0o600),
	)
}

// DaemonConfig is for clients with the rights of the daemon on the node.
func (n *Node) DaemonConfig(ctx context.Context) (*rest.Config, error) {
	api := n.cluster.API
	token, err := api.Token(ctx, n.Name)
	if err != nil {
		return nil, err
	}
	return &rest.Config{
		Host:            api.Server,
		TLSClientConfig: rest.TLSClientConfig{CAData: api.ca.pem},
		BearerToken:     token,
		QPS:             -1,
		Dial:            n.Dial,
	}, nil
}

// Token gives a token of the daemon's service account on a node, as kubelet
// gives it to the daemon's pod: bound to that pod, which it creates, and so
// with a claim that names the node.
func (a *API) Token(ctx context.Context, node string) (string, error) {
	core := a.Client.CoreV1()
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: daemonAccount}}
	_, err := core.ServiceAccounts(daemonNamespace).Create(ctx, account, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return "", fmt.Errorf("create service account %s/%s: %w", daemonNamespace, daemonAccount, err)
	}
	name := daemonAccount + "-" + node
	pod, err := core.Pods(daemonNamespace).Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		pod, err = core.Pods(daemonNamespace).Create(ctx, &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: name},
			Spec: corev1.PodSpec{
				NodeName: node, ServiceAccountName: daemonAccount, HostNetwork: true,
				Containers: []corev1.Container{{Name: "weftd", Image: "weftd"}},
			},
		}, metav1.CreateOptions{})
	}
	if err != nil {
		return "", fmt.Errorf("pod %s/%s: %w", daemonNamespace, name, err)
	}
	day := int64((24 * time.Hour).Seconds())
	token, err := core.ServiceAccounts(daemonNamespace).CreateToken(ctx, daemonAccount, &authenticationv1.TokenRequest{
		Spec: authenticationv1.TokenRequestSpec{
			ExpirationSeconds: &day,
			BoundObjectRef:    &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: name, UID: pod.UID},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		return "", fmt.Errorf("token of %s/%s on %s: %w", daemonNamespace, daemonAccount, node, err)
	}
	return token.Status.Token, nil
}
