package store

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/jackc/pgx/v5/pgconn"
)

// ServerGeneration detects that Postgres was restarted, failed over, or
// restored to an older state. What was computed on an earlier generation may
// not be committed to a later one before both states were compared.
//
// Behind a pooler only the pooler's own connections are seen.
type ServerGeneration struct {
	number   atomic.Uint64
	mu       sync.Mutex
	last     string // identity of the last generation, "" before the first
	system   string // of the last server, with its timeline
	timeline int
	changed  func()
}

// NewServerGeneration returns a detector that has seen no server yet.
func NewServerGeneration() *ServerGeneration { return &ServerGeneration{changed: func() {}} }

// OnChange registers f, besides earlier ones, to be called when another generation is detected, before
// anything is sent to it. It must be called before the first connection.
func (r *ServerGeneration) OnChange(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	before := r.changed
	r.changed = func() { before(); f() }
}

// Number returns the number of generations seen.
func (r *ServerGeneration) Number() uint64 { return r.number.Load() }

// errServerGenerationChanged fails the connection that detected the change, so
// that its user starts over.
var errServerGenerationChanged = errors.New("the Postgres server was restarted or replaced since the last connection")

const generationSQL = `
select pg_postmaster_start_time()::text || ' ' || s.system_identifier || ' ' || c.timeline_id
from pg_control_system() s, pg_control_checkpoint() c`

// follows rejects the server of a new connection if it is an earlier state of one
// seen before: a primary that came back beside its promoted standby accepts writes
// again, and what it is given is missing in the other. Of several addresses in the URL the
// next is tried then.
func (r *ServerGeneration) follows(ctx context.Context, conn *pgconn.PgConn) error {
	results, err := conn.Exec(ctx, timelineSQL).ReadAll()
	if _, denied := errors.AsType[*pgconn.PgError](err); denied {
		return nil // a privilege is missing, or this is a standby
	}
	if err != nil || len(results) != 1 || len(results[0].Rows) != 1 {
		return err
	}
	timeline, err := strconv.Atoi(string(results[0].Rows[0][1]))
	if err != nil {
		return err
	}
	return r.note(string(results[0].Rows[0][0]), timeline)
}

func (r *ServerGeneration) note(system string, timeline int) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if system == r.system && timeline < r.timeline {
		return fmt.Errorf("this Postgres is on timeline %d, and its standby was promoted to timeline %d: shut the old primary down, or have POSTGRES_URL lead to the new one only; "+
			"if it was restored on purpose, restart the instances", timeline, r.timeline)
	}
	r.system, r.timeline = system, timeline
	return nil
}

// timelineSQL reads the timeline from the log that is written, since the control file
// follows a promotion only with the next checkpoint.
const timelineSQL = `
select s.system_identifier, ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int
from pg_control_system() s`

// connected is called for each new connection before it is used.
func (r *ServerGeneration) connected(ctx context.Context, conn *pgconn.PgConn) error {
	results, err := conn.Exec(ctx, generationSQL).ReadAll()
	if err != nil {
		if _, ok := errors.AsType[*pgconn.PgError](err); !ok {
			return err
		}
		// The control file needs a privilege: the start time tells nearly as
		// much.
		if results, err = conn.Exec(ctx, "select pg_postmaster_start_time()::text").ReadAll(); err != nil {
			return err
		}
	}
	if len(results) != 1 || len(results[0].Rows) != 1 {
		return fmt.Errorf("read the identity of the Postgres server: %d results", len(results))
	}
	identity := string(results[0].Rows[0][0])
	r.mu.Lock()
	defer r.mu.Unlock()
	before := r.last
	r.last = identity
	if before == "" || before == identity {
		return nil
	}
	// Shards are given up before the generation is counted: a reader of the new
	// number finds them gone.
	r.changed()
	r.number.Add(1)
	return errServerGenerationChanged
}
