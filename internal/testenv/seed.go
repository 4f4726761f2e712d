package testenv

import (
	"os"
	"strconv"
	"testing"
	"time"
)

// Seed returns TEST_SEED, or another seed each time, and logs how to run with it again.
func Seed(tb testing.TB) uint64 {
	tb.Helper()
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("TEST_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			tb.Fatalf("TEST_SEED: %v", err)
		}
	}
	tb.Logf("run again with TEST_SEED=%d", seed)
	return seed
}
