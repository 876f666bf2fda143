package programs

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"time"
)

const (
	// setupEnvtest is the tool of controller-runtime that downloads them.
	setupEnvtest = "sigs.k8s.io/controller-runtime/tools/setup-envtest@v0.25.1"
	envtestIndex = "https://raw.githubusercontent.com/kubernetes-sigs/controller-tools/HEAD/envtest-releases.yaml"
	// reachTimeout bounds what a machine without internet loses by the try.
	reachTimeout = 1500 * time.Millisecond
)

// IndexEnv names another index of setup-envtest's, for mirrors; "off" means not
// to try.
const IndexEnv = "WEFT_ENVTEST_INDEX"

// envtest gives the directory into which setup-envtest has put the programs,
// where their index can be reached and has this version of Kubernetes.
func (b *builder) envtest(ctx context.Context) (dir string, ok bool) {
	index := envtestIndex
	if set := os.Getenv(IndexEnv); set != "" {
		index = set
	}
	if index == "off" || !reachable(ctx, index) {
		return "", false
	}
	version := strings.TrimPrefix(b.version, "v")
	minor := version[:strings.LastIndexByte(version, '.')]
	fmt.Fprintf(b.log, "downloading kube-apiserver and etcd %s by setup-envtest\n", minor)
	cmd := exec.CommandContext(ctx, "go", "run", setupEnvtest, "use", "--index", index, "-p", "path", minor+".x")
	cmd.Env = append(os.Environ(), "GOFLAGS=")
	out, err := cmd.Output()
	dir = strings.TrimSpace(string(out))
	if err != nil || setIn(dir).check() != nil {
		return "", false
	}
	return dir, true
}

func reachable(ctx context.Context, url string) bool {
	ctx, cancel := context.WithTimeout(ctx, reachTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodHead, url, http.NoBody)
	if err != nil {
		return false
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return false
	}
	return response.Body.Close() == nil && response.StatusCode == http.StatusOK
}
