package pipeline

import (
	"errors"

	"github.com/trmtracking/processor/internal/protocol"
)

// verdict is what is to be done about a failed commit.
type verdict uint8

const (
	// again: nothing happened; the same batch is tried again in place.
	again verdict = iota + 1
	// retake: it may have happened; the shards are taken again, which fences
	// what may still be under way, and their queues are read from the start.
	retake
	// yield: the shards named are somebody else's by now.
	yield
	// redo: nothing happened, and the batch as it was computed never will; its
	// entries are applied again on fresh state, all by the idempotent path.
	redo
	// renew: as redo, with the fences that are in force by now.
	renew
	// split: a row is at fault; the batch is divided until it is alone.
	split
	// fatal: a person must mend it; the process ends with a code that says so.
	fatal
)

// judge sorts the failures of the sink. It is the only place that decides.
func judge(err error) verdict {
	f, ok := errors.AsType[*protocol.Failure](err)
	if !ok {
		return retake
	}
	switch f.Kind {
	case protocol.Unavailable:
		return again
	case protocol.Fenced:
		return yield
	case protocol.Conflict:
		return redo
	case protocol.Outdated:
		return renew
	case protocol.Refused:
		return split
	case protocol.Misused:
		return fatal
	default:
		return retake
	}
}
