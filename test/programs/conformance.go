package programs

import (
	"context"
	"io"
	"path/filepath"
)

// Conformance gives a directory with e2e.test, Kubernetes' own tests of a
// cluster, and ginkgo, which runs them: those that hack/conformance names, built
// where they aren't there.
func Conformance(ctx context.Context, log io.Writer) (string, error) {
	b, err := newBuilder(log)
	if err != nil {
		return "", err
	}
	b.module = filepath.Join(filepath.Dir(b.module), "conformance")
	if err := b.build(ctx, "ginkgo", "github.com/onsi/ginkgo/v2/ginkgo", "less than a minute"); err != nil {
		return "", err
	}
	return b.cache, b.build(ctx, "e2e.test", "k8s.io/kubernetes/test/e2e", "about five minutes")
}
