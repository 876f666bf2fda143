package veth

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Node is the node's network namespace: the one that the thread that opened it
// was in. Safe for concurrent use, of which the kernel makes a queue.
type Node struct {
	h *netlink.Handle
}

// Open opens the calling thread's network namespace.
func Open() (*Node, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("netlink: %w", err)
	}
	return &Node{h: h}, nil
}

// Close lets go of it.
func (n *Node) Close() { n.h.Close() }

// Exists reports whether the node has a link of that name.
func (n *Node) Exists(name string) (bool, error) {
	_, err := n.h.LinkByName(name)
	if isNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("link %s: %w", name, err)
	}
	return true, nil
}

func isNotFound(err error) bool {
	var notFound netlink.LinkNotFoundError
	return errors.As(err, &notFound)
}
