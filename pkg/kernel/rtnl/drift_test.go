package rtnl_test

import (
	"errors"
	"net"
	"net/netip"
	"testing"
	"unsafe"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/overlay"
)

func ignore(err, accepted error) error {
	if errors.Is(err, accepted) {
		return nil
	}
	return err
}

func netlinkNet(s string) (net.IP, *net.IPNet, error) { return net.ParseCIDR(s) }

func prefixNet(s string) *net.IPNet {
	_, n, _ := net.ParseCIDR(s)
	return n
}

// localLike picks the address of the family that the VXLAN device sends in.
func localLike(t *testing.T, v4, v6 string) net.IP {
	t.Helper()
	if v, ok := link(t, overlay.Link).(*netlink.Vxlan); ok && v.SrcAddr.To4() == nil {
		return netip.MustParseAddr(v6).AsSlice()
	}
	return netip.MustParseAddr(v4).AsSlice()
}

func eachNeigh(t *testing.T, family int, do func(*netlink.Neigh) error) {
	t.Helper()
	entries, err := netlink.NeighList(link(t, overlay.Link).Attrs().Index, family)
	must(t, err)
	for _, n := range entries {
		if n.State&unix.NUD_NOARP != 0 && family != unix.AF_BRIDGE {
			continue
		}
		must(t, ignore(do(&n), unix.ENOENT))
	}
}

func nft(t *testing.T, do func(*nftables.Conn, *nftables.Table)) {
	t.Helper()
	c, err := nftables.New()
	must(t, err)
	do(c, &nftables.Table{Family: nftables.TableFamilyINet, Name: "weft"})
	must(t, ignore(c.Flush(), unix.ENOENT))
}

func flushRules(c *nftables.Conn, table *nftables.Table) { c.FlushTable(table) }

func deleteTable(c *nftables.Conn, table *nftables.Table) { c.DelTable(table) }

func foreignRule(c *nftables.Conn, table *nftables.Table) {
	c.AddRule(&nftables.Rule{
		Table: table, Chain: &nftables.Chain{Table: table, Name: "masquerade"},
		Exprs: []expr.Any{&expr.Ct{Key: expr.CtKeySTATE, Register: 1}, &expr.Verdict{Kind: expr.VerdictAccept}},
	})
}

func foreignElement(c *nftables.Conn, table *nftables.Table) {
	_ = c.SetAddElements(&nftables.Set{Table: table, Name: "nomasq4", Interval: true}, []nftables.SetElement{
		{Key: []byte{9, 9, 9, 1}}, {Key: []byte{9, 9, 9, 4}, IntervalEnd: true},
	})
}

// ethtoolGRO does what `ethtool -K name gro on` does.
func ethtoolGRO(name string, on bool) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	value := [2]uint32{0x2c} // ETHTOOL_SGRO
	if on {
		value[1] = 1
	}
	var ifreq struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}
	copy(ifreq.name[:], name)
	ifreq.data = unsafe.Pointer(&value)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&ifreq))); errno != 0 {
		return errno
	}
	return nil
}
