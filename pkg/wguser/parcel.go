package wguser

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// What two processes tell each other is a sequence of parcels: a length of
// four bytes, and a JSON value of that length. The first bytes carry files.
const (
	maxParcel = 64 << 20 // bytes; a peer takes less than 1 KiB
	maxFiles  = 200      // SCM_MAX_FD is 253
)

func sendParcel(to *net.UnixConn, value any, files []int) error {
	data, err := json.Marshal(value)
	if err != nil {
		return err
	}
	var oob []byte
	if len(files) > 0 {
		oob = unix.UnixRights(files...)
	}
	head := binary.BigEndian.AppendUint32(nil, uint32(len(data)))
	if _, _, err = to.WriteMsgUnix(head, oob, nil); err == nil {
		_, err = to.Write(data)
	}
	clear(data) // keys
	return err
}

// receiveParcel reads a value, and the files that came with it.
func receiveParcel(from *net.UnixConn, value any) ([]*os.File, error) {
	head, oob := make([]byte, 4), make([]byte, unix.CmsgSpace(4*maxFiles))
	n, oobn, flags, _, err := from.ReadMsgUnix(head, oob)
	if err != nil {
		return nil, err
	}
	files, err := filesIn(oob[:oobn])
	if err == nil && flags&unix.MSG_CTRUNC != 0 {
		err = errors.New("files are missing")
	}
	if err == nil {
		_, err = io.ReadFull(from, head[n:])
	}
	size := binary.BigEndian.Uint32(head)
	if err == nil && size > maxParcel {
		err = fmt.Errorf("parcel of %d bytes", size)
	}
	if err == nil {
		data := make([]byte, size)
		if _, err = io.ReadFull(from, data); err == nil {
			err = json.Unmarshal(data, value)
		}
		clear(data)
	}
	if err != nil {
		closeFiles(files)
		return nil, err
	}
	return files, nil
}

func filesIn(oob []byte) (files []*os.File, err error) {
	if len(oob) == 0 {
		return nil, nil
	}
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	for i := range messages {
		fds, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			return files, err
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			files = append(files, os.NewFile(uintptr(fd), "handed over"))
		}
	}
	return files, nil
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		if f != nil {
			_ = f.Close() // another process has it too
		}
	}
}

// duplicate is a new descriptor of a file or socket.
func duplicate(of syscall.Conn) (fd int, err error) {
	err = control(of, func(old int) error {
		fd, err = unix.FcntlInt(uintptr(old), unix.F_DUPFD_CLOEXEC, 0)
		return os.NewSyscallError("dup", err)
	})
	return fd, err
}
