package store

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/trmtracking/processor/internal/geofence"
)

// RequestsChannel is where new requests are announced.
const RequestsChannel = "processor_requests"

// FenceEditor changes the set of fences. Whoever changes fences asks, in the
// same transaction, for what was derived by the old ones to be derived again.
type FenceEditor struct {
	pool   *pgxpool.Pool
	scope  Scope
	shards int
	by     string
}

// NewFenceEditor returns an editor that signs its changes.
func NewFenceEditor(pool *pgxpool.Pool, scope Scope, shards int, by string) *FenceEditor {
	return &FenceEditor{pool: pool, scope: scope, shards: shards, by: by}
}

// Edited is what a change came to.
type Edited struct {
	Added, Closed, Same int
	From, To            *time.Time // device time to be derived again; nil is open
}

// Import makes the fences given hold for their spans. A fence that is there
// with the same content stays; of one that differs, what it says from the new
// version's beginning on is closed. With replace, fences of the same source
// that are not given are closed altogether. A fence that is no good is refused
// before anything is changed.
func (e *FenceEditor) Import(ctx context.Context, fences []geofence.Fence, source string, replace bool) (Edited, error) {
	for _, f := range fences {
		if err := f.Check(); err != nil {
			return Edited{}, fmt.Errorf("fence %s: %w", f.ID, err)
		}
	}
	var done Edited
	err := pgx.BeginFunc(ctx, e.pool, func(tx pgx.Tx) error {
		// One editor at a time: versions are numbered by reading the last one.
		if _, err := tx.Exec(ctx, "select version from processor.geofence_set for update"); err != nil {
			return err
		}
		present, err := present(ctx, tx, source)
		if err != nil {
			return err
		}
		span := geofence.Span{FromUS: math.MaxInt64, ToUS: math.MinInt64}
		for _, f := range fences {
			old := present[f.ID]
			delete(present, f.ID)
			if err := e.put(ctx, tx, f, old, source, &done, &span); err != nil {
				return err
			}
		}
		if replace {
			for _, old := range present {
				for _, v := range old {
					if err := e.retire(ctx, tx, v, &done, &span); err != nil {
						return err
					}
				}
			}
		}
		if done.Added+done.Closed == 0 {
			return nil
		}
		done.From, done.To = instant(span.FromUS), instant(span.ToUS)
		return e.recompute(ctx, tx, done)
	})
	return done, failure("import fences", err)
}

func present(ctx context.Context, tx pgx.Tx, source string) (map[string][]FenceVersion, error) {
	rows, err := tx.Query(ctx, `
select id, version, name, kind, geometry::text, coalesce(radius_m, 0), valid_from, valid_to, enabled
from processor.geofences
where replaced_at is null
  and source = $1
order by id, valid_from nulls first`, source)
	if err != nil {
		return nil, err
	}
	list, err := pgx.CollectRows(rows, scanFence)
	if err != nil {
		return nil, err
	}
	by := make(map[string][]FenceVersion)
	for _, v := range list {
		by[v.ID] = append(by[v.ID], v)
	}
	return by, nil
}

func scanFence(row pgx.CollectableRow) (FenceVersion, error) {
	var v FenceVersion
	var from, to *time.Time
	err := row.Scan(&v.ID, &v.Version, &v.Name, &v.Kind, &v.Geometry, &v.RadiusM, &from, &to, &v.Enabled)
	v.Valid = geofence.Span{FromUS: math.MinInt64, ToUS: math.MaxInt64}
	if from != nil {
		v.Valid.FromUS = from.UnixMicro()
	}
	if to != nil {
		v.Valid.ToUS = to.UnixMicro()
	}
	return v, err
}

// put makes one fence hold over its span, and cuts back what held there.
func (e *FenceEditor) put(ctx context.Context, tx pgx.Tx, f geofence.Fence, old []FenceVersion, source string,
	done *Edited, span *geofence.Span,
) error {
	for _, v := range old {
		if v.Valid == f.Valid && v.Enabled == f.Enabled && v.Kind == f.Kind && v.RadiusM == f.RadiusM {
			var same bool
			if err := tx.QueryRow(ctx, "select $1::jsonb = $2::jsonb", v.Geometry, f.Geometry).Scan(&same); err != nil {
				return err
			}
			if same {
				done.Same++
				return nil
			}
		}
	}
	last := 0
	if err := tx.QueryRow(ctx, "select coalesce(max(version), 0) from processor.geofences where id = $1", f.ID).Scan(&last); err != nil {
		return err
	}
	for _, v := range old {
		if v.Valid.ToUS <= f.Valid.FromUS || v.Valid.FromUS >= f.Valid.ToUS {
			continue
		}
		if err := e.retire(ctx, tx, v, done, span); err != nil {
			return err
		}
		// What of it lies outside the new span goes on to hold.
		for _, rest := range []geofence.Span{{FromUS: v.Valid.FromUS, ToUS: f.Valid.FromUS}, {FromUS: f.Valid.ToUS, ToUS: v.Valid.ToUS}} {
			if rest.FromUS < rest.ToUS {
				last++
				kept := v.Fence
				kept.Valid = rest
				if err := e.insert(ctx, tx, kept, last, source); err != nil {
					return err
				}
			}
		}
	}
	widen(span, f.Valid)
	done.Added++
	return e.insert(ctx, tx, f, last+1, source)
}

func (e *FenceEditor) insert(ctx context.Context, tx pgx.Tx, f geofence.Fence, version int, source string) error {
	var radius *float64
	if f.Kind == geofence.Circle {
		radius = &f.RadiusM
	}
	_, err := tx.Exec(ctx, `
insert into processor.geofences (id, version, name, kind, geometry, radius_m, valid_from, valid_to, enabled, source, created_by)
values ($1, $2, $3, $4, $5::jsonb, $6, $7, $8, $9, $10, $11)`,
		f.ID, version, f.Name, string(f.Kind), f.Geometry, radius, instant(f.Valid.FromUS), instant(f.Valid.ToUS), f.Enabled, source, e.by)
	return err
}

func (e *FenceEditor) retire(ctx context.Context, tx pgx.Tx, v FenceVersion, done *Edited, span *geofence.Span) error {
	done.Closed++
	widen(span, v.Valid)
	_, err := tx.Exec(ctx, "update processor.geofences set replaced_at = now() where id = $1 and version = $2", v.ID, v.Version)
	return err
}

// recompute asks each shard's owner to derive the span again.
func (e *FenceEditor) recompute(ctx context.Context, tx pgx.Tx, done Edited) error {
	_, err := tx.Exec(ctx, `
insert into processor.requests (stream, grp, kind, shard, from_ts, to_ts, reason, requested_by)
select $1, $2, 'recompute', n, $4, $5, 'fences changed', $6
from generate_series(0, $3 - 1) as n`, e.scope.Stream, e.scope.Group, e.shards, done.From, done.To, e.by)
	if err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, `
insert into processor.audit (who, action, target, count, detail)
values ($1, 'fences', 'processor.geofences', $2, jsonb_build_object('added', $3::int, 'closed', $4::int))`,
		e.by, done.Added+done.Closed, done.Added, done.Closed); err != nil {
		return err
	}
	_, err = tx.Exec(ctx, "select pg_notify('"+RequestsChannel+"', '')")
	return err
}

func widen(span *geofence.Span, by geofence.Span) {
	span.FromUS, span.ToUS = min(span.FromUS, by.FromUS), max(span.ToUS, by.ToUS)
}

// instant is a microsecond time, or nil at the open ends.
func instant(us int64) *time.Time {
	if us == math.MinInt64 || us == math.MaxInt64 {
		return nil
	}
	t := time.UnixMicro(us).UTC()
	return &t
}
