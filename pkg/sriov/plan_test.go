package sriov

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/weft-cni/weft/pkg/kernel"
)

// nic is a VF as the strictest of kernels and drivers has it.
type nic struct {
	State
	noTrust bool // the driver has no such setting
}

// carryOut does an operation, or refuses it as igb, igbvf and Linux 6.1 do.
func (n *nic) carryOut(op Op) error {
	switch o := op.(type) {
	case *LinkOp:
		if o.In != n.Link.Place {
			return fmt.Errorf("the device is in %s", n.Link.Place)
		}
		moves := o.Fields&LinkPlace != 0 && o.To.Place != n.Link.Place
		if o.Fields&LinkMAC != 0 && n.Port != nil && n.Port.MAC != (kernel.MAC{}) && n.Port.Trust == Off && !n.noTrust {
			return errors.New("the PF has set the VF's MAC: EADDRNOTAVAIL")
		}
		if o.Fields&LinkName != 0 && slices.Contains(n.Link.AltNames, o.To.Name) {
			return errors.New("it is its own alternative name: EEXIST")
		}
		if o.Fields&LinkName != 0 && n.Link.Up && !moves {
			return errors.New("renamed while up: EBUSY")
		}
	case *AltNameOp:
		if o.In != n.Link.Place {
			return fmt.Errorf("the device is in %s", n.Link.Place)
		}
		for _, name := range o.Names {
			if o.Delete != slices.Contains(n.Link.AltNames, name) || !o.Delete && name == n.Link.Name {
				return fmt.Errorf("altname %s", name)
			}
		}
	case *PortOp:
		if o.Fields&PortTrust != 0 && n.noTrust {
			if o.Try {
				return nil
			}
			return errors.New("trust: EOPNOTSUPP")
		}
		if o.Fields&(PortSpoofCheck|PortTrust) != 0 && o.Fields&PortSpoofCheck != 0 && o.To.SpoofCheck == Unknown {
			return errors.New("spoofchk unknown")
		}
	case *RDMAOp:
		if o.In != n.RDMA {
			return fmt.Errorf("the RDMA device is in %s", n.RDMA)
		}
	case *RepresentorOp:
		if o.From != *n.Representor {
			return fmt.Errorf("the representor is %s", n.Representor)
		}
	}
	op.apply(&n.State)
	return nil
}

// become plans the way to a state and goes it. In a pod, the VF must not be up
// with another VLAN than in.
func (n *nic) become(t *testing.T, want State, in VLAN) {
	t.Helper()
	before := n.State.Clone()
	ops := Plan(n.State, want)
	for i, op := range ops {
		if err := n.carryOut(op); err != nil {
			t.Fatalf("%v\nin step %d of\n%s\nfrom\n%sto\n%s", err, i+1, text(ops), before, want)
		}
		if l := n.Link; l != nil && n.Port != nil && l.Place == Pod && l.Up && n.Port.VLAN.normal() != in.normal() {
			t.Fatalf("in the pod with %s, want %s, after step %d of\n%s", n.Port.VLAN, in, i+1, text(ops))
		}
	}
	if again := Plan(n.State, want); len(again) > 0 {
		t.Fatalf("still to do:\n%s", text(again))
	}
	if drift := Drift(want, n.State); len(drift) > 0 {
		t.Fatalf("drift: %v", drift)
	}
}

func text(ops []Op) string {
	var b strings.Builder
	for _, op := range ops {
		fmt.Fprintln(&b, op)
	}
	return b.String()
}

// source makes random states.
type source struct{ *rand.Rand }

func pick[T any](r source, of ...T) T { return of[r.IntN(len(of))] }

func (r source) mac(zero bool) kernel.MAC {
	if zero && r.IntN(2) == 0 {
		return kernel.MAC{}
	}
	return kernel.MAC{2, 0, 0, 0, 0, byte(1 + r.IntN(3))}
}

func (r source) vlan() VLAN {
	return pick(r, VLAN{}, VLAN{ID: 100}, VLAN{ID: 100, QoS: 3, Proto: Proto8021Q}, VLAN{ID: 7, Proto: Proto8021AD})
}

func (r source) link() *Link {
	l := &Link{
		Place: Host, Name: pick(r, "eth2", "ens1v0", "net1"), Alias: pick(r, "", "a"), MAC: r.mac(false), MTU: pick(r, 1500, 9000),
		Up: r.IntN(2) == 0, Promisc: r.IntN(4) == 0, AllMulti: r.IntN(4) == 0,
	}
	for _, n := range []string{"enp1s16", "net1", "other"} {
		if r.IntN(2) == 0 && n != l.Name {
			l.AltNames = append(l.AltNames, n)
		}
	}
	return l
}

func (r source) port(noTrust bool) *Port {
	p := &Port{
		MAC: r.mac(true), VLAN: r.vlan(), SpoofCheck: pick(r, On, Off), Trust: pick(r, On, Off),
		LinkState: pick(r, StateAuto, StateEnable, StateDisable), Rate: Rate{Max: pick(r, 0, 100)},
	}
	if noTrust {
		p.Trust = Unknown
	}
	return p
}

// state is one that a VF can be in on the host.
func (r source) state() nic {
	n := nic{noTrust: r.IntN(4) == 0}
	if r.IntN(5) > 0 {
		n.Link = r.link()
	}
	if r.IntN(5) > 0 {
		n.Port = r.port(n.noTrust)
		if r.IntN(3) == 0 {
			n.Representor = &Representor{Name: "eth9", Up: r.IntN(2) == 0}
		}
	}
	n.RDMA = pick(r, Nowhere, Host)
	return n
}

func (r source) settings(n nic) Settings {
	s := Settings{}
	if n.Link != nil {
		s.MTU = pick(r, 0, 1400)
	}
	if n.Link != nil || n.Port != nil {
		s.MAC = r.mac(true)
	}
	if n.Port == nil {
		return s
	}
	if v := r.vlan(); r.IntN(2) == 0 {
		s.VLAN = &v
	}
	s.SpoofCheck = pick(r, Unknown, On, Off)
	if !n.noTrust {
		s.Trust = pick(r, Unknown, On, Off)
	}
	if state := pick(r, StateAuto, StateEnable, StateDisable); r.IntN(2) == 0 {
		s.LinkState = &state
	}
	if rate := pick(r, 0, 50); r.IntN(2) == 0 {
		s.MaxRate = &rate
	}
	if n.Representor != nil {
		s.Bridge = "br0"
		if s.VLAN != nil {
			s.VLAN = &VLAN{ID: s.VLAN.ID}
		}
	}
	return s
}

// damage is what a pod, a crash or the end of a namespace make of a VF.
func (r source) damage(n *nic) {
	l := n.Link
	if l == nil {
		return
	}
	if r.IntN(3) == 0 { // the namespace goes: the kernel takes the devices back
		l.Place, l.Up = Host, false
		if r.IntN(2) == 0 {
			l.Name = "dev5"
		}
		if n.RDMA != Nowhere {
			n.RDMA = Host
		}
	}
	for _, change := range []func(){
		func() { l.Name = "mine" },
		func() { l.MAC = kernel.MAC{2, 9, 9, 9, 9, 9} },
		func() { l.MTU = 1300 },
		func() { l.Up = !l.Up },
		func() { l.Promisc = !l.Promisc },
		func() { l.AltNames = append(l.AltNames, "strange") },
		func() { l.AltNames = nil },
		func() { l.Alias = "pod's" },
	} {
		if r.IntN(4) == 0 {
			change()
		}
	}
	l.AltNames = slices.DeleteFunc(l.AltNames, func(n string) bool { return n == l.Name })
}

// TestThereAndBack: from any state, attach and detach give the state back,
// whatever happened to the VF meanwhile, also when either was cut short after
// any step.
func TestThereAndBack(t *testing.T) {
	for seed := range uint64(20000) {
		r := source{rand.New(rand.NewPCG(seed, 0))}
		n := r.state()
		orig := n.State.Clone()
		want, err := Want(orig, "net1", r.settings(n))
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		in := VLAN{}
		if want.Port != nil {
			in = want.Port.VLAN
		}
		if r.IntN(3) > 0 {
			n.become(t, want, in)
		} else { // killed on the way
			ops := Plan(n.State, want)
			for _, op := range ops[:r.IntN(len(ops)+1)] {
				if err := n.carryOut(op); err != nil {
					t.Fatal(err)
				}
			}
		}
		r.damage(&n)
		if r.IntN(3) == 0 { // a first DEL is killed as well
			ops := Plan(n.State, orig)
			for _, op := range ops[:r.IntN(len(ops)+1)] {
				if err := n.carryOut(op); err != nil {
					t.Fatalf("seed %d: %v in\n%s", seed, err, text(ops))
				}
			}
		}
		n.become(t, orig, in)
		if d := cmp.Diff(normal(orig), normal(n.State)); d != "" {
			t.Fatalf("seed %d: not as it was:\n%s", seed, d)
		}
	}
}

// normal makes one state of those that mean the same.
func normal(s State) State {
	s = s.Clone()
	if s.Port != nil {
		s.Port.VLAN = s.Port.VLAN.normal()
	}
	if s.Link != nil && len(s.Link.AltNames) == 0 {
		s.Link.AltNames = nil
	}
	return s
}

// TestWalk goes from any state to any other, the VF staying where it is or
// not.
func TestWalk(t *testing.T) {
	r := source{rand.New(rand.NewPCG(1, 2))}
	n := nic{State: State{Link: r.link(), Port: r.port(false), RDMA: Host}}
	for range 20000 {
		want := State{Link: r.link(), Port: r.port(false), RDMA: pick(r, Host, Pod)}
		want.Link.Place = pick(r, Host, Pod)
		in := want.Port.VLAN
		if n.Link.Place == Pod {
			// The VLAN of a VF that stays in its pod is for whoever asks.
			want.Port.VLAN = n.Port.VLAN
			in = n.Port.VLAN
		}
		n.become(t, want, in)
		if d := cmp.Diff(normal(want), normal(n.State)); d != "" {
			t.Fatal(d)
		}
	}
}

// TestPlanText shows the usual ways.
func TestPlanText(t *testing.T) {
	fresh := State{
		Link: &Link{Place: Host, Name: "eth2", AltNames: []string{"enp1s16"}, MAC: kernel.MAC{2, 1, 1, 1, 1, 1}, MTU: 1500},
		Port: &Port{SpoofCheck: On, Trust: Off},
	}
	administered := fresh.Clone()
	administered.Port.MAC = fresh.Link.MAC
	settings := Settings{MAC: kernel.MAC{2, 0, 0, 0, 0, 1}, VLAN: &VLAN{ID: 100}, SpoofCheck: Off, MTU: 1400}
	for _, c := range []struct {
		name     string
		orig     State
		settings Settings
		attach   string
		detach   string
	}{
		{"nothing asked for", fresh, Settings{}, `
			link set netns pod name net1 up`, `
			link set netns host name eth2 down`},
		{"MAC and VLAN", fresh, settings, `
			link set address 02:00:00:00:00:01
			vf mac 02:00:00:00:00:01 vlan 100 spoofchk off
			link set netns pod name net1 mtu 1400 up`, `
			link set netns host name eth2 mtu 1500 down
			vf mac 00:00:00:00:00:00 vlan 0 spoofchk on
			link set address 02:01:01:01:01:01`},
		{"the PF has set a MAC before", administered, settings, `
			vf trust on
			vf mac 02:00:00:00:00:01 vlan 100 spoofchk off
			link set address 02:00:00:00:00:01
			vf trust off
			link set netns pod name net1 mtu 1400 up`, `
			link set netns host name eth2 mtu 1500 down
			vf trust on
			vf mac 02:01:01:01:01:01 vlan 0 spoofchk on
			link set address 02:01:01:01:01:01
			vf trust off`},
	} {
		t.Run(c.name, func(t *testing.T) {
			want, err := Want(c.orig, "net1", c.settings)
			if err != nil {
				t.Fatal(err)
			}
			for _, way := range []struct {
				ops  []Op
				want string
			}{{Plan(c.orig, want), c.attach}, {Plan(want, c.orig), c.detach}} {
				lines := strings.TrimSpace(strings.ReplaceAll(way.want, "\t", ""))
				if d := cmp.Diff(lines, strings.TrimSpace(text(way.ops))); d != "" {
					t.Error(d)
				}
			}
		})
	}
}

// TestWantRefuses: an option that can't be had is named.
func TestWantRefuses(t *testing.T) {
	enable, rate := StateEnable, 10
	link := State{Link: &Link{Place: Host, Name: "eth2"}}
	for _, c := range []struct {
		orig State
		s    Settings
		is   error
		want string
	}{
		{link, Settings{VLAN: &VLAN{ID: 1}}, ErrNoPF, "vlan: "},
		{link, Settings{SpoofCheck: On}, ErrNoPF, "spoofchk: "},
		{link, Settings{Trust: Off}, ErrNoPF, "trust: "},
		{link, Settings{LinkState: &enable}, ErrNoPF, "link_state: "},
		{link, Settings{MinRate: &rate}, ErrNoPF, "min_tx_rate: "},
		{link, Settings{MaxRate: &rate}, ErrNoPF, "max_tx_rate: "},
		{link, Settings{Bridge: "br0"}, ErrNoEswitch, "bridge: "},
		{State{}, Settings{MAC: kernel.MAC{2}}, ErrNoPF, "mac: "},
		{State{}, Settings{MTU: 1400}, ErrNoLink, "mtu: "},
	} {
		_, err := Want(c.orig, "net1", c.s)
		if !errors.Is(err, c.is) || !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("%+v: %v", c.s, err)
		}
	}
	if _, err := Want(link, "net1", Settings{MAC: kernel.MAC{2}, MTU: 1400}); err != nil {
		t.Errorf("MAC and MTU need no PF: %v", err)
	}
	representor := State{Port: &Port{}, Representor: &Representor{Name: "eth9"}}
	if _, err := Want(representor, "net1", Settings{VLAN: &VLAN{ID: 5}}); err == nil || !strings.Contains(err.Error(), "key bridge") {
		t.Errorf("a VLAN without a bridge in switchdev mode: %v", err)
	}
}
