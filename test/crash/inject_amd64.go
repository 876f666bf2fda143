package crash

import "golang.org/x/sys/unix"

// skipCall keeps a system call that is about to begin from being carried out.
func skipCall(id int) error {
	return changeRegs(id, func(r *unix.PtraceRegs) { r.Orig_rax = ^uint64(0) })
}

// setResult sets what a system call that has ended returns.
func setResult(id int, result int64) error {
	return changeRegs(id, func(r *unix.PtraceRegs) { r.Rax = uint64(result) })
}

func changeRegs(id int, change func(*unix.PtraceRegs)) error {
	var regs unix.PtraceRegs
	if err := unix.PtraceGetRegs(id, &regs); err != nil {
		return err
	}
	change(&regs)
	return unix.PtraceSetRegs(id, &regs)
}
