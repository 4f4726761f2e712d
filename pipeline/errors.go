package pipeline

import (
	"cmp"
	"errors"
	"strings"
	"unicode"

	"github.com/trmtracking/processor/internal/protocol"
)

// disposition is how a failed commit is handled.
type disposition uint8

const (
	// retrySame: not applied; retry the same batch in place.
	retrySame disposition = iota + 1
	// pauseSame: as retrySame, and an operator must fix the cause: the sink rejects
	// what no row can be at fault for.
	pauseSame
	// reacquire: it may have been applied; reacquire the shards, which fences
	// what is still under way, and read their queues from the start.
	reacquire
	// dropFenced: another member owns the shards named.
	dropFenced
	// setAside: another session has the rows of the shards named locked. Their work
	// is dropped and read again after a pause, so that nothing else waits for the lock.
	setAside
	// recompute: not applied, and this batch never will be; apply its entries
	// again on fresh state, all by the idempotent path.
	recompute
	// reloadFences: recompute with the current fences.
	reloadFences
	// bisect: a row is rejected, or may be what the failure is about; divide the batch until that row is alone. Whether the
	// fault is its own is then for worker.judge to find out.
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
	// Not where the session ended, as a pooler ends it with the same code: a commit may have succeeded.
	if f.Kind != protocol.Unknown && (f.Code == binaryTooShort || f.Code == binaryWrong) {
		return pauseSame
	}
	if f.OfRow {
		return bisect
	}
	switch f.Kind {
	case protocol.Unavailable:
		if f.Blocked && len(f.Shards) > 0 {
			return setAside
		}
		return retrySame
	case protocol.Fenced:
		return dropFenced
	case protocol.Conflict:
		return recompute
	case protocol.Outdated:
		return reloadFences
	case protocol.Rejected:
		if f.Code == sequenceExhausted {
			return pauseSame
		}
		return bisect
	case protocol.Misconfigured:
		return fatal
	default:
		return reacquire
	}
}

// The SQLSTATEs whose remedy is known, or that say more than their class.
const (
	sequenceExhausted = "2200H"
	outOfRange        = "22003"
	binaryTooShort    = "08P01" // of COPY: a column has another type than what is sent, which no row is at fault for
	binaryWrong       = "22P03" // likewise
	notNull           = "23502"
	checkFailed       = "23514" // without a constraint: there is no partition for the row
	limitExceeded     = "53400" // a configured one, for example of rows decompressed in one transaction
)

// isMisconfigured reports whether the sink does not hold what was agreed, unless a row
// turns out to be what it refuses.
func isMisconfigured(err error) bool {
	f, ok := errors.AsType[*protocol.Failure](err)
	return ok && f.Kind == protocol.Misconfigured
}

// isOfRow reports whether the failure may be about the time of a row, though its kind
// is not that of rows.
func isOfRow(err error) bool {
	f, ok := errors.AsType[*protocol.Failure](err)
	return ok && f.OfRow
}

// isOverLimit reports whether a limit of the server was met that stays where it is
// until a person raises it.
func isOverLimit(err error) bool {
	f, ok := errors.AsType[*protocol.Failure](err)
	return ok && f.Code == limitExceeded
}

// keptError is an error for which an entry is never given up.
type keptError struct{ error }

func (e *keptError) Unwrap() error { return e.error }

// refusalOf names why the sink refuses rows, the same for rows that are refused
// alike, and says what a person can do.
func refusalOf(err error) protocol.Refusal {
	r := protocol.Refusal{Reason: "unknown", Error: err.Error(), Remedy: "read the error, and correct what was changed in the database last"}
	f, ok := errors.AsType[*protocol.Failure](err)
	if !ok {
		return r
	}
	r.Reason = f.Code + "/" + cmp.Or(f.Field, words(f.Message))
	class := f.Code[:min(2, len(f.Code))]
	switch {
	case f.Code == sequenceExhausted:
		r.Remedy = "raise the maximum of the sequence that the error names, or widen its type"
	case f.Code == binaryTooShort, f.Code == binaryWrong:
		r.Remedy = "a column of public.positions has another type: change it back to what processor migrate verify names"
	case f.Code == outOfRange:
		r.Remedy = "a default or a trigger computes a number that its column cannot hold: widen the column, or correct what computes it"
	case f.Code == notNull:
		r.Remedy = "the service fills its own columns only: give the column " + f.Field + " a default, or drop its NOT NULL"
	case f.Code == checkFailed && f.Field == "":
		r.Remedy = "create the partition of public.positions that is missing"
	case f.Code == limitExceeded:
		r.Remedy = "raise the limit that the error names, for example timescaledb.max_tuples_decompressed_per_dml_transaction for this role, or decompress the chunk"
	case f.TooMuch:
		r.Remedy = "have Postgres store the row within STATEMENT_TIMEOUT: correct the trigger on public.positions that takes so long, or raise the limit"
	case class == "23":
		r.Remedy = "drop or correct the constraint " + f.Field + " on public.positions"
	case class == "54":
		r.Remedy = "raise the limit of the server that the error names; when it speaks of wraparound, vacuum the database"
	case class == "P0", class == "38", class == "39", class == "09", class == "27":
		r.Remedy = "correct or disable the trigger on public.positions that raises the error"
	case class == "XX", class == "0A", class == "55":
		r.Remedy = "have the part of public.positions that the error is about take rows: repair or reindex what is damaged, or unfreeze the chunk"
	case class == "42":
		r.Remedy = "correct or disable the trigger on public.positions that raises the error, or what it uses and may not"
	}
	return r
}

// words is a message without what differs from row to row: numbers and what is quoted.
func words(message string) string {
	quoted := false
	text := strings.Map(func(r rune) rune {
		switch {
		case r == '"' || r == '\'':
			quoted = !quoted
			return -1
		case quoted || unicode.IsDigit(r):
			return -1
		}
		return r
	}, message)
	if text = strings.Join(strings.Fields(text), " "); len(text) > 80 {
		text = strings.ToValidUTF8(text[:80], "")
	}
	return text
}
