package testenv

import (
	"runtime"
	"testing"
	"time"

	"github.com/prometheus/procfs"
)

// waitPoll is how often a condition is checked: often enough not to slow a
// test, seldom enough not to load a server.
const waitPoll = 10 * time.Millisecond

// Wait polls a condition, on the caller's goroutine, until it returns nil;
// after within the test fails with its last error, which should give the actual and
// the expected state. A crowded machine has longer: a condition that is met is no measurement.
func Wait(tb testing.TB, within time.Duration, condition func() error) {
	tb.Helper()
	begun := time.Now()
	ticker := time.NewTicker(waitPoll)
	defer ticker.Stop()
	for {
		err := condition()
		if err == nil {
			return
		}
		if waited := time.Since(begun); waited >= within && waited >= crowded(within) {
			tb.Fatalf("not within %s, and by now %s: %v", within, waited.Round(time.Millisecond), err)
		}
		<-ticker.C
	}
}

// crowded returns within * the tasks that want each processor, from once to four times.
func crowded(within time.Duration) time.Duration {
	const most = 4
	fs, err := procfs.NewDefaultFS()
	if err != nil {
		return within
	}
	load, err := fs.LoadAvg()
	if err != nil {
		return within
	}
	return time.Duration(float64(within) * min(most, max(1, load.Load1/float64(runtime.NumCPU()))))
}
