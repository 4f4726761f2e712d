package schema

import (
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/store"
)

// ErrSchema matches every error that says the database lacks what this binary
// needs, or that a migration cannot be applied. Waiting does not help; a person
// has to act.
var ErrSchema = errors.New("wrong database schema")

// ErrMigrationLock matches when another process held the migration lock for
// longer than the lock timeout.
var ErrMigrationLock = errors.New("migration lock is taken")

// ErrPooler matches when migrations run through a transaction pooler, behind
// which a session lock protects nothing.
var ErrPooler = errors.New("migrations need a direct connection or a session pooler, " +
	"this is a transaction pooler: set POSTGRES_MIGRATE_URL to the server's own address")

// ErrOld matches when the server is older than what the migrations are written for.
var ErrOld = fmt.Errorf("too old, version %d or newer is needed; nothing was changed", store.OldestServer)

// Error lists what differs. It matches ErrSchema.
type Error struct {
	Report Report
}

// Error names every finding, one a line.
func (e *Error) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%v, %d differences:", ErrSchema, len(e.Report.Problems))
	for _, f := range e.Report.Problems {
		b.WriteString("\n  ")
		b.WriteString(f.String())
	}
	b.WriteString("\nrun `processor migrate up`, or apply what `processor migrate print` prints")
	return b.String()
}

// Is makes an Error match ErrSchema.
func (e *Error) Is(target error) bool { return target == ErrSchema }

const (
	lockNotAvailable = "55P03"
	deadlockDetected = "40P01" // as likely, since a migration waits longer than deadlock_timeout
)

// migrationFailed wraps an error from applying the named migration, and marks
// it as ErrSchema unless a later retry can help.
func migrationFailed(name string, err error) error {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return fmt.Errorf("apply migration %s: %w", name, err)
	}
	switch {
	case pg.Code == lockNotAvailable:
		return fmt.Errorf("apply migration %s: another session holds a lock on a table it changes, "+
			"end that session (pg_stat_activity) and try again: %w", name, err)
	case pg.Code == "42501": // insufficient_privilege
		return fmt.Errorf("%w: apply migration %s: the role may not change the schema, "+
			"use one that may in POSTGRES_MIGRATE_URL, or MIGRATE=verify: %w", ErrSchema, name, err)
	case store.KindOf(pg) == protocol.Unavailable:
		return fmt.Errorf("apply migration %s: %w", name, err)
	}
	return fmt.Errorf("%w: apply migration %s: %w", ErrSchema, name, err)
}

// catalogueFailed wraps an error from reading the catalogue, which waits for the session that has one of
// the tables locked against everybody.
func catalogueFailed(err error) error {
	var pg *pgconn.PgError
	if errors.As(err, &pg) && pg.Code == lockNotAvailable {
		return fmt.Errorf("read the catalogue: another session has a table locked, wait for it or end it "+
			"(select pid, relation::regclass from pg_locks where mode = 'AccessExclusiveLock'): %w", err)
	}
	return fmt.Errorf("read the catalogue: %w", err)
}

// poolerRefused recognises PgBouncer's error.
func poolerRefused(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && strings.Contains(pg.Message, "unsupported startup parameter")
}
