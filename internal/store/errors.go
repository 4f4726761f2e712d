package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/trmtracking/processor/internal/protocol"
)

// SQLSTATEs that the functions of this schema raise.
const (
	CodeFenced  = "PF001"
	CodeOldTerm = "PF002"
	codeFences  = "PF003"
)

// Failure is failure for the packages below this one.
func Failure(op string, err error) error { return failure(op, err) }

// failure translates an error of the driver or the server. Only this file knows
// SQLSTATEs.
func failure(op string, err error) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*protocol.Failure](err); ok {
		return fmt.Errorf("%s: %w", op, err)
	}
	wrapped := fmt.Errorf("%s: %w", op, err)
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok {
		f := &protocol.Failure{Kind: KindOf(pgErr), Code: pgErr.Code, TooMuch: tooMuch(pgErr.Code), Blocked: pgErr.Code == "55P03", Message: pgErr.Message, Err: wrapped}
		if f.Kind == protocol.Fenced {
			f.Shards = lostShards(pgErr.Detail)
			f.Err = fmt.Errorf("%s: %w (%s)", op, err, pgErr.Detail)
		}
		if f.Kind == protocol.Rejected || f.Kind == protocol.Conflict {
			nameRow(f, pgErr)
		}
		_, connecting := errors.AsType[*pgconn.ConnectError](err)
		if cmp.Or(pgErr.SeverityUnlocalized, pgErr.Severity) == "FATAL" && (f.Kind == protocol.Unavailable || !connecting) {
			// The session ended, whatever the code: an update of an extension ends those
			// that have loaded the old one. A commit may have succeeded just before.
			f.Kind = protocol.Unknown
		}
		return f
	}
	if refused, ok := errors.AsType[*pgconn.ConnectError](err); ok {
		return &protocol.Failure{Kind: protocol.Unavailable, Err: &attempts{op: op, err: refused}}
	}
	if pgconn.SafeToRetry(err) {
		return &protocol.Failure{Kind: protocol.Unavailable, Err: wrapped}
	}
	if errors.Is(err, pgx.ErrNoRows) {
		return wrapped
	}
	return &protocol.Failure{Kind: protocol.Unknown, TooMuch: errors.Is(err, context.DeadlineExceeded), Err: wrapped}
}

// failureOfRows is failure for a statement that writes rows of positions, whose time,
// device or content may be what an error is about that otherwise is one of the server.
func failureOfRows(op string, err error) error {
	err = failure(op, err)
	pgErr, _ := errors.AsType[*pgconn.PgError](err)
	f, _ := errors.AsType[*protocol.Failure](err)
	if pgErr == nil || f == nil {
		return err
	}
	switch {
	case f.Kind == protocol.Misconfigured,
		f.Kind == protocol.Unavailable && (strings.HasPrefix(f.Code, "XX") || f.Code == "55000"):
		f.OfRow = true
		nameRow(f, pgErr)
	}
	return err
}

// nameRow adds what the server says of the row at fault.
func nameRow(f *protocol.Failure, err *pgconn.PgError) {
	f.Field, f.Row = cmp.Or(err.ColumnName, err.ConstraintName), copyRow(err.Where)
}

// mayBeOneRow reports whether what failed may be tried without a row that is at fault.
func mayBeOneRow(err error) bool {
	f, ok := errors.AsType[*protocol.Failure](err)
	return ok && (f.Kind == protocol.Rejected || f.Kind == protocol.Conflict || f.OfRow)
}

// attempts is a failure to connect. An address is tried with and without TLS,
// usually with the same error, which is shown once.
type attempts struct {
	op  string
	err error
}

func (a *attempts) Error() string {
	var lines []string
	for line := range strings.Lines(a.err.Error()) {
		if line = strings.TrimSpace(line); !slices.Contains(lines, line) {
			lines = append(lines, line)
		}
	}
	return a.op + ": " + strings.Join(lines, " ")
}

func (a *attempts) Unwrap() error { return a.err }

// KindOf classifies a server's error by SQLSTATE. Codes of the server that are
// not listed count as an outage: then nothing is lost, and the error shows in
// log and readiness. A class that the server does not have was raised by a
// trigger of the platform, which rejects the row.
func KindOf(err *pgconn.PgError) protocol.FailureKind {
	code := err.Code
	switch code {
	case CodeFenced, CodeOldTerm:
		return protocol.Fenced
	case codeFences:
		return protocol.Outdated
	case "23505": // unique_violation
		return protocol.Conflict
	}
	if err.Routine == "RevalidateCachedQuery" {
		return protocol.Unavailable // a table was altered: the driver prepares the statement again
	}
	if err.Routine == loginRotates || slices.Contains(serverLimits, err.Routine) {
		return protocol.Unavailable
	}
	if len(code) < 2 {
		return protocol.Unavailable
	}
	switch code[:2] {
	case "21", "22", "23", // cardinality, data exception, integrity constraint
		"09", "27", "2F", "38", "39", "44", "P0", // raised by triggers and functions of a platform
		"54": // a row beyond a limit, for example of an index entry
		return protocol.Rejected
	case "0A", "28", "3D", "3F", "42": // features, login, names, privileges
		return protocol.Misconfigured
	case "00", "01", "02", "03", "08", "0B", "0F", "0L", "0P", "0Z", "20", "24", "25", "26", "2B", "2D", "34", "3B",
		"40", "53", "55", "57", "58", "72", "F0", "HV", "XX":
		return protocol.Unavailable
	default:
		return protocol.Rejected
	}
}

// serverLimits are the functions of the server that refuse with a code of class 54
// what no row has to do with: a queue of notifications that is full, and transaction
// IDs close to their wraparound. Messages are translated, these names are not.
var serverLimits = []string{"PreCommit_Notify", "GetNewTransactionId", "GetNewMultiXactId"}

// tooMuch reports whether half of the work might be done where all of it was
// not: it took too long, a transaction waited too long for what others look up for it,
// there were no locks left, or more compressed rows would have been unpacked than the
// server is set to allow.
func tooMuch(code string) bool {
	return code == "57014" || code == "25P03" || code == "53200" || code == "53400"
}

// isOutage reports whether a failure says nothing about what was asked for: the
// server was away, shutting down, full or read-only, or others held locks.
func isOutage(f *protocol.Failure) bool {
	if f.Kind != protocol.Unavailable {
		return f.Kind == protocol.Unknown && !f.TooMuch
	}
	switch f.Code {
	case "", "55P03", "55006": // no answer; lock_not_available, object_in_use
		return !f.TooMuch
	case "57014", "25P03", "53200", "53400": // for which it was too much
		return false
	}
	switch f.Code[:min(2, len(f.Code))] {
	case "08", "25", "40", "53", "57", "58":
		return true
	}
	return false
}

var copyLine = regexp.MustCompile(`COPY positions, line (\d+)`)

// copyRow extracts the row that a COPY had reached, 0 if it is not given.
func copyRow(where string) int {
	m := copyLine.FindStringSubmatch(where)
	if m == nil {
		return 0
	}
	n, _ := strconv.Atoi(m[1]) // digits, or a number beyond any batch
	return n
}

var shardInDetail = regexp.MustCompile(`shard (\d+):`)

// lostShards extracts the shards that processor.fence names in its error's
// detail.
func lostShards(detail string) []int {
	var shards []int
	for _, m := range shardInDetail.FindAllStringSubmatch(detail, -1) {
		if n, err := strconv.Atoi(m[1]); err == nil {
			shards = append(shards, n)
		}
	}
	return shards
}
