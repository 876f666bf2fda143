package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/weft-cni/weft/api/v1alpha1"
	"github.com/weft-cni/weft/pkg/client/versioned"
	"github.com/weft-cni/weft/pkg/overlay"
)

// A crowd is nodes that exist as objects only: a Node of the size that
// kubelets report, and its VTEP.
type crowd struct {
	core kubernetes.Interface
	weft versioned.Interface
	size int
}

func newCrowd(config *rest.Config) (*crowd, error) {
	core, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	weft, err := versioned.NewForConfig(config)
	return &crowd{core: core, weft: weft}, err
}

// create makes peers 1 to n.
func (c *crowd) create(ctx context.Context, n int) error {
	c.size = n
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(16)
	for i := range n {
		group.Go(func() error {
			node, err := c.core.CoreV1().Nodes().Create(ctx, nodeObject(i+1), metav1.CreateOptions{})
			if err != nil {
				return fmt.Errorf("create node: %w", err)
			}
			return c.join(ctx, i+1, node.UID)
		})
	}
	return group.Wait()
}

// join creates the i-th peer's VTEP.
func (c *crowd) join(ctx context.Context, i int, node types.UID) error {
	_, err := c.weft.WeftV1alpha1().VTEPs().Create(ctx, vtepObject(i, node), metav1.CreateOptions{})
	return err
}

// leave deletes the i-th peer's VTEP.
func (c *crowd) leave(ctx context.Context, i int) error {
	return c.weft.WeftV1alpha1().VTEPs().Delete(ctx, peerName(i), metav1.DeleteOptions{})
}

// report patches the status of Nodes, picked at random, as their kubelets do,
// so many times a second, until ctx ends. It gives how many it patched.
func (c *crowd) report(ctx context.Context, perSecond int) (int, error) {
	ticker := time.NewTicker(time.Second / time.Duration(perSecond))
	defer ticker.Stop()
	for count := 0; ; count++ {
		select {
		case <-ctx.Done():
			return count, nil
		case now := <-ticker.C:
			patch := fmt.Sprintf(`{"status":{"conditions":[{"type":"Ready","lastHeartbeatTime":%q}]}}`, now.UTC().Format(time.RFC3339))
			_, err := c.core.CoreV1().Nodes().Patch(ctx, peerName(1+rand.IntN(c.size)), types.StrategicMergePatchType,
				[]byte(patch), metav1.PatchOptions{}, "status")
			if err != nil && ctx.Err() == nil {
				return count, fmt.Errorf("patch node: %w", err)
			}
		}
	}
}

func vtepObject(i int, node types.UID) *v1alpha1.VTEP {
	name := peerName(i)
	return &v1alpha1.VTEP{
		ObjectMeta: metav1.ObjectMeta{
			Name:            name,
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: name, UID: node}},
		},
		Spec: v1alpha1.VTEPSpec{
			NodeUID: string(node), Underlay: []string{underlayOf(i).String()}, MAC: overlay.VTEPMAC(name).String(),
			Port: 4789, PodCIDRs: []string{podCIDR(i).String()}, MTU: 1500,
		},
	}
}

// nodeObject is a Node of about 15 KB, most of it the images on its disk.
func nodeObject(i int) *corev1.Node {
	n := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{
			Name:   peerName(i),
			Labels: map[string]string{"kubernetes.io/os": "linux", "kubernetes.io/hostname": peerName(i)},
		},
		Spec: corev1.NodeSpec{PodCIDR: podCIDR(i).String(), PodCIDRs: []string{podCIDR(i).String()}},
		Status: corev1.NodeStatus{
			Addresses:  []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: underlayOf(i).String()}},
			Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "KubeletReady"}},
			Capacity:   corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("64")},
		},
	}
	for image := range 50 {
		n.Status.Images = append(n.Status.Images, corev1.ContainerImage{
			Names: []string{
				fmt.Sprintf("registry.example/team-%d/application-%d@sha256:%s", image%7, image, strings.Repeat("0123456789abcdef", 4)),
				fmt.Sprintf("registry.example/team-%d/application-%d:v1.%d.0", image%7, image, image),
			},
			SizeBytes: int64(image) << 20,
		})
	}
	return n
}
