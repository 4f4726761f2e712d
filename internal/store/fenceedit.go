package store

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/trmtracking/processor/internal/geofence"
)

// RequestsChannel is where new requests are announced.
const RequestsChannel = "processor_requests"

// FenceEditor changes the set of fences. Each change requests, in the same
// transaction, the recomputation of what was derived from the old ones.
type FenceEditor struct {
	pool   *pgxpool.Pool
	scope  Scope
	shards int
	by     string
}

// NewFenceEditor returns an editor that records by as the author of its
// changes. Shards is their number while the fleet has pinned none.
func NewFenceEditor(pool *pgxpool.Pool, scope Scope, shards int, by string) *FenceEditor {
	return &FenceEditor{pool: pool, scope: scope, shards: shards, by: by}
}

// Edited is the outcome of a change.
type Edited struct {
	Added, Closed, Same int
	From, To            *time.Time // device time to be recomputed; nil is open
	// Refused are fences that cannot be stored, or whose ID belongs to a fence
	// of another source. They are skipped; the others are stored.
	Refused []error
}

// edit is a change in progress.
type edit struct {
	Edited
	span   geofence.Span
	source string
	writes pgx.Batch
}

// Import makes the fences given valid for their spans. An existing version with
// the same content is kept; a version that differs is kept outside the new
// span. With replace every other version of the source is closed. An invalid
// fence is rejected before anything is changed.
func (e *FenceEditor) Import(ctx context.Context, fences []geofence.Fence, source string, replace bool) (Edited, error) {
	return e.change(ctx, fences, nil, source, replace, 0, nil)
}

// Replace is Import with replace, unless it would remove more fences than
// allowed; then it is a *RemovalsError and changes nothing. Negative is a tenth
// of the present ones, at least 5.
func (e *FenceEditor) Replace(ctx context.Context, fences []geofence.Fence, source string, allowed int) (Edited, error) {
	return e.change(ctx, fences, nil, source, true, 0, func(_ context.Context, _ pgx.Tx, c fenceCount) error {
		limit := allowed
		if limit < 0 {
			limit = max(5, c.present/10)
		}
		if c.removed > limit {
			return &RemovalsError{Removed: c.removed, Present: c.present, Allowed: limit}
		}
		return nil
	})
}

// RemovalsError reports that a change would remove more fences than allowed.
type RemovalsError struct{ Removed, Present, Allowed int }

func (e *RemovalsError) Error() string {
	return fmt.Sprintf("%d of %d fences would be removed with what was recorded of them, at most %d are allowed; nothing was changed",
		e.Removed, e.Present, e.Allowed)
}

// fenceCount is what a change means for the fences of a source.
type fenceCount struct{ present, given, removed int }

// brake looks at a change before anything is written. It runs in the transaction
// that would change the fences.
type brake func(ctx context.Context, tx pgx.Tx, c fenceCount) error

// change is Import, except that valid versions of the fences named in keep stay
// unchanged. With a term the editor is the leader's, and one of an earlier term
// is rejected. With a brake, what it refuses is not changed.
func (e *FenceEditor) change(ctx context.Context, fences []geofence.Fence, keep []string, source string, replace bool, term int64, check brake) (Edited, error) {
	if _, bad := geofence.NewSet(fences); len(bad) > 0 {
		errs := make([]error, len(bad))
		for i, b := range bad {
			errs[i] = b
		}
		return Edited{}, errors.Join(errs...)
	}
	ed := edit{source: source, span: geofence.Span{FromUS: math.MaxInt64, ToUS: math.MinInt64}}
	fences = slices.DeleteFunc(slices.Clone(fences), func(f geofence.Fence) bool {
		bad := strings.ContainsRune(f.ID+f.Name, 0) || !utf8.ValidString(f.ID+f.Name)
		if bad {
			ed.Refused = append(ed.Refused, fmt.Errorf("fence %q: its texts contain characters that Postgres cannot store", f.ID))
			keep = append(keep, f.ID)
		}
		return bad
	})
	err := pgx.BeginFunc(ctx, e.pool, func(tx pgx.Tx) error {
		if term != 0 {
			if _, err := tx.Exec(ctx, "select processor.check_term($1, $2, $3, $4)", e.scope.Stream, e.scope.Group, term, e.by); err != nil {
				return err
			}
		}
		// One editor at a time: versions are numbered by reading the last one.
		if _, err := tx.Exec(ctx, "select version from processor.geofence_set for update"); err != nil {
			return err
		}
		fences, err := canonical(ctx, tx, fences)
		if err != nil {
			return err
		}
		present, last, err := e.present(ctx, tx, fences, &ed)
		if err != nil {
			return err
		}
		given := make(map[string][]geofence.Fence)
		var ids []string
		count := fenceCount{present: len(present)}
		kept := make(map[string]bool)
		for _, id := range keep {
			if present[id] != nil {
				kept[id] = true
				delete(present, id)
			}
		}
		for _, f := range fences {
			if kept[f.ID] {
				continue
			}
			if given[f.ID] == nil {
				ids = append(ids, f.ID)
			}
			given[f.ID] = append(given[f.ID], f)
		}
		if check != nil {
			count.given = len(ids) + len(kept)
			for id := range present {
				if given[id] == nil && replace {
					count.removed++
				}
			}
			if err := check(ctx, tx, count); err != nil {
				return err
			}
		}
		for _, id := range ids {
			if last[id] < 0 {
				ed.Refused = append(ed.Refused, fmt.Errorf("fence %s: the ID is that of a fence of another source; give it another one", id))
				continue
			}
			e.put(given[id], present[id], last[id], replace, &ed)
		}
		if replace {
			for id, versions := range present {
				if given[id] == nil {
					for _, v := range versions {
						ed.retire(v)
					}
				}
			}
		}
		if ed.writes.Len() == 0 {
			return nil
		}
		if err := tx.SendBatch(ctx, &ed.writes).Close(); err != nil {
			return err
		}
		if ed.Added+ed.Closed == 0 {
			return nil
		}
		ed.From, ed.To = instant(ed.span.FromUS), instant(ed.span.ToUS)
		return e.recompute(ctx, tx, ed.Edited)
	})
	return ed.Edited, failure("import fences", err)
}

// canonical returns the fences with canonical geometries as the database formats
// them.
func canonical(ctx context.Context, tx pgx.Tx, fences []geofence.Fence) ([]geofence.Fence, error) {
	geometries := make([]string, len(fences))
	for i := range fences {
		f, err := fences[i].Canonical()
		if err != nil {
			return nil, fmt.Errorf("fence %s: %w", f.ID, err)
		}
		geometries[i] = f.Geometry
	}
	rows, err := tx.Query(ctx, `
select g::jsonb::text
from unnest($1::text[]) with ordinality as t (g, n)
order by n`, geometries)
	if err != nil {
		return nil, err
	}
	texts, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, err
	}
	out := slices.Clone(fences)
	for i := range out {
		out[i].Geometry = texts[i]
	}
	return out, nil
}

// present returns the source's current versions, and the number of the last
// version of each fence given; negative if it belongs to another source.
func (e *FenceEditor) present(ctx context.Context, tx pgx.Tx, fences []geofence.Fence, ed *edit) (map[string][]FenceVersion, map[string]int, error) {
	rows, err := tx.Query(ctx, `
select `+fenceColumns+`
from processor.geofences
where replaced_at is null
  and source = $1
order by id, valid_from nulls first`, ed.source)
	if err != nil {
		return nil, nil, err
	}
	list, err := pgx.CollectRows(rows, scanFence)
	if err != nil {
		return nil, nil, err
	}
	by := make(map[string][]FenceVersion)
	for _, v := range list {
		by[v.ID] = append(by[v.ID], v)
	}
	ids := make([]string, len(fences))
	for i := range fences {
		ids[i] = fences[i].ID
	}
	rows, err = tx.Query(ctx, `
select id, case when bool_or(replaced_at is null and source <> $2) then -1 else max(version) end
from processor.geofences
where id = any ($1)
group by id`, ids, ed.source)
	if err != nil {
		return nil, nil, err
	}
	last := make(map[string]int)
	var id string
	var version int
	_, err = pgx.ForEachRow(rows, []any{&id, &version}, func() error {
		last[id] = version
		return nil
	})
	return by, last, err
}

func scanFence(row pgx.CollectableRow) (FenceVersion, error) {
	var v FenceVersion
	var from, to pgtype.Timestamptz
	err := row.Scan(&v.ID, &v.Version, &v.Name, &v.Kind, &v.Geometry, &v.RadiusM, &v.WidthM, &v.ExitMarginM, &v.MinDwellS, &v.MinIntervalS, &v.Enabled, &from, &to)
	v.Valid = geofence.Span{FromUS: usOf(from), ToUS: usOf(to)}
	return v, err
}

// put makes the given versions of one fence valid over their spans, and cuts
// existing versions back.
func (e *FenceEditor) put(given []geofence.Fence, old []FenceVersion, last int, replace bool, ed *edit) {
	var fresh []geofence.Fence
	for _, f := range given {
		i := slices.IndexFunc(old, func(v FenceVersion) bool { return sameFence(v.Fence, f) })
		if i < 0 {
			fresh = append(fresh, f)
			continue
		}
		ed.Same++
		if old[i].Name != f.Name {
			ed.writes.Queue("update processor.geofences set name = $3 where id = $1 and version = $2", f.ID, old[i].Version, f.Name)
		}
		old = slices.Delete(slices.Clone(old), i, i+1)
	}
	var hold []geofence.Fence
	for _, v := range old {
		rest := []geofence.Fence{v.Fence}
		for _, f := range fresh {
			rest = without(rest, f.Valid)
		}
		switch {
		case replace:
			ed.retire(v)
		case len(rest) != 1 || rest[0].Valid != v.Valid:
			ed.retire(v)
			hold = append(hold, rest...)
		}
	}
	for _, f := range fresh {
		ed.Added++
		widen(&ed.span, f.Valid)
	}
	for _, f := range append(hold, fresh...) {
		last++
		e.insert(f, last, ed)
	}
}

// without returns the parts of versions that lie outside a span.
func without(list []geofence.Fence, span geofence.Span) []geofence.Fence {
	var out []geofence.Fence
	for _, f := range list {
		before, after := f, f
		before.Valid.ToUS = min(f.Valid.ToUS, span.FromUS)
		after.Valid.FromUS = max(f.Valid.FromUS, span.ToUS)
		for _, rest := range []geofence.Fence{before, after} {
			if rest.Valid.FromUS < rest.Valid.ToUS {
				out = append(out, rest)
			}
		}
	}
	return out
}

// sameFence reports whether two versions yield the same crossings.
func sameFence(a, b geofence.Fence) bool {
	a.Name = b.Name
	if a.Geometry == b.Geometry {
		return a == b
	}
	text := a.Geometry
	if a.Geometry = b.Geometry; a != b {
		return false
	}
	// Rows written by hand, or before there was one way to print a shape.
	a.Geometry = text
	a, errA := a.Canonical()
	b, errB := b.Canonical()
	return errA == nil && errB == nil && a.Geometry == b.Geometry
}

func (e *FenceEditor) insert(f geofence.Fence, version int, ed *edit) {
	given := func(v float64) *float64 {
		if v == 0 {
			return nil
		}
		return &v
	}
	ed.writes.Queue(`
insert into processor.geofences (id, version, name, kind, geometry, radius_m, width_m, valid_from, valid_to, enabled, source, created_by,
  exit_margin_m, min_dwell_s, min_interval_s)
values ($1, $2, $3, $4, $5::jsonb, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)`,
		f.ID, version, f.Name, string(f.Kind), f.Geometry, given(f.RadiusM), given(f.WidthM), instant(f.Valid.FromUS), instant(f.Valid.ToUS), f.Enabled, ed.source, e.by,
		given(f.ExitMarginM), given(f.MinDwellS), given(f.MinIntervalS))
}

func (ed *edit) retire(v FenceVersion) {
	ed.Closed++
	widen(&ed.span, v.Valid)
	ed.writes.Queue("update processor.geofences set replaced_at = now() where id = $1 and version = $2", v.ID, v.Version)
}

// recompute requests the recomputation of the span from the owners of all shards: those
// of this stream, and those of every other stream that has devices; their numbers are read by
// the statement that Resize waits for, or that waits for it. A
// request that nobody has begun, and whose span touches, is widened instead: its
// owner finds it changed if it has read it already.
func (e *FenceEditor) recompute(ctx context.Context, tx pgx.Tx, done Edited) error {
	_, err := tx.Exec(ctx, `
with concerned as (
  select $1::text as stream, $2::text as group_name, n as shard
  from generate_series(0, coalesce((select value::int from processor.settings where name = $7), $3) - 1) as n
  union
  select s.stream, s.group_name, s.shard
  from processor.shards s
  where s.stream <> $1
    and exists (
      select
      from processor.devices d
      where d.stream = s.stream
    )
),
widened as (
  update processor.requests
  set from_ts = case when from_ts > $4 then $4 when $4 is not null then from_ts end,
    to_ts = case when to_ts < $5 then $5 when $5 is not null then to_ts end
  where id in (
      select min(r.id)
      from processor.requests r
      join concerned c using (stream, group_name, shard)
      where r.kind = 'recompute'
        and r.device_id is null
        and r.state = 'waiting'
        and tstzrange(r.from_ts, r.to_ts, '[]') && tstzrange($4, $5, '[]')
      group by stream, group_name, shard
    )
    and state = 'waiting'
  returning stream, group_name, shard
)
insert into processor.requests (stream, group_name, kind, shard, from_ts, to_ts, reason, requested_by)
select stream, group_name, 'recompute', shard, $4, $5, 'fences changed', $6
from concerned
where (stream, group_name, shard) not in (select stream, group_name, shard from widened)
order by stream, group_name, shard`, e.scope.Stream, e.scope.Group, e.shards, done.From, done.To, e.by, e.scope.shardsSetting())
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

// instant converts microseconds to a time, or nil at the open ends.
func instant(us int64) *time.Time {
	if us == math.MinInt64 || us == math.MaxInt64 {
		return nil
	}
	t := time.UnixMicro(us).UTC()
	return &t
}
