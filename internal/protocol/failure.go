package protocol

import (
	"cmp"
	"errors"
	"fmt"
	"time"
)

// FailureKind classifies a server's error, or its silence, by what the caller
// has to do. Adapters translate into it, so that no driver's error leaves them.
type FailureKind uint8

const (
	// Unavailable means that nothing happened, and the same call may succeed
	// later: no connection, starting up, read-only, full, shutting down, lock
	// timeout, deadlock.
	Unavailable FailureKind = iota + 1
	// Unknown means that the connection was lost before the outcome arrived:
	// the call may or may not have taken effect.
	Unknown
	// Fenced means that the shards named are no longer the caller's.
	Fenced
	// Conflict means that rows believed to be new were stored already.
	Conflict
	// Outdated means that the fences have changed since the batch was computed.
	Outdated
	// Rejected means that at least one row is unacceptable by itself, and would
	// be again.
	Rejected
	// Lost means that the group or the dispatch lease is no longer as the
	// caller knew it.
	Lost
	// Misconfigured means that the server does not hold what was agreed, for
	// example a key of another type or a table that lacks a column. A person
	// has to fix it.
	Misconfigured
)

// Unqueued is the code of a Failure of kind Lost that names shards with dead letters that are on
// no queue yet.
const Unqueued = "unqueued"

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
	Shards []int  // for Fenced: the shards that were lost; for Blocked: those whose rows are locked; none if the server did not say
	Field  string // for Rejected and OfRow: the column or constraint at fault; "" if the server did not say
	Row    int    // for Rejected and OfRow: the number of the fresh record at fault, from 1; 0 if unknown
	// Message is what the server said, without context; "" if it said nothing.
	Message string
	// TooMuch is for Unavailable and Unknown: a limit was met that a smaller call
	// may stay below, of time, of locks, or of rows.
	TooMuch bool
	// OfRow is for Unavailable and Misconfigured: a statement that writes positions met
	// what one row may be the reason of, by its device time for example: a chunk that is
	// frozen or damaged, or a trigger of the platform.
	OfRow bool
	// Blocked is for Unavailable: another session held a lock for longer than the
	// call was to wait. The server answers, and no other member would fare better.
	Blocked bool
	// By is who held the lock, as far as it is known.
	By  []Blocker
	Err error
}

// shardsError is that an instance counts another number of shards than its fleet.
type shardsError struct {
	ours  int
	fleet string
}

// OtherShards returns the failure of an instance that counts another number of shards than its
// fleet. It is a bad configuration, also of one that ran before the fleet was resized.
func OtherShards(ours int, fleet string) error {
	return &Failure{Kind: Misconfigured, Code: "shards", Err: &shardsError{ours, fleet}}
}

func (e *shardsError) Error() string {
	return fmt.Sprintf("this instance counts %d shards and the fleet %s; start it with SHARDS=%s", e.ours, e.fleet, e.fleet)
}

// ExitCode returns the exit status for a bad configuration.
func (*shardsError) ExitCode() int { return 3 }

// Blocker is a session of Postgres that holds a lock for which a call waited.
type Blocker struct {
	PID         int           `json:"pid"`
	Application string        `json:"application"`
	Member      string        `json:"member,omitempty"` // the owner that was asked about, if the session is its
	State       string        `json:"state"`
	Query       string        `json:"query"`           // its last one, cut; "" where the role may not see it
	Age         time.Duration `json:"age_ns,omitzero"` // of its transaction; 0 where it is unknown
}

func (b Blocker) String() string {
	return fmt.Sprintf("pid %d (%s), %s, in its transaction for %s: %s", b.PID, cmp.Or(b.Application, "no application_name"), b.State, b.age(), cmp.Or(b.Query, "query unknown"))
}

// age returns the age of its transaction for persons.
func (b Blocker) age() string {
	if b.Age == 0 {
		return "an unknown time"
	}
	return b.Age.Round(time.Second).String()
}

// RowLock is a lock that another session has on the row of a shard, which waits for it.
type RowLock struct {
	Shard int       `json:"shard"`
	Since time.Time `json:"since"`
	By    []Blocker `json:"by"` // none while it is not known
}

// String says who has the lock.
func (l RowLock) String() string {
	if len(l.By) == 0 {
		return "its row is locked by a session that is not known yet"
	}
	b := l.By[0]
	return fmt.Sprintf("waits for process %d (%q, %s, for %s)", b.PID, b.Application, b.State, b.age())
}

// Remedy says what ends the wait.
func (l RowLock) Remedy() string {
	if len(l.By) == 0 {
		return "find the session that has the lock in pg_stat_activity, and end it"
	}
	end := fmt.Sprintf("end it: select pg_terminate_backend(%d)", l.By[0].PID)
	if l.By[0].Age == 0 { // what a role may not see it may not end
		end += ", as its role or with pg_signal_backend"
	}
	return end
}

// BlockedBy reports whether a call failed because another session held a lock,
// and which one did.
func BlockedBy(err error) (by []Blocker, blocked bool) {
	f, ok := errors.AsType[*Failure](err)
	if !ok || !f.Blocked {
		return nil, false
	}
	return f.By, true
}

func (f *Failure) Error() string { return f.Err.Error() }
func (f *Failure) Unwrap() error { return f.Err }

// Refusal is why the sink refuses rows for a reason that is not theirs.
type Refusal struct {
	Reason string `json:"reason"` // SQLSTATE and what it names: the same for all that are refused alike
	Error  string `json:"error"`
	Remedy string `json:"remedy"` // for a person
}
