package segment

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/netconf"
	"github.com/weft-cni/weft/pkg/overlay"
)

// PeerTunnelStart begins the names of tunnels to one VTEP, which the
// encapsulations but VXLAN have. A number to the base of 32 follows that says
// which segment and which VTEP.
const PeerTunnelStart = "t-weft"

// A peer tunnel's number is its VNI and behind it this many bits of a hash of
// its VTEP: nine digits, which fill a link's name.
const (
	remoteBits   = 20
	numberDigits = 9
	numberBase   = 32
)

// VNIOf is the segment that a device is of, by its name.
func VNIOf(link string) (vni uint32, ok bool) {
	if digits, is := strings.CutPrefix(link, PeerTunnelStart); is {
		n, err := strconv.ParseUint(digits, numberBase, 24+remoteBits)
		return uint32(n >> remoteBits), err == nil && len(digits) == numberDigits
	}
	for _, start := range []string{netconf.BridgeStart, TunnelStart} {
		if number, is := strings.CutPrefix(link, start); is {
			n, err := strconv.ParseUint(number, 10, 24)
			return uint32(n), err == nil
		}
	}
	return 0, false
}

// LinkKind is the kind of link that a node needs for such tunnels, empty for
// VXLAN. The error is ErrUnderlay or ErrNoKey.
func LinkKind(self overlay.Self, t netconf.Tunnels) (kernel.TunnelKind, error) {
	u, err := underlay(self, t)
	if err != nil {
		return "", err
	}
	return kindOver(u, t.Encap()), nil
}

func kindOver(u overlay.Underlay, e netconf.Encapsulation) kernel.TunnelKind {
	switch {
	case e == netconf.EncapGeneve:
		return kernel.Geneve
	case e == netconf.EncapNVGRE && u.Addr.Is4():
		return kernel.GRETAP
	case e == netconf.EncapNVGRE:
		return kernel.IP6GRETAP
	}
	return ""
}

// peerTunnels are a device for each VTEP.
type peerTunnels struct {
	common kernel.Tunnel         // what they have in common
	to     map[netip.Addr]string // their names
	taken  map[uint32]bool       // hashes
}

// reach gives a VTEP a device: the bridge floods to all of them.
func (p *peerTunnels) reach(_ kernel.State, vtep netip.Addr, _ uint16) {
	if p.to[vtep] != "" { // a peer's that is in a list as well
		return
	}
	hash := hashOf(vtep)
	for p.taken[hash] {
		hash = (hash + 1) % (1 << remoteBits)
	}
	p.taken[hash] = true
	number := strconv.FormatUint(uint64(p.common.VNI)<<remoteBits|uint64(hash), numberBase)
	p.to[vtep] = PeerTunnelStart + strings.Repeat("0", numberDigits-len(number)) + number
}

func (p *peerTunnels) station(s kernel.State, e Endpoint, vtep netip.Addr, _ uint16) string {
	s.Merge(e.behind(p.to[vtep], p.common.VLANs))
	return p.to[vtep]
}

func (p *peerTunnels) put(s kernel.State, learning, moving bool) {
	for vtep, name := range p.to {
		t := p.common
		t.Name, t.Remote, t.Learning, t.Moving = name, vtep, learning, moving
		s.Put(t)
	}
}

func hashOf(vtep netip.Addr) uint32 {
	sum := sha256.Sum256(fmt.Appendf(nil, "weft vtep %s", vtep))
	return binary.BigEndian.Uint32(sum[:]) >> (32 - remoteBits)
}
