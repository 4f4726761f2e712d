package pipeline

import (
	"errors"

	"github.com/trmtracking/processor/internal/protocol"
)

// disposition is what is to be done about a failed commit.
type disposition uint8

const (
	// retrySame: nothing happened; the same batch is tried again in place.
	retrySame disposition = iota + 1
	// reacquire: it may have happened; the shards are reacquired, which fences
	// what may still be under way, and their queues are read from the start.
	reacquire
	// dropFenced: the shards named are another member's by now.
	dropFenced
	// recompute: nothing happened, and the batch as it was computed never will; its
	// entries are applied again on fresh state, all by the idempotent path.
	recompute
	// reloadFences: as redo, with the fences that are in force by now.
	reloadFences
	// bisect: a row is at fault; the batch is divided until it is alone.
	bisect
	// fatal: a person must fix it; the process ends with a code that says so.
	fatal
)

// dispositionOf sorts the failures of the sink. It is the only place that decides.
func dispositionOf(err error) disposition {
	f, ok := errors.AsType[*protocol.Failure](err)
	if !ok {
		return reacquire
	}
	switch f.Kind {
	case protocol.Unavailable:
		return retrySame
	case protocol.Fenced:
		return dropFenced
	case protocol.Conflict:
		return recompute
	case protocol.Outdated:
		return reloadFences
	case protocol.Rejected:
		return bisect
	case protocol.Misconfigured:
		return fatal
	default:
		return reacquire
	}
}
