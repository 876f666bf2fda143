package agent

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"

	"github.com/weft-cni/weft/api/v1alpha1"
	"github.com/weft-cni/weft/pkg/overlay"
)

// store takes what a watch tells, in place of an informer's cache: an object
// is parsed on its way in and not kept. It implements cache.ReflectorStore and
// cache.TransformingStore.
type store[T runtime.Object] struct {
	set     func(T)
	remove  func(T)
	replace func([]T)
}

func (s *store[T]) Add(o any) error    { return s.Update(o) }
func (s *store[T]) Update(o any) error { s.set(o.(T)); return nil }    //nolint:errcheck // the reflector lets no other type pass
func (s *store[T]) Delete(o any) error { s.remove(o.(T)); return nil } //nolint:errcheck // likewise
func (s *store[T]) Resync() error      { return nil }

func (s *store[T]) Replace(list []any, _ string) error {
	all := make([]T, len(list))
	for i, o := range list {
		all[i] = o.(T) //nolint:errcheck // likewise
	}
	s.replace(all)
	return nil
}

// Transformer leaves away what makes up most of a small object, while a first
// list is gathered.
func (s *store[T]) Transformer() cache.TransformFunc {
	return func(o any) (any, error) {
		if m, ok := o.(metav1.Object); ok {
			m.SetManagedFields(nil)
		}
		return o, nil
	}
}

// vtepStore leads VTEPs to the inbox, and this node's own to own, nil when it
// is gone.
func vtepStore(node string, in *inbox, own func(*v1alpha1.VTEP)) *store[*v1alpha1.VTEP] {
	return &store[*v1alpha1.VTEP]{
		set: func(v *v1alpha1.VTEP) {
			if v.Name == node {
				own(v)
				return
			}
			in.peer(v.Name, claimOf(v))
		},
		remove: func(v *v1alpha1.VTEP) {
			if v.Name == node {
				own(nil)
				return
			}
			in.peer(v.Name, claim{})
		},
		replace: func(list []*v1alpha1.VTEP) {
			var mine *v1alpha1.VTEP
			claims := make(map[string]claim, len(list))
			for _, v := range list {
				if v.Name == node {
					mine = v
					continue
				}
				claims[v.Name] = claimOf(v)
			}
			own(mine)
			in.peers(claims)
		},
	}
}

func claimOf(v *v1alpha1.VTEP) claim {
	peer, err := overlay.ParseVTEP(v)
	if err != nil {
		return claim{err: err}
	}
	return claim{peer: &peer}
}

// nodeStore leads this node's Node to set, without UID when there is none.
func nodeStore(name string, set func(Node, error)) *store[*corev1.Node] {
	return &store[*corev1.Node]{
		set:    func(n *corev1.Node) { set(parseNode(n)) },
		remove: func(*corev1.Node) { set(Node{Name: name}, nil) },
		replace: func(list []*corev1.Node) {
			if len(list) == 0 {
				set(Node{Name: name}, nil)
				return
			}
			set(parseNode(list[0]))
		},
	}
}

// watchRetry is the time between attempts to reach an API server that doesn't
// answer: it grows to 10 to 20 s, so that a cluster is back soon after its API
// server, and a thousand nodes are not a load for one that starts.
var watchRetry = wait.Backoff{Duration: 800 * time.Millisecond, Factor: 2, Jitter: 1, Steps: 13, Cap: 10 * time.Second}

// follow keeps s up to date until ctx ends, from a first state that is no older
// than the call. API servers before 1.34 don't stream it: that is a list.
func follow[T runtime.Object](ctx context.Context, resource string, lw *cache.ListWatch, example T, s *store[T], m *metrics) {
	up := m.watches.WithLabelValues(resource)
	list, watchFunc := lw.ListWithContextFunc, lw.WatchFuncWithContext
	told := func(err error) {
		if err == nil {
			up.Set(1)
		} else {
			up.Set(0)
		}
	}
	reflector := cache.NewReflectorWithOptions(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			if o.ResourceVersion == "0" { // of any age: maybe of before what the daemon before this one did
				o.ResourceVersion = ""
			}
			l, err := list(ctx, o)
			told(err)
			return l, err
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			w, err := watchFunc(ctx, o)
			told(err)
			return w, err
		},
	}, example, s, cache.ReflectorOptions{Name: resource, Backoff: &watchRetry})
	reflector.RunWithContext(ctx)
}
