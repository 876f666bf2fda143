package agent

import (
	"context"
	"fmt"
	"io"
	"sync"

	"github.com/weft-cni/weft/pkg/encrypt"
	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/kernel/rtnl"
)

// Once does what Run does at its start, and returns: one comparison of
// everything, the files, the VTEP. The error tells of all that is not in
// order, peers included.
func (a *Agent) Once(ctx context.Context) error {
	if err := a.installPlugin(); err != nil {
		return err
	}
	a.runner.announce = func(n Node, self encrypt.Self) error { return a.announce(ctx, n, self) }
	if err := a.look(ctx); err != nil {
		return err
	}
	return a.publisher.once(ctx)
}

// Plan writes the operations that Once would do in the kernel and the API to
// w, and does nothing.
func (a *Agent) Plan(ctx context.Context, w io.Writer) error {
	a.runner.kernel = dryRun{a.Kernel, w}
	a.runner.encryption.dry = true
	a.runner.announce = func(n Node, self encrypt.Self) error {
		a.publisher.publish(vtepOf(n, self, a.Settings))
		return nil
	}
	if err := a.look(ctx); err != nil {
		return err
	}
	want, have := a.publisher.want, a.publisher.have
	switch {
	case have == nil:
		fmt.Fprintf(w, "+ vtep %s %s\n", want.Name, describe(want))
	case !upToDate(want, have):
		fmt.Fprintf(w, "~ vtep %s %s [was: %s]\n", want.Name, describe(want), describe(have))
	}
	return nil
}

// look runs the runner until it has compared everything.
func (a *Agent) look(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var group sync.WaitGroup
	defer group.Wait()
	defer cancel()
	a.watchAPI(ctx, &group)
	return a.runner.once(ctx)
}

// dryRun is a kernel that is only read. What would be done goes to w.
type dryRun struct {
	Kernel
	w io.Writer
}

func (d dryRun) Apply(ops []kernel.Op) []rtnl.OpError {
	for _, op := range ops {
		fmt.Fprintln(d.w, op)
	}
	return nil
}
