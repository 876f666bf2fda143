//go:build vm

package sriov

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/netconf"
	"github.com/weft-cni/weft/test/probe"
	"github.com/weft-cni/weft/test/testns"
)

// static is an IPAM section with some addresses.
func static(prefixes ...string) map[string]any {
	var addrs []any
	for _, p := range prefixes {
		addrs = append(addrs, map[string]any{"address": p})
	}
	return map[string]any{"type": "static", "addresses": addrs}
}

// both are a host's addresses, IPv4 and IPv6, in one of the networks.
func both(network, host int) []string {
	return []string{fmt.Sprintf("10.9.%d.%d/24", network, host), fmt.Sprintf("fd00:9:%d::%d/64", network, host)}
}

// reaches reports whether an address answers.
func reaches(t *testing.T, from probe.Place, prefix string, within time.Duration) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	_, err := probe.Ping(ctx, from, netip.MustParsePrefix(prefix).Addr())
	return err
}

// newOutside is a host on the NICs' wire that has nothing to do with Weft: its
// NIC is "eth2", and "tagged" is that one's VLAN 100.
func newOutside(t *testing.T) *testns.NS {
	t.Helper()
	ns := testns.New(t)
	link, err := netlink.LinkByName("eth2")
	must(t, err)
	fd, err := unix.Open(ns.Path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(fd)
	must(t, netlink.LinkSetNsFd(link, fd))
	link, err = ns.Handle.LinkByName("eth2")
	must(t, err)
	t.Cleanup(func() { must(t, ns.Handle.LinkSetNsPid(link, 1)) })
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.ParentIndex = "tagged", link.Attrs().Index
	tagged := &netlink.Vlan{LinkAttrs: attrs, VlanId: 100}
	must(t, ns.Handle.LinkAdd(tagged))
	t.Cleanup(func() { must(t, ns.Handle.LinkDel(tagged)) }) // or the NIC has it until the namespace is gone for good
	for _, on := range []struct {                            // in this order: a VLAN can't be up before its NIC
		link  netlink.Link
		addrs []string
	}{{link, both(0, 9)}, {tagged, both(100, 9)}} {
		must(t, ns.Handle.LinkSetUp(on.link))
		for _, a := range on.addrs {
			parsed, err := netlink.ParseAddr(a)
			must(t, err)
			parsed.Flags = unix.IFA_F_NODAD // it was there first
			must(t, ns.Handle.AddrAdd(on.link, parsed))
		}
	}
	return ns
}

// TestTraffic: several VFs of one NIC and one of another at once, a pod with
// two, and a host outside reach each other in both families if they are in one
// VLAN, and only then.
func TestTraffic(t *testing.T) {
	l, outside := newLab(t), newOutside(t)
	vlan := func(device string, vlan int, addrs ...string) map[string]any {
		return vfConfig(device, "vlan", vlan, "ipam", static(addrs...))
	}
	a := newPod(t, "a", vlan(vfs[0], 100, both(100, 1)...))
	second := a
	second.ifName, second.config = "net2", vlan(vfs[1], 0, both(0, 1)...)
	b := newPod(t, "b", vlan(vfs[2], 100, both(100, 2)...))
	c := newPod(t, "c", vlan(vfs[3], 0, both(0, 3)...))
	d := newPod(t, "d", vlan(far, 100, both(100, 4)...))
	// It says that it is in the network of VLAN 100, and is not.
	liar := newPod(t, "liar", vlan(vfs[4], 200, both(100, 5)...))
	pods := []pod{a, second, b, c, d, liar}
	for _, p := range pods {
		l.add(p)
	}
	defer func() {
		for _, p := range pods {
			l.must(netconf.Del, p, nil)
		}
	}()
	for network, hosts := range map[int]map[int]probe.Place{
		100: {1: a, 2: b, 4: d, 9: outside},
		0:   {1: a, 3: c, 9: outside},
	} {
		for from, place := range hosts {
			for to := range hosts {
				for _, addr := range both(network, to) {
					if err := reaches(t, place, addr, 30*time.Second); from != to && err != nil {
						t.Errorf("host %d to %s: %v", from, addr, err)
					}
				}
			}
		}
	}
	for _, to := range []int{1, 2, 4, 9} {
		for _, addr := range both(100, to) {
			if err := reaches(t, liar, addr, 2*time.Second); err == nil {
				t.Errorf("a pod in VLAN 200 reaches %s in VLAN 100", addr)
			}
		}
	}
}

// TestDuplicate: another host has the pod's IPv6 address. CHECK tells, once the
// kernel has found out.
func TestDuplicate(t *testing.T) {
	newOutside(t)
	l, was := newLab(t), view(t, vfs[0])
	addr := both(0, 9)[1]
	p := newPod(t, "a", vfConfig(vfs[0], "ipam", static(addr)))
	result := l.must(netconf.Add, p, nil)
	eventually(t, func() error {
		_, err := l.do(netconf.Check, p, map[string]any{"prevResult": json.RawMessage(result)})
		if err == nil || !strings.Contains(err.Error(), "addr fd00:9::9/64: another host has it as well") {
			return fmt.Errorf("CHECK: %w", cmp.Or(err, errors.New("content")))
		}
		return nil
	})
	l.must(netconf.Del, p, nil)
	l.back(vfs[0], was, "DEL")
}

// TestWire looks at the wire: a VF's frames have the tag and the priority that
// they should have, or none, and the first are those that announce the pod's
// addresses.
func TestWire(t *testing.T) {
	l, outside := newLab(t), newOutside(t)
	for _, c := range []struct {
		vlan, qos int
		mac       string
	}{{100, 5, "02:00:00:00:0f:01"}, {0, 0, "02:00:00:00:0f:02"}, {200, 0, "02:00:00:00:0f:03"}} {
		addrs := both(1, 1)
		keys := []any{"mac", c.mac, "ipam", static(addrs...)}
		if c.vlan != 0 {
			keys = append(keys, "vlan", c.vlan, "vlanQoS", c.qos)
		}
		p := newPod(t, "a", vfConfig(vfs[0], keys...))
		wire := listen(t, outside, "eth2")
		l.add(p)
		ip4 := netip.MustParsePrefix(addrs[0]).Addr().As4()
		ip6 := netip.MustParsePrefix(addrs[1]).Addr().As16()
		for what, is := range map[string]func(frame) bool{
			// RFC 5227 section 3: sender and target are the same.
			"gratuitous ARP": func(f frame) bool {
				return f.kind == unix.ETH_P_ARP && len(f.payload) >= 28 &&
					bytes.Equal(f.payload[14:18], ip4[:]) && bytes.Equal(f.payload[24:28], ip4[:])
			},
			// RFC 4861 section 4.4, to all nodes.
			"unsolicited neighbour advertisement": func(f frame) bool {
				return f.kind == unix.ETH_P_IPV6 && len(f.payload) >= 64 && f.payload[40] == 136 && bytes.Equal(f.payload[48:64], ip6[:])
			},
		} {
			eventually(t, func() error {
				for _, f := range wire.frames(t) {
					if f.source != c.mac {
						continue
					}
					if f.vlan != c.vlan || f.priority != c.qos {
						t.Fatalf("a frame of VLAN %d, priority %d has %d, %d", c.vlan, c.qos, f.vlan, f.priority)
					}
					if is(f) {
						return nil
					}
				}
				return fmt.Errorf("VLAN %d: no %s of %s among %d frames", c.vlan, what, c.mac, len(wire.seen))
			})
		}
		l.must(netconf.Del, p, nil)
	}
}

// frame is an Ethernet frame as it was on the wire.
type frame struct {
	source         string
	vlan, priority int
	kind           uint16
	payload        []byte
}

// tap hears all that is on a NIC's wire.
type tap struct {
	fd   int
	seen []frame
}

func listen(t *testing.T, ns *testns.NS, link string) *tap {
	t.Helper()
	l, err := ns.Handle.LinkByName(link)
	must(t, err)
	w := &tap{}
	const all = unix.ETH_P_ALL>>8 | unix.ETH_P_ALL&0xff<<8 // in network order
	must(t, ns.Do(func() (err error) {
		w.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, all)
		return err
	}))
	t.Cleanup(func() { must(t, unix.Close(w.fd)) })
	must(t, unix.Bind(w.fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: l.Attrs().Index}))
	// The kernel takes tags off the frame, and tells of them beside it.
	must(t, unix.SetsockoptInt(w.fd, unix.SOL_PACKET, unix.PACKET_AUXDATA, 1))
	must(t, unix.SetsockoptPacketMreq(w.fd, unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP,
		&unix.PacketMreq{Ifindex: int32(l.Attrs().Index), Type: unix.PACKET_MR_PROMISC}))
	return w
}

// frames are all that were heard so far.
func (w *tap) frames(t *testing.T) []frame {
	t.Helper()
	buf, oob := make([]byte, 2048), make([]byte, 128)
	for {
		n, m, _, _, err := unix.Recvmsg(w.fd, buf, oob, 0)
		if errors.Is(err, unix.EAGAIN) {
			return w.seen
		}
		must(t, err)
		if n < 14 {
			continue
		}
		f := frame{
			source: net.HardwareAddr(buf[6:12]).String(), kind: binary.BigEndian.Uint16(buf[12:]), payload: bytes.Clone(buf[14:n]),
		}
		control, err := unix.ParseSocketControlMessage(oob[:m])
		must(t, err)
		for _, c := range control {
			// struct tpacket_auxdata (linux/if_packet.h)
			const statusVLANValid = 1 << 4
			if c.Header.Type == unix.PACKET_AUXDATA && binary.NativeEndian.Uint32(c.Data)&statusVLANValid != 0 {
				tci := binary.NativeEndian.Uint16(c.Data[16:])
				f.vlan, f.priority = int(tci&0xfff), int(tci>>13)
			}
		}
		w.seen = append(w.seen, f)
	}
}
