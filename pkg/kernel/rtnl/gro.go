package rtnl

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ethtoolValue is struct ethtool_value (linux/ethtool.h).
type ethtoolValue struct{ cmd, data uint32 }

// Commands of SIOCETHTOOL (linux/ethtool.h).
const (
	ethtoolGGRO = 0x2b
	ethtoolSGRO = 0x2c
)

// gro reports whether the device merges the packets it receives (generic
// receive offload).
func gro(name string) (bool, error) {
	v := ethtoolValue{cmd: ethtoolGGRO}
	err := ethtool(name, &v)
	return v.data != 0, err
}

// disableGRO turns receive offload off on a tunnel device: packets are merged
// on the NIC, before the outer header goes, which outer UDP checksums make
// possible for every NIC (RFC 7348 allows both; docs/adr/0008). Doing it
// again behind the tunnel only adds a scheduling step to each packet.
func disableGRO(name string) error {
	if on, err := gro(name); err != nil || !on {
		return err
	}
	return ethtool(name, &ethtoolValue{cmd: ethtoolSGRO})
}

func ethtool(name string, v *ethtoolValue) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("ethtool %s: %w", name, err)
	}
	defer unix.Close(fd)
	var ifreq struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [24 - unsafe.Sizeof(uintptr(0))]byte
	}
	copy(ifreq.name[:unix.IFNAMSIZ-1], name)
	ifreq.data = unsafe.Pointer(v)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&ifreq))); errno != 0 {
		return fmt.Errorf("ethtool %s: %w", name, errno)
	}
	return nil
}
