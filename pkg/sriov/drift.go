package sriov

import (
	"fmt"
	"strings"
)

// Drift says how have differs from want, a line for each property. It is empty
// where Plan has nothing to do.
func Drift(want, have State) []string {
	var lines []string
	lines = append(lines, linkDrift(want.Link, have.Link)...)
	p := &planner{have: have, want: want}
	if want.Port != nil && have.Port == nil {
		lines = append(lines, "PF is missing")
	}
	for f := PortMAC; f <= PortTrust; f <<= 1 {
		if p.portFields()&f != 0 {
			w, h := portFields(f).list(*want.Port)[0], portFields(f).list(*have.Port)[0]
			lines = append(lines, fmt.Sprintf("vf: %s, want %s", h, w))
		}
	}
	if w, h := want.Representor, have.Representor; w != nil {
		switch {
		case h == nil:
			lines = append(lines, "representor is missing")
		case h.Up != w.Up || h.Bridge != w.Bridge || h.PVID != w.PVID:
			lines = append(lines, fmt.Sprintf("representor: %s, want %s", h, w))
		}
	}
	if want.RDMA != Nowhere && have.RDMA != want.RDMA {
		lines = append(lines, fmt.Sprintf("RDMA device: in %s, want %s", have.RDMA, want.RDMA))
	}
	return lines
}

func linkDrift(want, have *Link) []string {
	switch {
	case want == nil && have != nil:
		return []string{"network device " + have.Name + " is not of this attachment"}
	case want == nil:
		return nil
	case have == nil || have.Place != want.Place:
		return []string{fmt.Sprintf("network device is not in the %s", want.Place)}
	}
	var lines []string
	fields := changed(*have, *want)
	for f := LinkName; f <= LinkAllMulti; f <<= 1 {
		if fields&f != 0 {
			w, h := linkFields(f).list(*want)[0], linkFields(f).list(*have)[0]
			lines = append(lines, fmt.Sprintf("link %s: %s, want %s", want.Name, h, w))
		}
	}
	if missing := without(want.AltNames, have.AltNames); len(missing) > 0 {
		lines = append(lines, fmt.Sprintf("link %s: altname %s is missing", want.Name, strings.Join(missing, ", ")))
	}
	return lines
}
