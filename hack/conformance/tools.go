//go:build tools

// Package tools pins Kubernetes' own tests and what runs them.
package tools

import (
	_ "github.com/onsi/ginkgo/v2/ginkgo"
	_ "k8s.io/kubernetes/test/e2e"
	// What e2e_test.go itself imports: it is built with go test -c.
	_ "k8s.io/component-base/version"
	_ "k8s.io/component-base/version/verflag"
)
