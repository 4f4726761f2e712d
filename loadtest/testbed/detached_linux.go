package testbed

import "syscall"

// detached keeps Ctrl-C from the instances, which we stop in order, and ends
// them with us whatever happens to us.
func detached() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
