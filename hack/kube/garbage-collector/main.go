// Command garbage-collector runs the garbage collector of Kubernetes and no
// other controller: it deletes objects whose owners are gone. A test cluster
// needs no more of kube-controller-manager, which takes ten times as long to
// build.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/metadata/metadatainformer"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/controller-manager/pkg/informerfactory"
	"k8s.io/kubernetes/pkg/controller/garbagecollector"
)

// discoveryPeriod is how soon a new CustomResourceDefinition is noticed.
const discoveryPeriod = time.Second

func main() {
	kubeconfig := flag.String("kubeconfig", "", "path of a kubeconfig with the rights of an administrator")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx, *kubeconfig)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "garbage-collector:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, kubeconfig string) error {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return fmt.Errorf("read kubeconfig %q: %w", kubeconfig, err)
	}
	config.QPS, config.Burst = 200, 400
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	objects, err := metadata.NewForConfig(config)
	if err != nil {
		return err
	}
	mapper := restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(client.Discovery()))
	typed := informers.NewSharedInformerFactory(client, 0)
	metaOnly := metadatainformer.NewSharedInformerFactory(objects, 0)
	started := make(chan struct{})
	ignored := map[schema.GroupResource]struct{}{}
	for resource := range garbagecollector.DefaultIgnoredResources() {
		ignored[resource] = struct{}{}
	}
	gc, err := garbagecollector.NewGarbageCollector(ctx, client, objects, mapper, ignored,
		informerfactory.NewInformerFactory(typed, metaOnly), started)
	if err != nil {
		return err
	}
	close(started)
	go gc.Sync(ctx, client.Discovery(), discoveryPeriod)
	gc.Run(ctx, 4, 30*time.Second)
	return nil
}
