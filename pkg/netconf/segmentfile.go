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
	"strconv"
)

// SegmentDir is where, in RunDir, the plugin finds what it needs to know of segments:
// for each on this node a file <vni>.json, which the daemon writes, and a lock
// <vni>.lock, held shared by an ADD from the file's reading to the record's
// writing, and exclusively by who takes the segment away, or a block or lent
// address of it.
const SegmentDir = "segments"

// SegmentFile is a segment that is ready on this node.
type SegmentFile struct {
	BootID string `json:"bootID"` // as in Node
	MTU    int    `json:"mtu"`    // bytes, of pods' interfaces
	// Tunnels is what attachments have to agree on.
	Tunnels Tunnels `json:"tunnels"`
	// Gateway says that the node is the segment's gateway.
	Gateway bool `json:"gateway,omitempty"`
	Leases
}

// Leases are what a node may give its pods addresses of on a segment.
type Leases struct {
	// Blocks are leased to this node. One may be inside another.
	Blocks []netip.Prefix `json:"blocks,omitempty"`
	// Lent are blocks inside those that other nodes have, or may have.
	Lent []netip.Prefix `json:"lent,omitempty"`
}

// Has reports whether this node may give a pod addr.
func (l Leases) Has(addr netip.Addr) bool {
	return slices.ContainsFunc(l.Blocks, func(b netip.Prefix) bool { return l.HasIn(b, addr) })
}

// HasIn reports whether addr is in a block of this node, and not in a part of
// the block that is lent.
func (l Leases) HasIn(block netip.Prefix, addr netip.Addr) bool {
	return block.Contains(addr) && !slices.ContainsFunc(l.Lent, func(p netip.Prefix) bool { return p.Contains(addr) && Inside(p, block) })
}

// Inside reports whether a prefix is part of another one, and not all of it.
func Inside(part, whole netip.Prefix) bool {
	return part.Bits() > whole.Bits() && whole.Contains(part.Addr())
}

// SegmentLock is the file of a segment's lock.
func SegmentLock(runDir string, vni uint32) string { return segmentPath(runDir, vni, ".lock") }

// MakeSegmentDir makes SegmentDir where it is missing.
func MakeSegmentDir(runDir string) error {
	if err := os.MkdirAll(filepath.Join(runDir, SegmentDir), 0o755); err != nil {
		return fmt.Errorf("segments: %w", err)
	}
	return nil
}

func segmentPath(runDir string, vni uint32, end string) string {
	return filepath.Join(runDir, SegmentDir, strconv.FormatUint(uint64(vni), 10)+end)
}

// ReadSegment reads a segment's file. The error is fs.ErrNotExist where there
// is none, ErrStale where it is of another boot, and ErrNode where it can't be
// read.
func ReadSegment(runDir string, vni uint32, bootID string) (SegmentFile, error) {
	path := segmentPath(runDir, vni, ".json")
	data, err := os.ReadFile(path)
	if err != nil {
		return SegmentFile{}, fmt.Errorf("segment %d: %w", vni, err)
	}
	var s SegmentFile
	if err := json.Unmarshal(data, &s); err != nil || s.MTU < minMTU {
		return SegmentFile{}, fmt.Errorf("read %s: %w", path, ErrNode)
	}
	if s.BootID != bootID {
		return SegmentFile{}, fmt.Errorf("read %s: %w", path, ErrStale)
	}
	return s, nil
}

// WriteSegment writes a segment's file, atomically, unless it holds just that.
func WriteSegment(runDir string, vni uint32, s SegmentFile) error {
	data, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("segment %d: %w", vni, err)
	}
	path := segmentPath(runDir, vni, ".json")
	if old, missing := os.ReadFile(path); missing == nil && bytes.Equal(old, data) {
		return nil
	}
	if err = os.MkdirAll(filepath.Dir(path), 0o755); err == nil {
		// Nothing is flushed: no segment outlives a reboot.
		if err = os.WriteFile(path+".new", data, 0o644); err == nil {
			err = os.Rename(path+".new", path)
		}
	}
	if err != nil {
		return fmt.Errorf("segment %d: %w", vni, err)
	}
	return nil
}

// RemoveSegment removes a segment's file. The lock stays: others may wait for
// it.
func RemoveSegment(runDir string, vni uint32) error {
	if err := os.Remove(segmentPath(runDir, vni, ".json")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("segment %d: %w", vni, err)
	}
	return nil
}
