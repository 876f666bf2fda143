// Package control is what the plugin asks of the daemon, over a unix socket
// that only root can use: a segment's first use on a node, and addresses where
// the leased ones are used up. All else the plugin does without the daemon.
//
// A connection carries one request and one reply, a JSON object each.
package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/netconf"
)

// Socket is the name of the socket in netconf's RunDir.
const Socket = "weftd.sock"

// Errors that Prepare tells apart.
var (
	// ErrNoDaemon says that no daemon answers.
	ErrNoDaemon = errors.New("weftd doesn't answer")
	// ErrNotYet says that a later request may succeed.
	ErrNotYet = errors.New("not yet")
	// ErrRefused says that the network configuration can't be met.
	ErrRefused = errors.New("weftd refuses the network")
	// ErrExhausted says that all of a range's addresses are in use.
	ErrExhausted = errors.New("no free address")
	// ErrTaken says that an address asked for is leased to another node.
	ErrTaken = errors.New("address is another node's")
)

var kinds = map[string]error{
	"not yet": ErrNotYet, "refused": ErrRefused, "exhausted": ErrExhausted, "taken": ErrTaken,
}

// Request asks for a segment to be ready on this node, with a free address of
// each of its ranges, or with Addrs among the leased ones.
type Request struct {
	Segment netconf.Segment `json:"segment"`
	Addrs   []netip.Addr    `json:"addrs,omitempty"`
}

// reply is empty where all is well.
type reply struct {
	Kind  string `json:"kind,omitempty"` // a key of kinds
	Error string `json:"error,omitempty"`
}

// maxTime is how long a request may take: as long as a lock of the plugin's.
const maxTime = 30 * time.Second

// Prepare has the daemon whose socket is in runDir meet r. errors.Is holds for
// one of this package's errors.
func Prepare(ctx context.Context, runDir string, r Request) error {
	ctx, cancel := context.WithTimeout(ctx, maxTime)
	defer cancel()
	c, err := (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(runDir, Socket))
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNoDaemon, err)
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	var answer reply
	if err = json.NewEncoder(c).Encode(r); err == nil {
		err = json.NewDecoder(c).Decode(&answer)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNoDaemon, err)
	}
	if answer.Error == "" {
		return nil
	}
	kind, known := kinds[answer.Kind]
	if !known {
		kind = ErrNotYet
	}
	return fmt.Errorf("%w: %s", kind, strings.TrimPrefix(answer.Error, kind.Error()+": "))
}

// Serve answers requests with prepare, each in a goroutine of its own, until
// ctx ends. The socket is there when it has begun, and whatever was in its
// place is gone.
func Serve(ctx context.Context, runDir string, prepare func(context.Context, Request) error) error {
	if err := os.MkdirAll(runDir, 0o755); err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	path := filepath.Join(runDir, Socket)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("socket: %w", err)
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "unix", path)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return errors.Join(fmt.Errorf("socket: %w", err), l.Close())
	}
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	var group sync.WaitGroup
	defer group.Wait()
	for {
		c, err := l.Accept()
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return fmt.Errorf("socket: %w", err)
		}
		group.Go(func() {
			defer c.Close()
			within, cancel := context.WithTimeout(ctx, maxTime)
			defer cancel()
			answer(within, c, prepare)
		})
	}
}

func answer(ctx context.Context, c net.Conn, prepare func(context.Context, Request) error) {
	if !isRoot(c) || c.SetDeadline(time.Now().Add(maxTime)) != nil {
		return
	}
	var r Request
	err := json.NewDecoder(c).Decode(&r)
	if err == nil {
		err = prepare(ctx, r)
	} else {
		err = fmt.Errorf("%w: %w", ErrRefused, err)
	}
	var out reply
	if err != nil {
		out = reply{Kind: "not yet", Error: err.Error()}
		for name, kind := range kinds {
			if errors.Is(err, kind) {
				out.Kind = name
			}
		}
	}
	data, err := json.Marshal(out)
	if err == nil {
		_, _ = c.Write(data) // who doesn't listen any more asks again
	}
}

// isRoot reports whether the other end is root's: the socket's mode says so
// too, but it has it only from a moment after it was made.
func isRoot(c net.Conn) bool {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return false
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return false
	}
	root := false
	err = raw.Control(func(fd uintptr) {
		cred, credErr := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		root = credErr == nil && cred.Uid == 0
	})
	return err == nil && root
}
