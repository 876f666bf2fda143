package agent

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"time"

	"golang.org/x/time/rate"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
)

// recorder posts Events about this node. It posts few: what says the same as
// one before is left out for a while, and a burst is cut short. The log has
// everything.
type recorder struct {
	client rest.Interface // of the core API
	node   string
	log    *slog.Logger
	queue  chan report
}

type note struct{ reason, text string }

type report struct {
	note
	at time.Time
}

// Bounds of what is posted.
const (
	eventQueue  = 32
	eventRepeat = 10 * time.Minute // until the same is said again
	eventEvery  = 10 * time.Second // on average
	eventBurst  = 10

	eventRetryMax = 30 * time.Second
)

func newRecorder(client rest.Interface, node string, log *slog.Logger) *recorder {
	return &recorder{client: client, node: node, log: log, queue: make(chan report, eventQueue)}
}

// report queues an Event. It doesn't block: where the queue is full, the Event
// is left out.
func (r *recorder) report(reason, text string) {
	select {
	case r.queue <- report{note{reason, text}, time.Now()}:
	default:
		r.log.Debug("event left out", "reason", reason, "note", text)
	}
}

// run posts Events until ctx ends.
func (r *recorder) run(ctx context.Context) {
	limit := rate.NewLimiter(rate.Every(eventEvery), eventBurst)
	posted := map[note]time.Time{}
	for {
		select {
		case <-ctx.Done():
			return
		case n := <-r.queue:
			now := time.Now()
			for old, at := range posted {
				if now.Sub(at) > eventRepeat {
					delete(posted, old)
				}
			}
			if _, ok := posted[n.note]; ok || !limit.Allow() {
				r.log.Debug("event left out", "reason", n.reason, "note", n.text)
				continue
			}
			posted[n.note] = now
			r.deliver(ctx, n)
		}
	}
}

// deliver posts an Event, once the API server can be reached: a node that has
// lost its underlay tells when it has one again.
func (r *recorder) deliver(ctx context.Context, n report) {
	for delay := time.Second; ; delay = min(2*delay, eventRetryMax) {
		err := r.post(ctx, n)
		var answer apierrors.APIStatus
		switch {
		case err == nil || ctx.Err() != nil:
			return
		case errors.As(err, &answer) && answer.Status().Code < http.StatusInternalServerError:
			r.log.Warn("event refused", "reason", n.reason, "err", err)
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(delay):
		}
	}
}

// maxMessage is what the API server takes of an Event's message.
const maxMessage = 1024

func (r *recorder) post(ctx context.Context, n report) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	at, text := metav1.NewTime(n.at), n.text
	if len(text) > maxMessage {
		text = text[:maxMessage]
	}
	e := &corev1.Event{
		ObjectMeta: metav1.ObjectMeta{GenerateName: r.node + ".", Namespace: metav1.NamespaceDefault},
		// kubectl describe node looks Events up by this UID, as the kubelet's.
		InvolvedObject:      corev1.ObjectReference{Kind: "Node", Name: r.node, UID: types.UID(r.node)},
		Reason:              n.reason,
		Message:             text,
		Type:                corev1.EventTypeWarning,
		FirstTimestamp:      at,
		LastTimestamp:       at,
		Count:               1,
		Source:              corev1.EventSource{Component: "weftd", Host: r.node},
		ReportingController: "weft.dev/weftd",
		ReportingInstance:   r.node,
	}
	return r.client.Post().Namespace(metav1.NamespaceDefault).Resource("events").Body(e).Do(ctx).Error()
}
