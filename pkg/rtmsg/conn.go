// Package rtmsg writes and reads rtnetlink messages (rtnetlink(7), netlink(7))
// by the batch: what takes most of the time of many small changes is the way
// to the kernel and back.
//
// What a message says is put together by its callers: a head (Link, Addr,
// Neigh, Route) and attributes behind it (Attr and its relatives).
package rtmsg

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// ErrInterrupted says that a dump changed while it was read: what was read
// may lack entries, so nothing may be deleted on its strength.
var ErrInterrupted = errors.New("netlink dump interrupted by a change")

// Conn is a blocking rtnetlink socket in the network namespace of the thread
// that dialled it. It does what the netlink libraries don't: many requests in
// one system call with an error for each, and dumps that the kernel filters
// (NETLINK_GET_STRICT_CHK). Safe for concurrent use.
type Conn struct {
	mu  sync.Mutex
	fd  int
	seq uint32
	buf []byte
}

// Request is one message to send: its type, flags beyond NLM_F_REQUEST, and
// the family's header with attributes.
type Request struct {
	Type, Flags uint16
	Body        []byte
}

// batchBytes bounds one system call's messages: well below the default send
// buffer (208 KiB).
const batchBytes = 32 << 10

// Dial opens a socket in the calling thread's network namespace.
func Dial() (*Conn, error) { return DialProtocol(unix.NETLINK_ROUTE) }

// DialProtocol is Dial for another netlink protocol (unix.NETLINK_NETFILTER),
// whose objects are read in the same way.
func DialProtocol(protocol int) (*Conn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	for _, opt := range []int{unix.NETLINK_GET_STRICT_CHK, unix.NETLINK_CAP_ACK, unix.NETLINK_EXT_ACK} {
		if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, opt, 1); err != nil {
			unix.Close(fd)
			return nil, os.NewSyscallError("setsockopt", err)
		}
	}
	// A reply that never comes would be a kernel's fault; it must not hang us.
	timeout := unix.Timeval{Sec: 10}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("setsockopt", err)
	}
	return &Conn{fd: fd, buf: make([]byte, 64<<10)}, nil
}

// Close closes the socket.
func (c *Conn) Close() error { return unix.Close(c.fd) }

// Execute sends requests in order and gives one error, or nil, for each: those
// behind one that failed are carried out all the same. The errors are the
// kernel's (errors.Is unix.EEXIST and so on).
func (c *Conn) Execute(requests []Request) []error {
	c.mu.Lock()
	defer c.mu.Unlock()
	errs := make([]error, len(requests))
	for start := 0; start < len(requests); {
		first, out := c.seq+1, []byte(nil)
		end := start
		for end < len(requests) && (end == start || len(out)+len(requests[end].Body) < batchBytes) {
			out = c.put(out, requests[end], 0)
			end++
		}
		// Only the last asks for an acknowledgement: errors come anyhow.
		last := out[len(out)-len(padded(requests[end-1].Body))-unix.NLMSG_HDRLEN:]
		binary.NativeEndian.PutUint16(last[6:], binary.NativeEndian.Uint16(last[6:])|unix.NLM_F_ACK)
		if err := c.exchange(out, first, errs[start:end]); err != nil {
			for i := start; i < len(errs); i++ {
				errs[i] = err
			}
			return errs
		}
		start = end
	}
	return errs
}

// Index is the index of the link of that name; errors.Is unix.ENODEV where
// there is none. (The ioctl for it, SIOCGIFINDEX, has the kernel look for a
// module of that name first.)
func (c *Conn) Index(name string) (int, error) {
	body := AttrString(Link(0, 0, 0), unix.IFLA_IFNAME, name)
	body = AttrUint32(body, unix.IFLA_EXT_MASK, skipStatistics)
	link, err := c.Get(Request{Type: unix.RTM_GETLINK, Body: body})
	if err != nil {
		return 0, fmt.Errorf("link %s: %w", name, err)
	}
	if len(link) < unix.SizeofIfInfomsg {
		return 0, fmt.Errorf("link %s: an answer of %d bytes", name, len(link))
	}
	return int(binary.NativeEndian.Uint32(link[4:])), nil
}

// skipStatistics is RTEXT_FILTER_SKIP_STATS of linux/rtnetlink.h.
const skipStatistics = 1 << 3

// exchange sends a batch and reads until its last Request is answered.
func (c *Conn) exchange(out []byte, first uint32, errs []error) error {
	if err := unix.Sendto(c.fd, out, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return os.NewSyscallError("sendto", err)
	}
	last := first + uint32(len(errs)) - 1
	for {
		done := false
		err := c.receive(func(h unix.NlMsghdr, body []byte) error {
			if h.Type != unix.NLMSG_ERROR || h.Seq < first || h.Seq > last {
				return nil // an answer to something older
			}
			errs[h.Seq-first] = ackError(h, body)
			done = done || h.Seq == last
			return nil
		})
		if err != nil || done {
			return err
		}
	}
}

// Get sends one Request and gives the body of its single answer. The error is
// the kernel's (errors.Is unix.ENOENT and so on).
func (c *Conn) Get(r Request) (body []byte, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := c.put(nil, r, 0)
	seq := c.seq
	if err = unix.Sendto(c.fd, out, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, os.NewSyscallError("sendto", err)
	}
	for done := false; !done; {
		err = c.receive(func(h unix.NlMsghdr, b []byte) error {
			if h.Seq != seq {
				return nil
			}
			done = true
			if h.Type == unix.NLMSG_ERROR {
				return ackError(h, b)
			}
			body = append([]byte(nil), b...)
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return body, nil
}

// Dump calls each for every object of a filtered dump; body is valid during
// the call only. errors.Is ErrInterrupted when objects may be missing.
func (c *Conn) Dump(r Request, each func(body []byte)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := c.put(nil, r, unix.NLM_F_DUMP)
	seq := c.seq
	if err := unix.Sendto(c.fd, out, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return os.NewSyscallError("sendto", err)
	}
	var interrupted, done bool
	for !done {
		err := c.receive(func(h unix.NlMsghdr, body []byte) error {
			if h.Seq != seq {
				return nil
			}
			interrupted = interrupted || h.Flags&unix.NLM_F_DUMP_INTR != 0
			switch h.Type {
			case unix.NLMSG_DONE:
				done = true
				if len(body) >= 4 {
					if code := int32(binary.NativeEndian.Uint32(body)); code < 0 {
						return unix.Errno(-code)
					}
				}
			case unix.NLMSG_ERROR:
				done = true
				return ackError(h, body)
			default:
				each(body)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	if interrupted {
		return ErrInterrupted
	}
	return nil
}

// put appends a Request to out under the next sequence number.
func (c *Conn) put(out []byte, r Request, flags uint16) []byte {
	c.seq++
	body := padded(r.Body)
	h := make([]byte, unix.NLMSG_HDRLEN)
	binary.NativeEndian.PutUint32(h[0:], uint32(unix.NLMSG_HDRLEN+len(r.Body)))
	binary.NativeEndian.PutUint16(h[4:], r.Type)
	binary.NativeEndian.PutUint16(h[6:], unix.NLM_F_REQUEST|r.Flags|flags)
	binary.NativeEndian.PutUint32(h[8:], c.seq)
	return append(append(out, h...), body...)
}

// receive reads one datagram and calls each for its messages.
func (c *Conn) receive(each func(unix.NlMsghdr, []byte) error) error {
	n, _, err := unix.Recvfrom(c.fd, c.buf, 0)
	if err != nil {
		return os.NewSyscallError("recvfrom", err)
	}
	return Messages(c.buf[:n], each)
}

// Messages walks the netlink messages of a datagram.
func Messages(b []byte, each func(unix.NlMsghdr, []byte) error) error {
	for len(b) >= unix.NLMSG_HDRLEN {
		h := unix.NlMsghdr{
			Len: binary.NativeEndian.Uint32(b), Type: binary.NativeEndian.Uint16(b[4:]),
			Flags: binary.NativeEndian.Uint16(b[6:]), Seq: binary.NativeEndian.Uint32(b[8:]),
		}
		if h.Len < unix.NLMSG_HDRLEN || int(h.Len) > len(b) {
			return fmt.Errorf("netlink message of %d bytes in a datagram with %d left", h.Len, len(b))
		}
		if err := each(h, b[unix.NLMSG_HDRLEN:h.Len]); err != nil {
			return err
		}
		b = b[min(align(int(h.Len)), len(b)):]
	}
	return nil
}

// kernelError is an errno with the kernel's own explanation of it.
type kernelError struct {
	errno unix.Errno
	text  string
}

func (e *kernelError) Error() string { return fmt.Sprintf("%v (%s)", e.errno, e.text) }
func (e *kernelError) Unwrap() error { return e.errno }

// ackError reads an NLMSG_ERROR message; nil for an acknowledgement.
func ackError(h unix.NlMsghdr, body []byte) error {
	if len(body) < 20 {
		return fmt.Errorf("netlink acknowledgement of %d bytes", len(body))
	}
	code := int32(binary.NativeEndian.Uint32(body))
	if code == 0 {
		return nil
	}
	errno := unix.Errno(-code)
	if h.Flags&unix.NLM_F_ACK_TLVS != 0 {
		rest := body[20:] // behind the error and the Request's header
		if h.Flags&unix.NLM_F_CAPPED == 0 {
			sent := int(binary.NativeEndian.Uint32(body[4:]))
			rest = body[min(4+align(sent), len(body)):]
		}
		for typ, v := range Attrs(rest) {
			if typ == unix.NLMSGERR_ATTR_MSG && len(v) > 1 {
				return &kernelError{errno: errno, text: String(v)}
			}
		}
	}
	return errno
}
