package netconf

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
)

// Encapsulation is what a segment's frames are put into between nodes.
type Encapsulation string

// Encapsulations of Ethernet frames.
const (
	EncapVXLAN  Encapsulation = "vxlan"  // RFC 7348, the default
	EncapGeneve Encapsulation = "geneve" // RFC 8926
	EncapNVGRE  Encapsulation = "nvgre"  // RFC 7637, with a FlowID of 0
)

var encapsulations = []string{string(EncapVXLAN), string(EncapGeneve), string(EncapNVGRE)}

// GenevePort is Geneve's UDP port (RFC 8926 section 3.3).
const GenevePort = 6081

// VSIDs that tenants can have; those below and the one above are reserved
// (RFC 7637).
const (
	minVSID = 1 << 12
	maxVSID = MaxVNI - 1
)

// Encap is t's encapsulation.
func (t Tunnels) Encap() Encapsulation { return cmp.Or(t.Encapsulation, EncapVXLAN) }

// readEncapsulation reads what frames are put into, after all else of t: some
// goes with VXLAN alone.
func (t *Tunnels) readEncapsulation(f fields) error {
	want := list(encapsulations)
	if err := f.decode("encapsulation", &t.Encapsulation, want); err != nil {
		return err
	}
	if f.has("encapsulation") && !slices.Contains(encapsulations, string(t.Encapsulation)) {
		return f.bad("encapsulation", want)
	}
	if t.Encap() == EncapVXLAN {
		t.Encapsulation = ""
		return nil
	}
	with := fmt.Sprintf(" with encapsulation %s", t.Encapsulation)
	switch {
	case t.Discovery == DiscoverMulticast:
		return f.bad("discovery", "kubernetes or static"+with+": its tunnels lead to one VTEP each")
	case t.Encrypt:
		return f.bad("encrypt", "false"+with+": tunnels inside WireGuard are VXLAN")
	case t.Encapsulation == EncapNVGRE && t.Port != 0:
		return f.bad("port", "none"+with+": GRE has no ports")
	}
	return nil
}

// checkVNI is an error about a VNI that an encapsulation has no place for.
func (t Tunnels) checkVNI(f fields, vni int64) error {
	if t.Encap() == EncapNVGRE && (vni < minVSID || vni > maxVSID) {
		return f.bad("vni", fmt.Sprintf("%d to %d with encapsulation nvgre: RFC 7637 reserves the other VSIDs", minVSID, maxVSID))
	}
	return nil
}

// portText is t's port in the form of messages.
func (t Tunnels) portText() string {
	switch {
	case t.Port != 0:
		return strconv.Itoa(int(t.Port))
	case t.Encap() == EncapGeneve:
		return strconv.Itoa(GenevePort)
	case t.Encap() == EncapNVGRE:
		return "none"
	}
	return "that of the cluster network"
}
