// Package agent is the node daemon: it watches the cluster's VTEPs and its own
// Node, keeps the kernel as overlay plans it, and publishes this node's VTEP.
//
// Data flows one way. Watches of the API and of the kernel put what changed
// into an inbox; one goroutine, the runner, takes it from there, plans, reads
// the kernel, and applies the difference. The API is written by goroutines of
// their own (publisher, recorder): nothing between a peer's change and the
// kernel waits for it.
package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/connrotation"

	"github.com/weft-cni/weft/api/v1alpha1"
	weft "github.com/weft-cni/weft/pkg/client/versioned/typed/api/v1alpha1"
	"github.com/weft-cni/weft/pkg/control"
	"github.com/weft-cni/weft/pkg/encrypt"
	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/netconf"
	"github.com/weft-cni/weft/pkg/settings"
)

// Options say what an agent works with.
type Options struct {
	Node     string // its name
	Settings settings.Settings
	API      *rest.Config
	Kernel   Kernel
	Log      *slog.Logger
	Version  string // of the daemon
	// InstallFrom is the directory that holds the CNI plugin to install; empty
	// installs none.
	InstallFrom string
	// RunDir is where the plugin looks for the node file, DataDir where it
	// keeps its records.
	RunDir, DataDir string
	// BootID is that of the present boot.
	BootID string
}

// Agent is the daemon of one node.
type Agent struct {
	Options
	conns     *connrotation.Dialer
	core      rest.Interface
	vteps     weft.VTEPInterface
	metrics   *metrics
	runner    *runner
	publisher *publisher
	recorder  *recorder
	segments  *segments
	versions  *versions
}

// New makes an agent. It talks to nobody yet.
func New(o Options) (*Agent, error) {
	a := &Agent{Options: o, metrics: newMetrics(o.Version), versions: &versions{dir: o.Settings.CNI.BinDir}}
	api := rest.CopyConfig(o.API)
	a.conns = connrotation.NewDialer((&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}).DialContext)
	api.Dial = a.conns.DialContext
	core, own, err := clients(api)
	if err != nil {
		return nil, err
	}
	a.core, a.vteps = core, own.VTEPs()
	a.segments = newSegments(o, own.SegmentMembers(), own.IPBlocks(), a.metrics)
	a.publisher = newPublisher(a.vteps, o.Log, a.metrics)
	a.recorder = newRecorder(a.core, o.Node, o.Log)
	a.runner = newRunner(o.Kernel, o.Settings, o.Log, a.metrics)
	a.runner.encryption.store = encrypt.Store{Dir: filepath.Join(o.DataDir, encrypt.KeyDir)}
	a.runner.attachments = attachmentsIn(o.DataDir, o.BootID)
	a.runner.readdressed = a.conns.CloseAll
	a.segments.sealed = a.runner.inbox.seal
	a.metrics.entries(a.runner.plan)
	a.metrics.wireGuard(o.Settings.Encrypt.Mode, o.Kernel.PeerTraffic, a.runner.plan)
	return a, nil
}

// clients makes clients for Nodes and Events, and for Weft's own objects. They are narrow:
// a client of all of Kubernetes' APIs takes 6 MiB of memory more, and 10 of disk.
func clients(c *rest.Config) (rest.Interface, weft.WeftV1alpha1Interface, error) {
	// A node that starts with hundreds of segments has some requests to make for
	// each; the API server's own priorities keep a crowd of nodes in bounds.
	c.QPS, c.Burst = 100, 200
	http, err := rest.HTTPClientFor(c)
	if err != nil {
		return nil, nil, fmt.Errorf("API client: %w", err)
	}
	scheme := runtime.NewScheme()
	if err = corev1.AddToScheme(scheme); err != nil {
		return nil, nil, fmt.Errorf("API client: %w", err)
	}
	core := rest.CopyConfig(c)
	core.GroupVersion, core.APIPath = &schema.GroupVersion{Version: "v1"}, "/api"
	core.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	core.ContentType = runtime.ContentTypeProtobuf
	coreClient, err := rest.RESTClientForConfigAndClient(core, http)
	if err != nil {
		return nil, nil, fmt.Errorf("API client: %w", err)
	}
	weftClient, err := weft.NewForConfigAndClient(c, http)
	if err != nil {
		return nil, nil, fmt.Errorf("API client: %w", err)
	}
	return coreClient, weftClient, nil
}

// Run is the daemon's life, until ctx ends. The kernel and the files stay as
// they are then, and so does the traffic.
func (a *Agent) Run(ctx context.Context) error {
	if err := a.installPlugin(); err != nil {
		return err
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", a.Settings.Listen)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	a.runner.report = a.recorder.report
	a.runner.announce = func(n Node, self encrypt.Self) error { return a.announce(ctx, n, self) }
	var group sync.WaitGroup
	group.Go(func() {
		cancel(serve(ctx, l, handler(a.runner.alive, a.runner.ready, a.metrics, a.Settings.Profiling)))
	})
	group.Go(func() { a.recorder.run(ctx) })
	group.Go(func() { a.publisher.run(ctx) })
	group.Go(func() { a.watchPresharedKey(ctx) })
	pods := make(chan string)
	group.Go(func() { gatherPods(ctx, pods, a.runner.inbox) })
	group.Go(func() { a.watchKernel(ctx, pods) })
	a.runSegments(ctx, &group, cancel)
	a.watchAPI(ctx, &group)
	a.runner.run(ctx)
	group.Wait()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// runSegments keeps tenants' networks until ctx ends.
func (a *Agent) runSegments(ctx context.Context, group *sync.WaitGroup, failed context.CancelCauseFunc) {
	s := a.segments
	s.life, s.group, s.report = ctx, group, a.recorder.report
	s.watchOwn(ctx)
	group.Go(func() { s.run(ctx) })
	group.Go(func() { s.runAPI(ctx) })
	group.Go(func() { s.watchKernel(ctx) })
	group.Go(func() { s.watchRecords(ctx) })
	group.Go(func() {
		if err := control.Serve(ctx, a.RunDir, s.prepare); err != nil {
			failed(err)
		}
	})
}

// watchAPI leads the API's objects to the runner and the publisher.
func (a *Agent) watchAPI(ctx context.Context, group *sync.WaitGroup) {
	nodes := nodeStore(a.Node, func(n Node, err error) {
		if err != nil {
			a.Log.Warn("the Node is malformed; what was known of it stays", "err", err)
			return
		}
		if n.UID == "" {
			a.publisher.publish(nil) // a VTEP without owner would not last
		}
		a.runner.inbox.node(n)
	})
	own := fields.OneTermEqualSelector(metav1.ObjectNameField, a.Node)
	group.Go(func() {
		follow(ctx, "nodes", cache.NewListWatchFromClient(a.core, "nodes", "", own), &corev1.Node{}, nodes, a.metrics)
	})
	group.Go(func() {
		follow(ctx, "vteps", &cache.ListWatch{
			ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
				return a.vteps.List(ctx, o)
			},
			WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
				return a.vteps.Watch(ctx, o)
			},
		}, &v1alpha1.VTEP{}, a.segments.alsoPeers(vtepStore(a.Node, a.runner.inbox, a.sawOwn)), a.metrics)
	})
}

// sawOwn takes this node's VTEP as the API has it, nil for none.
func (a *Agent) sawOwn(v *v1alpha1.VTEP) {
	a.publisher.saw(v)
	if v == nil {
		return
	}
	asked, err := rotationAsked(v)
	if err != nil {
		a.Log.Warn("annotation ignored", "err", err)
		return
	}
	a.runner.inbox.put(func(w *work) { w.asked = &asked })
}

// watchPresharedKey has the runner look at the file of the preshared key when it
// changes. Nothing tells of a change of a Secret's volume everywhere.
func (a *Agent) watchPresharedKey(ctx context.Context) {
	path := a.Settings.Encrypt.PresharedKeyFile
	if path == "" {
		return
	}
	ticker := time.NewTicker(presharedKeyPeriod)
	defer ticker.Stop()
	before, _ := os.ReadFile(path)
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		if now, _ := os.ReadFile(path); !bytes.Equal(before, now) {
			before = now
			a.runner.inbox.put(func(w *work) { w.host = true })
		}
	}
}

// presharedKeyPeriod is the time between two looks at the preshared key's file.
const presharedKeyPeriod = 2 * time.Second

// watchKernel leads what others change in the kernel to the runner, and the
// names of pods' links that change to pods.
func (a *Agent) watchKernel(ctx context.Context, pods chan<- string) {
	for ctx.Err() == nil {
		events, err := a.Kernel.Watch(ctx, ownNames())
		if err != nil {
			a.Log.Error("no watch of the kernel; what changes there is found by resync", "err", err)
		} else {
			a.runner.inbox.kernel(kernel.Event{Lost: true}) // what came before the watch
			for e := range events {
				a.event(ctx, e, pods)
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

func (a *Agent) event(ctx context.Context, e kernel.Event, pods chan<- string) {
	switch {
	case isPodLink(e.Key):
		select {
		case pods <- e.Key.Name:
		case <-ctx.Done():
		}
	case !a.runner.plan.matches(e):
		a.runner.inbox.kernel(e)
	}
}

// announce tells that the node is in order: the plugin by the node file, the
// runtime by the network configuration, and the other nodes by the VTEP.
func (a *Agent) announce(ctx context.Context, n Node, self encrypt.Self) error {
	changed, err := netconf.WriteNode(a.RunDir, netconf.Node{
		Name: n.Name, BootID: a.BootID, PodCIDRs: self.PodCIDRs, MTU: self.MTU,
	})
	if err != nil {
		return err
	}
	if changed {
		a.Log.Info("node file written", "mtu", self.MTU, "podCIDRs", self.PodCIDRs)
	}
	if err := a.writeConfList(ctx); err != nil {
		return err
	}
	a.publisher.publish(vtepOf(n, self, a.Settings))
	a.segments.ready(n, self.Self)
	return nil
}

func (a *Agent) writeConfList(ctx context.Context) error {
	data, err := makeConfList(a.Settings.CNI, func(plugin string) ([]string, error) { return a.versions.of(ctx, plugin) }, a.Log)
	if err != nil {
		return fmt.Errorf("network configuration: %w", err)
	}
	path := filepath.Join(a.Settings.CNI.ConfDir, netconf.ConfList)
	changed, err := writeFile(path, data, 0o644)
	if err != nil {
		return fmt.Errorf("network configuration: %w", err)
	}
	if changed {
		a.Log.Info("network configuration written", "path", path)
		if rival, ok := rivalConfig(a.Settings.CNI.ConfDir); ok {
			a.Log.Warn("the runtime prefers another network configuration: pods don't get this one until it is removed",
				"path", filepath.Join(a.Settings.CNI.ConfDir, rival))
		}
	}
	return nil
}

func (a *Agent) installPlugin() error {
	if a.InstallFrom == "" {
		return nil
	}
	changed, err := install(filepath.Join(a.InstallFrom, netconf.Type), a.Settings.CNI.BinDir)
	if err == nil && changed {
		a.Log.Info("plugin installed", "path", filepath.Join(a.Settings.CNI.BinDir, netconf.Type))
	}
	return err
}
