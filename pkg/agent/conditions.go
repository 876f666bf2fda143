package agent

import (
	"errors"
	"maps"
	"slices"

	"github.com/weft-cni/weft/pkg/overlay"
)

// Reasons of Events and of conditions, also the values of a metric's label.
const (
	reasonUnderlayLost    = "UnderlayLost"
	reasonNoPodCIDRs      = "NoPodCIDRs"
	reasonNoNode          = "NoNode"
	reasonMTUMismatch     = "MTUMismatch"
	reasonConflict        = "ClaimConflict"
	reasonPeerMalformed   = "PeerMalformed"
	reasonPeerUnreachable = "PeerUnreachable"
	reasonRepaired        = "DriftRepaired"
)

// condition is something that an operator should know as long as it lasts.
type condition struct {
	reason, note string
	// event says that it is worth an Event: it concerns this node, so that not
	// every node of a cluster tells the same.
	event bool
}

// conditions are those that last now, by subject.
type conditions map[string]condition

// since lists what is new or different from before, in the order of subjects.
func (c conditions) since(before conditions) []condition {
	var news []condition
	for _, subject := range slices.Sorted(maps.Keys(c)) {
		if c[subject] != before[subject] {
			news = append(news, c[subject])
		}
	}
	return news
}

// count gives the number of conditions of a reason.
func (c conditions) count(reason string) (n int) {
	for _, c := range c {
		if c.reason == reason {
			n++
		}
	}
	return n
}

// observe gives the conditions as of now.
func (r *runner) observe() conditions {
	now := conditions{}
	switch {
	case errors.Is(r.host, errNoNode):
		now["node"] = condition{reasonNoNode, r.host.Error(), false}
	case errors.Is(r.host, errNoPodCIDRs):
		now["node"] = condition{reasonNoPodCIDRs, r.host.Error(), true}
	case r.host != nil:
		now["node"] = condition{reasonUnderlayLost, r.host.Error(), true}
	}
	if r.plan.built() {
		if note := mtuMismatch(r.settings.MTU, r.plan); note != "" {
			now["mtu"] = condition{reasonMTUMismatch, note, true}
		}
	}
	for name, err := range r.malformed {
		now["peer "+name] = condition{reasonPeerMalformed, err.Error(), false}
	}
	for name, err := range r.plan.faults {
		var conflict overlay.Conflict
		if errors.As(err, &conflict) {
			now["peer "+name] = condition{reasonConflict, err.Error(), conflict.Other == r.plan.self.Name}
		} else {
			now["peer "+name] = condition{reasonPeerUnreachable, err.Error(), false}
		}
	}
	return now
}
