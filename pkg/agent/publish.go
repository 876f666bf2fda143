package agent

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weft-cni/weft/api/v1alpha1"
	"github.com/weft-cni/weft/pkg/encrypt"
	"github.com/weft-cni/weft/pkg/settings"
)

// vteps is what the publisher needs of the generated client.
type vteps interface {
	Get(ctx context.Context, name string, o metav1.GetOptions) (*v1alpha1.VTEP, error)
	Create(ctx context.Context, v *v1alpha1.VTEP, o metav1.CreateOptions) (*v1alpha1.VTEP, error)
	Update(ctx context.Context, v *v1alpha1.VTEP, o metav1.UpdateOptions) (*v1alpha1.VTEP, error)
}

// publisher keeps this node's VTEP in the API as it should be, whoever deletes
// or changes it.
type publisher struct {
	client  vteps
	log     *slog.Logger
	metrics *metrics
	wake    chan struct{}

	mu   sync.Mutex
	want *v1alpha1.VTEP // nil: nothing is to be published
	have *v1alpha1.VTEP // as last seen; nil: there is none
	seen bool           // have is known
}

func newPublisher(client vteps, log *slog.Logger, m *metrics) *publisher {
	return &publisher{client: client, log: log, metrics: m, wake: make(chan struct{}, 1)}
}

// publish sets what is to be in the API; nil leaves alone what is there.
func (p *publisher) publish(v *v1alpha1.VTEP) {
	p.put(func() { p.want = v })
}

// saw tells what is in the API, nil when nothing is.
func (p *publisher) saw(v *v1alpha1.VTEP) {
	p.put(func() { p.have, p.seen = v, true })
}

func (p *publisher) put(change func()) {
	p.mu.Lock()
	change()
	p.mu.Unlock()
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// Delays between attempts that fail.
const (
	publishRetry    = 500 * time.Millisecond
	publishRetryMax = 30 * time.Second
)

// run publishes until ctx ends.
func (p *publisher) run(ctx context.Context) {
	retrying(ctx, p.wake, p.once, func(err error, delay time.Duration) {
		p.metrics.failed(stepAPI)
		p.log.Warn("VTEP not published", "err", err, "retry", delay)
	})
}

// retrying does something each time that it is woken, until ctx ends, and again
// after a while where it failed: ever longer, and not all nodes at once.
func retrying(ctx context.Context, wake <-chan struct{}, do func(context.Context) error, failed func(err error, delay time.Duration)) {
	retry := time.NewTimer(0)
	retry.Stop()
	defer retry.Stop()
	delay := publishRetry
	for {
		select {
		case <-ctx.Done():
			return
		case <-wake:
		case <-retry.C:
		}
		err := do(ctx)
		if err == nil || ctx.Err() != nil {
			delay = publishRetry
			continue
		}
		failed(err, delay)
		retry.Reset(delay/2 + rand.N(delay))
		delay = min(2*delay, publishRetryMax)
	}
}

// once brings the API in line, if it isn't.
func (p *publisher) once(ctx context.Context) error {
	for {
		p.mu.Lock()
		want, have, seen := p.want, p.have, p.seen
		p.mu.Unlock()
		if want == nil || !seen || have != nil && upToDate(want, have) {
			return nil
		}
		have, err := p.write(ctx, want, have)
		if err != nil {
			return err
		}
		p.saw(have)
	}
}

// write makes the API hold want in place of have, nil for none. It gives what
// the API holds then: something else than want where have was out of date.
func (p *publisher) write(ctx context.Context, want, have *v1alpha1.VTEP) (now *v1alpha1.VTEP, err error) {
	if have == nil {
		now, err = p.client.Create(ctx, want, metav1.CreateOptions{})
	} else {
		v := have.DeepCopy()
		v.Spec, v.OwnerReferences = want.Spec, want.OwnerReferences
		now, err = p.client.Update(ctx, v, metav1.UpdateOptions{})
	}
	switch {
	case err == nil:
		p.log.Info("VTEP published", "vtep", describe(want))
		return now, nil
	case apierrors.IsAlreadyExists(err), apierrors.IsConflict(err), apierrors.IsNotFound(err):
		now, err = p.client.Get(ctx, want.Name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil, nil
		}
	}
	return now, err
}

func upToDate(want, have *v1alpha1.VTEP) bool {
	return equality.Semantic.DeepEqual(want.Spec, have.Spec) &&
		equality.Semantic.DeepEqual(want.OwnerReferences, have.OwnerReferences)
}

// vtepOf is the VTEP of this node.
func vtepOf(n Node, self encrypt.Self, s settings.Settings) *v1alpha1.VTEP {
	v := &v1alpha1.VTEP{
		ObjectMeta: metav1.ObjectMeta{
			Name: n.Name,
			OwnerReferences: []metav1.OwnerReference{{
				APIVersion: "v1", Kind: "Node", Name: n.Name, UID: n.uid(),
			}},
		},
		Spec: v1alpha1.VTEPSpec{
			NodeUID: n.UID, MAC: self.MAC.String(), Port: int32(s.Overlay.Port), MTU: int32(self.Underlay[0].MTU),
		},
	}
	for _, u := range self.Underlay {
		v.Spec.Underlay = append(v.Spec.Underlay, u.Addr.String())
	}
	for _, c := range self.PodCIDRs {
		v.Spec.PodCIDRs = append(v.Spec.PodCIDRs, c.String())
	}
	if len(self.Keys) > 0 {
		v.Spec.WireGuard = wireGuardOf(self, s.Encrypt)
	}
	return v
}

func wireGuardOf(self encrypt.Self, c encrypt.Config) *v1alpha1.WireGuard {
	w := &v1alpha1.WireGuard{Mode: string(c.Mode), Port: int32(c.Port), Implementation: string(encrypt.Kernel)}
	if self.Userspace {
		w.Implementation = string(encrypt.Userspace)
	}
	if len(self.Preshared) > 0 {
		w.PresharedKeyHash = self.Preshared[0].Hash()
	}
	for _, k := range self.Keys {
		w.Keys = append(w.Keys, v1alpha1.WireGuardKey{Slot: int32(k.Slot), PublicKey: k.Private.Public().String()})
	}
	return w
}

// rotateBefore is the annotation of a VTEP by which an operator has a node
// replace its key: a time (RFC 3339), not in the future. A key made before it
// is replaced.
const rotateBefore = "weft.dev/rotate-keys-before"

// rotationAsked reads the annotation, the zero time where there is none.
func rotationAsked(v *v1alpha1.VTEP) (time.Time, error) {
	text, ok := v.Annotations[rotateBefore]
	if !ok {
		return time.Time{}, nil
	}
	at, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return time.Time{}, fmt.Errorf("vtep %s: annotation %s is %q; accepted: a time such as 2026-11-01T12:00:00Z", v.Name, rotateBefore, text)
	}
	return at, nil
}

// describe shows a VTEP on one line.
func describe(v *v1alpha1.VTEP) string {
	text := fmt.Sprintf("node %s underlay %v mac %s port %d mtu %d podCIDRs %v",
		v.Spec.NodeUID, v.Spec.Underlay, v.Spec.MAC, v.Spec.Port, v.Spec.MTU, v.Spec.PodCIDRs)
	if w := v.Spec.WireGuard; w != nil {
		text += fmt.Sprintf(" wireGuard %s port %d keys", w.Mode, w.Port)
		for _, k := range w.Keys {
			text += fmt.Sprintf(" %d:%s", k.Slot, k.PublicKey)
		}
	}
	return text
}
