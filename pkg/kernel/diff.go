package kernel

import (
	"fmt"
	"slices"
)

// Verb is what an Op does.
type Verb uint8

// Delete removes an object. Add makes one that isn't there. Replace changes
// one in place, without a moment of absence where the kernel can do so.
// Recreate deletes an object that can't be changed and makes it anew.
const (
	Add Verb = iota
	Replace
	Recreate
	Delete
)

// Op is one operation on the kernel.
type Op struct {
	Verb Verb
	Want Object // nil for Delete
	Have Object // nil for Add
}

// Key says where the operation's object lives.
func (o Op) Key() Key {
	if o.Want != nil {
		return o.Want.Key()
	}
	return o.Have.Key()
}

// String is a line as in a diff: "+" adds, "-" deletes, "~" replaces and
// "!" recreates, with what was there in brackets.
func (o Op) String() string {
	switch o.Verb {
	case Add:
		return "+ " + o.Want.String()
	case Delete:
		return "- " + o.Have.String()
	case Replace:
		return fmt.Sprintf("~ %s [was: %s]", o.Want, o.Have)
	case Recreate:
		return fmt.Sprintf("! %s [was: %s]", o.Want, o.Have)
	}
	return fmt.Sprintf("?%d %s", o.Verb, o.Key())
}

// Diff gives the operations that lead from have to want, in an order that is
// safe to apply: an object after those it needs, a new path before the old
// one goes. With a nil scope everything is compared, otherwise what the scope
// covers. An object whose link or table is made anew is lost with it and
// added again.
//
// Sysctls are never deleted: the value from before is not ours to know.
func Diff(want, have State, scope Keys) []Op {
	if scope != nil {
		want, have = want.Only(scope), have.Only(scope)
	}
	lost := Keys{} // what these cover goes without a word
	remac := map[string]bool{}
	onPort := map[string]bool{} // links that join a bridge, whose FDB knows nothing of them yet
	var ops []Op
	add := func(k Key, w Object) {
		h := have[k]
		if lost.Covers(k) || k.Kind == KindNeigh && remac[k.Name] || k.Kind == KindStation && onPort[k.Name] {
			h = nil
		}
		op, differs := compare(w, h)
		if !differs {
			return
		}
		ops = append(ops, op)
		if op.Verb == Recreate {
			lost.Add(k)
		}
		if joins(op) {
			onPort[k.Name] = true
		}
		// A new MAC flushes the link's neighbours (NETDEV_CHANGEADDR).
		remac[k.Name] = remac[k.Name] || changesMAC(op)
	}
	for k, w := range want {
		if k.holds() {
			add(k, w)
		}
	}
	for k, w := range want {
		if !k.holds() {
			add(k, w)
		}
	}
	for k, h := range have {
		if _, wanted := want[k]; !wanted && k.Kind != KindSysctl && !lost.Covers(k) {
			ops = append(ops, Op{Verb: Delete, Have: h})
		}
	}
	slices.SortFunc(ops, inOrder)
	return ops
}

func compare(want, have Object) (Op, bool) {
	switch {
	case have == nil:
		return Op{Verb: Add, Want: want}, true
	case have == want:
		return Op{}, false
	}
	if p, ok := want.(WireGuardPeer); ok && p.meets(have) {
		return Op{}, false
	}
	verb := Replace
	switch w := want.(type) {
	case interface{ Incompatible(have Object) string }:
		if w.Incompatible(have) != "" {
			verb = Recreate
		}
	case Bridge:
		if _, same := have.(Bridge); !same {
			verb = Recreate
		}
	case Rules: // in one transaction, so no packet sees it half done
		verb = Recreate
	}
	return Op{Verb: verb, Want: want, Have: have}, true
}

func changesMAC(op Op) bool {
	want, ok := macOf(op.Want)
	have, ok2 := macOf(op.Have)
	return ok && ok2 && want != have
}

// macOf is the Ethernet address of a link.
func macOf(o Object) (mac MAC, ok bool) {
	switch o := o.(type) {
	case VXLAN:
		return o.MAC, true
	case Tunnel:
		return o.MAC, true
	case Bridge:
		return o.MAC, true
	}
	return mac, false
}

// joins reports whether a device becomes a port of its bridge by op.
func joins(op Op) bool {
	bridge := bridgeOf(op.Want)
	return bridge != "" && bridgeOf(op.Have) != bridge
}

// bridgeOf is the bridge that a device is a port of, empty for none.
func bridgeOf(o Object) string {
	switch o := o.(type) {
	case VXLAN:
		return o.Bridge
	case Tunnel:
		return o.Bridge
	}
	return ""
}

// inOrder sorts what is made before what is deleted: kinds in creation order
// to make, in the opposite order to delete. Set elements are the exception:
// the kernel refuses a prefix that overlaps one still there, so they go first.
func inOrder(a, b Op) int {
	if c := phase(a) - phase(b); c != 0 {
		return c
	}
	return a.Key().Compare(b.Key())
}

func phase(o Op) int {
	k := o.Key().Kind
	switch {
	case o.Verb != Delete:
		return int(k) * 2
	case k == KindElement:
		return int(k)*2 - 1
	}
	return 2*int(kinds) + int(kinds-k)
}
