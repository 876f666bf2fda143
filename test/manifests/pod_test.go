package manifests_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/weft-cni/weft/test/cluster"
)

// kubelet runs containers of a DaemonSet's pods in the nodes of a cluster.
type kubelet struct {
	cluster *cluster.Cluster
	set     *appsv1.DaemonSet
	configs map[string]map[string]string // data of ConfigMaps, by name
	image   []bind                       // what is in it
}

// newKubelet is for the DaemonSet of that name in a manifest.
func newKubelet(t testing.TB, c *cluster.Cluster, manifest []*unstructured.Unstructured, name string) *kubelet {
	t.Helper()
	bin, err := cluster.BinDir()
	if err != nil {
		t.Fatal(err)
	}
	k := &kubelet{
		cluster: c, configs: map[string]map[string]string{},
		image: []bind{
			{From: filepath.Join(bin, "weft"), To: "/weft", ReadOnly: true},
			{From: filepath.Join(bin, "weftd"), To: "/weftd", ReadOnly: true},
		},
	}
	for _, o := range manifest {
		switch {
		case o.GetKind() == "DaemonSet" && o.GetName() == name:
			k.set = &appsv1.DaemonSet{}
			convert(t, o, k.set)
		case o.GetKind() == "ConfigMap":
			m := corev1.ConfigMap{}
			convert(t, o, &m)
			k.configs[m.Name] = m.Data
		}
	}
	if k.set == nil {
		t.Fatalf("the manifest has no DaemonSet %s", name)
	}
	return k
}

func convert(t testing.TB, o *unstructured.Unstructured, to any) {
	t.Helper()
	if err := runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(o.Object, to, true); err != nil {
		t.Fatal(err)
	}
}

// A running is a container that runs, or has run.
type running struct {
	*cluster.Process
	node *cluster.Node
	spec *corev1.Container
	log  string // path
}

// start starts a container of the pod template in a node.
func (k *kubelet) start(t testing.TB, n *cluster.Node, spec *corev1.Container) *running {
	t.Helper()
	pod := &k.set.Spec.Template.Spec
	if !pod.HostNetwork || pod.HostPID || pod.HostIPC || spec.SecurityContext.Privileged != nil {
		t.Fatal("the pod has the host's network, and nothing else of the host's")
	}
	dir := t.TempDir()
	security := spec.SecurityContext
	c := container{
		Root:         mkdir(t, dir, "root"),
		ReadOnlyRoot: *security.ReadOnlyRootFilesystem,
		UID:          int(*security.RunAsUser), GID: int(*security.RunAsGroup),
		NoNewPrivs: !*security.AllowPrivilegeEscalation,
		Binds:      slices.Clone(k.image),
		Env:        k.env(t, n, spec),
	}
	for _, arg := range append(entrypoint(spec), spec.Args...) {
		c.Args = append(c.Args, expand(arg, c.Env))
	}
	if len(security.Capabilities.Drop) != 1 || security.Capabilities.Drop[0] != "ALL" {
		t.Fatalf("capabilities that are dropped: %v", security.Capabilities.Drop)
	}
	for _, name := range security.Capabilities.Add {
		c.Capabilities = append(c.Capabilities, string(name))
	}
	for _, m := range spec.VolumeMounts {
		from := k.volume(t, n, dir, m.Name)
		c.Binds = append(c.Binds, bind{From: from, To: m.MountPath, ReadOnly: m.ReadOnly})
	}
	if auto := pod.AutomountServiceAccountToken; auto == nil || *auto {
		c.Binds = append(c.Binds, bind{
			From: k.serviceAccount(t, n, dir), To: "/var/run/secrets/kubernetes.io/serviceaccount", ReadOnly: true,
		})
	}
	return run(t, n, spec, &c, filepath.Join(dir, "log"))
}

// entrypoint is a container's command, or that of Weft's image.
func entrypoint(spec *corev1.Container) []string {
	if len(spec.Command) > 0 {
		return slices.Clone(spec.Command)
	}
	return []string{"/weftd"}
}

// expand puts variables in the place of $(NAME), as kubelet does.
func expand(arg string, env []string) string {
	for _, variable := range env {
		name, value, _ := strings.Cut(variable, "=")
		arg = strings.ReplaceAll(arg, "$("+name+")", value)
	}
	return arg
}

func run(t testing.TB, n *cluster.Node, spec *corev1.Container, c *container, log string) *running {
	t.Helper()
	text, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	output, err := os.Create(log)
	if err != nil {
		t.Fatal(err)
	}
	defer output.Close()
	cmd := exec.Command(self)
	cmd.Env = []string{containerEnv + "=" + string(text)}
	cmd.Stdout, cmd.Stderr = output, output
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	p, err := n.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	r := &running{Process: p, node: n, spec: spec, log: log}
	t.Cleanup(func() {
		p.Kill()
		if t.Failed() {
			t.Logf("log of %s on %s:\n%s", spec.Name, n.Name, r.output(t))
		}
	})
	return r
}

func (k *kubelet) env(t testing.TB, n *cluster.Node, spec *corev1.Container) []string {
	t.Helper()
	host, port, err := net.SplitHostPort(strings.TrimPrefix(k.cluster.API.Server, "https://"))
	if err != nil {
		t.Fatal(err)
	}
	env := []string{"KUBERNETES_SERVICE_HOST=" + host, "KUBERNETES_SERVICE_PORT=" + port}
	for _, e := range spec.Env {
		switch {
		case e.ValueFrom == nil:
			env = append(env, e.Name+"="+e.Value)
		case e.ValueFrom.FieldRef != nil && e.ValueFrom.FieldRef.FieldPath == "spec.nodeName":
			env = append(env, e.Name+"="+n.Name)
		default:
			t.Fatalf("variable %s has a source that is not known here", e.Name)
		}
	}
	return env
}

// volume makes a volume on a node and gives its path there.
func (k *kubelet) volume(t testing.TB, n *cluster.Node, dir, name string) string {
	t.Helper()
	for _, v := range k.set.Spec.Template.Spec.Volumes {
		switch {
		case v.Name != name:
			continue
		case v.ConfigMap != nil:
			path := mkdir(t, dir, "config-"+name)
			data, ok := k.configs[v.ConfigMap.Name]
			if !ok {
				t.Fatalf("volume %s: no ConfigMap %s", name, v.ConfigMap.Name)
			}
			for file, text := range data {
				writeFile(t, filepath.Join(path, file), text)
			}
			return path
		case v.Secret != nil && v.Secret.Optional != nil && *v.Secret.Optional:
			return mkdir(t, dir, "secret-"+name) // there is none
		case v.HostPath != nil:
			err := n.Do(func() error {
				if *v.HostPath.Type == corev1.HostPathDirectoryOrCreate {
					return os.MkdirAll(v.HostPath.Path, 0o755)
				}
				_, err := os.Stat(v.HostPath.Path)
				return err
			})
			if err != nil {
				t.Fatalf("volume %s: %v", name, err)
			}
			return v.HostPath.Path
		}
	}
	t.Fatalf("no volume %s of a kind that is known here", name)
	return ""
}

func (k *kubelet) serviceAccount(t testing.TB, n *cluster.Node, dir string) string {
	t.Helper()
	token, err := k.token(t, n)
	if err != nil {
		t.Fatal(err)
	}
	path := mkdir(t, dir, "service-account")
	writeFile(t, filepath.Join(path, "token"), token)
	writeFile(t, filepath.Join(path, "namespace"), k.set.Namespace)
	writeFile(t, filepath.Join(path, "ca.crt"), string(k.cluster.API.Config.CAData))
	return path
}

func (k *kubelet) token(t testing.TB, n *cluster.Node) (string, error) {
	t.Helper()
	account := k.set.Spec.Template.Spec.ServiceAccountName
	if account == "weftd" {
		return k.cluster.API.Token(t.Context(), n.Name)
	}
	token, err := k.cluster.API.Client.CoreV1().ServiceAccounts(k.set.Namespace).CreateToken(
		t.Context(), account, &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	if err != nil {
		return "", err
	}
	return token.Status.Token, nil
}

// probe asks as kubelet does.
func (r *running) probe(t testing.TB, p *corev1.Probe) error {
	t.Helper()
	address := net.JoinHostPort(p.HTTPGet.Host, strconv.Itoa(p.HTTPGet.Port.IntValue()))
	_, err := get(t, r.node, "http://"+address+p.HTTPGet.Path)
	select {
	case <-r.Done():
		t.Fatalf("%s on %s has ended: %v", r.spec.Name, r.node.Name, r.Wait())
	default:
	}
	return err
}

// get reads a URL from a node.
func get(t testing.TB, from *cluster.Node, url string) ([]byte, error) {
	t.Helper()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: from.Dial}}
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, http.NoBody)
	if err != nil {
		return nil, err
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %s", url, response.Status, bytes.TrimSpace(body))
	}
	return body, err
}

func (r *running) output(t testing.TB) string {
	t.Helper()
	return string(readFile(t, r.log))
}

// status is a line of the process's /proc/PID/status.
func (r *running) status(t testing.TB, key string) string {
	t.Helper()
	for line := range strings.Lines(string(readFile(t, fmt.Sprintf("/proc/%d/status", r.PID())))) {
		if value, ok := strings.CutPrefix(line, key+":"); ok {
			return strings.TrimSpace(value)
		}
	}
	t.Fatalf("/proc/%d/status has no %s", r.PID(), key)
	return ""
}

func mkdir(t testing.TB, dir, name string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.Mkdir(path, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		t.Fatal(err)
	}
	return path
}

func readFile(t testing.TB, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func writeFile(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}
