// Package crash runs a program under ptrace(2) and ends it, or fails one of
// its system calls, at a step of the caller's choice: what a kill -9, a full
// disk or a kernel without memory do at their worst moment.
//
// A step is a system call that changes something outside the process: files,
// locks, netlink messages, standard output. Between two steps nothing changes,
// so a program that is killed before and after each of them has been killed
// everywhere.
package crash
