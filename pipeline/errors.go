package pipeline

import (
	"errors"

	"github.com/trmtracking/processor/internal/protocol"
)

// disposition is how a failed commit is handled.
type disposition uint8

const (
	// retrySame: not applied; retry the same batch in place.
	retrySame disposition = iota + 1
	// reacquire: it may have been applied; reacquire the shards, which fences
	// what is still under way, and read their queues from the start.
	reacquire
	// dropFenced: another member owns the shards named.
	dropFenced
	// recompute: not applied, and this batch never will be; apply its entries
	// again on fresh state, all by the idempotent path.
	recompute
	// reloadFences: recompute with the current fences.
	reloadFences
	// bisect: a row is rejected; divide the batch until that row is alone.
	bisect
	// fatal: an operator must fix the cause; Run returns the error.
	fatal
)

// dispositionOf maps failures of the sink to dispositions. No other code decides that.
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
