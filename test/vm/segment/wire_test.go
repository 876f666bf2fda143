//go:build vm

package segment_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/kernel/rtnl"
	"github.com/weft-cni/weft/pkg/netconf"
	"github.com/weft-cni/weft/test/cluster"
)

// outer is what is around a frame on the wire.
type outer struct {
	src, dst netip.Addr
	protocol byte
	ttl      byte
	mayCut   bool   // by a router on the way
	header   []byte // what follows the IP header, up to the frame
}

// parseOuter reads an Ethernet packet that has frame in it.
func parseOuter(packet []byte, frame string) (o outer, ok bool) {
	at := strings.LastIndex(string(packet), frame)
	if at < 0 || len(packet) < 14+40 {
		return o, false
	}
	ip := packet[14:]
	size := 20
	switch binary.BigEndian.Uint16(packet[12:]) {
	case unix.ETH_P_IP:
		o = outer{src: netip.AddrFrom4([4]byte(ip[12:])), dst: netip.AddrFrom4([4]byte(ip[16:])), protocol: ip[9], ttl: ip[8], mayCut: ip[6]&0x40 == 0}
	case unix.ETH_P_IPV6:
		size = 40
		o = outer{src: netip.AddrFrom16([16]byte(ip[8:])), dst: netip.AddrFrom16([16]byte(ip[24:])), protocol: ip[6], ttl: ip[7], mayCut: true}
	default:
		return o, false
	}
	o.header = packet[14+size : at]
	return o, true
}

// TestOuter looks at the headers on the wire: those of RFC 8926 and of RFC 7637,
// with a TTL of their own, whatever that of the packet inside is.
func TestOuter(t *testing.T) {
	each(t, func(t *testing.T, tunnels netconf.Tunnels, six bool) {
		nodes := newNodes(t, 2, six)
		together(t, nodes, tunnels)
		reach(t, nodes)
		wire := listen(t, nodes[0], cluster.NICName, unix.ETH_P_ALL)
		pod := listen(t, nodes[0].pod, "net1", local)
		// An IPv4 packet with a TTL of 1 that may not be cut.
		from, to := nodes[0].port.IPs[0].As4(), nodes[1].port.IPs[0].As4()
		ip := append([]byte{0x45, 0, 0, 24, 0, 1, 0x40, 0, 1, 253, 0, 0}, append(from[:], to[:]...)...)
		sum := uint32(0)
		for i := 0; i < len(ip); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(ip[i:]))
		}
		binary.BigEndian.PutUint16(ip[10:], ^uint16(sum+sum>>16))
		src, dst := nodes[0].port.MAC, nodes[1].port.MAC
		frame := string(dst[:]) + string(src[:]) + "\x08\x00" + string(ip) + "weft"
		must(t, unix.Sendto(pod.fd, []byte(frame), 0, &unix.SockaddrLinklayer{Ifindex: pod.index, Halen: 6}))
		var got outer
		wait(t, func() error {
			buf := make([]byte, 4096)
			for {
				n, _, err := unix.Recvfrom(wire.fd, buf, 0)
				if errors.Is(err, unix.EAGAIN) {
					return errors.New("nothing on the wire")
				}
				if err != nil && !errors.Is(err, unix.EINTR) {
					return err
				}
				if o, ok := parseOuter(buf[:max(n, 0)], frame); ok {
					got = o
					return nil
				}
			}
		})
		if got.src != nodes[0].self.Underlay[0].Addr || got.dst != nodes[1].self.Underlay[0].Addr || got.ttl != 64 || !got.mayCut {
			t.Errorf("outer packet %+v", got)
		}
		const id = "\x00\x27\x11" // vni
		switch tunnels.Encapsulation {
		case netconf.EncapGeneve:
			if len(got.header) != 16 || got.protocol != unix.IPPROTO_UDP || binary.BigEndian.Uint16(got.header[2:]) != 6081 ||
				binary.BigEndian.Uint16(got.header[6:]) == 0 || string(got.header[8:]) != "\x00\x00\x65\x58"+id+"\x00" {
				t.Errorf("protocol %d, headers % x", got.protocol, got.header)
			}
		case netconf.EncapNVGRE:
			if got.protocol != unix.IPPROTO_GRE || string(got.header) != "\x20\x00\x65\x58"+id+"\x00" {
				t.Errorf("protocol %d, header % x", got.protocol, got.header)
			}
		case netconf.EncapVXLAN:
		}
	})
}

// TestForeign: a device of our name and kind with other settings is told from
// ours and replaced.
func TestForeign(t *testing.T) {
	each(t, func(t *testing.T, tunnels netconf.Tunnels, six bool) {
		nodes := newNodes(t, 2, six)
		plan := together(t, nodes, tunnels)[0]
		name := tunnelTo(t, plan, nodes[1])
		ends := fmt.Sprintf("remote %s local %s ", nodes[1].self.Underlay[0].Addr, nodes[0].self.Underlay[0].Addr)
		settings := map[string]string{ // and what a reader says of them
			"type gretap " + ends + "key 2560256 nopmtudisc ignore-df":                      "type gretap, ttl",
			"type gretap " + ends + "key 2560256 ttl 64 nopmtudisc":                         "type gretap, noignore-df",
			"type gretap " + ends + "key 2560257 ttl 64 nopmtudisc ignore-df":               "type gretap, a FlowID",
			"type gretap " + ends + "ikey 2560256 okey 2560512 ttl 64 nopmtudisc ignore-df": "type gretap, keys that differ",
			"type gretap " + ends + "key 2560256 csum ttl 64 nopmtudisc ignore-df":          "type gretap, without a key alone",
			"type gretap " + ends + "ttl 64 nopmtudisc ignore-df":                           "type gretap, without a key alone",
			"type gretap external": "type gretap, external",
		}
		switch {
		case tunnels.Encapsulation == netconf.EncapGeneve:
			geneve := fmt.Sprintf("type geneve id %d remote %s dstport 6081 ", vni, nodes[1].self.Underlay[0].Addr)
			settings = map[string]string{
				geneve + "udpcsum ttl 5": "type geneve, ttl", geneve + "udpcsum tos 4": "type geneve, tos", geneve + "udpcsum df set": "type geneve, df",
				geneve + "udpcsum ttl inherit": "type geneve, ttl",
			}
			if six {
				settings[geneve+"udp6zerocsumtx"] = "type geneve, udp6zerocsumtx"
			} else {
				settings[geneve+"noudpcsum"] = "type geneve, noudpcsum"
			}
		case six:
			settings = map[string]string{
				"type ip6gretap " + ends + "key 2560256 hoplimit 64":                 "type ip6gretap, flags",
				"type ip6gretap " + ends + "key 2560256 hoplimit 5 encaplimit none":  "type ip6gretap, ttl",
				"type ip6gretap " + ends + "key 2560257 hoplimit 64 encaplimit none": "type ip6gretap, a FlowID",
			}
		}
		for setting, detail := range settings {
			must(t, nodes[0].Do(func() error {
				if out, err := exec.CommandContext(t.Context(), "ip", "link", "del", name).CombinedOutput(); err != nil {
					return fmt.Errorf("%w: %s", err, out)
				}
				out, err := exec.CommandContext(t.Context(), "ip", append([]string{"link", "add", name}, strings.Fields(setting)...)...).CombinedOutput()
				if err != nil {
					return fmt.Errorf("%s: %w: %s", setting, err, out)
				}
				h, err := rtnl.Open()
				if err != nil {
					return err
				}
				defer h.Close()
				have, err := h.ReadKeys(kernel.Keys{{Kind: kernel.KindLink, Name: name}: {}})
				if want := (kernel.ForeignLink{Name: name, Detail: detail}); have[want.Key()] != want {
					return fmt.Errorf("%s: read as %s, not %s", setting, have, want)
				}
				return err
			}))
			nodes[0].sync(t, plan)
		}
		reach(t, nodes)
	})
}
