package agent

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"

	"github.com/weft-cni/weft/pkg/encrypt"
	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/kernel/rtnl"
	"github.com/weft-cni/weft/pkg/netconf"
	"github.com/weft-cni/weft/pkg/record"
	"github.com/weft-cni/weft/pkg/segment"
	"github.com/weft-cni/weft/pkg/settings"
)

// Places are the directories that Weft writes to.
type Places struct {
	CNI             settings.CNI
	RunDir, DataDir string
}

// Cleanup removes everything that Weft made on the node, in an order that
// leaves nothing to make it again: the network configuration first, so that no
// pod is attached any more. It writes what it does to w, and goes on after
// failures. Sysctls stay, since their values from before are unknown; so does
// the plugin while pods have records, for a runtime can't delete them without.
func Cleanup(k Kernel, p Places, w io.Writer) error {
	attached, err := record.Store{Dir: filepath.Join(p.DataDir, record.Dir)}.List()
	errs := []error{err}
	remove := func(path string) {
		if _, err := os.Lstat(path); errors.Is(err, os.ErrNotExist) {
			return
		}
		fmt.Fprintln(w, "- file", path)
		errs = append(errs, os.RemoveAll(path))
	}
	empty := func(dir string) { // it may be a mount point itself
		entries, err := os.ReadDir(dir)
		if !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
		for _, e := range entries {
			remove(filepath.Join(dir, e.Name()))
		}
		if err := os.Remove(dir); err == nil {
			fmt.Fprintln(w, "- directory", dir)
		}
	}
	remove(filepath.Join(p.CNI.ConfDir, netconf.ConfList))
	errs = append(errs, cleanKernel(k, w))
	empty(p.RunDir)
	if plugin := filepath.Join(p.CNI.BinDir, netconf.Type); len(attached) > 0 {
		fmt.Fprintf(w, "%d pods were attached: %s stays for their end\n", len(attached), plugin)
	} else {
		remove(plugin)
	}
	empty(p.DataDir)
	return errors.Join(errs...)
}

func cleanKernel(k Kernel, w io.Writer) error {
	have, err := k.Read(rtnl.Names{
		Links:  slices.Concat(ownNames().Links, segment.Names.Links),
		Tables: slices.Concat(ownNames().Tables, segment.Names.Tables),
	})
	if err != nil {
		return fmt.Errorf("read the kernel: %w", err)
	}
	links, err := k.PodLinks()
	if err != nil {
		return fmt.Errorf("read the pods' links: %w", err)
	}
	for _, name := range links {
		have.Put(kernel.ForeignLink{Name: name, Detail: "a pod's"})
	}
	// A process leaves its devices there, and what is at rest isn't read.
	for _, name := range encrypt.Links() {
		if _, err := net.InterfaceByName(name); err == nil {
			have.Put(kernel.ForeignLink{Name: name, Detail: "WireGuard"})
		}
	}
	ops := kernel.Diff(kernel.State{}, have, nil)
	for _, op := range ops {
		fmt.Fprintln(w, op)
	}
	var errs []error
	for _, failed := range k.Apply(ops) {
		errs = append(errs, failed)
	}
	return errors.Join(errs...)
}
