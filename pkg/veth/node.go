package veth

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/rtmsg"
)

// Node is the node's network namespace: the one that the thread that opened it
// was in. Safe for concurrent use, of which the kernel makes a queue.
type Node struct {
	h    *netlink.Handle
	conn *rtmsg.Conn
}

// Open opens the calling thread's network namespace.
func Open() (*Node, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("netlink: %w", err)
	}
	conn, err := rtmsg.Dial()
	if err != nil {
		h.Close()
		return nil, fmt.Errorf("netlink: %w", err)
	}
	return &Node{h: h, conn: conn}, nil
}

// Close lets go of it.
func (n *Node) Close() {
	n.h.Close()
	_ = n.conn.Close()
}

// Exists reports whether the node has a link of that name.
func (n *Node) Exists(name string) (bool, error) {
	_, err := n.conn.Index(name)
	if errors.Is(err, unix.ENODEV) {
		return false, nil
	}
	return err == nil, err
}

func isNotFound(err error) bool {
	var notFound netlink.LinkNotFoundError
	return errors.As(err, &notFound)
}
