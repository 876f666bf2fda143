package netconf

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/weft-cni/weft/pkg/sriov"
)

// VF is what a network of ModeSRIOV asks for. Its keys are those of sriov-cni,
// with their meaning there, and few more.
type VF struct {
	// Device is a PCI address, or the name of a network device of the node. It
	// is empty on commands but ADD where the runtime doesn't tell it.
	Device string
	// Settings are the VF's. Its MAC is Network's, the first of those asked
	// for.
	Settings sriov.Settings
	// InfoFile is the file that the device's description goes to (Network
	// Plumbing Working Group's device-info specification); empty for none.
	InfoFile string
}

// vfKeys are the keys of a configuration of ModeSRIOV.
var vfKeys = []string{
	"cniVersion", "name", "type", "mode", "deviceID", "vlan", "vlanQoS", "vlanProto", "mac", "mtu", "spoofchk", "trust",
	"link_state", "min_tx_rate", "max_tx_rate", "bridge", "dns", "ipam",
	"logLevel", "logFile", "dataDir", "runDir", "capabilities", "runtimeConfig", "args", "prevResult",
}

// readVF reads what a VF shall be like. n.MAC has been read before.
func (n *Network) readVF(f fields) error {
	if n.Mode != ModeSRIOV {
		return nil
	}
	n.VF = &VF{Settings: sriov.Settings{MTU: n.MTU, MAC: n.MAC}}
	// A DEL of a bad configuration does with what could be read.
	for _, read := range []func(fields) error{n.VF.readDevice, n.VF.readVLAN, n.VF.readPort, n.VF.readRates} {
		if err := read(f); err != nil {
			return err
		}
	}
	if n.VF.Device == "" && n.Env.Command == Add {
		return f.bad("deviceID", wantDevice)
	}
	return nil
}

const wantDevice = "a PCI address such as 0000:01:10.0, or the name of a network device of the node"

func (v *VF) readDevice(f fields) error {
	run, err := f.object("runtimeConfig", "an object")
	if err != nil {
		return err
	}
	for _, f := range []fields{f, run} { // the runtime knows better
		var id string
		if err := f.decode("deviceID", &id, wantDevice); err != nil {
			return err
		}
		if f.has("deviceID") && !sriov.IsAddress(id) && !IsLinkName(id) {
			return f.bad("deviceID", wantDevice)
		}
		if id != "" {
			v.Device = id
		}
	}
	want := "an absolute path"
	if err := run.decode("CNIDeviceInfoFile", &v.InfoFile, want); err != nil {
		return err
	}
	if v.InfoFile != "" && (!filepath.IsAbs(v.InfoFile) || strings.ContainsRune(v.InfoFile, 0)) {
		return run.bad("CNIDeviceInfoFile", want)
	}
	want = "the name of a bridge"
	if err := f.decode("bridge", &v.Settings.Bridge, want); err != nil {
		return err
	}
	if v.Settings.Bridge != "" && !IsLinkName(v.Settings.Bridge) {
		return f.bad("bridge", want)
	}
	return nil
}

const maxVLAN = 4094

func (v *VF) readVLAN(f fields) error {
	vlan := sriov.VLAN{Proto: sriov.Proto8021Q}
	var proto string
	const wantID, wantQoS, wantProto = "a number from 0 (no tag) to 4094", "a number from 0 to 7", "802.1q or 802.1ad"
	for _, key := range []struct {
		name, want string
		to         any
	}{{"vlan", wantID, &vlan.ID}, {"vlanQoS", wantQoS, &vlan.QoS}, {"vlanProto", wantProto, &proto}} {
		if err := f.decode(key.name, key.to, key.want); err != nil {
			return err
		}
	}
	switch strings.ToLower(proto) {
	case "", "802.1q":
	case "802.1ad":
		vlan.Proto = sriov.Proto8021AD
	default:
		return f.bad("vlanProto", wantProto)
	}
	switch {
	case vlan.ID < 0 || vlan.ID > maxVLAN:
		return f.bad("vlan", wantID)
	case vlan.QoS < 0 || vlan.QoS > 7:
		return f.bad("vlanQoS", wantQoS)
	case !f.has("vlan") && (f.has("vlanQoS") || f.has("vlanProto")):
		return f.bad("vlan", wantID+": vlanQoS and vlanProto are about its tag")
	case vlan.ID == 0 && vlan.QoS != 0:
		return f.bad("vlanQoS", "0 where vlan is 0")
	case vlan.ID == 0 && vlan.Proto == sriov.Proto8021AD:
		return f.bad("vlanProto", "802.1q where vlan is 0")
	}
	if f.has("vlan") {
		v.Settings.VLAN = &vlan
	}
	return nil
}

// readPort reads switches and the link state. An empty string is as good as
// none.
func (v *VF) readPort(f fields) error {
	for _, key := range []struct {
		name string
		to   *sriov.Switch
	}{{"spoofchk", &v.Settings.SpoofCheck}, {"trust", &v.Settings.Trust}} {
		word, err := oneOf(f, key.name, "on", "off")
		if err != nil {
			return err
		}
		if word != "" {
			*key.to = sriov.SwitchOf(word == "on")
		}
	}
	states := []string{"auto", "enable", "disable"}
	word, err := oneOf(f, "link_state", states...)
	if err != nil {
		return err
	}
	if word != "" {
		state := sriov.LinkState(slices.Index(states, word))
		v.Settings.LinkState = &state
	}
	return nil
}

// oneOf reads a word that is one of some, or empty.
func oneOf(f fields, key string, words ...string) (word string, err error) {
	if err = f.decode(key, &word, list(words)); err != nil {
		return "", err
	}
	if word != "" && !slices.Contains(words, word) {
		return "", f.bad(key, list(words))
	}
	return word, nil
}

func (v *VF) readRates(f fields) error {
	const most = 1<<31 - 1
	want := fmt.Sprintf("a number of Mbit/s from 0 (no bound) to %d", most)
	for _, key := range []struct {
		name string
		to   **int
	}{{"min_tx_rate", &v.Settings.MinRate}, {"max_tx_rate", &v.Settings.MaxRate}} {
		if !f.has(key.name) {
			continue
		}
		rate := 0
		if err := f.decode(key.name, &rate, want); err != nil {
			return err
		}
		if rate < 0 || rate > most {
			return f.bad(key.name, want)
		}
		*key.to = &rate
	}
	if least, bound := v.Settings.MinRate, v.Settings.MaxRate; least != nil && bound != nil && *bound != 0 && *least > *bound {
		return f.bad("min_tx_rate", fmt.Sprintf("at most max_tx_rate, %d", *bound))
	}
	return nil
}
