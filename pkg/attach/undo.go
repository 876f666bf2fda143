package attach

import "fmt"

// undoList is what has to be undone if a later step fails.
type undoList []undoStep

type undoStep struct {
	what  string
	do    func() error
	holds bool // where it fails, those before it are left for a DEL
}

func (l *undoList) add(what string, do func() error) {
	*l = append(*l, undoStep{what, do, false})
}

// hold adds a step that DEL can do later, with what the steps before it made.
func (l *undoList) hold(what string, do func() error) {
	*l = append(*l, undoStep{what, do, true})
}

// undoOn undoes everything, the last step first, if err is not nil. A step
// that can't be undone keeps none of the others from it, unless it holds them,
// and its error is told beside err.
func (l undoList) undoOn(err error) error {
	if err == nil {
		return nil
	}
	for i := len(l) - 1; i >= 0; i-- {
		if e := l[i].do(); e != nil {
			err = fmt.Errorf("%w; then, to %s: %w", err, l[i].what, e)
			if l[i].holds {
				return err
			}
		}
	}
	return err
}
