package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
)

// A hypertable makes a chunk when the first row for it comes, under a lock on all of
// positions (ShareUpdateExclusiveLock) that the inserting transaction keeps until its
// end. A batch over years would make hundreds, every other batch that needs a new
// chunk would wait for it, and a rollback would undo all of them. So the chunks that a
// batch lacks are made before its transaction begins, a few per statement, each of
// which commits by itself.
const (
	chunksAtOnce = 8
	chunksFor    = 5 * time.Second // then the batch is tried again, and finds those made so far
)

// chunk is the device times of a chunk, the last one excluded.
type chunk struct{ from, to int64 }

// chunkIntervalSQL finds how long the chunks of a hypertable are that has no other
// dimension than device time.
const chunkIntervalSQL = `
select coalesce(max((extract(epoch from time_interval) * 1000000)::bigint), 0)
from timescaledb_information.dimensions
where hypertable_schema = 'public'
  and hypertable_name = 'positions'
having count(*) = 1`

const makeChunksSQL = `
select count(*)
from unnest($1::bigint[], $2::bigint[]) as n (lo, hi)
cross join lateral _timescaledb_functions.create_chunk('public.positions', jsonb_build_object('ts', jsonb_build_array(n.lo, n.hi)))`

// lacking is the chunks that records need and positions does not have, by what was
// read last. They begin and end where the extension itself would have them do.
func (d *division) lacking(lists ...[]telemetry.Record) []chunk {
	if d.interval == 0 {
		return nil
	}
	var list []chunk
	last := chunk{from: 1} // holds nothing
	for _, records := range lists {
		for i := range records {
			us := records[i].TimeUS
			if us >= last.from && us < last.to {
				continue
			}
			at, there := slices.BinarySearchFunc(d.chunks, us, func(c chunk, us int64) int {
				switch {
				case c.to <= us:
					return -1
				case c.from > us:
					return 1
				}
				return 0
			})
			if there {
				last = d.chunks[at]
				continue
			}
			last.from = us - us%d.interval
			if us < 0 && us%d.interval != 0 {
				last.from -= d.interval
			}
			last.to = last.from + d.interval
			if at > 0 {
				last.from = max(last.from, d.chunks[at-1].to)
			}
			if at < len(d.chunks) {
				last.to = min(last.to, d.chunks[at].from)
			}
			list = append(list, last)
		}
	}
	slices.SortFunc(list, func(a, b chunk) int { return int(min(1, max(-1, a.from-b.from))) })
	return slices.Compact(list)
}

// makeChunks makes the chunks that records lack. Where that fails, the transaction
// makes them as before: an edition without the function, or chunks that changed
// meanwhile.
func (h *heaps) makeChunks(ctx context.Context, lists ...[]telemetry.Record) error {
	d, err := h.division(ctx, time.Minute)
	if err != nil || len(d.lacking(lists...)) == 0 {
		return err
	}
	// Others of this process wait for the same chunks.
	if err := h.creating.take(ctx); err != nil {
		return err
	}
	defer h.creating.give()
	if d, err = h.division(ctx, 0); err != nil {
		return err
	}
	began := time.Now()
	todo := d.lacking(lists...)
	if len(todo) == 0 {
		return nil
	}
	for len(todo) > 0 {
		some := todo[:min(chunksAtOnce, len(todo))]
		todo = todo[len(some):]
		lo, hi := make([]int64, len(some)), make([]int64, len(some))
		for i, c := range some {
			lo[i], hi[i] = c.from, c.to
		}
		var n int
		if err := h.pool.QueryRow(ctx, makeChunksSQL, pgx.QueryExecModeCacheDescribe, lo, hi).Scan(&n); err != nil {
			return nil // whatever the reason is, the transaction meets it
		}
		if len(todo) > 0 && time.Since(began) > chunksFor {
			return &protocol.Failure{Kind: protocol.Unavailable, Err: fmt.Errorf("make chunks: %d of %d are still to be made", len(todo), len(d.lacking(lists...)))}
		}
	}
	_, err = h.division(ctx, 0)
	return err
}

// allHeaps is positions itself, which stands for all of its heaps.
const allHeaps = "public.positions"

// part is rows of positions that a statement changes, in one heap: an update or a delete of
// a hypertable is planned for all of its chunks and locks all of them, whichever its
// conditions leave.
type part struct {
	heap        string
	n           int64
	first, last pgtype.Timestamptz // device times
}

func (p *part) columns() []any { return []any{&p.heap, &p.n, &p.first, &p.last} }

// partsSQL finds the parts of rows, which are a statement from its "from" on. What is no
// hypertable is one part.
func partsSQL(chunked bool, rows string) string {
	if !chunked {
		return `
select 'public.positions', n, first, last
from (select count(*) as n, min(ts) as first, max(ts) as last from (select ts` + rows + `) r) p
where n > 0`
	}
	return `
select format('%I.%I', s.nspname, c.relname), p.n, p.first, p.last
from (
  select heap, count(*) as n, min(ts) as first, max(ts) as last
  from (select tableoid as heap, ts` + rows + `) r
  group by heap
) p
join pg_class c on c.oid = p.heap
join pg_namespace s on s.oid = c.relnamespace
order by p.first, c.oid`
}

// change runs a statement that names a heap in place of %s, and returns how many rows it
// changed. Where those are fewer than were found, all heaps are tried: editions of the
// extension leave rows of compressed chunks alone where the chunk is named.
func (p *part) change(ctx context.Context, tx execer, sql string, args ...any) (n int64, err error) {
	args = append([]any{pgx.QueryExecModeExec}, args...) // prepared for one use, it would push others out
	tag, err := tx.Exec(ctx, fmt.Sprintf(sql, p.heap), args...)
	if e, _ := errors.AsType[*pgconn.PgError](err); e != nil && e.Code == "42P01" { // the chunk was dropped
		return 0, &protocol.Failure{Kind: protocol.Unavailable, Err: err}
	}
	if n = tag.RowsAffected(); err != nil || n >= p.n || p.heap == allHeaps {
		return n, err
	}
	tag, err = tx.Exec(ctx, fmt.Sprintf(sql, allHeaps), args...)
	return n + tag.RowsAffected(), err
}

// execer is a connection or a transaction.
type execer interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
}
