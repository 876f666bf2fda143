package attach

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/weft-cni/weft/pkg/flock"
	"github.com/weft-cni/weft/pkg/ipam"
	"github.com/weft-cni/weft/pkg/netconf"
	"github.com/weft-cni/weft/pkg/record"
	"github.com/weft-cni/weft/pkg/sriov"
)

// ErrDeviceInUse says that a device belongs to another attachment.
var ErrDeviceInUse = errors.New("device is in use")

// devices keeps, in RunDir, whose each device is: a symbolic link named after
// its PCI address to the attachment. Whoever has no claim on a device leaves
// it alone. A claim without a record is void: its ADD was killed before it
// changed anything.
type devices struct {
	dir string
	n   *netconf.Network
}

// devicesDir is the directory in RunDir, locks included.
const devicesDir = "devices"

// pfSlots is how many devices of one PF are worked on at a time. Drivers and
// firmware do such things one by one, and time out where they are asked for
// too many.
const pfSlots = 4

func devicesOf(n *netconf.Network) devices {
	return devices{dir: filepath.Join(n.RunDir, devicesDir), n: n}
}

// lock lets one process at a time work on a device, and few on its PF.
func (c devices) lock(ctx context.Context, d sriov.Device) (unlock func(), err error) {
	if err = os.MkdirAll(c.dir, 0o755); err != nil {
		return nil, fmt.Errorf("lock device %s: %w", d, err)
	}
	unlockDevice, err := flock.Exclusive(ctx, filepath.Join(c.dir, d.Address+".lock"), lockTimeout)
	if err != nil || d.PF == "" {
		return unlockDevice, err
	}
	slot := fmt.Sprintf("%s.slot%d", d.PF, d.Index%pfSlots)
	unlockPF, err := flock.Exclusive(ctx, filepath.Join(c.dir, slot), lockTimeout)
	if err != nil {
		unlockDevice()
		return nil, err
	}
	return func() { unlockPF(); unlockDevice() }, nil
}

// owner is whose a device is; ok is false where it is nobody's.
func (c devices) owner(address string) (owner ipam.Owner, ok bool, err error) {
	text, err := os.Readlink(filepath.Join(c.dir, address))
	if errors.Is(err, fs.ErrNotExist) {
		return owner, false, nil
	}
	if err != nil {
		return owner, false, fmt.Errorf("claim on device: %w", err)
	}
	owner.ContainerID, owner.IfName, _ = strings.Cut(text, "/")
	return owner, true, nil
}

// claim takes a locked device for an attachment. The error is ErrDeviceInUse
// where it is another's.
func (c devices) claim(d sriov.Device, owner ipam.Owner, bootID string) error {
	other, taken, err := c.owner(d.Address)
	if err != nil {
		return err
	}
	if taken && other != owner {
		valid, err := c.holds(other, d, bootID)
		if err != nil {
			return err
		}
		if valid {
			return fmt.Errorf("device %s: %w by %s", d, ErrDeviceInUse, other)
		}
	}
	if taken {
		if err := c.release(d.Address); err != nil {
			return err
		}
	}
	if err := os.Symlink(owner.String(), filepath.Join(c.dir, d.Address)); err != nil {
		return fmt.Errorf("claim on device: %w", err)
	}
	return nil
}

// holds reports whether an attachment's record has the device. An unreadable
// one might.
func (c devices) holds(owner ipam.Owner, d sriov.Device, bootID string) (bool, error) {
	rec, err := store(c.n).Get(owner.ContainerID, owner.IfName)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return true, err
	}
	return rec.BootID == bootID && rec.VF != nil && rec.VF.Device.Address == d.Address, nil
}

// mine reports whether a device of a record of this boot is still its
// attachment's. Where all claims are lost, it is unless another record has it.
func (c devices) mine(d sriov.Device, owner ipam.Owner, bootID string) (bool, error) {
	holder, taken, err := c.owner(d.Address)
	if err != nil || taken {
		return holder == owner, err
	}
	recs, err := store(c.n).List()
	if err != nil && len(record.Corrupt(err)) == 0 {
		return false, err
	}
	for _, rec := range recs {
		if rec.VF != nil && rec.BootID == bootID && rec.VF.Device.Address == d.Address &&
			(ipam.Owner{ContainerID: rec.ContainerID, IfName: rec.IfName}) != owner {
			return false, nil
		}
	}
	return true, nil
}

// release gives a device up.
func (c devices) release(address string) error {
	err := os.Remove(filepath.Join(c.dir, address))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("claim on device: %w", err)
	}
	return nil
}

// releaseAll gives up what an attachment holds, whatever that is.
func (c devices) releaseAll(of func(ipam.Owner) bool) error {
	entries, err := os.ReadDir(c.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("claims on devices: %w", err)
	}
	var errs []error
	for _, e := range entries {
		if !sriov.IsAddress(e.Name()) {
			continue
		}
		owner, ok, err := c.owner(e.Name())
		errs = append(errs, err)
		if ok && of(owner) {
			errs = append(errs, c.release(e.Name()))
		}
	}
	return errors.Join(errs...)
}
