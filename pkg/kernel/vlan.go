package kernel

import (
	"fmt"
	"strconv"
	"strings"
)

// MaxVLAN is the largest VLAN identifier: 0 is none, and 4095 is reserved (IEEE
// 802.1Q table 9-2).
const MaxVLAN = 4094

// VLANList is a set of VLANs as comparable text, in order and as short as it can
// be: "20,30-40".
type VLANList string

// AllVLANs has each.
const AllVLANs VLANList = "1-4094"

// NewVLANList gives the VLANs of ranges, each from its first to its last, but for
// one: that which is untagged, or 0.
func NewVLANList(ranges [][2]uint16, but uint16) VLANList {
	var in [MaxVLAN + 1]bool
	for _, r := range ranges {
		for id := max(int(r[0]), 1); id <= min(int(r[1]), MaxVLAN); id++ {
			in[id] = id != int(but)
		}
	}
	var words []string
	for _, r := range rangesOf(in) {
		word := strconv.Itoa(int(r[0]))
		if r[1] > r[0] {
			word += "-" + strconv.Itoa(int(r[1]))
		}
		words = append(words, word)
	}
	return VLANList(strings.Join(words, ","))
}

// Ranges are l's, each from its first to its last.
func (l VLANList) Ranges() (all [][2]uint16) {
	for word := range strings.SplitSeq(string(l), ",") {
		first, last, isRange := strings.Cut(word, "-")
		if !isRange {
			last = first
		}
		a, err := strconv.ParseUint(first, 10, 16)
		b, err2 := strconv.ParseUint(last, 10, 16)
		if err == nil && err2 == nil {
			all = append(all, [2]uint16{uint16(a), uint16(b)})
		}
	}
	return all
}

func rangesOf(in [MaxVLAN + 1]bool) (all [][2]uint16) {
	for id := uint16(1); id <= MaxVLAN; id++ {
		if n := len(all); in[id] && n > 0 && all[n-1][1] == id-1 {
			all[n-1][1] = id
		} else if in[id] {
			all = append(all, [2]uint16{id, id})
		}
	}
	return all
}

// VLANs are those that a port of a bridge with VLAN filtering is in; none on
// other bridges.
type VLANs struct {
	// Native is that of frames without a tag, to and from the port (bridge(8):
	// pvid untagged); 0: such frames are dropped.
	Native uint16
	// Tagged are those of frames with a tag, Native not among them.
	Tagged VLANList
}

// Others are the ranges that v isn't in.
func (v VLANs) Others() [][2]uint16 {
	var out [MaxVLAN + 1]bool
	for id := range out {
		out[id] = id != int(v.Native)
	}
	for _, r := range v.Tagged.Ranges() {
		for id := int(r[0]); id <= min(int(r[1]), MaxVLAN); id++ {
			out[id] = false
		}
	}
	return rangesOf(out)
}

// String is empty for none.
func (v VLANs) String() string {
	var words []string
	if v.Native != 0 {
		words = append(words, fmt.Sprintf("%d pvid untagged", v.Native))
	}
	if v.Tagged != "" {
		words = append(words, string(v.Tagged))
	}
	return strings.Join(words, " ")
}

// suffix is what v adds to the text of the port.
func (v VLANs) suffix() string {
	if v == (VLANs{}) {
		return ""
	}
	return " vlans " + v.String()
}
