package wguser

import (
	"bytes"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/weft-cni/weft/test/testns"
)

// dirEnv makes the test's program a process with its sockets in a directory.
const dirEnv = "WEFT_TEST_WGUSER"

func TestMain(m *testing.M) {
	dir := os.Getenv(dirEnv)
	if dir == "" {
		os.Exit(m.Run())
	}
	ctx, stop := signal.NotifyContext(testContext(), syscall.SIGTERM)
	err := Run(ctx, optionsIn(dir))
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "wguser:", err)
		os.Exit(1)
	}
}

func optionsIn(dir string) Options {
	return Options{
		Devices: strings.Fields(os.Getenv(dirEnv + "_DEVICES")),
		Dir:     filepath.Join(dir, "run"), UAPIDir: filepath.Join(dir, "uapi"),
		Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
}

// site is a node of a lab: a network namespace with a process in it.
type site struct {
	*testns.NS
	t         *testing.T
	dir, name string
	log       *os.File
	key       *ecdh.PrivateKey
	underlay  []netip.Prefix // IPv4, IPv6
	tunnel    []netip.Prefix
}

const (
	wgDevice = "wg-test0"
	wgPort   = 51820
	wgMTU    = 1420
)

// lab is two nodes on one wire, with a tunnel between them.
func lab(t *testing.T) (a, b *site) {
	t.Helper()
	a, b = newSite(t, "a", 1), newSite(t, "b", 2)
	peer := b.open()
	defer peer.Close()
	err := a.Do(func() error {
		return netlink.LinkAdd(&netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: "eth0", MTU: 1500}, PeerName: "eth0",
			PeerNamespace: netlink.NsFd(int(peer.Fd())),
		})
	})
	must(t, err)
	for _, s := range []*site{a, b} {
		s.up("eth0", s.underlay)
		s.start()
		s.setUp(1500 - 80)
	}
	a.connect(b)
	b.connect(a)
	return a, b
}

func newSite(t *testing.T, name string, number byte) *site {
	t.Helper()
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	must(t, err)
	dir := t.TempDir()
	log, err := os.Create(filepath.Join(dir, "log"))
	must(t, err)
	s := &site{
		NS: testns.New(t), t: t, dir: dir, name: name, log: log, key: key,
		underlay: []netip.Prefix{
			netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 30, 0, number}), 24),
			netip.PrefixFrom(netip.AddrFrom16([16]byte{0: 0xfd, 1: 0x30, 15: number}), 64),
		},
		tunnel: []netip.Prefix{
			netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 9, 0, number}), 24),
			netip.PrefixFrom(netip.AddrFrom16([16]byte{0: 0xfd, 1: 9, 15: number}), 64),
		},
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log of %s:\n%s", name, s.logged())
		}
	})
	return s
}

func (s *site) open() *os.File {
	f, err := os.Open(s.Path)
	must(s.t, err)
	return f
}

func (s *site) logged() []byte {
	data, err := os.ReadFile(s.log.Name())
	must(s.t, err)
	return data
}

// start starts a process, and waits until it has the device.
func (s *site) start() *exec.Cmd {
	s.t.Helper()
	ready := bytes.Count(s.logged(), []byte("is ready"))
	cmd := s.launch()
	eventually(s.t, "the process on "+s.name+" is ready", func() bool {
		if cmd.ProcessState != nil {
			s.t.Fatalf("it ended: %v", cmd.ProcessState)
		}
		return bytes.Count(s.logged(), []byte("is ready")) > ready
	})
	return cmd
}

func (s *site) launch() *exec.Cmd {
	s.t.Helper()
	cmd := exec.CommandContext(s.t.Context(), "/proc/self/exe")
	cmd.Env = append(os.Environ(), dirEnv+"="+s.dir, dirEnv+"_DEVICES="+wgDevice)
	cmd.Stdout, cmd.Stderr = s.log, s.log
	must(s.t, s.Do(cmd.Start))
	done := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(done)
	}()
	s.t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended
		<-done
	})
	return cmd
}

// setUp does the daemon's part.
func (s *site) setUp(mtu int) {
	s.t.Helper()
	s.configure(fmt.Sprintf("private_key=%x\nlisten_port=%d\n", s.key.Bytes(), wgPort))
	must(s.t, s.Do(func() error {
		l, err := netlink.LinkByName(wgDevice)
		if err != nil {
			return err
		}
		// What a busy machine doesn't get to read for a second is no loss of ours.
		return errors.Join(netlink.LinkSetMTU(l, mtu), netlink.LinkSetTxQLen(l, 10000))
	}))
	s.up(wgDevice, s.tunnel)
}

// connect makes a peer known.
func (s *site) connect(peer *site) {
	s.t.Helper()
	config := fmt.Sprintf("public_key=%x\nendpoint=%s\n", peer.key.PublicKey().Bytes(), netip.AddrPortFrom(peer.underlay[0].Addr(), wgPort))
	for _, p := range peer.tunnel {
		config += fmt.Sprintf("allowed_ip=%s\n", netip.PrefixFrom(p.Addr(), p.Addr().BitLen()))
	}
	s.configure(config)
}

func (s *site) up(link string, addrs []netip.Prefix) {
	s.t.Helper()
	must(s.t, s.Do(func() error {
		l, err := netlink.LinkByName(link)
		if err != nil {
			return err
		}
		for _, p := range addrs {
			addr := &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
			if p.Addr().Is6() {
				addr.Flags = syscall.IFA_F_NODAD
			}
			if err := netlink.AddrReplace(l, addr); err != nil {
				return err
			}
		}
		return netlink.LinkSetUp(l)
	}))
}

// configure sets what text says, by the device's control socket.
func (s *site) configure(text string) {
	s.t.Helper()
	if reply := s.ask("set=1\n" + text + "\n"); reply != "errno=0\n\n" {
		s.t.Fatalf("configure %s: %q", s.name, reply)
	}
}

func (s *site) ask(request string) string {
	s.t.Helper()
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: filepath.Join(s.dir, "uapi", wgDevice+".sock"), Net: "unix"})
	must(s.t, err)
	defer c.Close()
	_, err = io.WriteString(c, request)
	must(s.t, err)
	must(s.t, c.CloseWrite())
	reply, err := io.ReadAll(c)
	must(s.t, err)
	return string(reply)
}

// secrets are all ways that the private key could be written in.
func (s *site) secrets() []string {
	key := s.key.Bytes()
	return []string{hex.EncodeToString(key), strings.ToUpper(hex.EncodeToString(key)), base64.StdEncoding.EncodeToString(key), fmt.Sprint(key), string(key)}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// eventually waits until done is true.
func eventually(t testing.TB, what string, done func() bool) {
	t.Helper()
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	for deadline := time.Now().Add(20 * time.Second); !done(); <-ticker.C {
		if time.Now().After(deadline) {
			t.Fatalf("not within 20 s: %s", what)
		}
	}
}

// isGone reports whether an error says that there is no such file or link.
func isGone(err error) bool {
	_, missing := errors.AsType[netlink.LinkNotFoundError](err)
	return missing || errors.Is(err, os.ErrNotExist)
}
