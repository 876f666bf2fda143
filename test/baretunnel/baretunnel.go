// Package baretunnel makes a WireGuard tunnel between two nodes of a cluster as
// one does by hand, for what Weft's own is measured against. It uses nothing of
// Weft's.
package baretunnel

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/weft-cni/weft/test/cluster"
)

const (
	link = "bare0"
	port = 51900
	// mtu is that of Ethernet less an IPv4 and a WireGuard header.
	mtu = 1500 - 60
)

// configEnv makes Main the program of a tunnel's end.
const configEnv = "WEFT_BARE_TUNNEL"

// Main is to be called first by programs that use Start: where this process is
// one that Start started, it serves a tunnel's end and doesn't return.
func Main() {
	if os.Getenv(configEnv) == "" {
		return
	}
	if err := serve(os.Stdin); err != nil {
		fmt.Fprintln(os.Stderr, "bare tunnel:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// serve does as the WireGuard authors' program does, with the configuration
// that it reads (UAPI). It says a line when all is done.
func serve(in io.Reader) error {
	config, err := io.ReadAll(in)
	if err != nil {
		return err
	}
	t, err := tun.CreateTUN(link, mtu)
	if err != nil {
		return err
	}
	d := device.NewDevice(t, conn.NewDefaultBind(), device.NewLogger(device.LogLevelError, ""))
	if err := d.IpcSet(string(config)); err != nil {
		return err
	}
	fmt.Println("ready")
	<-d.Wait()
	return nil
}

// an end is a node's side of the tunnel.
type end struct {
	node *cluster.Node
	key  wgtypes.Key
	addr netip.Addr
}

// Start makes a tunnel between two nodes, over IPv4, and gives the address that
// the first reaches the second at. With kernel it is the kernel's WireGuard. It
// ends with the nodes.
func Start(a, b *cluster.Node, kernel bool) (netip.Addr, error) {
	ends := [2]end{{node: a, addr: netip.MustParseAddr("192.168.77.1")}, {node: b, addr: netip.MustParseAddr("192.168.77.2")}}
	for i := range ends {
		var err error
		if ends[i].key, err = wgtypes.GeneratePrivateKey(); err != nil {
			return netip.Addr{}, err
		}
	}
	for i, e := range ends {
		start := e.startProgram
		if kernel {
			start = e.startKernel
		}
		err := start(ends[1-i])
		if err == nil {
			err = e.node.Do(e.setUp)
		}
		if err != nil {
			return netip.Addr{}, fmt.Errorf("bare tunnel on %s: %w", e.node.Name, err)
		}
	}
	return ends[1].addr, nil
}

func (e end) endpoint() netip.AddrPort { return netip.AddrPortFrom(e.node.Underlay()[0], port) }

func (e end) startProgram(peer end) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	public := peer.key.PublicKey()
	cmd := exec.Command(self) //nolint:noctx // it ends with the node
	cmd.Env = append(os.Environ(), configEnv+"=1")
	cmd.Stdin = strings.NewReader(fmt.Sprintf("private_key=%x\nlisten_port=%d\npublic_key=%x\nendpoint=%s\nallowed_ip=%s/32\n\n",
		e.key[:], port, public[:], peer.endpoint(), peer.addr))
	cmd.Stderr = os.Stderr
	// A pipe of our own: exec's would be closed by Wait.
	read, write, err := os.Pipe()
	if err != nil {
		return err
	}
	defer read.Close()
	cmd.Stdout = write
	_, err = e.node.Start(cmd)
	if err = errors.Join(err, write.Close()); err != nil {
		return err
	}
	_, err = read.Read(make([]byte, 16))
	return err
}

func (e end) startKernel(peer end) error {
	return e.node.Do(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = link, mtu
		if err := netlink.LinkAdd(&netlink.Wireguard{LinkAttrs: attrs}); err != nil {
			return err
		}
		c, err := wgctrl.New()
		if err != nil {
			return err
		}
		defer c.Close()
		listen := port
		return c.ConfigureDevice(link, wgtypes.Config{PrivateKey: &e.key, ListenPort: &listen, Peers: []wgtypes.PeerConfig{{
			PublicKey: peer.key.PublicKey(), Endpoint: net.UDPAddrFromAddrPort(peer.endpoint()),
			AllowedIPs: []net.IPNet{{IP: peer.addr.AsSlice(), Mask: net.CIDRMask(32, 32)}},
		}}})
	})
}

// setUp gives the node's link its address.
func (e end) setUp() error {
	l, err := netlink.LinkByName(link)
	if err != nil {
		return err
	}
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: e.addr.AsSlice(), Mask: net.CIDRMask(24, 32)}}
	if err := netlink.AddrAdd(l, addr); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	return netlink.LinkSetUp(l)
}
