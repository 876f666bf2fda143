package crash

import (
	"encoding/binary"
	"fmt"
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Step is a system call that changes something outside the process.
type Step struct {
	Call string // its name
	On   string // the file, or what the message is about
	// Asks is set for messages that only ask, and for reading answers: they
	// change nothing, but can fail.
	Asks bool
}

func (s Step) String() string { return strings.TrimSpace(s.Call + " " + s.On) }

// callInfo is struct ptrace_syscall_info (linux/ptrace.h) at a system call's
// entry.
type callInfo struct {
	op   uint8
	_    [3]uint8
	arch uint32
	ip   uint64
	sp   uint64
	nr   uint64
	args [6]uint64
}

func syscallInfo(id int) (callInfo, error) {
	var info callInfo
	_, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_GET_SYSCALL_INFO, uintptr(id),
		unsafe.Sizeof(info), uintptr(unsafe.Pointer(&info)), 0, 0)
	if errno != 0 {
		return callInfo{}, errno
	}
	return info, nil
}

// stepOf says what a system call that is about to begin changes; ok is false
// where that is nothing.
func stepOf(id int, c callInfo) (s Step, ok bool) {
	file := func() string {
		name, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", id, int32(c.args[0])))
		return name
	}
	path := func(arg int) string { return readString(id, c.args[arg]) }
	switch c.nr {
	case unix.SYS_OPENAT:
		return Step{Call: "create", On: path(1)}, c.args[2]&(unix.O_CREAT|unix.O_TRUNC) != 0
	case unix.SYS_WRITE, unix.SYS_PWRITE64, unix.SYS_WRITEV:
		on := file()
		return Step{Call: "write", On: on}, on != "anon_inode:[eventfd]" // the Go runtime's own
	case unix.SYS_FSYNC, unix.SYS_FDATASYNC:
		return Step{Call: "fsync", On: file()}, true
	case unix.SYS_FTRUNCATE:
		return Step{Call: "truncate", On: file()}, true
	case unix.SYS_FLOCK:
		return Step{Call: "flock", On: file()}, true
	case unix.SYS_RENAMEAT, unix.SYS_RENAMEAT2:
		return Step{Call: "rename", On: path(3)}, true
	case unix.SYS_UNLINKAT:
		return Step{Call: "unlink", On: path(1)}, true
	case unix.SYS_MKDIRAT:
		return Step{Call: "mkdir", On: path(1)}, true
	case unix.SYS_SYMLINKAT:
		return Step{Call: "symlink", On: path(2)}, true
	case unix.SYS_LINKAT:
		return Step{Call: "link", On: path(3)}, true
	case unix.SYS_MOUNT:
		return Step{Call: "mount", On: path(1)}, true
	case unix.SYS_SETNS:
		return Step{Call: "setns"}, true
	case unix.SYS_SOCKET:
		return Step{Call: "socket", Asks: true}, true
	case unix.SYS_CONNECT:
		return Step{Call: "connect", Asks: true}, true
	case unix.SYS_READ:
		return Step{Call: "receive", Asks: true}, strings.HasPrefix(file(), "socket:")
	case unix.SYS_SENDTO:
		return netlinkStep("send", read(id, c.args[1], 16)), true
	case unix.SYS_SENDMSG:
		return Step{Call: "send"}, true
	case unix.SYS_RECVFROM, unix.SYS_RECVMSG:
		return Step{Call: "receive", Asks: true}, true
	}
	return Step{}, false
}

// netlinkTypes are the names of rtnetlink messages (linux/rtnetlink.h): in
// groups of four, of which the third only asks.
var netlinkTypes = map[uint16]string{0: "LINK", 1: "ADDR", 2: "ROUTE", 3: "NEIGH", 4: "RULE"}

func netlinkStep(call string, header []byte) Step {
	if len(header) < 6 {
		return Step{Call: call}
	}
	t := binary.NativeEndian.Uint16(header[4:]) - unix.RTM_BASE
	verb := [4]string{"NEW", "DEL", "GET", "SET"}[t%4]
	return Step{Call: call, On: "RTM_" + verb + netlinkTypes[t/4], Asks: verb == "GET"}
}

// readString reads a path in the process's memory.
func readString(id int, addr uint64) string {
	text, _, _ := strings.Cut(string(read(id, addr, 256)), "\x00")
	return text
}

// read reads up to n bytes of the process's memory, as far as its page goes.
func read(id int, addr uint64, n int) []byte {
	buf := make([]byte, n)
	if got, err := unix.PtracePeekData(id, uintptr(addr), buf); err == nil || got > 0 {
		return buf[:got]
	}
	return nil
}
