package agent

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strconv"

	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weft-cni/weft/api/v1alpha1"
	weft "github.com/weft-cni/weft/pkg/client/versioned/typed/api/v1alpha1"
)

// fakeBlocks are an API server's IPBlocks: names, UIDs, versions, preconditions,
// and the history that watches tell. fault decides what becomes of each call.
type fakeBlocks struct {
	weft.IPBlockInterface
	version int
	objects map[string]*v1alpha1.IPBlock
	history []blockEvent
	late    []func() // calls without an answer that are still on their way
	fault   func(verb string) fault
	calls   []string
}

// blockEvent is a change of an object: was is nil where it was made, is where it
// was deleted.
type blockEvent struct{ was, is *v1alpha1.IPBlock }

// fault is what becomes of a call.
type fault int

const (
	noFault     fault = iota
	refused           // the answer is no
	unavailable       // not done, no answer
	doneUnsaid        // done, no answer
	delayed           // no answer, done later
	crashBefore       // the daemon dies: the call isn't done,
	crashAfter        // is done,
	crashLate         // is done later
	faults
)

// crash is what a daemon that dies panics with.
type crash struct{}

var (
	errNoAnswer = errors.New("no answer")
	blockKind   = v1alpha1.Resource("ipblocks")
)

func newFakeBlocks() *fakeBlocks {
	return &fakeBlocks{objects: map[string]*v1alpha1.IPBlock{}, fault: func(string) fault { return noFault }}
}

// call does what a call is for, as its fault has it.
func (a *fakeBlocks) call(verb, name string, do func() error) error {
	a.calls = append(a.calls, verb+" "+name)
	switch a.fault(verb) {
	case refused:
		return apierrors.NewForbidden(blockKind, name, errors.New("by a policy"))
	case unavailable:
	case doneUnsaid:
		_ = do()
	case delayed:
		a.late = append(a.late, func() { _ = do() })
	case crashBefore:
		panic(crash{})
	case crashAfter:
		_ = do()
		panic(crash{})
	case crashLate:
		a.late = append(a.late, func() { _ = do() })
		panic(crash{})
	case noFault, faults:
		return do()
	}
	return errNoAnswer
}

// put writes an object, nil for none, under a name.
func (a *fakeBlocks) put(name string, is *v1alpha1.IPBlock) {
	a.version++
	was := a.objects[name]
	delete(a.objects, name)
	if is != nil {
		is.ResourceVersion = strconv.Itoa(a.version)
		a.objects[name] = is
	}
	a.history = append(a.history, blockEvent{was, is})
}

func (a *fakeBlocks) Create(_ context.Context, b *v1alpha1.IPBlock, _ metav1.CreateOptions) (now *v1alpha1.IPBlock, err error) {
	b = b.DeepCopy()
	err = a.call("create", b.Name, func() error {
		if a.objects[b.Name] != nil {
			return apierrors.NewAlreadyExists(blockKind, b.Name)
		}
		b.UID = types.UID(strconv.Itoa(a.version))
		a.put(b.Name, b)
		now = b.DeepCopy()
		return nil
	})
	return now, err
}

func (a *fakeBlocks) Update(_ context.Context, b *v1alpha1.IPBlock, _ metav1.UpdateOptions) (now *v1alpha1.IPBlock, err error) {
	b = b.DeepCopy()
	err = a.call("update", b.Name, func() error {
		old := a.objects[b.Name]
		switch {
		case old == nil:
			return apierrors.NewNotFound(blockKind, b.Name)
		case old.UID != b.UID || old.ResourceVersion != b.ResourceVersion:
			return apierrors.NewConflict(blockKind, b.Name, errors.New("another version"))
		case !equality.Semantic.DeepEqual(old, b):
			a.put(b.Name, b)
		}
		now = a.objects[b.Name].DeepCopy()
		return nil
	})
	return now, err
}

func (a *fakeBlocks) Delete(_ context.Context, name string, o metav1.DeleteOptions) error {
	return a.call("delete", name, func() error {
		old := a.objects[name]
		if old == nil {
			return apierrors.NewNotFound(blockKind, name)
		}
		if p := o.Preconditions; p != nil && (*p.UID != old.UID || *p.ResourceVersion != old.ResourceVersion) {
			return apierrors.NewConflict(blockKind, name, errors.New("another version"))
		}
		a.put(name, nil)
		return nil
	})
}

func (a *fakeBlocks) Get(_ context.Context, name string, _ metav1.GetOptions) (now *v1alpha1.IPBlock, err error) {
	err = a.call("get", name, func() error {
		if now = a.objects[name].DeepCopy(); now == nil {
			return apierrors.NewNotFound(blockKind, name)
		}
		return nil
	})
	return now, err
}

func (a *fakeBlocks) List(_ context.Context, o metav1.ListOptions) (*v1alpha1.IPBlockList, error) {
	list := &v1alpha1.IPBlockList{}
	err := a.call("list", "", func() error {
		for _, b := range a.matching(o.LabelSelector) {
			list.Items = append(list.Items, *b)
		}
		return nil
	})
	return list, err
}

// matching are the objects with labels, in the order of their names.
func (a *fakeBlocks) matching(selector string) (all []*v1alpha1.IPBlock) {
	for _, name := range slices.Sorted(maps.Keys(a.objects)) {
		if matches(a.objects[name], selector) {
			all = append(all, a.objects[name].DeepCopy())
		}
	}
	return all
}

func matches(b *v1alpha1.IPBlock, selector string) bool {
	want, err := labels.Parse(selector)
	return err == nil && b != nil && want.Matches(labels.Set(b.Labels))
}

// watched tells a store what an event is to a watch of those with some labels.
func (e blockEvent) watched(selector string, s *store[*v1alpha1.IPBlock]) {
	switch was, is := matches(e.was, selector), matches(e.is, selector); {
	case is:
		s.set(e.is.DeepCopy())
	case was:
		s.remove(e.was.DeepCopy())
	}
}

// noMembers are SegmentMembers, none.
type noMembers struct{ weft.SegmentMemberInterface }

func (noMembers) Get(_ context.Context, name string, _ metav1.GetOptions) (*v1alpha1.SegmentMember, error) {
	return nil, apierrors.NewNotFound(v1alpha1.Resource("segmentmembers"), name)
}
