package veth

import (
	"fmt"

	"github.com/weft-cni/weft/pkg/kernel"
)

// Drift says how have differs from want, a line for each object: what is
// missing, what is there and differs, and what shouldn't be there. It is
// empty where they are the same. Nothing is said of what is on a link that is
// missing itself.
func Drift(want, have kernel.State) []string {
	var lines []string
	for _, op := range kernel.Diff(want, have, nil) {
		switch op.Verb {
		case kernel.Add:
			if op.Key().Kind == kernel.KindLink {
				return []string{fmt.Sprintf("link %s is missing", op.Key().Name)}
			}
			lines = append(lines, fmt.Sprintf("%s is missing%s", op.Want, elsewhere(op.Want, have)))
		case kernel.Delete:
			if !moved(op.Have, want) {
				lines = append(lines, fmt.Sprintf("%s is not of this attachment", op.Have))
			}
		case kernel.Replace, kernel.Recreate:
			lines = append(lines, differences(op.Want, op.Have)...)
		}
	}
	return lines
}

// elsewhere tells where a missing route's destination leads instead.
func elsewhere(want kernel.Object, have kernel.State) string {
	r, ok := want.(kernel.Route)
	if !ok {
		return ""
	}
	for _, o := range have {
		if h, ok := o.(kernel.Route); ok && h.Dst == r.Dst {
			return fmt.Sprintf(" (it leads to %s)", h.Link)
		}
	}
	return ""
}

// moved reports whether have is the route that elsewhere tells of.
func moved(have kernel.Object, want kernel.State) bool {
	h, ok := have.(kernel.Route)
	if !ok {
		return false
	}
	for _, o := range want {
		if w, ok := o.(kernel.Route); ok && w.Dst == h.Dst {
			return true
		}
	}
	return false
}

func differences(want, have kernel.Object) []string {
	w, ok := want.(Link)
	h, also := have.(Link)
	if !ok || !also {
		return []string{fmt.Sprintf("%s differs: is %s", want, have)}
	}
	var lines []string
	compare := func(what, want, have string) {
		if want != have {
			lines = append(lines, fmt.Sprintf("link %s: %s is %s, want %s", w.Name, what, have, want))
		}
	}
	compare("state", w.state(), h.state())
	compare("address", w.MAC.String(), h.MAC.String())
	compare("mtu", fmt.Sprint(w.MTU), fmt.Sprint(h.MTU))
	compare("peer", w.peer(), h.peer())
	compare("alias", fmt.Sprintf("%q", w.Alias), fmt.Sprintf("%q", h.Alias))
	return lines
}
