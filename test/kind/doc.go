// Package kind is the end-to-end tests: Weft out of its manifests, in its
// image, on a cluster of real kubelets and containerds. make e2e runs them;
// docs/e2e.md says what they show and what they need. They are built with the
// tag e2e only, and take a cluster without a network, as cluster.sh makes it.
package kind
