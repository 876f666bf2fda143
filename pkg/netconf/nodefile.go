package netconf

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// BootIDFile is where Linux has the identity of the present boot.
const BootIDFile = "/proc/sys/kernel/random/boot_id"

// BootID reads the boot ID from file (BootIDFile).
func BootID(file string) (string, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("boot ID: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// ReadNode reads NodeFile in runDir. The error is fs.ErrNotExist where there
// is none and ErrStale where it was written in another boot than bootID: in
// both cases the daemon hasn't been ready since, and a retry will help. It is
// ErrNode where the file is malformed.
func ReadNode(runDir, bootID string) (Node, error) {
	path := filepath.Join(runDir, NodeFile)
	data, err := os.ReadFile(path)
	if err != nil {
		return Node{}, fmt.Errorf("read node file: %w", err)
	}
	n, err := decodeNode(data)
	if err != nil {
		return Node{}, fmt.Errorf("read %s: %w", path, err)
	}
	if n.BootID != bootID {
		return Node{}, fmt.Errorf("read %s: %w", path, ErrStale)
	}
	return n, nil
}

// WriteNode writes NodeFile in runDir, atomically, unless it holds just that
// already; changed says whether it was written. One process at a time may
// call it for a directory, which is made where it is missing.
func WriteNode(runDir string, n Node) (changed bool, err error) {
	data, err := json.MarshalIndent(n, "", "  ")
	if err != nil {
		return false, fmt.Errorf("write node file: %w", err)
	}
	data = append(data, '\n')
	if _, err := decodeNode(data); err != nil {
		return false, fmt.Errorf("write node file: %w", err)
	}
	path := filepath.Join(runDir, NodeFile)
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, data) {
		return false, nil
	}
	if err := os.MkdirAll(runDir, 0o755); err != nil {
		return false, fmt.Errorf("write node file: %w", err)
	}
	temp := path + ".new"
	if err := writeSynced(temp, data); err != nil {
		return false, fmt.Errorf("write node file: %w", errors.Join(err, os.Remove(temp)))
	}
	if err := os.Rename(temp, path); err != nil {
		return false, fmt.Errorf("write node file: %w", errors.Join(err, os.Remove(temp)))
	}
	return true, nil
}

func writeSynced(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// decodeNode reads and validates a node file. Keys that it doesn't know are
// from a newer daemon and of no concern to this plugin.
func decodeNode(data []byte) (Node, error) {
	f, err := parseFields(data, ErrNode)
	if err != nil {
		return Node{}, err
	}
	var n Node
	for _, key := range []struct {
		name, want string
		to         any
	}{
		{"name", "the node's name", &n.Name},
		{"bootID", "a boot ID", &n.BootID},
		{"podCIDRs", wantCIDRs, &n.PodCIDRs},
		{"mtu", wantNodeMTU, &n.MTU},
	} {
		if !f.has(key.name) || f.decode(key.name, key.to, "") != nil {
			return Node{}, f.bad(key.name, key.want)
		}
	}
	switch {
	case n.Name == "":
		return Node{}, f.bad("name", "the node's name")
	case n.BootID == "":
		return Node{}, f.bad("bootID", "a boot ID")
	case !validCIDRs(n.PodCIDRs):
		return Node{}, f.bad("podCIDRs", wantCIDRs)
	case n.MTU < minMTU || n.MTU > maxMTU:
		return Node{}, f.bad("mtu", wantNodeMTU)
	}
	return n, nil
}

const wantNodeMTU = "576 to 65535 bytes"

const wantCIDRs = "one or more unicast networks that don't overlap, of a /30 (IPv4) or /126 (IPv6) at least, " +
	"such as 10.244.1.0/24 or fd00:10:244:1::/64"

// validCIDRs reports whether pods' addresses can come from ranges. A smaller
// range has no address left besides its first, the node's and, in IPv4, the
// broadcast address.
func validCIDRs(ranges []netip.Prefix) bool {
	for i, p := range ranges {
		addr := p.Addr()
		if !p.IsValid() || p != p.Masked() || addr.Is4In6() || !addr.IsGlobalUnicast() || addr.BitLen()-p.Bits() < 2 {
			return false
		}
		if slices.ContainsFunc(ranges[:i], p.Overlaps) {
			return false
		}
	}
	return len(ranges) > 0
}
