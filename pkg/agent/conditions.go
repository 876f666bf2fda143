package agent

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/weft-cni/weft/pkg/encrypt"
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
	reasonPodsStranded    = "PodsStranded"

	// Of encryption. Those of peers are told of all of them together: a peer
	// that many nodes can't reach is not worth an Event from each for each.
	reasonNoWireGuard      = "NoWireGuard"
	reasonOutside          = "PodCIDROutside"
	reasonNoPrivateKey     = "NoPrivateKey"
	reasonPresharedKey     = "PresharedKeyInvalid"
	reasonPeerWithoutKey   = "PeerWithoutKey"
	reasonPeerStrict       = "PeerTakesEncryptedOnly"
	reasonOtherPSK         = "PresharedKeyDiffers"
	reasonPeerSilent       = "NoHandshake"
	reasonRotationPostpone = "KeyRotationWaits"
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
	case errors.Is(r.host, errUnderlayLost):
		now["node"] = condition{reasonUnderlayLost, r.host.Error(), true}
	case errors.Is(r.host, errKeys):
		now["node"] = condition{reasonNoPrivateKey, r.host.Error(), true}
	case errors.Is(r.host, errOutside):
		now["node"] = condition{reasonOutside, r.host.Error(), true}
	case errors.Is(r.host, errPresharedKey): // below
	case r.host != nil:
		now["node"] = condition{reasonNoWireGuard, r.host.Error(), true}
	}
	r.observeEncryption(now)
	if r.plan.built() {
		if note := mtuMismatch(r.settings.MTU, r.plan); note != "" {
			now["mtu"] = condition{reasonMTUMismatch, note, true}
		}
	}
	if len(r.stranded) > 0 {
		now["pods"] = condition{reasonPodsStranded, fmt.Sprintf(
			"other nodes can't reach %s: their addresses are outside of this node's pod CIDRs %s; delete them, to be made anew",
			some("pod", r.stranded), r.plan.self.PodCIDRs), true}
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

// rotationPatience is how long a rotation may take before an operator hears of
// the peers that it waits for.
const rotationPatience = time.Hour

// observeEncryption adds the conditions that are about encryption.
func (r *runner) observeEncryption(now conditions) {
	e := r.encryption
	if e.invalid != nil {
		now["preshared key"] = condition{reasonPresharedKey, e.invalid.Error(), true}
	}
	if err := cmp.Or(e.unsealed, r.refused); err != nil && e.sealed {
		now["segments"] = condition{reasonNoWireGuard, "encrypted segments have no tunnels: " + err.Error(), true}
	}
	if !e.on() && len(r.plan.faults) == 0 {
		return
	}
	var keyless, strict, otherPSK []string
	for _, name := range r.plan.peers.Names() {
		switch err := r.plan.faults[name]; {
		case errors.Is(err, encrypt.ErrNoKey):
			keyless = append(keyless, name)
		case errors.Is(err, encrypt.ErrStrict):
			strict = append(strict, name)
		}
		if w, _ := r.plan.way(name); w.otherPSK {
			otherPSK = append(otherPSK, name)
		}
	}
	together := func(reason string, names []string, text string) {
		if len(names) > 0 {
			now[reason] = condition{reason, some("peer", names) + " " + text, true}
		}
	}
	together(reasonPeerWithoutKey, keyless, "can't be reached by pods: no WireGuard key, and nothing is sent in clear")
	together(reasonPeerStrict, strict, "can't be reached by pods: they take nothing in clear, and encryption is off here")
	together(reasonOtherPSK, otherPSK, "can't be reached encrypted: their preshared key is another")
	together(reasonPeerSilent, r.silent(), "answer no handshake")
	if len(e.keys) > 1 && time.Since(e.keys[0].Created) > rotationPatience {
		together(reasonRotationPostpone, r.needOld(), "still use this node's old key, which stays until they don't")
	}
}

// some names a few of many things.
func some(what string, names []string) string {
	const few = 5
	if len(names) != 1 {
		what += "s"
	}
	list := strings.Join(names[:min(few, len(names))], ", ")
	if len(names) > few {
		list += ", ..."
	}
	return fmt.Sprintf("%d %s (%s)", len(names), what, list)
}
