package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
)

// stepFixes is the approximate number of positions one step reads or removes.
const stepFixes = 5000

// Requests executes requests of operators and other services.
type Requests struct {
	writer *Writer

	heldLimit int        // fixes that one step reads of a device for borders that are held still
	large     sync.Mutex // held by the step that reads more than requestHeldShare of them
}

// NewRequests returns the requests as the owner of shards runs them.
func NewRequests(w *Writer) *Requests { return &Requests{writer: w, heldLimit: requestHeldLimit} }

// Waiting returns the oldest unfinished request of each of the shards that is
// not waiting for another attempt.
func (q *Requests) Waiting(ctx context.Context, shards []int) ([]protocol.Request, error) {
	ctx, cancel := context.WithTimeout(ctx, q.writer.timeout)
	defer cancel()
	list := make([]int32, len(shards))
	for i, s := range shards {
		list[i] = int32(s)
	}
	rows, err := q.writer.pool.Query(ctx, `
select distinct on (shard) id, kind, shard, coalesce(device_id, ''), `+requestEnds+`, progress, attempts
from processor.requests
where stream = $1
  and group_name = $2
  and shard = any ($3)
  and state in ('waiting', 'running')
  and (next_attempt_at is null or next_attempt_at <= now())
order by shard, id`, q.writer.scope.Stream, q.writer.scope.Group, list)
	if err != nil {
		return nil, failure("look for requests", err)
	}
	found, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (protocol.Request, error) {
		var r protocol.Request
		var from, to pgtype.Timestamptz
		var progress []byte
		err := row.Scan(&r.ID, &r.Kind, &r.Shard, &r.Device, &from, &to, &progress, &r.Attempts)
		r.FromUS, r.ToUS, r.Progress = usOf(from), usOf(to), progressOf(progress)
		return r, err
	})
	return found, failure("look for requests", err)
}

// requestEnds is the window of a request.
var requestEnds = endsOf("from_ts", "to_ts")

// progressOf reads the progress of a request. What is none, in a row that others wrote, is
// the beginning: what a request has done it may do again.
func progressOf(text []byte) (p protocol.Progress) {
	if json.Unmarshal(text, &p) != nil || p.Halved < 0 || p.Devices < 0 {
		return protocol.Progress{}
	}
	return p
}

// Attempts of a request, and the time that a step may take while it can still be
// halved: the records of its shard wait for it.
const (
	requestAttempts = 8
	requestHalvings = 13 // of stepFixes, until one is left
	stepTime        = 2 * time.Second
)

// errEnded is returned for a request that was changed since it was read.
var errEnded = errors.New("the request was cancelled or changed")

// Step does a bounded part of a recompute or an erasure, in one transaction
// that ends with the check of the shard's epoch, and notes how far it came.
// Positions are read before it, statement by statement: the owner of the shard
// is the only one that writes those of its devices. One that was cancelled, or
// changed since it was read, commits nothing and is done.
func (q *Requests) Step(ctx context.Context, o protocol.RequestStep) (protocol.Progress, bool, error) {
	began := time.Now()
	limit := q.writer.timeout
	if o.Request.Progress.Halved < requestHalvings {
		limit = min(limit, stepTime)
	}
	p, done, err := q.step(ctx, o, limit)
	if errors.Is(err, errEnded) {
		done, err = true, nil
	}
	if err == nil && p.Halved > 0 && time.Since(began) < limit/4 {
		p.Halved--
	}
	return p, done, failure(fmt.Sprintf("run request %d", o.Request.ID), err)
}

func (q *Requests) step(ctx context.Context, o protocol.RequestStep, limit time.Duration) (p protocol.Progress, done bool, err error) {
	p = o.Request.Progress
	now, cancel := context.WithTimeout(ctx, q.writer.timeout)
	d, err := q.writer.heaps.division(now, cutsAge)
	cancel()
	if err != nil {
		return p, false, notBegun(err)
	}
	s := step{
		q: q, c: d.cuts, chunked: len(d.chunks) > 0, o: o, p: &p, fixes: max(1, int64(stepFixes>>p.Halved)),
		ask: within(ctx, q.writer.pool, limit, q.writer.timeout), far: byItself(ctx, q.writer.pool, q.writer.timeout),
	}
	if device := o.Request.Device; device != "" {
		home, shards, err := homeOf(ctx, q.writer.pool, device, q.writer.timeout)
		if err != nil {
			return p, false, notBegun(err)
		}
		if shards > 0 && home.Stream != q.writer.scope.Stream {
			return p, true, q.pass(ctx, o, home, shards)
		}
	}
	var write func(ctx context.Context, tx *pgx.Conn, then *pgx.Batch) error
	switch o.Request.Kind {
	case protocol.RequestRecompute:
		if o.Request.Device == "" {
			if known, err := q.scan(ctx, d.cuts, p.Halved, limit); err != nil || !known {
				return p, false, err
			}
		}
		done, write, err = s.recompute()
	case protocol.RequestErase:
		write, err = s.erase(&done)
	default:
		err = fmt.Errorf("request %d: kind %q has no steps", o.Request.ID, o.Request.Kind)
	}
	if err != nil {
		return o.Request.Progress, false, err
	}
	ctx, cancel = context.WithTimeout(ctx, q.writer.timeout)
	defer cancel()
	err = q.inTx(ctx, o, func(ctx context.Context, tx *pgx.Conn, then *pgx.Batch) error {
		if limit < q.writer.timeout {
			if _, err := tx.Exec(ctx, fmt.Sprintf("set local statement_timeout = %d", limit.Milliseconds())); err != nil {
				return err
			}
		}
		if err := s.own(ctx, tx); err != nil {
			return err
		}
		if err := write(ctx, tx, then); err != nil {
			return err
		}
		then.Queue("select processor.check_fences($1)", o.Rules.Fences.Version)
		return q.note(ctx, tx, &o.Request, p, done)
	})
	if err != nil {
		return o.Request.Progress, false, failure("write", err)
	}
	return p, done, nil
}

// Finish ends a request with a result.
func (q *Requests) Finish(ctx context.Context, o protocol.RequestStep, result map[string]any) error {
	text, err := json.Marshal(result)
	if err != nil {
		return err
	}
	return q.set(ctx, fmt.Sprintf("finish request %d", o.Request.ID), o, `
update processor.requests
set state = 'done',
  result = $2,
  started_at = coalesce(started_at, now()),
  finished_at = now(),
  executed_by = $3
where id = $1
  and state in ('waiting', 'running')`, o.Request.ID, text, q.writer.member)
}

// Failed notes an attempt that failed: one that was too much is made smaller, one
// that an outage ended is as if it had not been, any other is one of few. It
// reports whether it was the last one; then the request has failed.
func (q *Requests) Failed(ctx context.Context, o protocol.RequestStep, cause error) (last bool, err error) {
	f, _ := errors.AsType[*protocol.Failure](cause)
	tooMuch := f != nil && f.TooMuch && o.Request.Progress.Halved < requestHalvings
	if f != nil && !tooMuch && isOutage(f) {
		return false, nil
	}
	p := o.Request.Progress
	tried := 1
	switch {
	case tooMuch:
		p.Halved++
		tried = 0
	case f == nil || f.Kind == protocol.Rejected || f.Kind == protocol.Misconfigured:
		tried = requestAttempts // it would fail again
	}
	progress, err := json.Marshal(p)
	if err != nil {
		return false, err
	}
	result, err := json.Marshal(map[string]any{"error": cause.Error()})
	if err != nil {
		return false, err
	}
	last = o.Request.Attempts+tried >= requestAttempts
	return last, q.set(ctx, fmt.Sprintf("note a failed attempt of request %d", o.Request.ID), o, `
update processor.requests
set state = case when $2 then 'failed' else 'running' end,
  progress = $3,
  attempts = attempts + $4,
  next_attempt_at = case when $4 > 0 then now() + interval '0.5 seconds' * 2 ^ attempts end,
  result = case when $4 > 0 then $5::jsonb else result end,
  started_at = coalesce(started_at, now()),
  finished_at = case when $2 then now() end,
  executed_by = $6
where id = $1
  and state in ('waiting', 'running')`, o.Request.ID, last, progress, tried, result, q.writer.member)
}

// set changes the row of a request under the shard's epoch.
func (q *Requests) set(ctx context.Context, op string, o protocol.RequestStep, sql string, args ...any) error {
	ctx, cancel := context.WithTimeout(ctx, q.writer.timeout)
	defer cancel()
	return failure(op, q.inTx(ctx, o, func(_ context.Context, _ *pgx.Conn, then *pgx.Batch) error {
		then.Queue(sql, args...)
		return nil
	}))
}

// pass leaves a request to the owner of the device's shard in the stream that it
// belongs to, unless the number of shards there was changed: then it is read again.
func (q *Requests) pass(ctx context.Context, o protocol.RequestStep, to Scope, shards int) error {
	return q.set(ctx, fmt.Sprintf("pass request %d on", o.Request.ID), o, `
with passed as (
  update processor.requests
  set stream = $2,
    group_name = $3,
    shard = $4
  where id = $1
    and state in ('waiting', 'running')
    and $5 = (
      select count(*)
      from processor.shards
      where stream = $2
        and group_name = $3
    )
  returning id
)
select pg_notify('`+RequestsChannel+`', '')
from passed`, o.Request.ID, to.Stream, to.Group, telemetry.ShardOf(o.Request.Device, shards), shards)
}

// inTx runs f in a transaction that commits under the shard's epoch.
func (q *Requests) inTx(ctx context.Context, o protocol.RequestStep, f func(context.Context, *pgx.Conn, *pgx.Batch) error) error {
	pooled, err := q.writer.pool.Acquire(ctx)
	if err != nil {
		return &protocol.Failure{Kind: protocol.Unavailable, Err: fmt.Errorf("acquire a connection: %w", err)}
	}
	defer pooled.Release()
	tx := pooled.Conn()
	then := &pgx.Batch{}
	if _, err = tx.Exec(ctx, "begin"); err == nil {
		err = f(ctx, tx, then)
	}
	if err == nil {
		q.writer.queueFence(then, []protocol.ShardLease{o.Lease})
		then.Queue("commit").Exec(committed)
		err = tx.SendBatch(ctx, then).Close()
	}
	if err != nil {
		q.writer.rollBack(ctx, tx)
	}
	return err
}

// note records how far a request has come, if it is still what was read: a span
// may have been widened, and a request cancelled.
func (q *Requests) note(ctx context.Context, tx *pgx.Conn, r *protocol.Request, p protocol.Progress, done bool) error {
	text, err := json.Marshal(p)
	if err != nil {
		return err
	}
	state := "running"
	if done {
		state = "done"
	}
	tag, err := tx.Exec(ctx, `
update processor.requests
set state = $2,
  progress = $3,
  attempts = 0,
  next_attempt_at = null,
  result = case when $2 = 'done' then $3::jsonb end,
  started_at = coalesce(started_at, now()),
  finished_at = case when $2 = 'done' then now() end,
  executed_by = $4
where id = $1
  and state in ('waiting', 'running')
  and (`+requestEnds+`) = ($5, $6)`, r.ID, state, text, q.writer.member, timeOf(r.FromUS), timeOf(r.ToUS))
	if err == nil && tag.RowsAffected() == 0 {
		return errEnded
	}
	return err
}

// devicesAtOnce is how many devices share one count of their positions.
const devicesAtOnce = 64

// step is one part of a request. Its fixes are about how many positions it may
// read or remove.
type step struct {
	q       *Requests
	c       cuts
	chunked bool // positions is a hypertable
	o       protocol.RequestStep
	p       *protocol.Progress
	fixes   int64
	ask     ask
	far     ask // beyond the windows, which smaller windows do not make less

	devices []string // that it concerns
}

// errMoved is returned for devices that another stream has taken since they were read:
// what was derived of them may lack its records.
var errMoved = errors.New("devices of the request moved to another stream")

// own fails if another stream has a device of the step, and keeps all of them from moving
// until the end of the transaction.
func (s *step) own(ctx context.Context, tx *pgx.Conn) error {
	var moved int
	if err := tx.QueryRow(ctx, `
select count(*) filter (where stream <> $2)
from (
  select stream
  from processor.devices
  where device_id = any ($1)
  order by device_id
  for share
) d`, s.devices, s.q.writer.scope.Stream).Scan(&moved); err != nil {
		return err
	}
	if moved > 0 {
		return &protocol.Failure{Kind: protocol.Unavailable, Err: errMoved}
	}
	return nil
}

// has reports whether the stream of the request has a device, as one of no stream does.
func (s *step) has(device string) (ours bool, err error) {
	ours = true
	var stream string
	_, err = s.ask(`
select stream
from processor.devices
where device_id = $1`, []any{device}, []any{&stream}, func() error {
		ours = stream == s.q.writer.scope.Stream
		return nil
	})
	return ours, err
}

// recompute reads the tracks of windows until enough positions were read: those
// of many devices at once, those of a device with more than that by itself and
// piece by piece. What it returns writes what is derived of them.
func (s *step) recompute() (done bool, write func(context.Context, *pgx.Conn, *pgx.Batch) error, err error) {
	p := s.p
	from, to := max(s.o.Request.FromUS, firstUS), min(s.o.Request.ToUS, lastUS)
	if s.o.Request.FromUS == math.MaxInt64 || s.o.Request.ToUS == math.MinInt64 {
		return false, nil, &protocol.Failure{Kind: protocol.Rejected, Err: errors.New(
			"no device time is in its window, which begins at infinity or ends at -infinity: ask again, with null for an open end")}
	}
	if from > to {
		return true, func(context.Context, *pgx.Conn, *pgx.Batch) error { return nil }, nil
	}
	var windows []window
	for budget := s.fixes; budget > 0 && !done; {
		if p.AfterUS != nil {
			if ours, err := s.has(p.Device); err != nil {
				return false, nil, err
			} else if !ours { // it moved between two steps; the other stream derives it
				p.AfterUS = nil
				p.Devices++
				continue
			}
			w := window{device: p.Device, lo: *p.AfterUS + 1, hi: to}
			held, err := s.holdings([]string{p.Device}, w.lo, to)
			if err != nil {
				return false, nil, err
			}
			w.where = held[0].where
			if p.AfterUS = nil; held[0].more {
				w.hi = held[0].last
				p.AfterUS = &w.hi
			} else {
				p.Devices++
			}
			windows = append(windows, w)
			p.Fixes += held[0].fixes
			budget -= held[0].fixes + 10
			continue
		}
		some, err := s.next()
		if err != nil {
			return false, nil, err
		}
		if len(some) == 0 {
			done = true
			break
		}
		held, err := s.holdings(some, from, to)
		if err != nil {
			return false, nil, err
		}
		for i, h := range held {
			if h.more {
				if i == 0 {
					before := from - 1
					p.Device, p.AfterUS = some[0], &before
				}
				break
			}
			if budget <= 0 {
				break
			}
			windows = append(windows, window{device: some[i], lo: from, hi: to, where: h.where})
			p.Device = some[i]
			p.Devices++
			p.Fixes += h.fixes
			budget -= h.fixes + 10 // a device without positions costs something too
		}
	}
	for _, w := range windows {
		s.devices = append(s.devices, w.device)
	}
	rules := s.o.Rules
	found, err := s.tracks(windows)
	if err != nil {
		return false, nil, err
	}
	var alone []window // of devices that need more: each has a request of its own, which alone fails
	for i := len(found) - 1; i >= 0; i-- {
		if d := found[i].derived; d == nil || !d.Left {
			continue
		}
		w := windows[i]
		if s.o.Request.Device != "" {
			return false, nil, &protocol.Failure{Kind: protocol.Rejected, TooMuch: true, Err: fmt.Errorf(
				"more than %d positions of device %s decide on a crossing of a fence that holds its border still: give that fence a smaller exit_margin_m, min_dwell_s or min_interval_s and ask again",
				s.q.heldLimit, w.device)}
		}
		if p.AfterUS != nil && i == len(found)-1 {
			p.AfterUS, w.hi = nil, to
			p.Devices++
		}
		alone = append(alone, w)
		windows, found = slices.Delete(windows, i, i+1), slices.Delete(found, i, i+1)
	}
	if p.AfterUS != nil { // what was read behind the last piece is not read again
		if d := found[len(found)-1].derived; d != nil {
			p.Fixes += int64(found[len(found)-1].later)
			if through := d.ThroughUS(); through < to {
				p.AfterUS = new(max(*p.AfterUS, through))
			} else {
				p.AfterUS = nil
				p.Devices++
			}
		}
	}
	return done, func(ctx context.Context, tx *pgx.Conn, then *pgx.Batch) error {
		for _, w := range alone {
			queueRest(then, s.q.writer.scope, s.o.Lease.Shard, w, s.q.writer.member)
		}
		changed, err := recompute(ctx, tx, windows, found, rules, then)
		p.Changed += int64(changed)
		return err
	}, nil
}

// tracks reads windows, and around them what borders that are held still take: a step of
// several devices little of each, one of a single device all that is allowed, unless
// another step does so.
func (s *step) tracks(windows []window) ([]track, error) {
	limit, single := min(s.q.heldLimit, requestHeldShare), s.o.Request.Device != ""
	if single && s.q.large.TryLock() {
		defer s.q.large.Unlock()
		limit = s.q.heldLimit
	}
	found, err := tracks(s.c, windows, s.o.Rules, s.ask, s.far, nil, max(1, limit/max(1, len(windows))))
	left := func(t track) bool { return t.derived != nil && t.derived.Left }
	if err == nil && single && limit < s.q.heldLimit && slices.ContainsFunc(found, left) {
		return nil, &protocol.Failure{Kind: protocol.Unavailable, Err: errors.New("another recompute reads as many positions as one may; this one follows")}
	}
	return found, err
}

// next is the devices that follow the one done last, as many as are looked at
// together; none if that was the last one.
func (s *step) next() ([]string, error) {
	if s.o.Request.Device != "" {
		return []string{s.o.Request.Device}[min(s.p.Devices, 1):], nil
	}
	most := int(min(devicesAtOnce, s.fixes))
	for {
		devices, last, whole, err := s.registered(s.p.Device, most)
		if err != nil || len(devices) > 0 || whole {
			return devices[:min(most, len(devices))], err
		}
		s.p.Device = last
	}
}

// holding is how many positions a device has in a span, counted up to about the
// size of a step, and the device time of the last one counted.
type holding struct {
	fixes int64
	last  int64
	more  bool   // than were counted
	where []span // it has rows; nil if all is one span
}

const holdingsSQL = `
select w.i - 1, h.n, coalesce(h.last, 'epoch')
from unnest($1::text[]) with ordinality as w (device_id, i)
cross join lateral (
  select count(*) as n, max(ts) as last
  from (
    select ts
    from public.positions
    where ` + ofDevice + `
      and ts between $2 and $3
    order by ts
    limit $4
  ) f
) h
where h.n > 0`

func (s *step) holdings(devices []string, from, to int64) ([]holding, error) {
	found := make([]holding, len(devices))
	spans := s.c.spans(from, to)
	if len(spans) > 1 {
		for i := range found {
			found[i].where = []span{} // nothing behind what is counted is known to be empty
		}
	}
	for _, at := range spans {
		var which []int
		var ids []string
		for i, id := range devices {
			if !found[i].more {
				which, ids = append(which, i), append(ids, id)
			}
		}
		if len(spans) > 1 {
			there, _, err := s.c.present(ids, at, s.ask)
			if err != nil {
				return nil, err
			}
			for n, i := range there {
				there[n] = which[i]
				h := &found[which[i]]
				h.where = append(h.where, at)
			}
			which, ids = there, ids[:0]
			for _, i := range which {
				ids = append(ids, devices[i])
			}
		}
		if len(ids) == 0 {
			continue
		}
		var i, n int64
		var last time.Time
		args := s.c.args(ids, micros(max(from, at.from)), micros(min(to, at.to-1)), s.fixes)
		if _, err := s.ask(holdingsSQL, args, []any{&i, &n, &last}, func() error {
			h := &found[which[i]]
			h.fixes, h.last = h.fixes+n, last.UnixMicro()
			h.more = h.fixes >= s.fixes
			return nil
		}); err != nil {
			return nil, err
		}
	}
	return found, nil
}

// erase looks for positions of a device, the oldest first. What it returns
// removes them by key, since a row's place is unique in its heap only, and once
// none are left what else is stored of the device, no more rows than a step may
// remove; that they were the last ones is known then only.
func (s *step) erase(done *bool) (write func(context.Context, *pgx.Conn, *pgx.Batch) error, err error) {
	if s.o.Request.Device == "" {
		return nil, errors.New("an erasure names a device")
	}
	device := s.o.Request.Device
	s.devices = []string{device}
	if at, found, err := s.oldest(device); err != nil {
		return nil, err
	} else if found {
		return s.eraseIn(device, at)
	}
	return func(ctx context.Context, tx *pgx.Conn, _ *pgx.Batch) error {
		left := s.fixes
		for i, sql := range eraseSQL {
			tag, err := tx.Exec(ctx, sql, device, left)
			if err != nil {
				return err
			}
			if i < erasedRecords {
				s.p.Removed += tag.RowsAffected()
			}
			if left -= tag.RowsAffected(); left <= 0 {
				return nil
			}
		}
		*done = true
		s.p.Devices = 1
		for _, sql := range erasedSQL {
			if _, err := tx.Exec(ctx, sql, device); err != nil {
				return err
			}
		}
		// It may have been in the state of a stream that it left; none this old is used.
		_, err := tx.Exec(ctx, "delete from processor.shard_states where left_at < now() - interval '1 minute'")
		return err
	}, nil
}

// eraseSQL removes the rest of a device, of each table at most so many rows: records, which
// are counted, and what tells of the device besides. As many changes of crossings stay, the newest, until the end
// of the erasure: as long as the device is there, their numbers continue.
var eraseSQL = [...]string{
	eraseByID("timing_records"),
	eraseByKey("deferred", "stream, group_name, entry_id, digest"),
	eraseByKey("unconfirmed_letters", "stream, group_name, source_id, digest"),
	eraseByID("dead_letters"),
	eraseByID("conflicts"),

	`delete from processor.timing_changes where device_id = $1 and number < (select number from processor.timing_changes where device_id = $1 order by number offset $2 limit 1)`,               // of crossings that were counted
	`update processor.requests set result = result - 'before' - 'after' where id = any (array(select id from processor.requests where device_id = $1 and result ?| '{before,after}' limit $2))`, // where it was when it was reloaded
	`delete from processor.device_moves where id = any (array(select id from processor.device_moves where device_id = $1 order by id limit $2 for update))`,                                     // as leaders lock them
}

const erasedRecords = 5

func eraseByID(table string) string {
	return fmt.Sprintf("delete from processor.%[1]s where id = any (array(select id from processor.%[1]s where device_id = $1 limit $2))", table)
}

func eraseByKey(table, key string) string {
	return fmt.Sprintf("delete from processor.%[1]s where device_id = $1 and (%[2]s) in (select %[2]s from processor.%[1]s where device_id = $1 limit $2)", table, key)
}

// erasedSQL ends an erasure.
var erasedSQL = [...]string{
	`delete from processor.timing_changes where device_id = $1`,
	`delete from processor.devices where device_id = $1`,
	`insert into processor.timing_changes (device_id, number, change) values ($1, 0, 'erased')`,
}

// toErase are the rows of a device in a span, of all of positions or of one heap of it.
const toErase = `
  from %s
  where device_id = $1
    and device_id between $1 and $1
    and ts >= $2
    and (ts < $3 or $3 = 'infinity')`

// oldest is the first heaps with rows of a device, from where the last step found some;
// older ones may have come since.
func (s *step) oldest(device string) (at span, found bool, err error) {
	from := int64(math.MinInt64)
	if s.p.AfterUS != nil {
		from = *s.p.AfterUS
	}
	spans := s.c.spans(from, math.MaxInt64)
	if from > math.MinInt64 {
		spans = append(spans, s.c.spans(math.MinInt64, from)...)
	}
	for _, at := range spans {
		if _, err := s.far(fmt.Sprintf("select"+toErase+" limit 1", allHeaps),
			s.c.args(device, timeOf(at.from), timeOf(at.to)), nil, func() error { found = true; return nil }); err != nil || found {
			if s.p.AfterUS = nil; at.from > math.MinInt64 {
				s.p.AfterUS = new(at.from)
			}
			return at, found, err
		}
	}
	return span{}, false, nil
}

// eraseIn finds the oldest rows of a device in some heaps, as many as a step may remove.
// What it returns removes them.
func (s *step) eraseIn(device string, at span) (func(context.Context, *pgx.Conn, *pgx.Batch) error, error) {
	args := []any{device, timeOf(at.from), timeOf(at.to)}
	var parts []part
	var p part
	if _, err := s.ask(partsSQL(s.chunked, fmt.Sprintf(toErase, allHeaps)+" order by ts limit $4"),
		s.c.args(append(args, s.fixes)...), p.columns(), func() error { parts = append(parts, p); return nil }); err != nil {
		return nil, err
	}
	const found = toErase + " and ts <= $4"
	return func(ctx context.Context, tx *pgx.Conn, _ *pgx.Batch) error {
		var removed int64
		for _, p := range parts {
			n, err := p.change(ctx, tx, "delete"+found, append(args[:3:3], p.last)...)
			if removed += n; err != nil {
				return err
			}
		}
		if s.p.Removed += removed; removed > 0 || len(parts) == 0 {
			return nil
		}
		// They may have been dropped with their heap.
		var stay bool
		sql := fmt.Sprintf("select exists (select"+found+")", allHeaps)
		if err := tx.QueryRow(ctx, sql, append(args[:3:3], parts[len(parts)-1].last)...).Scan(&stay); err != nil || !stay {
			return err
		}
		return staying(ctx, tx, device)
	}, nil
}

// staying is the failure of an erasure for rows that a delete leaves without an error, as it
// would the next time.
func staying(ctx context.Context, tx *pgx.Conn, device string) error {
	list, err := RowTriggers(ctx, tx, BeforeDelete)
	if err != nil {
		return err
	}
	cause := "a rule or row security"
	for i := range list {
		cause = fmt.Sprintf("%s on %s, ", list[i].Name, list[i].Table) + cause
	}
	return &protocol.Failure{Kind: protocol.Rejected, Err: fmt.Errorf(
		"positions of device %s stay: %s keeps them from being deleted; have it let them go and ask again", device, cause)}
}
