package protocol

import "fmt"

// FailureKind sorts what a server answered, or that it did not answer, by what
// the caller has to do about it. Adapters translate into these, so that no
// driver's error travels further.
type FailureKind uint8

const (
	// Unavailable means that nothing happened, and the same call may succeed
	// later: no connection, starting up, read-only, full, shutting down, lock
	// timeout, deadlock.
	Unavailable FailureKind = iota + 1
	// Unknown means that the connection was lost while the outcome was under
	// way: it may or may not have happened.
	Unknown
	// Fenced means that the shards named are no longer the caller's.
	Fenced
	// Conflict means that rows believed to be new were there already.
	Conflict
	// Outdated means that the fences have changed since the batch was computed.
	Outdated
	// Rejected means that at least one row is unacceptable for a reason of its
	// own, and would be again.
	Rejected
	// Lost means that the group, or the dispatch lease, is no longer as the caller knew it.
	Lost
	// Misconfigured means that the server holds something else than was agreed, for
	// example a key of another type or a table that lacks a column. It takes a
	// person to fix it.
	Misconfigured
)

func (k FailureKind) String() string {
	switch k {
	case Unavailable:
		return "unavailable"
	case Unknown:
		return "unknown"
	case Fenced:
		return "fenced"
	case Conflict:
		return "conflict"
	case Outdated:
		return "outdated"
	case Rejected:
		return "refused"
	case Lost:
		return "lost"
	case Misconfigured:
		return "misused"
	default:
		return fmt.Sprintf("failure %d", uint8(k))
	}
}

// Failure is an error of a server that the caller must act upon.
type Failure struct {
	Kind   FailureKind
	Code   string // the server's own code, for logs: an SQLSTATE or Redis' error prefix
	Shards []int  // for Fenced: the shards that were lost, or none where the server did not say
	Field  string // for Refused: the column or constraint at fault, "" where the server did not say
	Row    int    // for Refused: the number of the fresh record at fault, from 1; 0 where it is not known
	Err    error
}

func (f *Failure) Error() string { return f.Err.Error() }
func (f *Failure) Unwrap() error { return f.Err }
