package programs_test

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weft-cni/weft/test/programs"
)

func touch(t *testing.T, files ...string) {
	t.Helper()
	for _, file := range files {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAssetsComeFirst(t *testing.T) {
	dir := t.TempDir()
	t.Setenv(programs.AssetsEnv, dir)
	if _, err := programs.Find(t.Context(), t.Output()); err == nil || !strings.Contains(err.Error(), "KUBEBUILDER_ASSETS is "+dir) {
		t.Errorf("an empty directory: %v", err)
	}
	touch(t, dir+"/kube-apiserver", dir+"/etcd")
	set, err := programs.Find(t.Context(), t.Output())
	if err != nil || set.APIServer != dir+"/kube-apiserver" || set.Etcd != dir+"/etcd" {
		t.Errorf("%+v, %v", set, err)
	}
}

func TestTheCacheComesBeforeTheNetwork(t *testing.T) {
	cache := t.TempDir()
	t.Setenv(programs.AssetsEnv, "")
	t.Setenv("XDG_CACHE_HOME", cache)
	asked := make(chan struct{}, 1)
	index := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked <- struct{}{} }))
	defer index.Close()
	t.Setenv(programs.IndexEnv, index.URL)
	version := kubernetesVersion(t)
	want := filepath.Join(cache, "weft", "kube-"+version)
	touch(t, want+"/kube-apiserver", want+"/etcd")
	set, err := programs.Find(t.Context(), t.Output())
	if err != nil || set.APIServer != want+"/kube-apiserver" {
		t.Errorf("%+v, %v", set, err)
	}
	if len(asked) > 0 {
		t.Error("the index was asked for")
	}
}

// TestAnUnreachableIndexCostsLittle gives an address that swallows
// connections, the slowest way of not being reachable.
func TestAnUnreachableIndexCostsLittle(t *testing.T) {
	silent, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	t.Setenv(programs.AssetsEnv, "")
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	t.Setenv(programs.IndexEnv, "http://"+silent.Addr().String())
	ctx, cancel := context.WithCancel(t.Context())
	log := &lines{until: "building kube-apiserver", then: cancel}
	started := time.Now()
	if _, err := programs.Find(ctx, log); err == nil {
		t.Error("found what isn't there")
	}
	if took := log.at.Sub(started); took > 2*time.Second {
		t.Errorf("the build began after %s", took)
	}
}

// lines calls then at the first line that holds until.
type lines struct {
	until string
	then  func()
	at    time.Time
}

func (l *lines) Write(p []byte) (int, error) {
	if l.at.IsZero() && strings.Contains(string(p), l.until) {
		l.at = time.Now()
		l.then()
	}
	return len(p), nil
}

func TestPluginsAreBuiltOnce(t *testing.T) {
	t.Setenv("GOCACHE", goCache(t))
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	var log strings.Builder
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			var own strings.Builder
			dir, err := programs.Plugins(t.Context(), &own)
			if err != nil {
				t.Error(err)
			}
			entries, err := os.ReadDir(dir)
			names := make([]string, 0, len(entries))
			for _, e := range entries {
				names = append(names, e.Name())
			}
			want := []string{"bandwidth", "bridge", "host-local", "loopback", "portmap", "static"}
			if err != nil || !slices.Equal(names, want) {
				t.Errorf("plugins are %s, want %s (%v)", names, want, err)
			}
			mu.Lock()
			defer mu.Unlock()
			log.WriteString(own.String())
		})
	}
	wg.Wait()
	if got := strings.Count(log.String(), "building"); got != 1 {
		t.Errorf("%d builds:\n%s", got, log.String())
	}
}

// goCache is the build cache: a test that moves XDG_CACHE_HOME would move it.
func goCache(t *testing.T) string {
	t.Helper()
	if dir := os.Getenv("GOCACHE"); dir != "" {
		return dir
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "go-build")
}

func kubernetesVersion(t *testing.T) string {
	t.Helper()
	mod, err := os.ReadFile("../../hack/kube/go.mod")
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(mod), "k8s.io/kubernetes ")
	version, _, _ := strings.Cut(after, "\n")
	return version
}
