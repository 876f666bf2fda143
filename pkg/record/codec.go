package record

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/weft-cni/weft/pkg/netconf"
	"github.com/weft-cni/weft/pkg/sriov"
)

// tempPrefix starts the name of a record that isn't complete yet; no container
// ID starts with a dot.
const tempPrefix = "."

// fileName is that of an attachment's record. Neither name may have a colon,
// so no two attachments share one.
func fileName(containerID, ifName string) string { return containerID + ":" + ifName }

func encode(a Attachment) ([]byte, error) {
	a.Version = Version
	if err := a.validate(); err != nil {
		return nil, err
	}
	data, err := json.MarshalIndent(a, "", "  ")
	return append(data, '\n'), err
}

// decode reads a record and validates it. Of another version it reads nothing:
// what that has to undo is unknown here.
func decode(data []byte) (Attachment, error) {
	var keys map[string]json.RawMessage
	if err := json.Unmarshal(data, &keys); err != nil || keys == nil {
		return Attachment{}, fmt.Errorf("not a JSON object: %.80q", data)
	}
	var a Attachment
	for _, f := range []struct {
		key, want string
		to        any
	}{
		{"version", wantVersion, &a.Version},
		{"containerID", "a container ID", &a.ContainerID},
		{"ifName", wantLink, &a.IfName},
		{"network", "the name of a network", &a.Network},
		{"netns", "the path of a network namespace", &a.Netns},
		{"mode", "a mode", &a.Mode},
		{"podNamespace", "a name", &a.PodNamespace},
		{"podName", "a name", &a.PodName},
		{"podUID", "a UID", &a.PodUID},
		{"vni", "a VXLAN network identifier", &a.VNI},
		{"port", "what a pod may do on its segment", &a.Port},
		{"hostLink", wantLink, &a.HostLink},
		{"podMAC", "an Ethernet address", &a.PodMAC},
		{"mtu", "a number of bytes", &a.MTU},
		{"addrs", wantAddrs, &a.Addrs},
		{"routes", wantRoutes, &a.Routes},
		{"vf", "a device and its states", &a.VF},
		{"ipam", "the type of an IPAM plugin", &a.IPAM},
		{"config", "a network configuration", &a.Config},
		{"args", "CNI_ARGS", &a.Args},
		{"created", "a time (RFC 3339)", &a.Created},
		{"bootID", "a boot ID", &a.BootID},
	} {
		raw, ok := keys[f.key]
		if ok && json.Unmarshal(raw, f.to) != nil {
			return Attachment{}, fault(f.key, string(raw), f.want)
		}
		if f.key == "version" && a.Version != Version {
			return Attachment{}, fault(f.key, strconv.Itoa(a.Version), wantVersion)
		}
	}
	if err := a.validate(); err != nil {
		return Attachment{}, err
	}
	return a, nil
}

const (
	wantVersion = "1"
	wantLink    = "the name of an interface"
	wantAddrs   = "IP addresses without a zone, none of them twice"
	wantRoutes  = "routes with a destination"
)

func fault(key, value, want string) error {
	return fmt.Errorf("%s is %s; accepted: %s", key, value, want)
}

func validNames(containerID, ifName string) error {
	if !netconf.IsName(containerID) {
		return fault("containerID", strconv.Quote(containerID), "a container ID")
	}
	if !netconf.IsLinkName(ifName) {
		return fault("ifName", strconv.Quote(ifName), wantLink)
	}
	return nil
}

// validate checks what code that acts on a record takes for granted.
func (a Attachment) validate() error {
	if err := validNames(a.ContainerID, a.IfName); err != nil {
		return err
	}
	switch {
	case !netconf.IsName(a.Network):
		return fault("network", strconv.Quote(a.Network), "the name of a network")
	case !filepath.IsAbs(a.Netns):
		return fault("netns", strconv.Quote(a.Netns), "the absolute path of a network namespace")
	case a.Mode == "":
		return fault("mode", strconv.Quote(a.Mode), "a mode")
	case a.HostLink != "" && !netconf.IsLinkName(a.HostLink):
		return fault("hostLink", strconv.Quote(a.HostLink), wantLink)
	case a.VF != nil && !sriov.IsAddress(a.VF.Device.Address):
		return fault("vf.device.address", strconv.Quote(a.VF.Device.Address), "a PCI address")
	case a.MTU < 0:
		return fault("mtu", strconv.Itoa(a.MTU), "a number of bytes")
	case a.IPAM == "":
		return fault("ipam", strconv.Quote(a.IPAM), "the type of an IPAM plugin")
	case a.BootID == "":
		return fault("bootID", strconv.Quote(a.BootID), "a boot ID")
	}
	for i, addr := range a.Addrs {
		if !addr.IsValid() || addr.Zone() != "" || slices.Contains(a.Addrs[:i], addr) {
			return fault("addrs", fmt.Sprint(a.Addrs), wantAddrs)
		}
	}
	for i, r := range a.Routes {
		if !r.Dst.IsValid() {
			return fault(fmt.Sprintf("routes[%d].dst", i), strconv.Quote(""), wantRoutes)
		}
	}
	return nil
}

// read gives the record in a file. The error is fs.ErrNotExist or a
// *CorruptError.
func read(path string) (Attachment, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Attachment{}, fmt.Errorf("record: %w", err)
	}
	var a Attachment
	if err == nil {
		a, err = decode(data)
	}
	if err == nil && fileName(a.ContainerID, a.IfName) != filepath.Base(path) {
		err = fmt.Errorf("holds attachment %s/%s, not that of its name", a.ContainerID, a.IfName)
	}
	if err != nil {
		return Attachment{}, &CorruptError{Path: path, Err: err}
	}
	return a, nil
}

// sync makes the directory's entries survive a power failure.
func (s Store) sync() error {
	d, err := os.Open(s.Dir)
	if err != nil {
		return fmt.Errorf("record: %w", err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("record: %w", err)
	}
	return nil
}
