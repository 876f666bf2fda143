package sriov

import (
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
)

// portNames are the forms in which drivers name the ports of an eSwitch
// (Documentation/networking/devlink/devlink-port.rst): pf0vf3, long ago plainly
// 3, and c1pf0vf3 for a VF of another host that a DPU serves. Physical ports
// are p0, subfunctions pf0sf8.
var portNames = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^(?:(c\d+)?pf(\d+)vf(\d+)|(\d+))$`)
})

// port is a VF's port of an eSwitch.
type port struct {
	external bool // of another host
	pf       int  // -1: not told
	index    int
}

// portName reads the port name of a network device; ok is false where it isn't
// that of a VF's representor.
func (s Sysfs) portName(link string) (p port, ok bool) {
	text, err := os.ReadFile(s.path("class/net", link, "phys_port_name"))
	if err != nil {
		return port{}, false // most drivers have none
	}
	m := portNames().FindStringSubmatch(strings.TrimSpace(string(text)))
	if m == nil {
		return port{}, false
	}
	number := func(s string) int {
		n, err := strconv.Atoi(s)
		if err != nil {
			return -1
		}
		return n
	}
	if m[4] != "" {
		return port{pf: -1, index: number(m[4])}, true
	}
	return port{external: m[1] != "", pf: number(m[2]), index: number(m[3])}, true
}

func (s Sysfs) switchID(link string) string {
	text, err := os.ReadFile(s.path("class/net", link, "phys_switch_id"))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}

// Representor is the network device that stands for a VF in its PF's eSwitch;
// it is empty where the eSwitch isn't in switchdev mode. In that mode the error
// is ErrNoDevice where the VF has none.
func (s Sysfs) Representor(d Device) (string, error) {
	if d.PFLink == "" {
		return "", nil
	}
	id := s.switchID(d.PFLink)
	if id == "" {
		return "", nil
	}
	links, err := os.ReadDir(s.path("class/net"))
	if err != nil {
		return "", fmt.Errorf("representor of %s: %w", d, err)
	}
	found, ports := "", 0
	for _, l := range links {
		if s.switchID(l.Name()) != id {
			continue
		}
		p, ok := s.portName(l.Name())
		if !ok || p.external {
			continue
		}
		ports++
		if p.index == d.Index && (p.pf < 0 || p.pf == s.function(d.PF)) {
			found = l.Name()
		}
	}
	if found == "" && ports > 0 {
		return "", fmt.Errorf("representor of %s: %w", d, ErrNoDevice)
	}
	// A NIC may tell a switch ID in legacy mode, too: then nothing stands for
	// its VFs.
	return found, nil
}

// function is the number of a PF at its device: the PCI address's last digit.
func (s Sysfs) function(pf string) int {
	_, digit, _ := strings.Cut(pf, ".")
	n, err := strconv.Atoi(digit)
	if err != nil {
		return -1
	}
	return n
}
