package attach

import (
	"errors"
	"slices"
	"testing"
)

// TestUndo: a failed ADD is undone from its last step on, whatever fails there;
// but what a step needs that a DEL has to do again stays.
func TestUndo(t *testing.T) {
	var undone []string
	step := func(what string, err error) (string, func() error) {
		return what, func() error { undone = append(undone, what); return err }
	}
	add, failed := errors.New("no"), errors.New("neither")
	for name, c := range map[string]struct {
		held error // of the second step, which holds the first
		text string
		want []string
	}{
		"all":  {nil, "no; then, to c: neither", []string{"c", "b", "a"}},
		"held": {failed, "no; then, to c: neither; then, to b: neither", []string{"c", "b"}},
	} {
		undone = nil
		var done undoList
		done.add(step("a", nil))
		done.hold(step("b", c.held))
		done.add(step("c", failed))
		err := done.undoOn(add)
		if !errors.Is(err, add) || !errors.Is(err, failed) || err.Error() != c.text || !slices.Equal(undone, c.want) {
			t.Errorf("%s: undone %v, error %v", name, undone, err)
		}
	}
}
