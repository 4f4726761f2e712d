package protocol

import (
	"time"

	"github.com/trmtracking/processor/internal/telemetry"
)

// Deferred is an entry that is to be tried again later. It is acknowledged, so
// the row it is kept in is all there is of it.
type Deferred struct {
	telemetry.DeadLetter
	NextAttempt time.Time
}
