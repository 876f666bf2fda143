package sriov

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
)

// CanReset reports whether a device has a function level reset (PCI Express
// base specification, 6.6.2) of its own.
func (s Sysfs) CanReset(d Device) bool {
	methods, err := os.ReadFile(s.pci(d.Address, "reset_method"))
	return err == nil && slices.Contains(strings.Fields(string(methods)), "flr")
}

// Renew takes a device from its driver, resets it if it can be reset, and
// gives it to its driver again, which makes a new network device in the node's
// namespace, wherever the old one was. It may take the driver some time after
// Renew returns.
//
// A reset under a driver is no alternative: igbvf hangs for good when its
// network device is down, and mlx5_core takes it for a fault. A device without
// a driver is given to one, too, so that a Renew that was cut short can be done
// again.
func (s Sysfs) Renew(d Device) error {
	err := os.WriteFile(s.pci(d.Address, "driver/unbind"), []byte(d.Address), 0)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("take %s from its driver: %w", d, err)
	}
	if s.CanReset(d) {
		// One that fails must not leave the device without a driver.
		err = os.WriteFile(s.pci(d.Address, "reset"), []byte("1"), 0)
		if err != nil {
			err = fmt.Errorf("reset %s: %w", d, err)
		}
	} else {
		err = nil
	}
	if e := os.WriteFile(s.path("bus/pci/drivers_probe"), []byte(d.Address), 0); e != nil {
		err = errors.Join(err, fmt.Errorf("give %s to its driver: %w", d, e))
	}
	return err
}
