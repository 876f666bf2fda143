package netconf

import (
	"fmt"

	"github.com/weft-cni/weft/pkg/kernel"
)

// VLANs are those that the port is in; none on a segment without VLANs.
func (o PortOptions) VLANs() kernel.VLANs { return kernel.VLANs{Native: o.VLAN, Tagged: o.Trunk} }

// VLANText is the keys of VLANs in the form of messages, empty without them.
func (o PortOptions) VLANText() string {
	switch {
	case o.Trunk == "" && o.VLAN == 0:
		return ""
	case o.Trunk == "":
		return fmt.Sprintf("vlan %d", o.VLAN)
	case o.VLAN == 0:
		return fmt.Sprintf("trunk %s", o.Trunk)
	}
	return fmt.Sprintf("vlan %d, trunk %s", o.VLAN, o.Trunk)
}

// Station is a pod's own entry in its bridge's FDB. A trunk has none where all of
// its frames have tags: they are learned in each VLAN.
func (o PortOptions) Station(link string, mac kernel.MAC) kernel.State {
	if o.Trunk != "" && o.VLAN == 0 {
		return kernel.State{}
	}
	return kernel.NewState(kernel.Station{Link: link, MAC: mac, VLAN: o.VLAN})
}

var (
	wantVLAN  = fmt.Sprintf("a VLAN identifier, 1 to %d", kernel.MaxVLAN)
	wantTrunk = fmt.Sprintf(`a list of VLANs from 1 to %d, such as [{"id": 10}, {"minID": 20, "maxID": 29}]`, kernel.MaxVLAN)
)

// readVLANs reads the VLANs of a port, by the keys of the bridge plugin.
func (o *PortOptions) readVLANs(f fields) error {
	if err := f.decode("vlan", &o.VLAN, wantVLAN); err != nil {
		return err
	}
	if f.has("vlan") && !isVLAN(o.VLAN) {
		return f.bad("vlan", wantVLAN)
	}
	all, err := f.objects("trunk", wantTrunk)
	if err != nil {
		return err
	}
	var ranges [][2]uint16
	for _, f := range all {
		some, err := readTrunk(f)
		if err != nil {
			return err
		}
		ranges = append(ranges, some...)
	}
	o.Trunk = kernel.NewVLANList(ranges, o.VLAN)
	if f.has("trunk") && o.Trunk == "" {
		return f.bad("trunk", wantTrunk+", at least one beside vlan")
	}
	return nil
}

// readTrunk reads an element of a trunk: one VLAN, a range, or both.
func readTrunk(f fields) (ranges [][2]uint16, err error) {
	if err = f.only([]string{"id", "minID", "maxID"}, nil); err != nil {
		return nil, err
	}
	var id, first, last uint16
	for _, key := range []struct {
		name string
		to   *uint16
	}{{"id", &id}, {"minID", &first}, {"maxID", &last}} {
		if err = f.decode(key.name, key.to, wantVLAN); err != nil {
			return nil, err
		}
		if f.has(key.name) && !isVLAN(*key.to) {
			return nil, f.bad(key.name, wantVLAN)
		}
	}
	switch {
	case last != 0 && first == 0:
		return nil, f.bad("minID", wantVLAN+", beside maxID")
	case first > last:
		return nil, f.bad("maxID", fmt.Sprintf("a VLAN identifier from minID to %d", kernel.MaxVLAN))
	case id == 0 && first == 0:
		return nil, f.bad("id", wantVLAN+", or minID and maxID")
	}
	if id != 0 {
		ranges = append(ranges, [2]uint16{id, id})
	}
	if first != 0 {
		ranges = append(ranges, [2]uint16{first, last})
	}
	return ranges, nil
}

func isVLAN(id uint16) bool { return id >= 1 && id <= kernel.MaxVLAN }
