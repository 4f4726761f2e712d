package store

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/jackc/pgx/v5/pgconn"
)

// ServerGeneration notices that Postgres is not the one it was: restarted, failed over, or
// restored to an older state. Nothing that was computed on what an earlier run
// held may be committed to a later one before what both know was compared.
//
// Behind a pooler only the pooler's own connections are seen.
type ServerGeneration struct {
	number  atomic.Uint64
	mu      sync.Mutex
	last    string // identity of the run connected to last, "" before the first
	changed func()
}

// NewServerGeneration has seen no server yet.
func NewServerGeneration() *ServerGeneration { return &ServerGeneration{changed: func() {}} }

// OnChange has f called when another run is noticed, before anything is sent to
// it. It must be set before the first connection.
func (r *ServerGeneration) OnChange(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.changed = f
}

// Number counts the runs noticed.
func (r *ServerGeneration) Number() uint64 { return r.number.Load() }

// errServerGenerationChanged fails the connection that noticed, so that whoever waits for it
// begins again.
var errServerGenerationChanged = errors.New("another run of Postgres answers than before: it was restarted or replaced")

const generationSQL = `
select pg_postmaster_start_time()::text || ' ' || s.system_identifier || ' ' || c.timeline_id
from pg_control_system() s, pg_control_checkpoint() c`

// connected is called for each new connection before it is used.
func (r *ServerGeneration) connected(ctx context.Context, conn *pgconn.PgConn) error {
	results, err := conn.Exec(ctx, generationSQL).ReadAll()
	if err != nil {
		if _, ok := errors.AsType[*pgconn.PgError](err); !ok {
			return err
		}
		// Not allowed to look at the control file: the start alone tells nearly as much.
		if results, err = conn.Exec(ctx, "select pg_postmaster_start_time()::text").ReadAll(); err != nil {
			return err
		}
	}
	if len(results) != 1 || len(results[0].Rows) != 1 {
		return fmt.Errorf("ask which run of Postgres this is: %d results", len(results))
	}
	probeRow := string(results[0].Rows[0][0])
	r.mu.Lock()
	defer r.mu.Unlock()
	before := r.last
	r.last = probeRow
	if before == "" || before == probeRow {
		return nil
	}
	// Shards are given up before the run is numbered: whoever reads the new number
	// finds them gone.
	r.changed()
	r.number.Add(1)
	return errServerGenerationChanged
}
