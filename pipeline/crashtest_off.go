//go:build !crashtest

package pipeline

import "github.com/trmtracking/processor/internal/telemetry"

// beforeDecode is where tests of crashes kill the process.
func beforeDecode(*telemetry.Entry) {}
