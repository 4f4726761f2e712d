package testenv

import (
	"testing"
	"time"
)

// waitPoll is how often a condition is looked at: often enough not to slow a
// test, seldom enough not to load a server.
const waitPoll = 10 * time.Millisecond

// Wait looks at a condition, on the caller's goroutine, until it returns nil;
// when the time is over the test fails with its last error, which should say
// what is and what should be.
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
