package testbed

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// ClockTick is the unit of the times in /proc, which is the same on every Linux.
const ClockTick = time.Second / 100

// CPUOf returns the CPU time of another process, 0 where the system does not tell.
func CPUOf(pid int) time.Duration {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	// The name, in parentheses, may hold anything.
	fields := bytes.Fields(text[bytes.LastIndexByte(text, ')')+1:])
	if len(fields) < 13 {
		return 0
	}
	user, _ := strconv.Atoi(string(fields[11]))
	system, _ := strconv.Atoi(string(fields[12]))
	return time.Duration(user+system) * ClockTick
}

// PeakMB returns the most memory another process ever had, 0 where the system does
// not tell.
func PeakMB(pid int) float64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	return statusMB(text, "VmHWM:")
}

// ServerMB returns what a server of many processes has in memory: what each has for
// itself, and once what they share. 0 where the system does not tell.
func ServerMB(pid int) float64 {
	own, shared := 0.0, 0.0
	for _, p := range append(children(pid), pid) {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p))
		if err != nil {
			continue // has ended meanwhile
		}
		own += statusMB(text, "RssAnon:")
		// Of a file that all map, each has touched a part.
		shared = max(shared, statusMB(text, "RssShmem:")+statusMB(text, "RssFile:"))
	}
	return own + shared
}

// children returns the processes whose parent is the given one.
func children(pid int) (found []int) {
	paths, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil
	}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		fields := bytes.Fields(text[bytes.LastIndexByte(text, ')')+1:])
		if len(fields) > 1 && string(fields[1]) == strconv.Itoa(pid) {
			if child, err := strconv.Atoi(filepath.Base(filepath.Dir(path))); err == nil {
				found = append(found, child)
			}
		}
	}
	return found
}

// statusMB returns a field of /proc/PID/status that is a size.
func statusMB(status []byte, field string) float64 {
	for line := range bytes.Lines(status) {
		if size, ok := bytes.CutPrefix(line, []byte(field)); ok {
			kb, _ := strconv.Atoi(string(bytes.Fields(size)[0]))
			return float64(kb) / 1024
		}
	}
	return 0
}

// ownCPU returns the CPU time of this process.
func ownCPU() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
