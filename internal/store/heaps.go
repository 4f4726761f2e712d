package store

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/trmtracking/processor/internal/geofence"
	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
)

// heapsAtOnce bounds how many heaps of positions one statement touches, and
// heapsFirst how many the first one does that looks for a neighbour in time.
const (
	heapsAtOnce = 64
	heapsFirst  = 8
)

// cutsAge is how long what is known of the heaps is good for. What is older
// costs statements that touch more heaps than they need, and nothing else.
const cutsAge = 10 * time.Second

// heaps knows how positions is divided by device time: into partitions, into
// chunks of TimescaleDB, or not at all. The server plans, locks and looks into
// every one that the text and the arguments of a statement do not exclude, so
// on thousands of them a statement that needs one takes seconds and all locks.
type heaps struct {
	pool *pgxpool.Pool

	found    *known[division]
	creating turn // of who makes chunks
}

// division is how positions is divided.
type division struct {
	cuts     cuts
	chunks   []chunk // of a hypertable, ascending
	interval int64   // how long its chunks are; 0 if they cannot be made in advance
}

func newHeaps(pool *pgxpool.Pool) *heaps {
	return &heaps{pool: pool, found: newKnown[division](), creating: newTurn()}
}

// partitionsSQL finds the ends of partitions, where positions is partitioned by
// the range of ts. Partitions may be divided further.
const partitionsSQL = `
select distinct (extract(epoch from e.at) * 1000000)::bigint
from pg_partitioned_table t
join pg_attribute a on a.attrelid = t.partrelid and a.attnum = t.partattrs[0] and a.attname = 'ts'
join pg_inherits i on i.inhparent = t.partrelid
join pg_class c on c.oid = i.inhrelid
cross join lateral regexp_match(pg_get_expr(c.relpartbound, c.oid), '^FOR VALUES FROM \((.*)\) TO \((.*)\)$') as m
cross join lateral unnest(m) as text (bound)
cross join lateral (
  select substr(text.bound, 2, length(text.bound) - 2)::timestamptz as at
  where text.bound like '''%'''
) e
where t.partrelid = 'public.positions'::regclass
  and t.partstrat = 'r'
  and t.partnatts = 1
  and isfinite(e.at)
order by 1`

const chunksSQL = `
select distinct (extract(epoch from range_start) * 1000000)::bigint, (extract(epoch from range_end) * 1000000)::bigint
from timescaledb_information.chunks
where hypertable_schema = 'public'
  and hypertable_name = 'positions'
  and isfinite(range_start)
  and isfinite(range_end)
order by 1, 2`

// now is where positions is divided, as of a moment ago.
func (h *heaps) now(ctx context.Context) (cuts, error) {
	d, err := h.division(ctx, cutsAge)
	return d.cuts, err
}

// division is how positions is divided, see known.get.
func (h *heaps) division(ctx context.Context, age time.Duration) (division, error) {
	return h.found.get(ctx, age, func() (division, error) { return readDivision(ctx, h.pool) })
}

func readDivision(ctx context.Context, pool *pgxpool.Pool) (division, error) {
	var found division
	var timescale bool
	if err := pool.QueryRow(ctx, `select to_regclass('timescaledb_information.chunks') is not null`).Scan(&timescale); err != nil {
		return found, err
	}
	rows, err := pool.Query(ctx, partitionsSQL)
	if err != nil {
		return found, err
	}
	if found.cuts, err = pgx.CollectRows(rows, pgx.RowTo[int64]); err != nil || !timescale {
		return found, err
	}
	if rows, err = pool.Query(ctx, chunksSQL); err != nil {
		return found, err
	}
	var c chunk
	if _, err = pgx.ForEachRow(rows, []any{&c.from, &c.to}, func() error {
		found.chunks = append(found.chunks, c)
		found.cuts = append(found.cuts, c.from, c.to)
		return nil
	}); err != nil {
		return found, err
	}
	slices.Sort(found.cuts)
	found.cuts = slices.Compact(found.cuts)
	if err := pool.QueryRow(ctx, chunkIntervalSQL).Scan(&found.interval); !errors.Is(err, pgx.ErrNoRows) {
		return found, err
	}
	return found, nil
}

// cuts are the device times, ascending and in microseconds since 1970, at which
// one heap of positions ends and the next begins. Heap i begins at cut i-1; none
// means one heap.
type cuts []int64

// heap is the number of the heap where a device time belongs.
func (c cuts) heap(us int64) int {
	i, found := slices.BinarySearch(c, us)
	if found {
		i++
	}
	return i
}

// begin and end are the first device time of a heap, and the first behind it.
func (c cuts) begin(heap int) int64 {
	if heap <= 0 {
		return math.MinInt64
	}
	return c[heap-1]
}

func (c cuts) end(heap int) int64 {
	if heap >= len(c) {
		return math.MaxInt64
	}
	return c[heap]
}

// span is a range of heaps, both ends included, and of the device times in them,
// the last one excluded.
type span struct {
	first, last int
	from, to    int64
}

func (c cuts) span(first, last int) span {
	first, last = max(0, first), min(len(c), last)
	return span{first, last, c.begin(first), c.end(last)}
}

// holds reports whether a device time belongs to one of the heaps.
func (s span) holds(us int64) bool { return us >= s.from && (us < s.to || s.to == math.MaxInt64) }

// spans is the heaps where device times from lo to hi belong, some at a time.
func (c cuts) spans(lo, hi int64) []span {
	var list []span
	for first, last := c.heap(lo), c.heap(hi); first <= last; first += heapsAtOnce {
		list = append(list, c.span(first, min(last, first+heapsAtOnce-1)))
	}
	return list
}

// spansOf is the heaps of windows, some at a time; heaps between windows that lie
// far apart are left out.
func (c cuts) spansOf(list []window) []span {
	at := make([]span, len(list))
	for i, w := range list {
		at[i].first, at[i].last = c.heap(w.lo), c.heap(w.hi)
	}
	slices.SortFunc(at, func(a, b span) int { return a.first - b.first })
	joined := at[:0]
	for _, s := range at {
		if n := len(joined); n > 0 && s.first-joined[n-1].last <= heapsFirst {
			joined[n-1].last = max(joined[n-1].last, s.last)
			continue
		}
		joined = append(joined, s)
	}
	var spans []span
	for _, s := range joined {
		for first := s.first; first <= s.last; first += heapsAtOnce {
			spans = append(spans, c.span(first, min(s.last, first+heapsAtOnce-1)))
		}
	}
	return spans
}

// args are the arguments of a statement, with the way to send it before them: a
// statement on many heaps is planned anew each time, with the times it is given,
// since a plan for any time is one for all heaps.
func (c cuts) args(list ...any) []any {
	if len(c) == 0 {
		return list
	}
	return append([]any{pgx.QueryExecModeCacheDescribe}, list...)
}

// timeOf is a device time as an argument; the ends of int64 are infinite.
func timeOf(us int64) pgtype.Timestamptz {
	switch us {
	case math.MinInt64:
		return pgtype.Timestamptz{Valid: true, InfinityModifier: pgtype.NegativeInfinity}
	case math.MaxInt64:
		return pgtype.Timestamptz{Valid: true, InfinityModifier: pgtype.Infinity}
	}
	return pgtype.Timestamptz{Time: micros(us), Valid: true}
}

// ask runs one statement and calls row after each row was scanned. TooMuch says
// that half of it may be asked again.
type ask func(sql string, args []any, scan []any, row func() error) (tooMuch bool, err error)

// asker is a connection or a transaction.
type asker interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// inTx asks inside a transaction, in which no statement can be tried twice, and
// which keeps a lock on all that was touched until its end.
func inTx(ctx context.Context, tx asker) ask {
	return func(sql string, args []any, scan []any, row func() error) (bool, error) {
		rows, err := tx.Query(ctx, sql, args...)
		if err == nil {
			_, err = pgx.ForEachRow(rows, scan, row)
		}
		return false, err
	}
}

// byItself asks outside of any transaction, so that locks go with each
// statement, which takes at most timeout.
func byItself(ctx context.Context, pool *pgxpool.Pool, timeout time.Duration) ask {
	return func(sql string, args []any, scan []any, row func() error) (bool, error) {
		ctx, cancel := context.WithTimeout(ctx, timeout)
		defer cancel()
		_, err := inTx(ctx, pool)(sql, args, scan, row)
		err = notBegun(failure("look into positions", err))
		f, _ := errors.AsType[*protocol.Failure](err)
		return f != nil && f.TooMuch, err
	}
}

// within asks outside of any transaction, as byItself does. While limit is below
// timeout it bounds each statement, and all of them together: one that begins too
// late is too much.
func within(ctx context.Context, pool *pgxpool.Pool, limit, timeout time.Duration) ask {
	if limit >= timeout {
		return byItself(ctx, pool, timeout)
	}
	began := time.Now()
	return func(sql string, args []any, scan []any, row func() error) (bool, error) {
		if time.Since(began) > limit {
			err := fmt.Errorf("look into positions: not done after %s", limit)
			return true, &protocol.Failure{Kind: protocol.Unavailable, TooMuch: true, Err: err}
		}
		ctx, cancel := context.WithTimeout(ctx, timeout)
		defer cancel()
		err := pgx.BeginTxFunc(ctx, pool, pgx.TxOptions{AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, fmt.Sprintf("set local statement_timeout = %d", limit.Milliseconds())); err != nil {
				return err
			}
			_, err := inTx(ctx, tx)(sql, args, scan, row)
			return err
		})
		err = notBegun(failure("look into positions", err))
		f, _ := errors.AsType[*protocol.Failure](err)
		return f != nil && f.TooMuch, err
	}
}

// asOf asks in transactions of their own that see what tx sees, which is
// repeatable read: all of one moment, and no lock for longer than a statement.
func asOf(ctx context.Context, pool *pgxpool.Pool, tx pgx.Tx, c cuts) (ask, error) {
	if len(c) == 0 {
		return inTx(ctx, tx), nil
	}
	// Tx is idle meanwhile, for as long as its caller has.
	var snapshot string
	if err := tx.QueryRow(ctx, "select pg_export_snapshot() from set_config('idle_in_transaction_session_timeout', '0', true)").Scan(&snapshot); err != nil {
		return nil, err
	}
	return func(sql string, args []any, scan []any, row func() error) (bool, error) {
		return false, seeing(ctx, pool, snapshot, func(tx pgx.Tx) error {
			_, err := inTx(ctx, tx)(sql, args, scan, row)
			return err
		})
	}, nil
}

// seeing runs do in a transaction of its own that sees what an exported snapshot does,
// and in which a statement may take as long as it does.
func seeing(ctx context.Context, pool *pgxpool.Pool, snapshot string, do func(tx pgx.Tx) error) error {
	return pgx.BeginTxFunc(ctx, pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "set transaction snapshot '"+snapshot+"'; set local statement_timeout = 0"); err != nil {
			return err
		}
		return do(tx)
	})
}

// notBegun is the failure of a question before a transaction: whatever became of
// it, nothing was written.
func notBegun(err error) error {
	if f, ok := errors.AsType[*protocol.Failure](err); ok && f.Kind == protocol.Unknown {
		f.Kind = protocol.Unavailable
	}
	return err
}

// seek is the search for the fix of a device nearest to a device time.
type seek struct {
	device string
	at     int64
	n      int // of the caller
}

// direction is where to look from there.
type direction int

const (
	backward direction = -1
	forward  direction = 1
)

func (d direction) sql(most int) string {
	if d == backward {
		return fmt.Sprintf(beforeSQL, most)
	}
	return fmt.Sprintf(afterSQL, most)
}

// beforeSQL and afterSQL find the nearest eligible fixes, at most so many: a plan
// for any number would be one for many.
const (
	beforeSQL = `
select w.n - 1, p.ts, p.latitude, p.longitude, p.speed
from unnest($2::text[], $3::timestamptz[]) with ordinality as w (device_id, at, n)
cross join lateral (
  select ts, latitude, longitude, speed
  from public.positions
  where ` + ofDevice + `
    and ts < w.at
    and ts >= $4
    and ts < $5
    and ` + eligible + `
  order by ts desc
  limit %d
) p`

	afterSQL = `
select w.n - 1, p.ts, p.latitude, p.longitude, p.speed
from unnest($2::text[], $3::timestamptz[]) with ordinality as w (device_id, at, n)
cross join lateral (
  select ts, latitude, longitude, speed
  from public.positions
  where ` + ofDevice + `
    and ts > w.at
    and ts >= $4
    and ts < $5
    and ` + eligible + `
  order by ts
  limit %d
) p`
)

// presentSQL finds the devices that have a row in a span, which is a tenth of the cost of
// an ordered look that finds nothing in many heaps. Offset 0 keeps the condition from
// becoming a join that reads the whole span.
const presentSQL = `
select w.n - 1
from unnest($1::text[]) with ordinality as w (device_id, n)
where exists (
  select
  from public.positions
  where ` + ofDevice + `
    and ts >= $2
    and ts < $3
  offset 0
)`

// present reports which devices have a row in a span.
func (c cuts) present(devices []string, s span, ask ask) (which []int, tooMuch bool, err error) {
	var i int
	tooMuch, err = ask(presentSQL, c.args(devices, timeOf(s.from), timeOf(s.to)), []any{&i}, func() error {
		which = append(which, i)
		return nil
	})
	return which, tooMuch, err
}

// nearest looks for the fixes nearest to where the list says, at most so many of
// each, from one heap on and from there to the end until there are any: in a few heaps first, in more with each statement
// that leaves some without. Ask runs one statement, and reports whether it
// was found to be too much; then it is asked again with half as many seeks, and
// at last with half as many heaps.
func (c cuts) nearest(list []seek, heap int, d direction, most int, rules telemetry.Eligibility,
	ask ask, found func(n int, f geofence.Fix),
) error {
	page, far := len(list), false
	for heaps := heapsFirst; heap >= 0 && heap <= len(c) && len(list) > 0; {
		s := c.span(heap, heap+heaps-1)
		if d == backward {
			s = c.span(heap-heaps+1, heap)
		}
		seen := make([]bool, len(list))
		for begin := 0; begin < len(list); {
			part := list[begin:min(len(list), begin+page)]
			tooMuch, err := c.nearestIn(s, part, far, d, most, rules, ask, func(i int, f geofence.Fix) {
				seen[begin+i] = true
				found(part[i].n, f)
			})
			switch {
			case err == nil:
				begin += len(part)
			case tooMuch && len(part) > 1:
				page = len(part) / 2
			case tooMuch && s.last > s.first:
				heaps = (s.last - s.first + 1) / 2
				s = c.span(heap, heap+heaps-1)
				if d == backward {
					s = c.span(heap-heaps+1, heap)
				}
			default:
				return err
			}
		}
		left := list[:0:0]
		for i, k := range list {
			if !seen[i] {
				left = append(left, k)
			}
		}
		list, far = left, true
		if d == backward {
			heap = s.first - 1
		} else {
			heap = s.last + 1
		}
		heaps = min(2*heaps, heapsAtOnce)
	}
	return nil
}

// nearestIn looks in one span, if it is far from where the seeks begin only for devices
// that have a row there. Found gets the index in list.
func (c cuts) nearestIn(s span, list []seek, far bool, d direction, most int, rules telemetry.Eligibility,
	ask ask, found func(i int, f geofence.Fix),
) (tooMuch bool, err error) {
	devices, at, which := make([]string, len(list)), make([]pgtype.Timestamptz, len(list)), make([]int, len(list))
	for i, k := range list {
		devices[i], at[i], which[i] = k.device, timeOf(k.at), i
	}
	if far {
		if which, tooMuch, err = c.present(devices, s, ask); err != nil || len(which) == 0 {
			return tooMuch, err
		}
		for n, i := range which {
			devices[n], at[n] = list[i].device, timeOf(list[i].at)
		}
		devices, at = devices[:len(which)], at[:len(which)]
	}
	var n int64
	var ts time.Time
	var f geofence.Fix
	var speed float32
	return ask(d.sql(most), c.args(limitsOf(rules), devices, at, timeOf(s.from), timeOf(s.to)), []any{&n, &ts, &f.Latitude, &f.Longitude, &speed}, func() error {
		f.TimeUS, f.Speed = ts.UnixMicro(), geofence.WholeKMH(speed)
		found(which[n], f)
		return nil
	})
}

// newest calls look for heaps, newer ones first and a few of them first, until
// it has seen enough.
func (c cuts) newest(look func(s span) (enough bool, err error)) error {
	for last, n := len(c), heapsFirst; last >= 0; n = min(2*n, heapsAtOnce) {
		s := c.span(last-n+1, last)
		if enough, err := look(s); enough || err != nil {
			return err
		}
		last = s.first - 1
	}
	return nil
}
