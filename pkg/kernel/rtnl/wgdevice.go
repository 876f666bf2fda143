package rtnl

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/rtmsg"
)

// HandshakeLife is how long a WireGuard session lasts without a new handshake
// (Reject-After-Time of the WireGuard paper, section 6.1).
const HandshakeLife = 180 * time.Second

// errNoProcess says that a userspace device isn't there.
var errNoProcess = errors.New("no process serves the device: is weftd wireguard running on this node?")

// looseReversePath lets packets in that answers wouldn't go out by. It beats
// whatever is set for all interfaces (ip-sysctl.rst).
const looseReversePath = "2"

func isWireGuard(l link) bool { return l.kind == "wireguard" || l.kind == "tun" }

// wireGuard does something with a client of its own: one that was opened before
// the kernel's module was loaded doesn't know it.
func wireGuard(do func(*wgctrl.Client) error) error {
	c, err := wgctrl.New()
	if err != nil {
		return err
	}
	return errors.Join(do(c), c.Close())
}

// device reads the WireGuard side of a link; nil where a TUN device has no
// process behind it.
func device(l link) (d *wgtypes.Device, err error) {
	err = wireGuard(func(c *wgctrl.Client) error {
		d, err = c.Device(l.name)
		return err
	})
	switch {
	case err != nil && l.kind == "tun" && isNoProcess(err):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("read WireGuard device %s: %w", l.name, err)
	}
	return d, nil
}

// isNoProcess reports whether there is no socket, or none that is answered.
func isNoProcess(err error) bool {
	return errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED)
}

// readWireGuard puts a device and its peers, but for a TUN device at rest.
func (h *Handle) readWireGuard(s kernel.State, l link) error {
	d, err := device(l)
	if err != nil {
		return err
	}
	o := kernel.WireGuard{Name: l.name, Userspace: l.kind == "tun", MTU: l.mtu}
	if d == nil {
		if o.Detail = "no process"; l.up {
			s.Put(o)
		}
		return nil
	}
	o.Private, o.Port = kernel.SecretOf(d.PrivateKey), uint16(d.ListenPort)
	if o.Userspace && !l.up && o.Private.IsZero() && len(d.Peers) == 0 {
		return nil
	}
	if o.Detail = h.strict(l.name); !l.up {
		o.Detail = "down"
	}
	s.Put(o)
	for _, p := range d.Peers {
		s.Put(peerObject(l.name, p))
	}
	return nil
}

// strict says how a link filters reverse paths where that isn't loosely.
func (h *Handle) strict(link string) string {
	rp, err := os.ReadFile(h.reversePath(link))
	if value := strings.TrimSpace(string(rp)); err == nil && value != looseReversePath {
		return "rp_filter " + value
	}
	return ""
}

func (h *Handle) loosen(link string) error {
	return os.WriteFile(h.reversePath(link), []byte(looseReversePath), 0o644)
}

func (h *Handle) reversePath(link string) string {
	return filepath.Join(h.sysctls, "net/ipv4/conf", link, "rp_filter")
}

func peerObject(link string, p wgtypes.Peer) kernel.WireGuardPeer {
	o := kernel.WireGuardPeer{
		Link: link, PublicKey: kernel.PublicKey(p.PublicKey), PresharedKey: kernel.SecretOf(p.PresharedKey),
		Keepalive: uint16(p.PersistentKeepaliveInterval / time.Second),
		Learned:   time.Since(p.LastHandshakeTime) < HandshakeLife,
	}
	if p.Endpoint != nil {
		e := p.Endpoint.AddrPort()
		o.Endpoint = netip.AddrPortFrom(e.Addr().Unmap(), e.Port())
	}
	var allowed []netip.Prefix
	for _, n := range p.AllowedIPs {
		bits, _ := n.Mask.Size()
		allowed = append(allowed, netip.PrefixFrom(rtmsg.AddrOf(n.IP).Unmap(), bits))
	}
	o.AllowedIPs = kernel.PrefixListOf(allowed)
	return o
}

// PeerTraffic is what a WireGuard device has seen of a peer.
type PeerTraffic struct {
	Link      string
	PublicKey kernel.PublicKey
	Handshake time.Time // the last; zero for none
	Rx, Tx    int64     // bytes, handshakes and keepalives included
}

// Established reports whether the peer has a session now.
func (t PeerTraffic) Established(now time.Time) bool { return now.Sub(t.Handshake) < HandshakeLife }

// PeerTraffic reads what the named WireGuard devices have seen of their peers;
// devices that aren't there have seen nothing.
func (h *Handle) PeerTraffic(links []string) (all []PeerTraffic, err error) {
	for _, name := range links {
		l, err := h.link(name)
		if errors.Is(err, unix.ENODEV) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if !isWireGuard(l) {
			continue
		}
		d, err := device(l)
		if err != nil {
			return nil, err
		}
		if d == nil {
			continue
		}
		for _, p := range d.Peers {
			all = append(all, PeerTraffic{
				Link: name, PublicKey: kernel.PublicKey(p.PublicKey), Handshake: p.LastHandshakeTime,
				Rx: p.ReceiveBytes, Tx: p.TransmitBytes,
			})
		}
	}
	return all, nil
}

// applyWireGuard makes the device as wanted. One of a process must be there.
func (h *Handle) applyWireGuard(op kernel.Op, want kernel.WireGuard) error {
	if op.Verb != kernel.Replace && !want.Userspace {
		body := rtmsg.AttrString(rtmsg.Link(0, 0, 0), unix.IFLA_IFNAME, want.Name)
		body = rtmsg.Attr(body, unix.IFLA_LINKINFO|unix.NLA_F_NESTED, rtmsg.AttrString(nil, unix.IFLA_INFO_KIND, "wireguard"))
		if err := h.all(rtmsg.Request{Type: unix.RTM_NEWLINK, Flags: unix.NLM_F_CREATE | unix.NLM_F_EXCL, Body: body}); err != nil {
			return fmt.Errorf("create: %w", err)
		}
	}
	l, err := h.link(want.Name)
	if err != nil && want.Userspace && errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("%w (%w)", errNoProcess, err)
	}
	if err != nil {
		return err
	}
	if l.mtu != want.MTU {
		if err := h.all(rtmsg.Request{Type: unix.RTM_SETLINK, Body: rtmsg.AttrUint32(rtmsg.Link(l.index, 0, 0), unix.IFLA_MTU, uint32(want.MTU))}); err != nil {
			return fmt.Errorf("set MTU: %w", err)
		}
	}
	if err := configure(l, want); err != nil {
		return err
	}
	if err := h.loosen(l.name); err != nil {
		return err
	}
	return h.up(l.index)
}

// configure sets key and port where they differ: setting the same port again
// opens a process's sockets anew.
func configure(l link, want kernel.WireGuard) error {
	d, err := device(l)
	if err != nil {
		return err
	}
	if d == nil {
		return errNoProcess
	}
	var c wgtypes.Config
	if key := wgtypes.Key(want.Private.Reveal()); d.PrivateKey != key {
		c.PrivateKey = &key
	}
	if port := int(want.Port); d.ListenPort != port {
		c.ListenPort = &port
	}
	if c.PrivateKey == nil && c.ListenPort == nil {
		return nil
	}
	return wireGuard(func(w *wgctrl.Client) error { return w.ConfigureDevice(l.name, c) })
}

// rest takes all work from a device of a process, which keeps the device.
func (h *Handle) rest(l link) error {
	return errors.Join(
		h.all(rtmsg.Request{Type: unix.RTM_SETLINK, Body: rtmsg.Link(l.index, 0, unix.IFF_UP)}),
		wireGuard(func(w *wgctrl.Client) error {
			err := w.ConfigureDevice(l.name, wgtypes.Config{PrivateKey: &wgtypes.Key{}, ReplacePeers: true})
			if isNoProcess(err) {
				return nil
			}
			return err
		}),
	)
}

// applyPeers carries operations on the peers of one device out: all together
// and, where that fails, one by one, to tell which it is.
func applyPeers(name string, ops []kernel.Op) (failed []OpError) {
	err := wireGuard(func(w *wgctrl.Client) error {
		var all wgtypes.Config
		for _, op := range ops {
			all.Peers = append(all.Peers, peerConfig(op))
		}
		err := w.ConfigureDevice(name, all)
		if err == nil || len(ops) == 1 {
			return err
		}
		for i, p := range all.Peers {
			if err := w.ConfigureDevice(name, wgtypes.Config{Peers: []wgtypes.PeerConfig{p}}); err != nil {
				failed = append(failed, OpError{Op: ops[i], Err: err})
			}
		}
		return nil
	})
	if err == nil {
		return failed
	}
	for _, op := range ops {
		if op.Verb != kernel.Delete || !errors.Is(err, os.ErrNotExist) { // it went with its link
			failed = append(failed, OpError{Op: op, Err: err})
		}
	}
	return failed
}

// peerConfig is an operation on a peer with no more than what differs.
func peerConfig(op kernel.Op) wgtypes.PeerConfig {
	if op.Verb == kernel.Delete {
		have, _ := op.Have.(kernel.WireGuardPeer)
		return wgtypes.PeerConfig{PublicKey: wgtypes.Key(have.PublicKey), Remove: true}
	}
	want, _ := op.Want.(kernel.WireGuardPeer)
	have, known := op.Have.(kernel.WireGuardPeer)
	c := wgtypes.PeerConfig{PublicKey: wgtypes.Key(want.PublicKey)}
	if want.PresharedKey != have.PresharedKey {
		key := wgtypes.Key(want.PresharedKey.Reveal())
		c.PresharedKey = &key
	}
	if want.Endpoint.IsValid() && want.Endpoint != have.Endpoint && !have.Learned {
		c.Endpoint = net.UDPAddrFromAddrPort(want.Endpoint)
	}
	if want.Keepalive != have.Keepalive {
		interval := time.Duration(want.Keepalive) * time.Second
		c.PersistentKeepaliveInterval = &interval
	}
	allowed, before := want.AllowedIPs.Prefixes(), have.AllowedIPs.Prefixes()
	if known && slices.ContainsFunc(before, func(p netip.Prefix) bool { return !slices.Contains(allowed, p) }) {
		c.ReplaceAllowedIPs, before = true, nil
	}
	for _, p := range allowed {
		if !slices.Contains(before, p) {
			c.AllowedIPs = append(c.AllowedIPs, net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())})
		}
	}
	return c
}
