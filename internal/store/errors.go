package store

import (
	"cmp"
	"errors"
	"fmt"
	"regexp"
	"strconv"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/trmtracking/processor/internal/telemetry"
)

// The SQLSTATEs that the functions of this schema raise.
const (
	codeFenced  = "PF001"
	codeOldTerm = "PF002"
	codeFences  = "PF003"
)

// failure translates what the driver or the server said. It is the only place
// that knows SQLSTATEs.
func failure(op string, err error) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*telemetry.Failure](err); ok {
		return fmt.Errorf("%s: %w", op, err)
	}
	wrapped := fmt.Errorf("%s: %w", op, err)
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok {
		f := &telemetry.Failure{Kind: kindOf(pgErr), Code: pgErr.Code, Err: wrapped}
		if f.Kind == telemetry.Fenced {
			f.Shards = lostShards(pgErr.Detail)
			f.Err = fmt.Errorf("%s: %w (%s)", op, err, pgErr.Detail)
		}
		if f.Kind == telemetry.Refused {
			f.Field, f.Row = cmp.Or(pgErr.ColumnName, pgErr.ConstraintName), copyRow(pgErr.Where)
		}
		if pgErr.Severity == "FATAL" && f.Kind == telemetry.Unavailable {
			// The session ended. A commit may have gone through just before.
			f.Kind = telemetry.Unknown
		}
		return f
	}
	if _, ok := errors.AsType[*pgconn.ConnectError](err); ok || pgconn.SafeToRetry(err) {
		return &telemetry.Failure{Kind: telemetry.Unavailable, Err: wrapped}
	}
	if errors.Is(err, pgx.ErrNoRows) {
		return wrapped
	}
	return &telemetry.Failure{Kind: telemetry.Unknown, Err: wrapped}
}

// kindOf sorts a server's error by SQLSTATE. What is not known is taken for an
// outage: then nothing is lost, and the error shows in log and readiness.
func kindOf(err *pgconn.PgError) telemetry.FailureKind {
	code := err.Code
	switch code {
	case codeFenced, codeOldTerm:
		return telemetry.Fenced
	case codeFences:
		return telemetry.Outdated
	case "23505": // unique_violation
		return telemetry.Conflict
	case "P0001", "44000": // raised by a platform's own trigger; with check option
		return telemetry.Refused
	case "54000", "54001", "54011", "54023": // a row beyond a limit, for example of an index entry
		return telemetry.Refused
	case "25006": // read_only_sql_transaction: after a failover
		return telemetry.Unavailable
	}
	if len(code) < 2 {
		return telemetry.Unavailable
	}
	switch code[:2] {
	case "22", "23", "21": // data exception, integrity constraint, cardinality
		return telemetry.Refused
	case "42", "3F", "3D", "28", "0A": // names, rights, log-in, features
		return telemetry.Misused
	default: // 08, 40, 53, 55, 57, 58, XX and all that is yet to come
		return telemetry.Unavailable
	}
}

var copyLine = regexp.MustCompile(`COPY positions, line (\d+)`)

// copyRow reads which row of a COPY the server was at, 0 where it does not say.
func copyRow(where string) int {
	m := copyLine.FindStringSubmatch(where)
	if m == nil {
		return 0
	}
	n, _ := strconv.Atoi(m[1]) // digits, or a number beyond any batch
	return n
}

var shardInDetail = regexp.MustCompile(`shard (\d+):`)

// lostShards reads the shards that processor.fence names in its error's detail.
func lostShards(detail string) []int {
	var shards []int
	for _, m := range shardInDetail.FindAllStringSubmatch(detail, -1) {
		if n, err := strconv.Atoi(m[1]); err == nil {
			shards = append(shards, n)
		}
	}
	return shards
}
