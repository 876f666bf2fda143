package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
)

// Options say what a cluster is made of. The zero value has an API server, no
// nodes, both families and an MTU of 1500.
type Options struct {
	Nodes    int
	Families Families
	MTU      int // bytes, of the underlay; 1500 where 0
	// NoAPI leaves etcd and the API server away; nodes have no Node objects.
	NoAPI bool
	// GarbageCollector runs the garbage collector of Kubernetes, so that
	// objects whose owners are deleted go.
	GarbageCollector bool
	// Manifests are YAML files, or directories of them, that are applied
	// before the first node is made, in this order. CRDs are waited for.
	Manifests []string
	// Log takes a line for each step; nil discards them.
	Log io.Writer
}

// Cluster is a running cluster. Its methods may be called at the same time.
type Cluster struct {
	// API is nil where Options.NoAPI is set.
	API *API

	opts Options
	dir  string
	sw   *space

	mu     sync.Mutex
	nodes  []*Node
	number int // of the last node made
}

// Start makes a cluster. It takes about 5 s, the API server's start, and
// longer where the API server has to be built first.
func Start(ctx context.Context, opts Options) (_ *Cluster, err error) {
	if opts.MTU == 0 {
		opts.MTU = 1500
	}
	if opts.Log == nil {
		opts.Log = io.Discard
	}
	c := &Cluster{opts: opts}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Close())
		}
	}()
	if c.dir, err = processScratch.mkdir("c"); err != nil {
		return nil, fmt.Errorf("make the cluster's directory: %w", err)
	}
	if c.sw, err = newSwitch(opts.Families, opts.MTU); err != nil {
		return nil, fmt.Errorf("make the switch: %w", err)
	}
	if !opts.NoAPI {
		if err := c.startAPI(ctx); err != nil {
			return nil, err
		}
	}
	for range opts.Nodes {
		if _, err := c.AddNode(ctx); err != nil {
			return nil, err
		}
	}
	c.logf("%d nodes are up", opts.Nodes)
	return c, nil
}

// New is Start for a test: the cluster is closed with it, and where it failed
// the ends of all logs are shown.
func New(t testing.TB, opts Options) *Cluster {
	t.Helper()
	c, err := Start(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			c.showLogs(t)
		}
		if err := c.Close(); err != nil {
			t.Errorf("close the cluster: %v", err)
		}
	})
	return c
}

func (c *Cluster) startAPI(ctx context.Context) error {
	var err error
	if c.API, err = newAPI(ctx, c); err != nil {
		return err
	}
	started := time.Now()
	c.logf("starting etcd and kube-apiserver")
	if err := c.API.Start(ctx); err != nil {
		return err
	}
	c.logf("the API server is ready after %.1f s", time.Since(started).Seconds())
	if err := c.API.Apply(ctx, c.opts.Manifests...); err != nil {
		return err
	}
	if c.opts.GarbageCollector {
		return c.API.startGarbageCollector()
	}
	return nil
}

// Nodes are the cluster's nodes in the order they were made.
func (c *Cluster) Nodes() []*Node {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]*Node(nil), c.nodes...)
}

// Node is the i-th node, the first being 1.
func (c *Cluster) Node(i int) *Node { return c.Nodes()[i-1] }

// Outside is the switch's namespace as a place for probes: what is outside of
// the cluster, with the addresses Outside4 and Outside6.
func (c *Cluster) Outside() Place { return c.sw }

// Place is where a function can be run: a node, a pod, the outside.
type Place interface {
	// Do runs f on a thread that is in the place's namespaces, and ends that
	// thread. Sockets and files that f opens belong to the place.
	Do(f func() error) error

	namespaces() *space
}

// Do implements Place.
func (s *space) Do(f func() error) error { return s.do(f) }

// Dir is the directory of the cluster's files: logs, kubeconfigs, nodes' disks.
func (c *Cluster) Dir() string { return c.dir }

// Close ends all of the cluster. What was closed before is no error.
func (c *Cluster) Close() error {
	var group errgroup.Group
	for _, n := range c.Nodes() {
		group.Go(n.halt)
	}
	err := group.Wait()
	if c.API != nil {
		c.API.close()
	}
	if c.sw != nil {
		c.sw.close()
	}
	return errors.Join(err, os.RemoveAll(c.dir))
}

func (c *Cluster) logf(format string, args ...any) {
	fmt.Fprintf(c.opts.Log, format+"\n", args...)
}

// logFile opens a new log; the ends of all are shown when a test fails.
func (c *Cluster) logFile(name string) (*os.File, error) {
	dir := filepath.Join(c.dir, "log")
	if err := mkdirs(dir); err != nil {
		return nil, err
	}
	return os.OpenFile(filepath.Join(dir, name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
}
