//go:build !linux

package testbed

import "syscall"

// detached keeps Ctrl-C from the instances, which we stop in order.
func detached() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
