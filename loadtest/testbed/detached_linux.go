package testbed

import "syscall"

// Detached keeps Ctrl-C from the instances, which we stop in order, and ends
// them with us whatever happens to us.
func Detached() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
