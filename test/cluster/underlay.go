package cluster

import (
	"errors"
	"fmt"
	"hash/crc32"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The underlay's addresses. The switch has the first of each subnet and is
// every node's default gateway; the API server listens there.
var (
	underlay4 = netip.MustParsePrefix("172.30.0.0/24")
	underlay6 = netip.MustParsePrefix("fd30::/64")

	// Outside4 and Outside6 are addresses behind the switch that belong
	// neither to the cluster nor to a node: the world outside.
	Outside4 = netip.MustParseAddr("192.0.2.1")
	Outside6 = netip.MustParseAddr("2001:db8::1")
)

const (
	bridgeName = "switch"
	// NICName is a node's interface to the underlay.
	NICName = "eth0"
)

// Families says which address families the underlay and the pods have.
type Families uint8

// The zero value is dual stack.
const (
	Dual Families = iota
	IPv4Only
	IPv6Only
)

func (f Families) has(addr netip.Addr) bool {
	return f == Dual || addr.Is4() == (f == IPv4Only)
}

// of gives those of prefixes that f includes, IPv4 first as given.
func (f Families) of(prefixes ...netip.Prefix) []netip.Prefix {
	var of []netip.Prefix
	for _, p := range prefixes {
		if f.has(p.Addr()) {
			of = append(of, p)
		}
	}
	return of
}

// switchPrefixes are the switch's own addresses.
func switchPrefixes(f Families) []netip.Prefix {
	return f.of(nth(underlay4, 1), nth(underlay6, 1))
}

// nth is the n-th address of a subnet with the subnet's length.
func nth(subnet netip.Prefix, n int) netip.Prefix {
	b := subnet.Addr().AsSlice()
	b[len(b)-2] += byte(n >> 8)
	b[len(b)-1] += byte(n)
	addr, ok := netip.AddrFromSlice(b)
	if !ok {
		panic(fmt.Sprintf("%d. address of %s", n, subnet))
	}
	return netip.PrefixFrom(addr, subnet.Bits())
}

// newSwitch makes the namespace of the switch: a bridge that routes, and the
// outside.
func newSwitch(families Families, mtu int) (*space, error) {
	return newSpace(unix.CLONE_NEWNET, func() error {
		outside := families.of(netip.PrefixFrom(Outside4, 32), netip.PrefixFrom(Outside6, 128))
		if err := configure("lo", outside); err != nil {
			return err
		}
		for _, name := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"} {
			if err := setSysctl(name, "1"); err != nil {
				return err
			}
		}
		// Without an address of its own it takes the lowest of its ports', and
		// changes it with them.
		mac := net.HardwareAddr{0x02, 0x57, 0xef, 0x70, 0, 0}
		bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: bridgeName, MTU: mtu, HardwareAddr: mac}}
		return addLink(bridge, switchPrefixes(families))
	})
}

func addLink(link netlink.Link, addrs []netip.Prefix) error {
	name := link.Attrs().Name
	if err := netlink.LinkAdd(link); err != nil {
		return fmt.Errorf("add link %s: %w", name, err)
	}
	return configure(name, addrs)
}

// configure gives a link its addresses and sets it up.
func configure(name string, addrs []netip.Prefix) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find link %s: %w", name, err)
	}
	for _, addr := range addrs {
		a := &netlink.Addr{IPNet: prefixToIPNet(addr)}
		if addr.Addr().Is6() {
			a.Flags = unix.IFA_F_NODAD // nobody else is there: usable at once
		}
		if err := netlink.AddrAdd(link, a); err != nil {
			return fmt.Errorf("add address %s to %s: %w", addr, name, err)
		}
	}
	return linkUp(name)
}

func linkUp(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find link %s: %w", name, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("set link %s up: %w", name, err)
	}
	return nil
}

func setSysctl(name, value string) error {
	return os.WriteFile(filepath.Join("/proc/sys", name), []byte(value), 0o644)
}

// NIC is a node's interface to the underlay.
type NIC struct {
	Name string // NICName where empty
	// MAC is made of the node's number and Name where nil, so that a card that
	// is taken out and put back is the same.
	MAC   net.HardwareAddr
	MTU   int            // bytes; the kernel's default where 0
	Addrs []netip.Prefix // with the subnet's length
	// Gateways are the next hops of the default routes, one a family at most.
	Gateways []netip.Addr
}

// PlugIn connects the node to the switch by a new interface.
func (n *Node) PlugIn(nic NIC) error {
	if nic.Name == "" {
		nic.Name = NICName
	}
	if nic.MAC == nil {
		nic.MAC = net.HardwareAddr{0x02, 0x57, 0xef, 0x70, byte(n.number), byte(crc32.ChecksumIEEE([]byte(nic.Name)))}
	}
	port := n.Name + "-" + nic.Name
	err := n.cluster.sw.do(func() error {
		bridge, err := netlink.LinkByName(bridgeName)
		if err != nil {
			return err
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU, attrs.MasterIndex = port, nic.MTU, bridge.Attrs().Index
		return addLink(&netlink.Veth{
			LinkAttrs:        attrs,
			PeerName:         nic.Name,
			PeerHardwareAddr: nic.MAC,
			PeerMTU:          uint32(nic.MTU),
			PeerNamespace:    netlink.NsFd(int(n.space.net.Fd())),
		}, nil)
	})
	if err != nil {
		return fmt.Errorf("connect %s to the switch: %w", n.Name, err)
	}
	n.mu.Lock()
	n.ports[port] = true
	n.mu.Unlock()
	return n.Do(func() error {
		if err := configure(nic.Name, nic.Addrs); err != nil {
			return err
		}
		link, err := netlink.LinkByName(nic.Name)
		if err != nil {
			return err
		}
		for _, gw := range nic.Gateways {
			route := &netlink.Route{LinkIndex: link.Attrs().Index, Gw: gw.AsSlice()}
			if err := netlink.RouteAdd(route); err != nil {
				return fmt.Errorf("add default route via %s: %w", gw, err)
			}
		}
		return nil
	})
}

// Unplug deletes the node's interface (NICName where name is empty), as when a
// card is taken out.
func (n *Node) Unplug(name string) error {
	if name == "" {
		name = NICName
	}
	return n.Do(func() error {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return fmt.Errorf("find link %s: %w", name, err)
		}
		return netlink.LinkDel(link)
	})
}

// unplugAll deletes the switch's ports to the node. The kernel does so too when
// the node's namespace is gone, but only some time later.
func (n *Node) unplugAll() error {
	n.mu.Lock()
	ports := slices.Sorted(maps.Keys(n.ports))
	clear(n.ports)
	n.mu.Unlock()
	return n.cluster.sw.do(func() error {
		for _, port := range ports {
			link, err := netlink.LinkByName(port)
			if _, gone := errors.AsType[netlink.LinkNotFoundError](err); gone {
				continue // unplugged by the other end
			}
			if err == nil {
				err = netlink.LinkDel(link)
			}
			if err != nil {
				return fmt.Errorf("delete port %s: %w", port, err)
			}
		}
		return nil
	})
}

// DefaultNIC is the interface that the node was made with.
func (n *Node) DefaultNIC() NIC {
	f := n.cluster.opts.Families
	nic := NIC{Name: NICName, MTU: n.cluster.opts.MTU}
	nic.Addrs = f.of(nth(underlay4, 10+n.number), nth(underlay6, 0x10+n.number))
	for _, sw := range switchPrefixes(f) {
		nic.Gateways = append(nic.Gateways, sw.Addr())
	}
	return nic
}

func prefixToIPNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
