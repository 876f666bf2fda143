package netconf

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/weft-cni/weft/pkg/kernel"
)

// Discovery is how a node finds the others that take part in a segment.
type Discovery string

// Ways of discovery.
const (
	DiscoverKubernetes Discovery = "kubernetes" // by SegmentMembers, the default
	DiscoverStatic     Discovery = "static"     // by a list of VTEPs, the same for all
	DiscoverMulticast  Discovery = "multicast"  // by a group on the underlay
)

var discoveries = []string{string(DiscoverKubernetes), string(DiscoverStatic), string(DiscoverMulticast)}

// Tunnels says how frames of a segment get from node to node. All attachments
// to a segment have to agree on it, on all nodes.
type Tunnels struct {
	Discovery Discovery `json:"discovery,omitempty"` // empty: DiscoverKubernetes
	// VTEPs are those outside the cluster, of one family and in order; with
	// DiscoverStatic all that there are, this node's own among them or not.
	VTEPs []netip.Addr `json:"vteps,omitempty"`
	Group netip.Addr   `json:"group,omitzero"` // of DiscoverMulticast
	Port  uint16       `json:"port,omitempty"` // UDP; 0: the cluster network's, or GenevePort
	// Encapsulation is what frames are put into; empty: EncapVXLAN.
	Encapsulation Encapsulation `json:"encapsulation,omitempty"`
	// Encrypt has the tunnels inside WireGuard, between nodes only.
	Encrypt bool `json:"encrypt,omitempty"`
	// VLANs has each frame in them carry the tag of its VLAN.
	VLANs bool `json:"vlans,omitempty"`
}

// Open reports whether stations may be behind VTEPs that no object tells of.
func (t Tunnels) Open() bool { return !t.ByObjects() || len(t.VTEPs) > 0 }

// ByObjects reports whether the members are those that SegmentMembers tell of.
func (t Tunnels) ByObjects() bool {
	return cmp.Or(t.Discovery, DiscoverKubernetes) == DiscoverKubernetes
}

// values are t's keys with their values, in the form of messages.
func (t Tunnels) values() [][2]string {
	var vteps []string
	for _, a := range t.VTEPs {
		vteps = append(vteps, a.String())
	}
	group := "none"
	if t.Group.IsValid() {
		group = t.Group.String()
	}
	return [][2]string{
		{"encapsulation", string(t.Encap())},
		{"discovery", string(cmp.Or(t.Discovery, DiscoverKubernetes))},
		{"vteps", "[" + strings.Join(vteps, " ") + "]"},
		{"group", group},
		{"port", t.portText()},
		{"encrypt", strconv.FormatBool(t.Encrypt)},
		{"vlan", t.vlanText()},
	}
}

// vlanText is what attachments have for the key.
func (t Tunnels) vlanText() string {
	if t.VLANs {
		return fmt.Sprintf("1 to %d, or trunk", kernel.MaxVLAN)
	}
	return "none"
}

// Agree is nil where t, which an attachment asks for, is what the segment has
// already at a place such as "on this node". It is an *InputError otherwise.
func (t Tunnels) Agree(has Tunnels, where string) error {
	theirs := has.values()
	for i, own := range t.values() {
		if own != theirs[i] {
			return &InputError{
				Kind: ErrConfig, Key: own[0], Value: own[1],
				Want: fmt.Sprintf("%s, as the segment has it %s: all attachments to a segment have to agree", theirs[i][1], where),
			}
		}
	}
	return nil
}

// readTunnels reads how frames get from node to node.
func readTunnels(f fields) (t Tunnels, err error) {
	t.Discovery = DiscoverKubernetes
	want := list(discoveries)
	if err = f.decode("discovery", &t.Discovery, want); err != nil {
		return t, err
	}
	if !slices.Contains(discoveries, string(t.Discovery)) {
		return t, f.bad("discovery", want)
	}
	if t.VTEPs, err = readVTEPs(f); err != nil {
		return t, err
	}
	if t.Discovery == DiscoverStatic && len(t.VTEPs) == 0 {
		return t, f.bad("vteps", "with discovery static "+wantVTEPs)
	}
	if t.Discovery == DiscoverMulticast && f.has("vteps") {
		return t, f.bad("vteps", "none with discovery multicast: who is in the group is a member")
	}
	if t.Group, err = readGroup(f, t.Discovery); err != nil {
		return t, err
	}
	want = "a UDP port, 1 to 65535"
	if err = f.decode("port", &t.Port, want); err != nil {
		return t, err
	}
	if f.has("port") && t.Port == 0 {
		return t, f.bad("port", want)
	}
	if err = t.readEncrypt(f); err != nil {
		return t, err
	}
	return t, t.readEncapsulation(f)
}

// readEncrypt reads whether the tunnels are inside WireGuard. Who isn't a node has
// no key.
func (t *Tunnels) readEncrypt(f fields) error {
	if err := f.decode("encrypt", &t.Encrypt, "true or false"); err != nil {
		return err
	}
	switch {
	case !t.Encrypt:
		return nil
	case !t.ByObjects():
		return f.bad("discovery", "kubernetes with encrypt: others than nodes have no keys")
	case len(t.VTEPs) > 0:
		return f.bad("vteps", "none with encrypt: others than nodes have no keys")
	case t.Port != 0:
		return f.bad("port", "none with encrypt: it is the one behind WireGuard's four")
	}
	return nil
}

// maxVTEPs bounds the copies that are made of a broadcast.
const maxVTEPs = 256

var wantVTEPs = fmt.Sprintf("a list of 1 to %d unicast addresses of one family", maxVTEPs)

func readVTEPs(f fields) ([]netip.Addr, error) {
	var words []string
	if err := f.decode("vteps", &words, wantVTEPs); err != nil {
		return nil, err
	}
	if f.has("vteps") && len(words) == 0 || len(words) > maxVTEPs {
		return nil, f.bad("vteps", wantVTEPs)
	}
	var all []netip.Addr
	for _, word := range words {
		a, err := netip.ParseAddr(word)
		if err != nil || !a.IsGlobalUnicast() || a.Is4In6() || a.Zone() != "" || len(all) > 0 && a.Is4() != all[0].Is4() {
			return nil, f.bad("vteps", wantVTEPs)
		}
		all = append(all, a)
	}
	slices.SortFunc(all, netip.Addr.Compare)
	return slices.Compact(all), nil
}

func readGroup(f fields, d Discovery) (netip.Addr, error) {
	var word string
	want := "a multicast address such as 239.1.1.1 or ff05::100"
	if err := f.decode("group", &word, want); err != nil {
		return netip.Addr{}, err
	}
	if d != DiscoverMulticast {
		if f.has("group") {
			return netip.Addr{}, f.bad("group", "none, or discovery multicast")
		}
		return netip.Addr{}, nil
	}
	a, err := netip.ParseAddr(word)
	if err != nil || !a.IsMulticast() || a.Is4In6() || a.Zone() != "" || a.IsInterfaceLocalMulticast() {
		return netip.Addr{}, f.bad("group", want)
	}
	return a, nil
}
