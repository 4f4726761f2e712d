//go:build !crashtest

package pipeline

import "github.com/trmtracking/processor/internal/telemetry"

// beforeDecode does nothing; tests of crashes build crashtest_on.go instead.
func beforeDecode(*telemetry.Entry) {}
