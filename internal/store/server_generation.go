package store

import (
	"context"
	"errors"
	"fmt"
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
	number  atomic.Uint64
	mu      sync.Mutex
	last    string // identity of the last generation, "" before the first
	changed func()
}

// NewServerGeneration returns a detector that has seen no server yet.
func NewServerGeneration() *ServerGeneration { return &ServerGeneration{changed: func() {}} }

// OnChange registers f to be called when another generation is detected, before
// anything is sent to it. It must be called before the first connection.
func (r *ServerGeneration) OnChange(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.changed = f
}

// Number returns the number of generations seen.
func (r *ServerGeneration) Number() uint64 { return r.number.Load() }

// errServerGenerationChanged fails the connection that detected the change, so
// that its user starts over.
var errServerGenerationChanged = errors.New("the Postgres server was restarted or replaced since the last connection")

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
		// The control file needs a privilege: the start time tells nearly as
		// much.
		if results, err = conn.Exec(ctx, "select pg_postmaster_start_time()::text").ReadAll(); err != nil {
			return err
		}
	}
	if len(results) != 1 || len(results[0].Rows) != 1 {
		return fmt.Errorf("read the identity of the Postgres server: %d results", len(results))
	}
	probeRow := string(results[0].Rows[0][0])
	r.mu.Lock()
	defer r.mu.Unlock()
	before := r.last
	r.last = probeRow
	if before == "" || before == probeRow {
		return nil
	}
	// Shards are given up before the generation is counted: a reader of the new
	// number finds them gone.
	r.changed()
	r.number.Add(1)
	return errServerGenerationChanged
}
