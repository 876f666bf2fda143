package manifests_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// containerEnv makes the test's program a container in place of running tests.
const containerEnv = "WEFT_TEST_CONTAINER"

// container is what a runtime is told of a container, as far as it matters
// here. Its root is empty but for binds, /proc and /dev/null.
type container struct {
	Root         string // an empty directory
	Binds        []bind
	ReadOnlyRoot bool
	UID, GID     int
	// Capabilities are those that root is left with.
	Capabilities []string
	NoNewPrivs   bool
	Args, Env    []string
}

// bind shows a file or directory of the node in the container.
type bind struct {
	From, To string
	ReadOnly bool
}

// capabilities that manifests may name.
var capabilities = map[string]uintptr{"NET_ADMIN": unix.CAP_NET_ADMIN}

// becomeContainer makes this process the one of a container. It is in a new
// mount namespace, with one's own network namespace and processes. It returns
// on failure only.
func becomeContainer(spec string) error {
	var c container
	if err := json.Unmarshal([]byte(spec), &c); err != nil {
		return err
	}
	runtime.LockOSThread() // rights belong to threads; exec takes this one's
	if err := c.mount(); err != nil {
		return err
	}
	if err := c.dropRights(); err != nil {
		return err
	}
	return fmt.Errorf("exec %s: %w", c.Args[0], unix.Exec(c.Args[0], c.Args, c.Env))
}

func (c *container) mount() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("container", c.Root, "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("mount %s: %w", c.Root, err)
	}
	// As runtimes do: a mount within another comes after it.
	slices.SortStableFunc(c.Binds, func(a, b bind) int { return strings.Count(a.To, "/") - strings.Count(b.To, "/") })
	// What the runtime makes of /proc: the sysctls are read-only.
	for _, b := range append([]bind{{From: "/proc", To: "/proc"}, {From: "/dev/null", To: "/dev/null"}}, c.Binds...) {
		if err := c.bind(b); err != nil {
			return err
		}
	}
	if err := c.bind(bind{From: "/proc/sys", To: "/proc/sys", ReadOnly: true}); err != nil {
		return err
	}
	if c.ReadOnlyRoot {
		if err := unix.Mount("", c.Root, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
			return fmt.Errorf("make the root read-only: %w", err)
		}
	}
	if err := unix.Chdir(c.Root); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot: %w", err)
	}
	return errors.Join(unix.Unmount(".", unix.MNT_DETACH), unix.Chdir("/"))
}

func (c *container) bind(b bind) error {
	to := filepath.Join(c.Root, b.To)
	info, err := os.Stat(b.From)
	if err != nil {
		return err
	}
	if info.IsDir() {
		err = os.MkdirAll(to, 0o755)
	} else if err = os.MkdirAll(filepath.Dir(to), 0o755); err == nil {
		err = os.WriteFile(to, nil, 0o644)
	}
	if err != nil {
		return err
	}
	if err := unix.Mount(b.From, to, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("bind %s to %s: %w", b.From, b.To, err)
	}
	if b.ReadOnly {
		if err := unix.Mount("", to, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
			return fmt.Errorf("make %s read-only: %w", b.To, err)
		}
	}
	return nil
}

func (c *container) dropRights() error {
	var keep []uintptr
	for _, name := range c.Capabilities {
		number, ok := capabilities[name]
		if !ok {
			return fmt.Errorf("capability %s is not known here", name)
		}
		keep = append(keep, number)
	}
	for number := uintptr(0); number <= unix.CAP_LAST_CAP; number++ {
		if slices.Contains(keep, number) {
			continue
		}
		// EINVAL: this kernel has fewer.
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, number, 0, 0, 0); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("drop capability %d: %w", number, err)
		}
	}
	if c.NoNewPrivs {
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return fmt.Errorf("no new privileges: %w", err)
		}
	}
	if c.UID == os.Getuid() && c.GID == os.Getgid() {
		return nil
	}
	err := errors.Join(syscall.Setgroups(nil), syscall.Setgid(c.GID), syscall.Setuid(c.UID))
	if err != nil {
		return fmt.Errorf("become user %d: %w", c.UID, err)
	}
	return nil
}
