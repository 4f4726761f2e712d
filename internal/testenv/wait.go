package testenv

import (
	"testing"
	"time"
)

// waitPoll is how often a condition is checked: often enough not to slow a
// test, seldom enough not to load a server.
const waitPoll = 10 * time.Millisecond

// Wait polls a condition, on the caller's goroutine, until it returns nil;
// after within the test fails with its last error, which should give the actual and
// the expected state.
func Wait(tb testing.TB, within time.Duration, condition func() error) {
	tb.Helper()
	timeout := time.NewTimer(within)
	defer timeout.Stop()
	ticker := time.NewTicker(waitPoll)
	defer ticker.Stop()
	for {
		err := condition()
		if err == nil {
			return
		}
		select {
		case <-timeout.C:
			tb.Fatalf("not within %s: %v", within, err)
		case <-ticker.C:
		}
	}
}
