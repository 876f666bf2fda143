package encrypt_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/api/v1alpha1"
	"github.com/weft-cni/weft/pkg/encrypt"
	"github.com/weft-cni/weft/test/cluster"
	"github.com/weft-cni/weft/test/probe"
)

// sniffer counts packets on a node's way to the underlay that have a pod's
// address, in an IP header of their own or in that of a tunnel without
// encryption.
type sniffer struct {
	fd   int
	done chan struct{}

	mu    sync.Mutex
	seen  map[string]int
	first []string // when and what
}

func sniff(t *testing.T, n *cluster.Node, cidrs ...netip.Prefix) *sniffer {
	t.Helper()
	s := &sniffer{done: make(chan struct{}), seen: map[string]int{}}
	must(t, n.Do(func() error {
		l, err := netlink.LinkByName(cluster.NICName)
		if err != nil {
			return err
		}
		// SOCK_RAW with ETH_P_ALL sees what leaves as well.
		all := binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, unix.ETH_P_ALL))
		if s.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(all)); err != nil {
			return err
		}
		if err := unix.SetsockoptTimeval(s.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000}); err != nil {
			return err
		}
		return unix.Bind(s.fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: l.Attrs().Index})
	}))
	stop := make(chan struct{})
	go func() {
		defer close(s.done)
		buf := make([]byte, 65536)
		for {
			select {
			case <-stop:
				return
			default:
			}
			if length, _, err := unix.Recvfrom(s.fd, buf, 0); err == nil {
				s.look(buf[:length], cidrs)
			}
		}
	}()
	t.Cleanup(func() {
		close(stop)
		<-s.done
		_ = unix.Close(s.fd)
	})
	return s
}

// note counts what was seen, and keeps the first of each kind.
func (s *sniffer) note(what string, frame []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen[what]++
	if s.seen[what] == 1 {
		s.first = append(s.first, fmt.Sprintf("%s %s: % x", time.Now().UTC().Format("15:04:05.000"), what, frame[:min(len(frame), 128)]))
	}
}

// vxlanBefore reports whether head, which ends with an inner Ethernet header, has
// VXLAN's UDP port: what is encrypted may look like anything.
func vxlanBefore(head []byte) bool {
	udp := head[len(head)-14-8-8:]
	return binary.BigEndian.Uint16(udp[2:]) == 4789
}

// protocol is that of an IP packet: IPv4's protocol, IPv6's next header.
func protocol(ip []byte) byte {
	if ip[0]>>4 == 4 {
		return ip[9]
	}
	return ip[6]
}

// look finds the addresses of the packet, and of one in it (VXLAN: 14 of
// Ethernet, 20 or 40 of IP, 8 of UDP, 8 of VXLAN, 14 of Ethernet).
func (s *sniffer) look(frame []byte, cidrs []netip.Prefix) {
	for _, at := range []int{14, 14 + 20 + 8 + 8 + 14, 14 + 40 + 8 + 8 + 14} {
		if len(frame) < at+40 || at > 14 && !vxlanBefore(frame[:at]) {
			continue
		}
		var addrs []netip.Addr
		switch b := frame[at:]; b[0] >> 4 {
		case 4:
			addrs = []netip.Addr{netip.AddrFrom4([4]byte(b[12:])), netip.AddrFrom4([4]byte(b[16:]))}
		case 6:
			addrs = []netip.Addr{netip.AddrFrom16([16]byte(b[8:])), netip.AddrFrom16([16]byte(b[24:]))}
		}
		for _, a := range addrs {
			for _, c := range cidrs {
				if c.Contains(a) {
					s.note(fmt.Sprintf("%v at %d, protocol %d", addrs, at, protocol(frame[at:])), frame)
				}
			}
		}
	}
}

func (s *sniffer) none(t *testing.T) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.seen) > 0 {
		t.Errorf("in clear on the underlay: %v\n%s", s.seen, strings.Join(s.first, "\n"))
	}
}

// TestFailClosed: with encryption on nothing of a pod leaves in clear, to peers
// without a key, with the devices gone, with the routes gone.
func TestFailClosed(t *testing.T) {
	l := newLab(t, cluster.Options{Nodes: 3})
	var cidrs []netip.Prefix
	for _, n := range l.Nodes() {
		cidrs = append(cidrs, n.PodCIDRs...)
	}
	sniffers := []*sniffer{sniff(t, l.Node(1), cidrs...), sniff(t, l.Node(3), cidrs...)}
	l.daemon(1, wireguard, "--resync=1h")
	a := l.Node(1).Attach(t, "a")
	t.Run("nodes that nobody knows yet", func(t *testing.T) {
		for _, n := range []int{2, 3} {
			for _, cidr := range l.Node(n).PodCIDRs {
				if _, err := probe.PingOnce(within(t, time.Second), a, cidr.Addr().Next().Next()); err == nil {
					t.Errorf("an answer from %s", cidr)
				}
			}
		}
	})
	l.daemon(2, wireguard)
	l.daemon(3) // without encryption
	b, c := l.Node(2).Attach(t, "b"), l.Node(3).Attach(t, "c")
	talk(t, a, b)
	t.Run("peer without a key", func(t *testing.T) {
		for _, ip := range c.IPs() {
			if _, err := probe.PingOnce(within(t, time.Second), a, ip); err == nil {
				t.Errorf("a reaches c at %s", ip)
			}
		}
		for _, ip := range a.IPs() {
			if _, err := probe.PingOnce(within(t, time.Second), c, ip); err == nil {
				t.Errorf("c reaches a at %s", ip)
			}
		}
		for _, cidr := range l.Node(3).PodCIDRs {
			must(t, has(t, l.Node(1), "route unreachable "+cidr.String())())
		}
		l.told(l.Node(1), "PeerWithoutKey")
		l.told(l.Node(3), "PeerTakesEncryptedOnly")
		if got := metric(t, l.daemons[0], `weft_wireguard_peer_state{peer="n3",state="unreachable"}`); got != 1 {
			t.Errorf("the metric of n3 is %v", got)
		}
		if got := metric(t, l.daemons[0], `weft_conditions{reason="PeerWithoutKey"}`); got != 1 {
			t.Errorf("the metric of the condition is %v", got)
		}
		_, err := l.daemons[0].Get(t.Context(), "/readyz")
		must(t, err)
	})
	t.Run("routes and devices gone", func(t *testing.T) {
		all := stream(t, a, b)
		l.daemons[0].Kill()
		must(t, l.Node(1).Do(func() error {
			routes, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Protocol: 87, Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
			for _, r := range routes {
				err = errors.Join(err, netlink.RouteDel(&r))
			}
			return err
		}))
		for _, ip := range append(b.IPs(), l.Node(2).Underlay()...) {
			_, _ = probe.PingOnce(within(t, 300*time.Millisecond), a, ip)
			_, _ = probe.PingOnce(within(t, 300*time.Millisecond), l.Node(1), ip)
		}
		l.daemon(1, wireguard, "--resync=1h")
		a = l.Node(1).Attach(t, "a2") // the daemon restores pods' routes only later
		talk(t, a, b)
		must(t, l.Node(1).Do(func() error {
			link, err := netlink.LinkByName("wg-weft0")
			if err != nil {
				return err
			}
			return netlink.LinkDel(link)
		}))
		talk(t, a, b)
		for _, s := range all {
			s.Stop()
		}
	})
	t.Run("a peer that was known before", func(t *testing.T) {
		l.daemon(2) // encryption off, against the procedure
		l.published("n2", 5*time.Second, func(v *v1alpha1.VTEP) bool { return v.Spec.WireGuard == nil || v.Spec.WireGuard.Mode == "none" })
		eventually(t, 5*time.Second, has(t, l.Node(1), "route unreachable "+l.Node(2).PodCIDRs[0].String()))
		for _, ip := range b.IPs() {
			if _, err := probe.PingOnce(within(t, time.Second), a, ip); err == nil {
				t.Errorf("a reaches b at %s", ip)
			}
		}
		l.daemon(2, wireguard)
		talk(t, a, b)
	})
	for _, s := range sniffers {
		s.none(t)
	}
	t.Run("keys are secret", func(t *testing.T) { l.secrets() })
}

// secrets looks at the files of keys, and for keys in everything that was
// logged or can be asked for.
func (l *lab) secrets() {
	l.t.Helper()
	var said strings.Builder
	must(l.t, filepath.WalkDir(filepath.Join(l.Dir(), "log"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		said.Write(b)
		return err
	}))
	bin, err := cluster.BinDir()
	must(l.t, err)
	for i, n := range l.Nodes() {
		body, err := l.daemons[i].Get(l.t.Context(), "/metrics")
		must(l.t, err)
		said.Write(body)
		out, err := n.Run(within(l.t, 20*time.Second), filepath.Join(bin, "weftd"), "--once", "--plan", wireguard, cluster.PodRanges, "--log-level=debug",
			"--kubeconfig=/etc/weft/kubeconfig", "--node-name="+n.Name)
		must(l.t, err)
		said.Write(out)
		list, err := l.vteps().Get(l.t.Context(), n.Name, getOptions)
		must(l.t, err)
		fmt.Fprintf(&said, "%+v", list)
	}
	found := 0
	for _, n := range l.Nodes() {
		must(l.t, n.Do(func() error {
			store := encrypt.Store{Dir: "/var/lib/weft/" + encrypt.KeyDir}
			keys, err := store.Load()
			if err != nil {
				return err
			}
			for _, k := range keys {
				found++
				info, err := os.Stat(fmt.Sprintf("%s/key%d.json", store.Dir, k.Slot))
				if err != nil {
					return err
				}
				if info.Mode().Perm() != 0o600 {
					l.t.Errorf("the mode of %s is %v", info.Name(), info.Mode())
				}
				raw := k.Private.Reveal()
				for _, form := range forms(raw) {
					if strings.Contains(said.String(), form) {
						l.t.Errorf("the private key of %s in slot %d is in some output", n.Name, k.Slot)
					}
				}
			}
			return nil
		}))
	}
	if found == 0 {
		l.t.Error("no node has a key")
	}
}
