package agent

import (
	"maps"
	"slices"
	"time"

	"github.com/weft-cni/weft/pkg/encrypt"
	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/kernel/rtnl"
)

// traffic is what was last seen of WireGuard's peers. It is an observation, and
// no state: a daemon that starts waits until it has made its own.
type traffic struct {
	seen map[encrypt.Session]seen
	at   time.Time // of the look
	// delay is the time to the next look, 0 where sessions decide nothing.
	delay time.Duration
	// since is when looks like that began.
	since time.Time
}

type seen struct {
	rtnl.PeerTraffic
	received time.Time // when Rx was last seen to grow, or first seen
	trying   time.Time // since when Tx grows without a session; zero: it doesn't
}

// Times between two looks at WireGuard's sessions while they decide something:
// short after a change, and then ever longer.
const (
	firstLook = 50 * time.Millisecond
	lastLook  = 10 * time.Second
)

// quiet is how long an old key must have received nothing before it is retired.
// A peer that has not left it sends a keepalive more than twice in that time
// (encrypt.PlanPeer).
const quiet = 60 * time.Second

// unanswered is how long a peer may leave handshakes without an answer before it
// counts as silent: several attempts, which are 5 s apart.
const unanswered = 30 * time.Second

// silent lists the peers that don't answer on any tunnel.
func (r *runner) silent() (names []string) {
	now := time.Now()
	for _, name := range r.plan.peers.Names() {
		w, _ := r.plan.way(name)
		up, tried := false, false
		for _, t := range w.tunnels {
			s := r.traffic.seen[t.Session]
			up = up || s.Established(now)
			tried = tried || !s.trying.IsZero() && now.Sub(s.trying) >= unanswered
		}
		if tried && !up {
			names = append(names, name)
		}
	}
	return names
}

// watchTraffic looks at the WireGuard devices, where it is time to.
func (r *runner) watchTraffic(w work) error {
	if w.asked != nil {
		r.encryption.asked = *w.asked
		if r.encryption.asked.After(time.Now()) {
			r.encryption.asked = time.Time{} // a key made now would be due again
		}
	}
	if !w.sessions && !w.all && r.plan.built() {
		return nil
	}
	now := time.Now()
	all, err := r.kernel.PeerTraffic(encrypt.Links())
	if err != nil {
		return err
	}
	next := make(map[encrypt.Session]seen, len(all))
	for _, t := range all {
		id := encrypt.Session{Link: t.Link, Peer: t.PublicKey}
		s := seen{PeerTraffic: t, received: now}
		if before, ok := r.traffic.seen[id]; ok && t.Rx == before.Rx {
			s.received = before.received
			if t.Tx != before.Tx && !t.Established(now) {
				s.trying = before.trying
				if s.trying.IsZero() {
					s.trying = now
				}
			}
		}
		next[id] = s
	}
	r.traffic.seen, r.traffic.at = next, now
	return nil
}

// sessions are those that there were when they were last looked at.
func (t traffic) sessions() encrypt.Sessions {
	now := time.Now()
	all := encrypt.Sessions{}
	for id, s := range t.seen {
		if s.Established(now) {
			all[id] = struct{}{}
		}
	}
	return all
}

// rekeyed forgets the sessions of slots whose key is another or none from now
// on: those ended with the key.
func (r *runner) rekeyed(before, now []encrypt.Key) {
	for _, old := range before {
		if slices.ContainsFunc(now, func(k encrypt.Key) bool { return k.Slot == old.Slot && k.Private == old.Private }) {
			continue
		}
		for slot := range encrypt.Slots {
			link := encrypt.Link(old.Slot, slot)
			maps.DeleteFunc(r.traffic.seen, func(s encrypt.Session, _ seen) bool { return s.Link == link })
			maps.DeleteFunc(r.plan.sessions, func(s encrypt.Session, _ struct{}) bool { return s.Link == link })
		}
	}
}

// remade forgets the sessions with peers that were made or deleted: a peer that
// is made anew under its old key has none.
func (t traffic) remade(ops []kernel.Op) {
	for _, op := range ops {
		if p, ok := either(op).(kernel.WireGuardPeer); ok && op.Verb != kernel.Replace {
			delete(t.seen, encrypt.Session{Link: p.Link, Peer: p.PublicKey})
		}
	}
}

// either is the object that an operation is about.
func either(op kernel.Op) kernel.Object {
	if op.Want != nil {
		return op.Want
	}
	return op.Have
}

// pace sets the time to the next look: soon after a change, later where nothing
// changes, and none where sessions decide nothing.
func (r *runner) pace(w work, changed bool) {
	switch {
	case r.plan.choices == 0 && len(r.encryption.keys) < encrypt.Slots && !r.draining():
		r.traffic.delay = 0
	case r.traffic.delay == 0:
		r.traffic.delay, r.traffic.since = firstLook, time.Now()
	case changed:
		r.traffic.delay = firstLook
	case w.sessions:
		r.traffic.delay = min(r.traffic.delay*3/2, lastLook)
	}
}

// draining reports whether peers may still have packets under way by the
// sessions of a node that doesn't encrypt any more.
func (r *runner) draining() bool {
	r.drains = r.drains && !r.encryption.on() && len(r.plan.sessions) > 0
	return r.drains
}

// rotates reports whether there is something to be done about keys: an operator
// asked for a new one, one can be retired, or tunnels of a node that doesn't
// encrypt any more are no longer needed.
func (r *runner) rotates() bool {
	e := r.encryption
	switch {
	case !e.on():
		return r.plan.built() && len(r.plan.self.Keys) > 0 && !r.draining()
	case len(e.keys) == 1:
		return !time.Now().Before(encrypt.Due(e.config, e.keys, e.asked))
	}
	return len(e.keys) > 1 && r.retirable()
}

// retire removes the old key when nobody needs it.
func (r *runner) retire() error {
	if len(r.encryption.keys) < encrypt.Slots || !r.retirable() {
		return nil
	}
	return r.encryption.retire()
}

// retirable reports whether no peer needs the old key: each has a session with
// the new one, or none at all, and nothing came by the old one for a while.
func (r *runner) retirable() bool { return r.done && len(r.needOld()) == 0 }

// needOld lists peers that need the old key, as of the last look: what nobody
// has looked at since is no silence.
func (r *runner) needOld() (names []string) {
	newest, now := r.encryption.keys[0], r.traffic.at
	// Nobody can be known to have left the old key before.
	early := now.Sub(newest.Created) < quiet || now.Sub(r.traffic.since) < quiet
	for _, name := range r.plan.peers.Names() {
		w, _ := r.plan.way(name)
		var fresh, stale, recent bool
		for _, t := range w.tunnels {
			s, known := r.traffic.seen[t.Session]
			up := known && s.Established(now)
			if t.OwnSlot == newest.Slot {
				fresh = fresh || up
				continue
			}
			stale = stale || up
			recent = recent || known && now.Sub(s.received) < quiet
		}
		if len(w.tunnels) > 0 && (early || stale && !fresh || recent) {
			names = append(names, name)
		}
	}
	return names
}
