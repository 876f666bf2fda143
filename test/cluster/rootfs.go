package cluster

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// nodeDirs are the directories that each node has for itself on disk. They
// outlive a reboot. All else below /etc, /opt and /var is the machine's.
var nodeDirs = []string{"/etc/cni", "/etc/weft", "/opt/cni", "/var/lib/cni", "/var/lib/weft"}

// hostDir is where a node sees the machine's own /etc, /opt and /var.
const hostDir = "/host"

// mountRoot makes a node's root directory and moves the calling thread, which
// must be in a new mount namespace, there. It is the machine's root with these
// of the node's own: nodeDirs (below disk), an empty /run with a shared
// /run/netns, a /sys of its network namespace, and a boot ID. The machine's
// files are where they are, by bind mounts and symbolic links; nothing has to
// be made on the machine's own file system.
func mountRoot(disk string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	root := filepath.Join(disk, "root")
	if err := mkdirs(root); err != nil {
		return err
	}
	if err := unix.Mount("weft-node", root, "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("mount %s: %w", root, err)
	}
	for _, step := range []func(root, disk string) error{bindTop, graft, bindOwn, mountRun, mountSys, mountBootID} {
		if err := step(root, disk); err != nil {
			return err
		}
	}
	return pivot(root)
}

func grafted(name string) bool { return name == "etc" || name == "opt" || name == "var" }

// bindTop shows the machine's top-level directories in root, the grafted ones
// below hostDir.
func bindTop(root, _ string) error {
	entries, err := os.ReadDir("/")
	if err != nil {
		return err
	}
	for _, e := range entries {
		path := "/" + e.Name()
		target := filepath.Join(root, path)
		switch {
		case e.Type()&fs.ModeSymlink != 0:
			err = copySymlink(path, target)
		case !e.IsDir() || e.Name() == "run" || e.Name() == "sys" || path == hostDir:
			continue
		case grafted(e.Name()):
			err = bind(path, filepath.Join(root, hostDir, path))
		default:
			err = bind(path, target)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// graft makes the parents of nodeDirs in root as directories full of symbolic
// links to the machine's files, less those that the node has of its own.
func graft(root, _ string) error {
	own := map[string]bool{}
	for _, dir := range nodeDirs {
		own[dir] = true
	}
	for _, dir := range nodeDirs {
		for parent := filepath.Dir(dir); parent != "/"; parent = filepath.Dir(parent) {
			own[parent] = true
		}
	}
	for dir := range own {
		if err := mkdirs(filepath.Join(root, dir)); err != nil {
			return err
		}
		if err := linkEntries(root, dir, own); err != nil {
			return err
		}
	}
	return nil
}

func linkEntries(root, dir string, own map[string]bool) error {
	for _, leaf := range nodeDirs {
		if dir == leaf {
			return nil
		}
	}
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if own[path] {
			continue
		}
		if err := os.Symlink(hostDir+path, filepath.Join(root, path)); err != nil {
			return err
		}
	}
	return nil
}

func bindOwn(root, disk string) error {
	for _, dir := range nodeDirs {
		own := filepath.Join(disk, strings.ReplaceAll(dir[1:], "/", "-"))
		if err := mkdirs(own); err != nil {
			return err
		}
		if err := bind(own, filepath.Join(root, dir)); err != nil {
			return err
		}
	}
	return nil
}

func mountRun(root, _ string) error {
	run := filepath.Join(root, "run")
	if err := mkdirs(run); err != nil {
		return err
	}
	if err := unix.Mount("weft-run", run, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return fmt.Errorf("mount %s: %w", run, err)
	}
	netns := filepath.Join(run, "netns")
	if err := mkdirs(netns); err != nil {
		return err
	}
	if err := bind(netns, netns); err != nil { // on itself, so that it is a mount
		return err
	}
	if err := unix.Mount("", netns, "", unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("share %s: %w", netns, err)
	}
	return nil
}

func mountSys(root, _ string) error {
	sys := filepath.Join(root, "sys")
	if err := mkdirs(sys); err != nil {
		return err
	}
	if err := unix.Mount("weft-sys", sys, "sysfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount %s: %w", sys, err)
	}
	return nil
}

// mountBootID gives the node a boot ID of its own, a new one each time.
func mountBootID(root, disk string) error {
	file := filepath.Join(disk, "boot_id")
	id, err := os.ReadFile("/proc/sys/kernel/random/uuid")
	if err != nil {
		return err
	}
	if err := os.WriteFile(file, id, 0o600); err != nil {
		return err
	}
	target := filepath.Join(root, "proc/sys/kernel/random/boot_id")
	if err := unix.Mount(file, target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s: %w", target, err)
	}
	return nil
}

// pivot makes root the root directory and forgets the old one.
func pivot(root string) error {
	if err := unix.Chdir(root); err != nil {
		return err
	}
	// Both on one directory: the old root lies over the new until it is
	// detached (pivot_root(2), "pivot_root(".", ".")").
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot to %s: %w", root, err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("detach the old root: %w", err)
	}
	return unix.Chdir("/")
}

func bind(path, target string) error {
	if err := mkdirs(target); err != nil {
		return err
	}
	if err := unix.Mount(path, target, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("bind %s to %s: %w", path, target, err)
	}
	return nil
}

func copySymlink(path, target string) error {
	to, err := os.Readlink(path)
	if err != nil {
		return err
	}
	return os.Symlink(to, target)
}

func mkdirs(dir string) error { return os.MkdirAll(dir, 0o755) }
