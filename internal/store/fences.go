package store

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/trmtracking/processor/internal/geofence"
	"github.com/trmtracking/processor/internal/protocol"
)

// FencesChannel is the channel that announces a change of the set of fences.
const FencesChannel = "processor_geofences"

// Fences reads the set of fences.
type Fences struct {
	pool    *pgxpool.Pool
	timeout time.Duration
	last    atomic.Pointer[geofence.Set] // loaded last; what it contains is not read again
}

// NewFences returns a reader of the set.
func NewFences(pool *pgxpool.Pool, timeout time.Duration) *Fences {
	return &Fences{pool: pool, timeout: timeout}
}

// FenceVersion is a current row of processor.geofences.
type FenceVersion struct {
	geofence.Fence
	Version int
}

// Version returns the version of the whole set.
func (f *Fences) Version(ctx context.Context) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, f.timeout)
	defer cancel()
	var version int64
	err := f.pool.QueryRow(ctx, "select version from processor.geofence_set").Scan(&version)
	return version, failure("read the version of the fences", err)
}

// Load reads and indexes the set as of one moment. Invalid fences are skipped
// and returned as errors that name their rows.
func (f *Fences) Load(ctx context.Context) (*protocol.Fences, []error, error) {
	ctx, cancel := context.WithTimeout(ctx, f.timeout)
	defer cancel()
	version, rows, err := f.Rows(ctx)
	if err != nil {
		return nil, nil, err
	}
	fences := make([]geofence.Fence, len(rows))
	type identity struct {
		id   string
		from int64
	}
	numbers := make(map[identity]int, len(rows))
	for i, row := range rows {
		fences[i] = row.Fence
		numbers[identity{row.ID, row.Valid.FromUS}] = row.Version
	}
	set, bad := f.last.Load().Renew(fences)
	f.last.Store(set)
	var errs []error
	for _, b := range bad {
		errs = append(errs, fmt.Errorf("fence %s version %d is skipped: %w", b.ID, rows[b.Index].Version, b.Err))
	}
	out := &protocol.Fences{Set: set, Version: version}
	for i := range set.Len() {
		v := set.Fence(i)
		out.Versions = append(out.Versions, numbers[identity{v.ID, v.Valid.FromUS}])
	}
	return out, errs, nil
}

// fenceColumns are what scanFence reads.
var fenceColumns = `id, version, name, kind, geometry::text, coalesce(radius_m, 0), coalesce(width_m, 0),
  coalesce(exit_margin_m, 0), coalesce(min_dwell_s, 0), coalesce(min_interval_s, 0), enabled,` + endsOf("valid_from", "valid_to")

var fencesInForce = `
select ` + fenceColumns + `
from processor.geofences
where replaced_at is null
order by id, version`

// Rows returns the current versions of fences, with the version of the set.
func (f *Fences) Rows(ctx context.Context) (version int64, list []FenceVersion, err error) {
	tx, err := f.pool.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly})
	if err != nil {
		return 0, nil, failure("read the fences", err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	if err := tx.QueryRow(ctx, "select version from processor.geofence_set").Scan(&version); err != nil {
		return 0, nil, failure("read the fences", err)
	}
	rows, err := tx.Query(ctx, fencesInForce)
	if err != nil {
		return 0, nil, failure("read the fences", err)
	}
	list, err = pgx.CollectRows(rows, scanFence)
	return version, list, failure("read the fences", err)
}
