//go:build !linux

package testbed

import "syscall"

// Detached keeps Ctrl-C from the instances, which we stop in order.
func Detached() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
