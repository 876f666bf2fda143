package agent

import (
	"context"
	"fmt"
	"log/slog"
	"maps"

	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/kernel/rtnl"
)

// compare reads the kernel and gives what has to be done there.
func (r *runner) compare(all bool, scope kernel.Keys) ([]kernel.Op, error) {
	var have kernel.State
	var err error
	if all {
		scope = nil
		names := ownNames()
		names.Sysctls = rtnl.NamesOf(r.plan.want).Sysctls
		have, err = r.kernel.Read(names)
	} else {
		have, err = r.read(scope)
	}
	clear(r.plan.before)
	if err != nil {
		return nil, err
	}
	for k := range r.plan.readdressed {
		if peer, ok := have[k].(kernel.WireGuardPeer); ok {
			peer.Learned = false
			have.Put(peer)
		}
	}
	clear(r.plan.readdressed)
	return kernel.Diff(r.plan.want, have, scope), nil
}

// read gives what is at scope. Objects that the kernel doesn't tell one by one
// are taken to be as they were planned before: reading those of all peers for
// one that changed would cost more than the change.
func (r *runner) read(scope kernel.Keys) (kernel.State, error) {
	asked, known := maps.Clone(scope), kernel.State{}
	for k, o := range r.plan.before {
		delete(asked, k)
		if o != nil && !asked.Covers(k) {
			known.Put(o)
		}
	}
	have, err := r.kernel.ReadKeys(asked)
	if err != nil {
		return nil, err
	}
	have.Merge(known)
	return have, nil
}

// apply carries ops out and gives the keys of those that failed, with an error
// if one of them is the node's own. One that encrypted segments alone need is
// kept in r.refused.
func (r *runner) apply(ops []kernel.Op) (failed kernel.Keys, err error) {
	if r.log.Enabled(context.Background(), slog.LevelDebug) {
		for _, op := range ops {
			r.log.Debug("applying", "op", op)
		}
	}
	failed, node, segments := kernel.Keys{}, r.plan.essential(), r.plan.node()
	for i, f := range r.kernel.Apply(ops) {
		r.metrics.failed(stepApply)
		if i < maxLogged {
			r.log.Warn("the kernel refused an operation", "op", f.Op, "err", f.Err)
		}
		failed.Add(f.Op.Key())
		if _, ok := node[f.Op.Key()]; ok && err == nil {
			err = f
		} else if _, ok := segments[f.Op.Key()]; ok && r.refused == nil {
			r.refused = f
		}
	}
	r.traffic.remade(ops)
	return failed, err
}

// maxLogged bounds how many of a pass's failures are logged one by one.
const maxLogged = 10

// repaired tells of operations that undid what somebody else did.
func (r *runner) repaired(ops []kernel.Op) {
	if len(ops) == 0 {
		return
	}
	for _, op := range ops {
		r.metrics.repaired(op.Key().Kind)
	}
	r.log.Warn("repaired the kernel", "objects", len(ops), "first", ops[0])
	r.report(reasonRepaired, fmt.Sprintf("repaired %d kernel objects, the first: %s", len(ops), ops[0]))
}

// joined is the union of two sets of keys.
func joined(a, b kernel.Keys) kernel.Keys {
	all := make(kernel.Keys, len(a)+len(b))
	maps.Copy(all, a)
	maps.Copy(all, b)
	return all
}

// split parts keys into those that by covers and the others.
func split(keys, by kernel.Keys) (covered, others kernel.Keys) {
	covered, others = kernel.Keys{}, kernel.Keys{}
	for k := range keys {
		if by.Covers(k) {
			covered.Add(k)
		} else {
			others.Add(k)
		}
	}
	return covered, others
}
