// Package attach carries out the commands of the CNI specification for the
// cluster network: Attach (ADD), Detach (DEL), Check (CHECK), Collect (GC)
// and Status (STATUS). Each reads from top to bottom as the steps it takes.
//
// An attachment leaves traces in three places, made in this order: its
// addresses' claims (package ipam), its record (package record) and its veth
// pair (package veth). They are removed so that an address isn't free before
// nothing has it any more, and that the record goes last. A process killed at
// any instruction leaves some of them, which Detach and Collect remove; an
// Attach that fails removes them itself.
package attach

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/weft-cni/weft/pkg/flock"
	"github.com/weft-cni/weft/pkg/ipam"
	"github.com/weft-cni/weft/pkg/netconf"
	"github.com/weft-cni/weft/pkg/podns"
	"github.com/weft-cni/weft/pkg/record"
	"github.com/weft-cni/weft/pkg/sriov"
	"github.com/weft-cni/weft/pkg/veth"
)

// lockTimeout is how long to wait for a garbage collection to end, or one for
// those before it. A runtime gives a pod minutes.
const lockTimeout = 30 * time.Second

// Plugin attaches pods to one node. Its methods may run concurrently, in any
// number of processes, for different attachments.
type Plugin struct {
	Log    *slog.Logger
	BootID string     // of this boot, see netconf.BootID
	Node   *veth.Node // the node's network namespace
	Sysfs  sriov.Sysfs
}

// Attach makes an interface in a pod and returns the result as the runtime
// gets it: JSON, in the version that n asks for. After an error nothing of the
// interface is left; where something is, the error says that too.
func (p *Plugin) Attach(ctx context.Context, n *netconf.Network) (result []byte, err error) {
	if n.Mode == netconf.ModeSRIOV {
		return p.attachVF(ctx, n)
	}
	if n.Mode == netconf.ModeOverlay {
		return p.attachSegment(ctx, n)
	}
	node, err := p.ready(n)
	if err != nil {
		return nil, err
	}
	pod, err := openNetns(n.Env.Netns)
	if err != nil {
		return nil, err
	}
	defer pod.Close()
	unlock, err := lock(ctx, n, flock.Shared)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err = p.notAttached(n); err != nil {
		return nil, err
	}

	var done undoList
	defer func() { err = done.undoOn(err) }()

	given, err := allocate(ctx, n, node, &done)
	if err != nil {
		return nil, err
	}
	rec, pair, err := plan(n, node, given)
	if err != nil {
		return nil, err
	}
	flush, err := store(n).Write(rec)
	if err != nil {
		return nil, err
	}
	// What the disk and the encoding take passes while the kernel works.
	encoded := inBackground(func() (err error) {
		result, err = encode(resultOf(n, pair, given), n.CNIVersion)
		return errors.Join(err, flush())
	})
	err = p.connect(ctx, n, pod, pair, &done)
	if err = errors.Join(err, <-encoded); err != nil {
		return nil, err
	}
	p.Log.Debug("attached", "addrs", rec.Addrs, "host", pair.HostLink)
	return result, nil
}

// ready gives what the daemon says of the node. Without that, pods would
// start on a node that doesn't reach the others yet.
func (p *Plugin) ready(n *netconf.Network) (netconf.Node, error) {
	if err := first(n); err != nil {
		return netconf.Node{}, err
	}
	node, err := netconf.ReadNode(n.RunDir, p.BootID)
	if err != nil {
		return netconf.Node{}, fmt.Errorf("%w: %w", ErrNotReady, err)
	}
	return node, nil
}

// first makes sure that no other plugin was here before on ADD.
func first(n *netconf.Network) error {
	if n.PrevResult == nil {
		return nil
	}
	return &netconf.InputError{
		Kind: netconf.ErrConfig, Key: "prevResult", Value: "another plugin's result",
		Want: "none on ADD: weft makes an interface, so it has to be the first of plugins",
	}
}

func ownerOf(n *netconf.Network) ipam.Owner {
	return ipam.Owner{ContainerID: n.Env.ContainerID, IfName: n.Env.IfName}
}

// notAttached makes sure that nobody has this attachment already: an ADD for
// it would take its address away. What is left of an ADD that was killed
// counts as well; the runtime calls DEL on it.
func (p *Plugin) notAttached(n *netconf.Network) error {
	if err := p.notRecorded(n); err != nil {
		return err
	}
	there, err := p.Node.Exists(veth.HostLink(n.Env.ContainerID, n.Env.IfName))
	if err != nil {
		return err
	}
	if there {
		return fmt.Errorf("%s in container %s: %w, without a record", n.Env.IfName, n.Env.ContainerID, ErrAttached)
	}
	return nil
}

func (p *Plugin) notRecorded(n *netconf.Network) error {
	rec, err := store(n).Get(n.Env.ContainerID, n.Env.IfName)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	case rec.BootID == p.BootID:
		return fmt.Errorf("%s in container %s: %w since %s",
			n.Env.IfName, n.Env.ContainerID, ErrAttached, rec.Created.Format(time.RFC3339))
	}
	return nil
}

// allocate claims addresses. What a delegate gives is found again by a record
// alone, so there the record comes first, without them.
func allocate(ctx context.Context, n *netconf.Network, node netconf.Node, done *undoList) (ipam.Result, error) {
	done.add("remove the record", func() error { return store(n).Delete(n.Env.ContainerID, n.Env.IfName) })
	if !n.IPAM.Own() {
		if err := store(n).Put(recordOf(n, node, veth.Pair{})); err != nil {
			return ipam.Result{}, err
		}
	}
	allocator := ipam.New(n, node)
	given, err := allocator.Add(ctx)
	if err != nil {
		return ipam.Result{}, err
	}
	done.add("release the addresses", func() error { return allocator.Del(context.WithoutCancel(ctx)) })
	return given, nil
}

// inBackground runs f and tells what it returned.
func inBackground(f func() error) <-chan error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	return done
}

// connect makes the pair. Where the node has a route to one of its addresses
// already, what counts is whose: a host end that no record knows is left from
// an attachment whose record was lost, and gives way.
func (p *Plugin) connect(ctx context.Context, n *netconf.Network, pod *podns.NS, pair veth.Pair, done *undoList) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	err := p.Node.Create(pod, pair)
	if inUse := (*veth.InUseError)(nil); errors.As(err, &inUse) {
		stray, e := p.removeStray(n, inUse.Link)
		if e != nil {
			return fmt.Errorf("%w; then, to remove %s: %w", err, inUse.Link, e)
		}
		if stray {
			err = p.Node.Create(pod, pair)
		}
	}
	if err != nil {
		return err
	}
	done.add("remove the interface", func() error {
		return errors.Join(veth.RemoveRules(pod, pair.Addrs), p.Node.Remove(pair.HostLink))
	})
	return nil
}

// removeStray removes the host end of an attachment to n's network that has no
// record, if that is what link is.
func (p *Plugin) removeStray(n *netconf.Network, link string) (removed bool, err error) {
	stray, err := p.isStray(n, link)
	if err != nil || !stray {
		return false, err
	}
	p.Log.Warn("removing a pod's interface that no record knows", "link", link)
	return true, p.Node.Remove(link)
}

// isStray reports whether link is the host end of an attachment to n's network
// that has no record. Records are written before the pair is made and removed
// after it is gone, so nobody is at work on it.
func (p *Plugin) isStray(n *netconf.Network, link string) (bool, error) {
	ends, err := p.Node.List()
	if err != nil {
		return false, err
	}
	for _, e := range ends {
		if e.Name == link && e.Network == n.Name {
			known, err := p.recordedLinks(n)
			return err == nil && !known[link], err
		}
	}
	return false, nil
}

// recordedLinks are the host ends that records of any network tell of, the
// unreadable ones too.
func (p *Plugin) recordedLinks(n *netconf.Network) (map[string]bool, error) {
	known := make(map[string]bool)
	recs, err := store(n).List()
	corrupt := record.Corrupt(err)
	if err != nil && len(corrupt) == 0 {
		return nil, err
	}
	for _, rec := range recs {
		known[rec.HostLink] = true
	}
	for _, c := range corrupt {
		if id, ifName, ok := c.Attachment(); ok {
			known[veth.HostLink(id, ifName)] = true
		}
	}
	return known, nil
}

// store has the records of the node.
func store(n *netconf.Network) record.Store {
	return record.Store{Dir: filepath.Join(n.DataDir, record.Dir)}
}

// openNetns opens a pod's network namespace.
func openNetns(path string) (*podns.NS, error) {
	pod, err := podns.Open(path)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNetns, err)
	}
	return pod, nil
}

// lock keeps ADDs and DELs apart from garbage collections.
func lock(ctx context.Context, n *netconf.Network, how lockFunc) (unlock func(), err error) {
	if err := os.MkdirAll(n.RunDir, 0o755); err != nil {
		return nil, fmt.Errorf("lock: %w", err)
	}
	return how(ctx, filepath.Join(n.RunDir, record.LockFile), lockTimeout)
}

// lockFunc is flock.Shared or flock.Exclusive.
type lockFunc func(ctx context.Context, file string, timeout time.Duration) (release func(), err error)
