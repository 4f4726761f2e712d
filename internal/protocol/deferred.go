package protocol

import (
	"time"

	"github.com/trmtracking/processor/internal/telemetry"
)

// Deferred is an entry to be retried later. It is acknowledged, so its row is
// the only copy.
type Deferred struct {
	telemetry.DeadLetter
	NextAttempt time.Time
	Again       bool // it was deferred before
}
