package record

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/weft-cni/weft/pkg/netconf"
)

// tempPrefix starts the name of a record that isn't complete yet; no container
// ID starts with a dot.
const tempPrefix = "."

// fileName is that of an attachment's record. Neither name may have a colon,
// so no two attachments share one.
func fileName(containerID, ifName string) string { return containerID + ":" + ifName }

func validNames(containerID, ifName string) error {
	if !netconf.IsName(containerID) {
		return fmt.Errorf("containerID is %q; accepted: a container ID", containerID)
	}
	if !netconf.IsLinkName(ifName) {
		return fmt.Errorf("ifName is %q; accepted: the name of an interface", ifName)
	}
	return nil
}

func encode(a Attachment) ([]byte, error) {
	a.Version = Version
	if err := a.validate(); err != nil {
		return nil, err
	}
	data, err := json.MarshalIndent(a, "", "  ")
	return append(data, '\n'), err
}

// decode reads a record and validates it. Of a newer version it reads nothing:
// what that has to undo is unknown here.
func decode(data []byte) (Attachment, error) {
	var v struct{ Version int }
	if err := json.Unmarshal(data, &v); err != nil {
		return Attachment{}, err
	}
	if v.Version != Version {
		return Attachment{}, fmt.Errorf("version is %d; accepted: %d", v.Version, Version)
	}
	var a Attachment
	if err := json.Unmarshal(data, &a); err != nil {
		return Attachment{}, err
	}
	if err := a.validate(); err != nil {
		return Attachment{}, err
	}
	return a, nil
}

// validate checks what code that acts on a record takes for granted.
func (a Attachment) validate() error {
	if err := validNames(a.ContainerID, a.IfName); err != nil {
		return err
	}
	bad := func(key string, value any, want string) error {
		return fmt.Errorf("%s is %q; accepted: %s", key, fmt.Sprint(value), want)
	}
	switch {
	case !netconf.IsName(a.Network):
		return bad("network", a.Network, "the name of a network")
	case !filepath.IsAbs(a.Netns):
		return bad("netns", a.Netns, "the absolute path of a network namespace")
	case a.Mode == "":
		return bad("mode", a.Mode, "the mode of an attachment")
	case a.HostLink != "" && !netconf.IsLinkName(a.HostLink):
		return bad("hostLink", a.HostLink, "the name of an interface")
	case a.MTU < 0:
		return bad("mtu", a.MTU, "0 or more bytes")
	case a.IPAM == "":
		return bad("ipam", a.IPAM, "the type of an IPAM plugin")
	case a.BootID == "":
		return bad("bootID", a.BootID, "a boot ID")
	}
	for i, addr := range a.Addrs {
		if !addr.IsValid() || addr.Zone() != "" || slices.Contains(a.Addrs[:i], addr) {
			return bad("addrs", a.Addrs, "addresses that differ")
		}
	}
	return nil
}

// read gives the record in a file. The error is fs.ErrNotExist or a
// *CorruptError.
func read(path string) (Attachment, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return Attachment{}, fmt.Errorf("record: %w", err)
	}
	a, err := decode(data)
	if err == nil && fileName(a.ContainerID, a.IfName) != filepath.Base(path) {
		err = fmt.Errorf("holds attachment %s/%s, not that of its name", a.ContainerID, a.IfName)
	}
	if err != nil {
		return Attachment{}, &CorruptError{Path: path, Err: err}
	}
	return a, nil
}

func writeSynced(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
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
