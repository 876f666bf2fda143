// Package programs finds, downloads or builds the programs of others that a
// test cluster runs: those of Kubernetes, and the reference CNI plugins.
package programs

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// AssetsEnv names a directory with kube-apiserver and etcd, as for
// controller-runtime's envtest.
const AssetsEnv = "KUBEBUILDER_ASSETS"

// buildFlags are the same for all programs, so that the packages they share
// are compiled once.
var buildFlags = []string{"-trimpath", "-tags", "selinux,notest,grpcnotrace"}

// builder builds programs of a module into a cache.
type builder struct {
	module  string // its directory
	version string // of Kubernetes: v1.37.1; empty for another module
	cache   string
	flags   []string // of the go command, beside buildFlags
	log     io.Writer
}

// Set is a set of programs: absolute paths.
type Set struct{ APIServer, Etcd string }

// Find gives the API server and etcd: those in the directory that AssetsEnv
// names; else those in the cache; else those that setup-envtest has or can
// download; else it builds them from their Go modules, which takes minutes,
// once. It writes a line to log for what takes long. Processes may call it at
// the same time; one builds and the others wait.
func Find(ctx context.Context, log io.Writer) (Set, error) {
	if dir := os.Getenv(AssetsEnv); dir != "" {
		set := setIn(dir)
		if err := set.check(); err != nil {
			return Set{}, fmt.Errorf("%s is %s: %w", AssetsEnv, dir, err)
		}
		return set, nil
	}
	b, err := newBuilder(log)
	if err != nil {
		return Set{}, err
	}
	set := setIn(b.cache)
	if set.check() == nil {
		return set, nil
	}
	unlock, err := b.lock(ctx)
	if err != nil {
		return Set{}, err
	}
	defer unlock()
	if set.check() == nil {
		return set, nil // another process was quicker
	}
	if dir, ok := b.envtest(ctx); ok {
		return set, set.link(setIn(dir))
	}
	for _, program := range kubernetes[:2] {
		if err := b.compile(ctx, program.name, program.pkg, program.duration); err != nil {
			return Set{}, err
		}
	}
	return set, nil
}

// GarbageCollector gives the program hack/kube/garbage-collector, built where
// its source has changed.
func GarbageCollector(ctx context.Context, log io.Writer) (string, error) {
	b, err := newBuilder(log)
	if err != nil {
		return "", err
	}
	sum, err := digest(filepath.Join(b.module, "go.mod"), filepath.Join(b.module, "garbage-collector", "main.go"))
	if err != nil {
		return "", err
	}
	name := "garbage-collector-" + sum
	err = b.build(ctx, name, "./garbage-collector", "less than a minute")
	return filepath.Join(b.cache, name), err
}

// kubernetes are the programs that Kubernetes gives: where each is in hack/kube,
// and how long it takes on two cores after those before it.
var kubernetes = []struct{ name, pkg, duration string }{
	{"kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver", "about 5 to 8 minutes on two cores"},
	{"etcd", "go.etcd.io/etcd/server/v3", "less than a minute"},
	{"kube-controller-manager", "k8s.io/kubernetes/cmd/kube-controller-manager", "about four minutes"},
	{"kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler", "less than a minute"},
	{"kube-proxy", "k8s.io/kubernetes/cmd/kube-proxy", "about a minute"},
	{"kubelet", "k8s.io/kubernetes/cmd/kubelet", "about a minute"},
	{"kubeadm", "k8s.io/kubernetes/cmd/kubeadm", "less than a minute"},
	{"kubectl", "k8s.io/kubernetes/cmd/kubectl", "about a minute"},
	{"agnhost", "k8s.io/kubernetes/test/images/agnhost", "less than a minute"},
	{"regression-issue-74839", "k8s.io/kubernetes/test/images/regression-issue-74839", "less than a minute"},
}

// Kubernetes gives a directory with the programs of a node, of a control plane
// and of the tests of Kubernetes, each of them built from its module where it
// isn't there: static, for container images.
func Kubernetes(ctx context.Context, log io.Writer) (string, error) {
	b, err := newBuilder(log)
	if err != nil {
		return "", err
	}
	for _, program := range kubernetes {
		if err := b.build(ctx, program.name, program.pkg, program.duration); err != nil {
			return "", err
		}
	}
	return b.cache, nil
}

// Node gives a directory with what a node of a kind cluster has besides, and
// with kind itself: the programs that hack/node-image names, built where that
// has changed.
func Node(ctx context.Context, log io.Writer) (string, error) {
	return tools(ctx, log, "node-image", "node", "about four minutes", "coredns/main.go")
}

// Kubectl gives kubectl: the one on PATH, else one built from its module.
func Kubectl(ctx context.Context, log io.Writer) (string, error) {
	if path, err := exec.LookPath("kubectl"); err == nil {
		return path, nil
	}
	b, err := newBuilder(log)
	if err != nil {
		return "", err
	}
	err = b.build(ctx, "kubectl", "k8s.io/kubernetes/cmd/kubectl", "about a minute")
	return filepath.Join(b.cache, "kubectl"), err
}

// Plugins gives a directory with the reference CNI plugins that hack/cni
// names, built where that has changed.
func Plugins(ctx context.Context, log io.Writer) (string, error) {
	return tools(ctx, log, "cni", "plugins", "less than a minute")
}

// Multus gives a directory with the programs of Multus that hack/multus names,
// built where that has changed.
func Multus(ctx context.Context, log io.Writer) (string, error) {
	return tools(ctx, log, "multus", "multus", "about two minutes")
}

// tools builds the tools of the module hack/module.
func tools(ctx context.Context, log io.Writer, module, title, duration string, sources ...string) (string, error) {
	b, err := toolBuilder(log, module)
	if err != nil {
		return "", err
	}
	return b.tools(ctx, title, duration, sources...)
}

// toolBuilder builds what is in hack/module.
func toolBuilder(log io.Writer, module string) (*builder, error) {
	root, err := moduleRoot()
	if err != nil {
		return nil, err
	}
	cache, err := cacheDir(module)
	return &builder{module: filepath.Join(root, "hack", module), cache: cache, log: log}, err
}

// digest names the contents of files.
func digest(files ...string) (string, error) {
	sum := sha256.New()
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			return "", err
		}
		sum.Write(data)
	}
	return hex.EncodeToString(sum.Sum(nil))[:12], nil
}

func setIn(dir string) Set {
	return Set{APIServer: filepath.Join(dir, "kube-apiserver"), Etcd: filepath.Join(dir, "etcd")}
}

func (s Set) check() error {
	_, apiServer := os.Stat(s.APIServer)
	_, etcd := os.Stat(s.Etcd)
	return errors.Join(apiServer, etcd)
}

// link makes s symbolic links to other, so that the next look is a quick one.
func (s Set) link(other Set) error {
	for link, to := range map[string]string{s.APIServer: other.APIServer, s.Etcd: other.Etcd} {
		if err := os.Remove(link); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		if err := os.Symlink(to, link); err != nil {
			return err
		}
	}
	return nil
}

var kubernetesVersion = regexp.MustCompile(`(?m)^\s*(?:require )?k8s\.io/kubernetes (v\S+)$`)

func newBuilder(log io.Writer) (*builder, error) {
	root, err := moduleRoot()
	if err != nil {
		return nil, err
	}
	b := &builder{module: filepath.Join(root, "hack", "kube"), log: log}
	mod, err := os.ReadFile(filepath.Join(b.module, "go.mod"))
	if err != nil {
		return nil, err
	}
	version := kubernetesVersion.FindSubmatch(mod)
	if version == nil {
		return nil, fmt.Errorf("%s/go.mod does not require k8s.io/kubernetes", b.module)
	}
	b.version = string(version[1])
	b.cache, err = cacheDir("kube-" + b.version)
	return b, err
}

func cacheDir(name string) (string, error) {
	caches, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find a directory for built programs: %w", err)
	}
	return filepath.Join(caches, "weft", name), nil
}

// moduleRoot is the directory of the product's go.mod, at or above the working
// directory.
func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		mod, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && bytes.HasPrefix(mod, []byte("module github.com/weft-cni/weft\n")) {
			return dir, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", errors.New("find the sources of Weft: no go.mod of theirs at or above the working directory")
		}
		dir = parent
	}
}

// tools builds the tools of the module; sources are those of its own files that
// they are made of.
func (b *builder) tools(ctx context.Context, title, duration string, sources ...string) (string, error) {
	files := []string{filepath.Join(b.module, "go.mod")}
	for _, source := range sources {
		files = append(files, filepath.Join(b.module, source))
	}
	sum, err := digest(files...)
	if err != nil {
		return "", err
	}
	name := title + "-" + sum
	return filepath.Join(b.cache, name), b.build(ctx, name, "tool", duration)
}

// build is compile for what isn't there, and for one process at a time.
func (b *builder) build(ctx context.Context, name, pkg, duration string) error {
	path := filepath.Join(b.cache, name)
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	unlock, err := b.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if _, err := os.Stat(path); err == nil {
		return nil // another process was quicker
	}
	return b.compile(ctx, name, pkg, duration)
}

// compile makes cache/name from a package, or from the module's tools a
// directory of that name.
func (b *builder) compile(ctx context.Context, name, pkg, duration string) error {
	fmt.Fprintf(b.log, "building %s once, %s; kept in %s\n", b.title(name), duration, b.cache)
	stop := b.progress(name)
	defer stop()
	made := filepath.Join(b.cache, "."+name)
	if err := os.RemoveAll(made); err != nil { // of a build that was cut off
		return err
	}
	output := made
	if pkg == "tool" {
		output += "/"
	}
	args := []string{"build"}
	if strings.HasSuffix(name, ".test") {
		args = []string{"test", "-c", "-vet=off"} // vet would compile all of it once more
	}
	args = append(append(args, buildFlags...), b.flags...)
	args = append(args, "-ldflags", b.ldflags(), "-o", output, pkg)
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = b.module
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off", "GOFLAGS=-buildvcs=false")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", name, err, out)
	}
	return os.Rename(made, filepath.Join(b.cache, name))
}

func (b *builder) title(name string) string {
	if b.version == "" {
		return name
	}
	return name + " for Kubernetes " + b.version
}

// ldflags gives the programs of Kubernetes the version of their module, which
// an API server needs for its feature gates.
func (b *builder) ldflags() string {
	if b.version == "" {
		return "-s -w"
	}
	var major, minor, patch int
	if _, err := fmt.Sscanf(b.version, "v%d.%d.%d", &major, &minor, &patch); err != nil {
		panic(fmt.Sprintf("version of Kubernetes %q: %v", b.version, err)) // go.mod's own check lets none through
	}
	flags := "-s -w"
	for _, pkg := range []string{"k8s.io/component-base/version", "k8s.io/client-go/pkg/version"} {
		flags += fmt.Sprintf(" -X %[1]s.gitVersion=%[2]s -X %[1]s.gitMajor=%[3]d -X %[1]s.gitMinor=%[4]d -X %[1]s.gitTreeState=clean",
			pkg, b.version, major, minor)
	}
	return flags
}

// lock makes this process the only one that builds into the cache.
func (b *builder) lock(ctx context.Context) (unlock func(), err error) {
	if err = os.MkdirAll(b.cache, 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(b.cache, ".lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	ticker := time.NewTicker(200 * time.Millisecond)
	defer ticker.Stop()
	for told := false; ; told = true {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", f.Name(), err), f.Close())
		}
		if !told {
			fmt.Fprintf(b.log, "waiting for another process that builds into %s\n", b.cache)
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), f.Close())
		case <-ticker.C:
		}
	}
}

// progress writes the time that a build has taken, every half minute.
func (b *builder) progress(name string) (stop func()) {
	done := make(chan struct{})
	started := time.Now()
	ticker := time.NewTicker(30 * time.Second)
	go func() {
		defer ticker.Stop()
		for {
			select {
			case <-done:
				return
			case <-ticker.C:
				fmt.Fprintf(b.log, "building %s: %s\n", name, time.Since(started).Round(time.Second))
			}
		}
	}()
	return func() { close(done) }
}
