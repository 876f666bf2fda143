package agent

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"strconv"
	"testing"

	"github.com/google/go-cmp/cmp"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weft-cni/weft/api/v1alpha1"
	"github.com/weft-cni/weft/pkg/encrypt"
	"github.com/weft-cni/weft/pkg/overlay"
	"github.com/weft-cni/weft/pkg/settings"
)

// fakeVTEPs is an API that holds one VTEP, with versions.
type fakeVTEPs struct {
	object  *v1alpha1.VTEP
	version int
	writes  int
	broken  error
}

func (f *fakeVTEPs) put(v *v1alpha1.VTEP) *v1alpha1.VTEP {
	f.version++
	f.object = v.DeepCopy()
	f.object.ResourceVersion = strconv.Itoa(f.version)
	return f.object.DeepCopy()
}

func (f *fakeVTEPs) Get(_ context.Context, name string, _ metav1.GetOptions) (*v1alpha1.VTEP, error) {
	if f.object == nil {
		return nil, apierrors.NewNotFound(v1alpha1.Resource("vteps"), name)
	}
	return f.object.DeepCopy(), f.broken
}

func (f *fakeVTEPs) Create(_ context.Context, v *v1alpha1.VTEP, _ metav1.CreateOptions) (*v1alpha1.VTEP, error) {
	f.writes++
	switch {
	case f.broken != nil:
		return nil, f.broken
	case f.object != nil:
		return nil, apierrors.NewAlreadyExists(v1alpha1.Resource("vteps"), v.Name)
	}
	return f.put(v), nil
}

func (f *fakeVTEPs) Update(_ context.Context, v *v1alpha1.VTEP, _ metav1.UpdateOptions) (*v1alpha1.VTEP, error) {
	f.writes++
	switch {
	case f.broken != nil:
		return nil, f.broken
	case f.object == nil:
		return nil, apierrors.NewNotFound(v1alpha1.Resource("vteps"), v.Name)
	case f.object.ResourceVersion != v.ResourceVersion:
		return nil, apierrors.NewConflict(v1alpha1.Resource("vteps"), v.Name, errors.New("changed"))
	}
	return f.put(v), nil
}

func TestPublisher(t *testing.T) {
	self := encrypt.Self{Self: overlay.Self{
		Name: "self", MAC: overlay.VTEPMAC("self"), PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24")},
		Underlay: []overlay.Underlay{{Addr: netip.MustParseAddr("192.0.2.1"), MTU: 1500}},
	}}
	other := settings.Default()
	other.Overlay.Port = 8472
	want := vtepOf(Node{Name: "self", UID: "1"}, self, settings.Default())
	old := vtepOf(Node{Name: "self", UID: "0"}, self, other)
	for name, test := range map[string]struct {
		there, saw *v1alpha1.VTEP
		unseen     bool
		unwanted   bool
		writes     int
		stays      bool // as it was
	}{
		"there is none":                         {writes: 1},
		"it is up to date":                      {there: want, saw: want},
		"it is another":                         {there: old, saw: old, writes: 1},
		"it was deleted unseen":                 {saw: old, writes: 2},
		"it was made unseen":                    {there: old, writes: 2},
		"it was made unseen, and is up to date": {there: want, writes: 1},
		"nothing was seen yet":                  {there: old, unseen: true, stays: true},
		"nothing is to be published":            {there: old, saw: old, unwanted: true, stays: true},
	} {
		t.Run(name, func(t *testing.T) {
			api := &fakeVTEPs{}
			p := newPublisher(api, slog.New(slog.DiscardHandler), newMetrics("test"))
			if test.there != nil {
				api.put(test.there)
			}
			if !test.unseen {
				seen := test.saw
				if seen != nil && test.there != nil {
					seen = api.object.DeepCopy()
				}
				p.saw(seen)
			}
			if !test.unwanted {
				p.publish(want)
			}
			if err := p.once(t.Context()); err != nil {
				t.Fatal(err)
			}
			expected := want
			if test.stays {
				expected = test.there
			}
			if d := cmp.Diff(expected.Spec, api.object.Spec); d != "" || api.writes != test.writes {
				t.Errorf("%d writes, want %d; -want +got:\n%s", api.writes, test.writes, d)
			}
			if err := p.once(t.Context()); err != nil || api.writes != test.writes {
				t.Errorf("again: %v, %d writes", err, api.writes)
			}
		})
	}
	t.Run("the API server is away", func(t *testing.T) {
		api := &fakeVTEPs{broken: errors.New("connection refused")}
		p := newPublisher(api, slog.New(slog.DiscardHandler), newMetrics("test"))
		p.saw(nil)
		p.publish(want)
		if err := p.once(t.Context()); err == nil {
			t.Error("no error")
		}
		api.broken = nil
		if err := p.once(t.Context()); err != nil || api.object == nil {
			t.Errorf("once it is back: %v", err)
		}
	})
}

// Labels and annotations are somebody else's.
func TestPublisherKeepsWhatIsNotItsOwn(t *testing.T) {
	api := &fakeVTEPs{}
	self := encrypt.Self{Self: overlay.Self{Name: "self", Underlay: []overlay.Underlay{{Addr: netip.MustParseAddr("192.0.2.1")}}}}
	v := vtepOf(Node{Name: "self", UID: "0"}, self, settings.Default())
	v.Labels = map[string]string{"rack": "7"}
	p := newPublisher(api, slog.New(slog.DiscardHandler), newMetrics("test"))
	p.saw(api.put(v))
	p.publish(vtepOf(Node{Name: "self", UID: "1"}, self, settings.Default()))
	if err := p.once(t.Context()); err != nil {
		t.Fatal(err)
	}
	if api.object.Labels["rack"] != "7" || api.object.Spec.NodeUID != "1" || api.object.OwnerReferences[0].UID != "1" {
		t.Errorf("VTEP is %+v", api.object)
	}
}
