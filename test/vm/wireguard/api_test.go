//go:build vm

package wireguard_test

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/weft-cni/weft/api/v1alpha1"
	"github.com/weft-cni/weft/test/cluster"
)

// api is as much of an API server as daemons need of one, since the emulated
// processor takes minutes to start a real one: Nodes that stay as they are,
// VTEPs, no tenants' networks, and Events that nobody reads.
type api struct {
	nodes map[string]corev1.Node

	mu      sync.Mutex
	vteps   map[string]v1alpha1.VTEP
	events  []event       // all that ever happened to VTEPs: number n made the version n
	changed chan struct{} // closed by the next event
}

// event is one of a watch, as the API's clients read it.
type event struct {
	Type   watch.EventType `json:"type"`
	Object v1alpha1.VTEP   `json:"object"`
}

func newAPI(nodes []*cluster.Node) *api {
	a := &api{nodes: map[string]corev1.Node{}, vteps: map[string]v1alpha1.VTEP{}, changed: make(chan struct{})}
	for _, n := range nodes {
		o := corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: n.Name, UID: types.UID("uid-" + n.Name), ResourceVersion: "1"}}
		o.APIVersion, o.Kind = "v1", "Node"
		for _, cidr := range n.PodCIDRs {
			o.Spec.PodCIDRs = append(o.Spec.PodCIDRs, cidr.String())
		}
		for _, addr := range n.Underlay() {
			o.Status.Addresses = append(o.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: addr.String()})
		}
		a.nodes[n.Name] = o
	}
	return a
}

// serve answers a node on its own loopback, for as long as the test runs, and
// gives the URL.
func (a *api) serve(t testing.TB, n *cluster.Node) (url string) {
	t.Helper()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /api/v1/nodes", func(w http.ResponseWriter, r *http.Request) {
		list(w, r, "v1", "NodeList", []corev1.Node{a.nodes[n.Name]})
	})
	mux.HandleFunc("POST /api/v1/namespaces/default/events", func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // it may be cut short
		reply(w, http.StatusCreated, metav1.Status{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: metav1.StatusSuccess})
	})
	const own = "/apis/weft.dev/v1alpha1/"
	for resource, kind := range map[string]string{"segmentmembers": "SegmentMemberList", "ipblocks": "IPBlockList"} {
		mux.HandleFunc("GET "+own+resource, func(w http.ResponseWriter, r *http.Request) {
			list(w, r, "weft.dev/v1alpha1", kind, []struct{}{})
		})
	}
	mux.HandleFunc("GET "+own+"vteps", a.listVTEPs)
	mux.HandleFunc("GET "+own+"vteps/{name}", func(w http.ResponseWriter, r *http.Request) {
		v, ok := a.vtep(r.PathValue("name"))
		if !ok {
			refuse(w, http.StatusNotFound, metav1.StatusReasonNotFound)
			return
		}
		reply(w, http.StatusOK, v)
	})
	mux.HandleFunc("POST "+own+"vteps", a.putVTEP)
	mux.HandleFunc("PUT "+own+"vteps/{name}", a.putVTEP)
	s := &http.Server{Handler: mux, ReadHeaderTimeout: time.Minute}
	t.Cleanup(func() { must(t, s.Close()) })
	must(t, n.Do(func() error {
		l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		url = "http://" + l.Addr().String()
		go func() { _ = s.Serve(l) }() // until Close
		return nil
	}))
	return url
}

// vtep gives one of the VTEPs.
func (a *api) vtep(name string) (v v1alpha1.VTEP, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	v, ok = a.vteps[name]
	return v, ok
}

// change changes a VTEP, as an operator does.
func (a *api) change(name string, f func(*v1alpha1.VTEP)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	v := a.vteps[name]
	f(&v)
	a.store(watch.Modified, &v)
}

// store keeps a VTEP, and tells those who watch.
func (a *api) store(what watch.EventType, v *v1alpha1.VTEP) {
	v.APIVersion, v.Kind = "weft.dev/v1alpha1", "VTEP"
	v.ResourceVersion = strconv.Itoa(len(a.events) + 1)
	a.vteps[v.Name] = *v
	a.events = append(a.events, event{what, *v})
	close(a.changed)
	a.changed = make(chan struct{})
}

func (a *api) putVTEP(w http.ResponseWriter, r *http.Request) {
	var v v1alpha1.VTEP
	if err := json.NewDecoder(r.Body).Decode(&v); err != nil {
		refuse(w, http.StatusBadRequest, metav1.StatusReasonBadRequest)
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	have, there := a.vteps[v.Name]
	switch {
	case r.Method == http.MethodPost && there:
		refuse(w, http.StatusConflict, metav1.StatusReasonAlreadyExists)
	case r.Method == http.MethodPost:
		v.UID = types.UID("uid-" + v.Name)
		a.store(watch.Added, &v)
		reply(w, http.StatusCreated, v)
	case !there:
		refuse(w, http.StatusNotFound, metav1.StatusReasonNotFound)
	case v.ResourceVersion != have.ResourceVersion:
		refuse(w, http.StatusConflict, metav1.StatusReasonConflict)
	default:
		a.store(watch.Modified, &v)
		reply(w, http.StatusOK, v)
	}
}

func (a *api) listVTEPs(w http.ResponseWriter, r *http.Request) {
	if r.URL.Query().Get("watch") == "" {
		a.mu.Lock()
		defer a.mu.Unlock()
		reply(w, http.StatusOK, v1alpha1.VTEPList{
			TypeMeta: metav1.TypeMeta{APIVersion: "weft.dev/v1alpha1", Kind: "VTEPList"},
			ListMeta: metav1.ListMeta{ResourceVersion: strconv.Itoa(len(a.events))},
			Items:    slices.Collect(maps.Values(a.vteps)),
		})
		return
	}
	if !mayWatch(w, r) {
		return
	}
	told, err := strconv.Atoi(r.URL.Query().Get("resourceVersion"))
	if err != nil {
		refuse(w, http.StatusBadRequest, metav1.StatusReasonBadRequest)
		return
	}
	for {
		a.mu.Lock()
		news, changed := a.events[min(told, len(a.events)):], a.changed
		a.mu.Unlock()
		for _, e := range news {
			if json.NewEncoder(w).Encode(e) != nil {
				return
			}
			told++
		}
		_ = http.NewResponseController(w).Flush() // who has gone ends the request
		select {
		case <-changed:
		case <-r.Context().Done():
			return
		}
	}
}

// list gives objects that never change; their watches never tell anything.
func list(w http.ResponseWriter, r *http.Request, version, kind string, items any) {
	switch {
	case r.URL.Query().Get("watch") == "":
		reply(w, http.StatusOK, map[string]any{
			"apiVersion": version, "kind": kind, "metadata": map[string]any{"resourceVersion": "1"}, "items": items,
		})
	case mayWatch(w, r):
		_ = http.NewResponseController(w).Flush() // likewise
		<-r.Context().Done()
	}
}

// mayWatch begins a watch. One that asks for what is there already is refused:
// the client then lists before it watches.
func mayWatch(w http.ResponseWriter, r *http.Request) bool {
	if r.URL.Query().Get("sendInitialEvents") != "" {
		refuse(w, http.StatusUnprocessableEntity, metav1.StatusReasonInvalid)
		return false
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	return true
}

func refuse(w http.ResponseWriter, code int, reason metav1.StatusReason) {
	reply(w, code, metav1.Status{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"},
		Status:   metav1.StatusFailure, Reason: reason, Code: int32(code), Message: fmt.Sprint(reason),
	})
}

func reply(w http.ResponseWriter, code int, object any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(object) // who has gone needs no answer
}
