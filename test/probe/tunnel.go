package probe

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Tunnel listens to the VXLAN packets of one network that a place's interface
// carries.
type Tunnel struct {
	fd  int
	vni uint32
}

// tunnelBuffer is room for what comes until Frames is called.
const tunnelBuffer = 32 << 20

// ListenTunnel begins to listen on an interface of a place, in both directions.
func ListenTunnel(at Place, link string, vni uint32) (*Tunnel, error) {
	t := &Tunnel{vni: vni}
	err := at.Do(func() error {
		nic, err := netlink.LinkByName(link)
		if err != nil {
			return err
		}
		// Without a protocol it takes nothing before it is bound.
		if t.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0); err != nil {
			return os.NewSyscallError("socket", err)
		}
		all := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_ALL))
		err = errors.Join(
			unix.SetsockoptInt(t.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, tunnelBuffer),
			unix.Bind(t.fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: nic.Attrs().Index}),
		)
		if err != nil {
			err = errors.Join(err, unix.Close(t.fd))
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listen to VXLAN on %s: %w", link, err)
	}
	return t, nil
}

// Frames ends the listening and gives the frames that were inside. What was
// missed is an error.
func (t *Tunnel) Frames() (frames []Frame, err error) {
	defer unix.Close(t.fd)
	buf := make([]byte, 1<<16)
	for {
		n, _, err := unix.Recvfrom(t.fd, buf, 0)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN):
			return frames, t.missed()
		case err != nil:
			return nil, os.NewSyscallError("recvfrom", err)
		}
		if f, vni, ok := insideOf(buf[:n]); ok && vni == t.vni {
			frames = append(frames, append(Frame(nil), f...))
		}
	}
}

// missed is an error where packets found the buffer full.
func (t *Tunnel) missed() error {
	stats, err := unix.GetsockoptTpacketStats(t.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err == nil && stats.Drops > 0 {
		err = fmt.Errorf("%d packets of the underlay were missed", stats.Drops)
	}
	return err
}

// vxlanPort is the UDP port of VXLAN (RFC 7348).
const vxlanPort = 4789

// insideOf is the Ethernet frame that an Ethernet frame has in a VXLAN packet:
// over IPv4 or IPv6 without options.
func insideOf(b []byte) (f Frame, vni uint32, ok bool) {
	const ethernet, ip4, ip6, udp, vxlan = 14, 20, 40, 8, 8
	if len(b) < ethernet+ip4 {
		return nil, 0, false
	}
	header, protocol := ip4, b[ethernet+9]
	if binary.BigEndian.Uint16(b[12:]) == unix.ETH_P_IPV6 {
		header, protocol = ip6, b[ethernet+6]
	}
	rest := b[min(ethernet+header, len(b)):]
	if protocol != unix.IPPROTO_UDP || len(rest) < udp+vxlan+ethernet || binary.BigEndian.Uint16(rest[2:]) != vxlanPort {
		return nil, 0, false
	}
	return Frame(rest[udp+vxlan:]), binary.BigEndian.Uint32(rest[udp+4:]) >> 8, true
}

// Frame is an Ethernet frame.
type Frame []byte

// Type is the frame's EtherType.
func (f Frame) Type() uint16 { return binary.BigEndian.Uint16(f[12:]) }

// Asks is the address that an ARP request or a neighbour solicitation asks for;
// invalid for other frames.
func (f Frame) Asks() (addr netip.Addr) {
	const (
		request, opcode, target4          = 1, 14 + 6, 14 + 24
		icmpv6, next, solicitation, body6 = 58, 14 + 6, 135, 14 + 40
	)
	switch {
	case f.Type() == unix.ETH_P_ARP && len(f) >= target4+4 && binary.BigEndian.Uint16(f[opcode:]) == request:
		addr, _ = netip.AddrFromSlice(f[target4 : target4+4])
	case f.Type() == unix.ETH_P_IPV6 && len(f) >= body6+24 && f[next] == icmpv6 && f[body6] == solicitation:
		addr, _ = netip.AddrFromSlice(f[body6+8 : body6+24])
	}
	return addr
}
