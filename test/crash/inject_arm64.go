package crash

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// ntARMSystemCall is NT_ARM_SYSTEM_CALL (linux/elf.h): the register set that
// is the number of the system call.
const ntARMSystemCall = 0x404

// skipCall keeps a system call that is about to begin from being carried out.
func skipCall(id int) error {
	nr := int32(-1)
	iov := unix.Iovec{Base: (*byte)(unsafe.Pointer(&nr)), Len: uint64(unsafe.Sizeof(nr))}
	_, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_SETREGSET, uintptr(id),
		ntARMSystemCall, uintptr(unsafe.Pointer(&iov)), 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// setResult sets what a system call that has ended returns.
func setResult(id int, result int64) error {
	var regs unix.PtraceRegs
	if err := unix.PtraceGetRegs(id, &regs); err != nil {
		return err
	}
	regs.Regs[0] = uint64(result)
	return unix.PtraceSetRegs(id, &regs)
}
