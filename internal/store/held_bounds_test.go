package store_test

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/devenv"
	"github.com/trmtracking/processor/internal/geofence"
	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/internal/testenv"
)

// rowsRead counts the rows of positions that a pool's statements return.
type rowsRead struct{ n atomic.Int64 }

type ofPositions struct{}

func (r *rowsRead) TraceQueryStart(ctx context.Context, _ *pgx.Conn, d pgx.TraceQueryStartData) context.Context {
	return context.WithValue(ctx, ofPositions{}, strings.Contains(d.SQL, "from public.positions"))
}

func (r *rowsRead) TraceQueryEnd(ctx context.Context, _ *pgx.Conn, d pgx.TraceQueryEndData) {
	if of, _ := ctx.Value(ofPositions{}).(bool); of && d.CommandTag.Select() {
		r.n.Add(d.CommandTag.RowsAffected())
	}
}

// during returns how many rows f reads.
func (r *rowsRead) during(f func()) int {
	before := r.n.Load()
	f()
	return int(r.n.Load() - before)
}

// parked is a database with devices that stand for days within the margin of a fence.
type parked struct {
	*bench
	read     rowsRead
	writer   *store.Writer
	requests *store.Requests
	held     protocol.ShardLease
	rules    protocol.Rules
}

const parkedDevice = "parked"

func newParked(t *testing.T, fences ...geofence.Fence) *parked {
	t.Helper()
	p := &parked{bench: newBench(t)}
	_, err := store.NewFenceEditor(p.pool, scope, shards, "test").Import(t.Context(), fences, "import", true)
	require.NoError(t, err)
	p.exec("delete from processor.requests")
	p.rules = p.batch(nil, nil).Rules
	p.rules.Fences, _, err = store.NewFences(p.pool, 10*time.Second).Load(t.Context())
	require.NoError(t, err)
	pc := p.pool.Config()
	pc.ConnConfig.Tracer = &p.read
	pool, err := pgxpool.NewWithConfig(t.Context(), pc)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	p.writer = store.NewWriter(pool, scope, "a.1", time.Minute)
	p.requests = store.NewRequests(p.writer)
	p.held = p.take("a.1", telemetry.ShardOf(parkedDevice, shards))[0]
	return p
}

// stand stores a fix inside, and then one each second some metres outside of the border
// at longitude 11.002.
func (p *parked) stand(seconds int) {
	// A statement that makes thousands of chunks, each of 20 s, would not end in its time.
	p.exec(`do $$ begin
		if exists (select from pg_proc where proname = 'set_chunk_time_interval') then
			perform set_chunk_time_interval('positions', interval '1 hour');
		end if;
	end $$`)
	p.exec(`
insert into positions (device_id, ts, ingested_at, latitude, longitude, altitude, angle, speed, satellites, priority, codec, attributes)
select $1, $2::timestamptz + s * interval '1 second', $2::timestamptz + s * interval '1 second', 48.001,
  11.002 + case s when 0 then -50 else 20 + 5 * sin(s) end / 74402, 0, 0, 0, 9, 0, '8', '{}'
from generate_series(0, $3) as s`, parkedDevice, dayOf(0), seconds)
	p.exec("analyze positions")
}

// at is a record so many metres outside.
func (p *parked) at(second, metres float64) telemetry.Record {
	us := dayOf(0).UnixMicro() + int64(second*1e6)
	return telemetry.Record{DeviceID: parkedDevice, Codec: "8", TimeUS: us, StreamUS: us, Latitude: 48.001, Longitude: 11.002 + metres/74402, Satellites: 9, Attributes: []byte(`{}`)}
}

// late writes late records in one transaction and returns how many rows it read.
func (p *parked) late(list ...telemetry.Record) int {
	return p.read.during(func() {
		_, err := p.writer.Write(p.tb.Context(), &protocol.Batch{Leases: []protocol.ShardLease{p.held}, Late: list, Shards: shards, Rules: p.rules})
		require.NoError(p.tb, err)
	})
}

// serve runs all requests to the end, all with success, and returns how many there were
// and what their steps read; one that a slow server cut off is made smaller, and does not count.
func (p *parked) serve() (requests, rows int) {
	before := p.read.n.Load()
	requests = p.run(func(_ protocol.RequestStep, err error) {
		if err == nil {
			rows += int(p.read.n.Load() - before)
		}
		before = p.read.n.Load()
	})
	require.Zero(p.tb, p.count("select count(*) from processor.requests where state in ('waiting', 'running', 'failed')"))
	return requests, rows
}

// run runs all requests to the end as a worker does: a step that a slow server did not
// answer in time is made smaller. It calls f after each step.
func (p *parked) run(f func(protocol.RequestStep, error)) int {
	seen := make(map[int64]bool)
	for {
		list, err := p.requests.Waiting(p.tb.Context(), []int{p.held.Shard})
		require.NoError(p.tb, err)
		if len(list) == 0 {
			return len(seen)
		}
		o := protocol.RequestStep{Request: list[0], Lease: p.held, Shards: shards, Rules: p.rules}
		seen[o.Request.ID] = true
		for done := false; !done && err == nil; f(o, err) {
			if o.Request.Progress, done, err = p.requests.Step(p.tb.Context(), o); err != nil {
				_, failed := p.requests.Failed(p.tb.Context(), o, err)
				require.NoError(p.tb, failed)
			}
		}
	}
}

// rows returns the rows of timing_records as they say when, after comparing them with one
// pass over all positions.
func (p *parked) rows() (list []string) {
	pins := store.FleetSettings{Shards: shards, Eligibility: p.rules.Eligibility, MaxGap: p.rules.MaxGap}
	v, err := store.NewDevices(p.pool, scope, pins, "test").Verify(p.tb.Context(), parkedDevice)
	require.NoError(p.tb, err)
	require.True(p.tb, v.Good(), "%+v", v)
	found, err := p.pool.Query(p.tb.Context(), "select fence_id || ' ' || kind || ' ' || round(extract(epoch from at - $1)) from processor.timing_records order by at", dayOf(0))
	require.NoError(p.tb, err)
	list, err = pgx.CollectRows(found, pgx.RowTo[string])
	require.NoError(p.tb, err)
	return list
}

func marginal(marginM, dwellS float64) geofence.Fence {
	return geofence.Fence{
		ID: "square", Kind: geofence.Area, Enabled: true, Valid: geofence.Always, ExitMarginM: marginM, MinDwellS: dwellS,
		Geometry: `{"type":"Polygon","coordinates":[[[11,48],[11.002,48],[11.002,48.002],[11,48.002],[11,48]]]}`,
	}
}

// P5, P9: a car that stands for days within the margin, at one fix a second, does not have
// all of it read with each late record, nor with each step of a recompute.
func TestP9DaysWithinAMarginAreNotReadWithEachLateRecord(t *testing.T) {
	testenv.Slow(t)
	t.Parallel()
	seconds := testenv.Size(60_000, 300_000)
	several := seconds / 6000
	p := newParked(t, marginal(50, 0))
	p.stand(seconds)
	spread := func(offset, metres float64) (list []telemetry.Record) {
		for i := range several {
			list = append(list, p.at(float64((i+1)*seconds/(several+2))+offset, metres))
		}
		return list
	}

	p.exec(`insert into processor.requests (stream, group_name, kind, shard, device_id, requested_by) values ($1, $2, 'recompute', $3, $4, 'test')`,
		scope.Stream, scope.Group, p.held.Shard, parkedDevice)
	_, rows := p.serve()
	t.Logf("recompute of all: %d rows", rows)
	require.Less(t, rows, 2*seconds)

	rows = p.late(p.at(float64(seconds/2)+0.5, 30))
	t.Logf("one late record within the margin: %d rows", rows)
	require.Less(t, rows, 20)
	rows = p.late(spread(0.5, 30)...)
	t.Logf("%d late records within it: %d rows", several, rows)
	require.Less(t, rows, 20*several)
	requests, _ := p.serve()
	require.Zero(t, requests)
	require.Equal(t, []string{"square enter 0"}, p.rows())

	rows = p.late(p.at(float64(seconds/2)+0.25, 80)) // beyond: the exit of days ago counts
	t.Logf("one beyond it: %d rows", rows)
	require.Less(t, rows, 10_000)
	rows = p.late(spread(0.25, 80)...)
	requests, later := p.serve()
	t.Logf("%d beyond it: %d rows, and %d of %d request", several, rows, later, requests)
	require.Less(t, rows, 10_000)
	require.Equal(t, 1, requests, "it is widened")
	require.Less(t, later, 2*seconds)
	require.Equal(t, []string{"square enter 0", "square exit 1"}, p.rows())

	p.late(spread(0.75, -20)...) // inside
	p.serve()
	require.Len(t, p.rows(), 2+2*several-1, "each enters, and leaves but for the last one, which nothing follows that is beyond")
}

// A fence with a long dwell is no reason to read more of a device that is nowhere near it.
func TestALongDwellElsewhereReadsNoMoreOfADevice(t *testing.T) {
	t.Parallel()
	elsewhere := marginal(0, 3600)
	elsewhere.ID, elsewhere.Geometry = "elsewhere", `{"type":"Polygon","coordinates":[[[21,48],[21.002,48],[21.002,48.002],[21,48.002],[21,48]]]}`
	p := newParked(t, elsewhere)
	p.stand(8000)
	rows := p.late(p.at(5000.5, 30))
	t.Logf("%d rows", rows)
	require.Less(t, rows, 20)
	require.Empty(t, p.rows())
}

// P9: years within a margin are not read into memory at once: the request fails and says
// what to do.
func TestP9ARequestThatNeedsTooManyPositionsFails(t *testing.T) {
	testenv.Slow(t)
	t.Parallel()
	p := newParked(t, marginal(50, 0))
	p.stand(20_000)
	ask := func(limit int) (state, result string) {
		p.requests.SetHeldLimit(limit)
		p.exec(`insert into processor.requests (stream, group_name, kind, shard, device_id, requested_by) values ($1, $2, 'recompute', $3, $4, 'test')`,
			scope.Stream, scope.Group, p.held.Shard, parkedDevice)
		before := p.read.n.Load()
		p.run(func(protocol.RequestStep, error) {
			now := p.read.n.Load()
			require.LessOrEqual(t, int(now-before), limit+2*5000)
			before = now
		})
		require.NoError(t, p.pool.QueryRow(t.Context(), "select state, result::text from processor.requests order by id desc limit 1").Scan(&state, &result))
		return state, result
	}
	state, result := ask(10_000)
	require.Equal(t, "failed", state)
	require.Contains(t, result, "smaller exit_margin_m")
	state, _ = ask(500_000)
	require.Equal(t, "done", state)
	require.Equal(t, []string{"square enter 0"}, p.rows())
}

// P5: a device that needs more than a step may read fails a request of its own; those that
// follow it in its shard are recomputed.
func TestADeviceThatNeedsTooManyPositionsFailsAlone(t *testing.T) {
	testenv.Slow(t)
	t.Parallel()
	p := newParked(t, marginal(50, 0))
	p.stand(20_000)
	neighbour := ""
	for n := 0; telemetry.ShardOf(neighbour, shards) != p.held.Shard || neighbour <= parkedDevice; n++ {
		neighbour = fmt.Sprintf("z-%d", n)
	}
	p.exec("insert into positions select $1, ts, ingested_at, latitude, 11.001, altitude, angle, speed, satellites, priority, codec, attributes, faulty from positions where ts < $2",
		neighbour, dayOf(0).Add(10*time.Second))
	p.requests.SetHeldLimit(10_000)
	p.exec("insert into processor.requests (stream, group_name, kind, shard, requested_by) values ($1, $2, 'recompute', $3, 'test')", scope.Stream, scope.Group, p.held.Shard)
	p.run(func(o protocol.RequestStep, err error) {
		if err != nil {
			require.Equal(t, parkedDevice, o.Request.Device, "%v", err)
		}
	})
	require.Equal(t, 1, p.count("select count(*) from processor.requests where device_id is null and state = 'done'"))
	require.Equal(t, 1, p.count("select count(*) from processor.requests where device_id = $1 and state = 'failed' and result::text like '%smaller exit_margin_m%'", parkedDevice))
	require.Equal(t, 1, p.count("select count(*) from processor.timing_records where device_id = $1 and kind = 'enter'", neighbour))
}

// What one step may read is read before it gives up, on whichever side it lies.
func TestAHeldStretchMayBeAsLongAsTheLimit(t *testing.T) {
	t.Parallel()
	const long, limit = 9000, 10_000
	for name, at := range map[string]float64{"behind": 2, "before": long - 2, "on both sides": long / 2} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newParked(t, marginal(50, 0))
			p.stand(long)
			p.requests.SetHeldLimit(limit)
			p.exec("insert into processor.requests (stream, group_name, kind, shard, device_id, from_ts, to_ts, requested_by) values ($1, $2, 'recompute', $3, $4, $5, $5, 'test')",
				scope.Stream, scope.Group, p.held.Shard, parkedDevice, dayOf(0).Add(time.Duration(at)*time.Second))
			p.serve()
		})
	}
}

// P9: what is read on one side of a window may ask for more on the other, too: here a dwell
// that a fence left long ago may have begun. Both sides together stay within the limit.
func TestP9ReadingOnBothSidesStaysWithinTheLimit(t *testing.T) {
	t.Parallel()
	const limit, window, stands = 6000, 10_000, 20_000
	p := newParked(t, marginal(0, 3600))
	p.stand(stands)
	// It is far off, but for a second half an hour before the window.
	p.exec("update positions set longitude = 12 where ts < $1 or ts > $2", dayOf(0).Add((window-2001)*time.Second), dayOf(0).Add((window-2000)*time.Second))
	p.exec("update positions set longitude = 11.001 where longitude < 12")
	p.requests.SetHeldLimit(limit)
	p.exec("insert into processor.requests (stream, group_name, kind, shard, device_id, from_ts, to_ts, requested_by) values ($1, $2, 'recompute', $3, $4, $5, $5, 'test')",
		scope.Stream, scope.Group, p.held.Shard, parkedDevice, dayOf(0).Add(window*time.Second))
	before := p.read.n.Load()
	p.run(func(protocol.RequestStep, error) {
		now := p.read.n.Load()
		t.Logf("%d rows", now-before)
		require.LessOrEqual(t, int(now-before), limit+100)
		before = now
	})
}

// Late records weeks apart do not have all that lies between them derived again.
func TestARequestIsWidenedToAWeekAtMost(t *testing.T) {
	t.Parallel()
	p := newParked(t, marginal(50, 0))
	const day = 86_400
	if testenv.World(t) == devenv.Hypertable { // a row each minute would make 30,000 chunks
		p.exec("select set_chunk_time_interval('positions', interval '1 day')")
	}
	p.exec(`
insert into positions (device_id, ts, ingested_at, latitude, longitude, altitude, angle, speed, satellites, priority, codec, attributes)
select $1, $2::timestamptz + s * interval '1 second', $2::timestamptz + s * interval '1 second', 48.001,
  11.002 + case s when 0 then -50 else 20 + 5 * sin(s) end / 74402, 0, 0, 0, 9, 0, '8', '{}'
from generate_series(0, $3, 60) as s`, parkedDevice, dayOf(0), 21*day)
	p.exec("analyze positions")
	for _, at := range []float64{4, 5, 20} {
		p.late(p.at(at*day+0.25, 80))
		p.late(p.at(at*day+7200.25, 80))
	}
	require.Equal(t, 2, p.count("select count(*) from processor.requests where state = 'waiting'"))
	require.Zero(t, p.count("select count(*) from processor.requests where to_ts - from_ts > interval '7 days'"))
}

// A record that loses its place to a row changes nothing, however often it is delivered.
func TestARedeliveredConflictCountsNoJumpAgain(t *testing.T) {
	t.Parallel()
	p := newParked(t, marginal(0, 0))
	p.rules.Eligibility.MaxSpeed = 300
	write := func(list ...telemetry.Record) (jumps, conflicts int) {
		out, err := p.writer.Write(t.Context(), &protocol.Batch{Leases: []protocol.ShardLease{p.held}, Late: list, Shards: shards, Rules: p.rules})
		require.NoError(t, err)
		return out.Jumps, out.Conflicts
	}
	jumps, _ := write(p.at(0, -50), p.at(10, 1e6), p.at(20, -50), p.at(30, -50))
	require.Equal(t, 1, jumps)
	for range 3 {
		jumps, conflicts := write(p.at(10, 2e6))
		require.Equal(t, 1, conflicts)
		require.Zero(t, jumps, "the jump was there")
	}
}

// What lies behind a late record may be late itself.
func TestLateRecordsNextToEachOtherCountTogether(t *testing.T) {
	t.Parallel()
	p := newParked(t, marginal(50, 0))
	p.late(p.at(0, -50), p.at(10, 30), p.at(7200, 30))
	require.Equal(t, []string{"square enter 0"}, p.rows())
	p.late(p.at(1800, 80), p.at(3600, 80)) // in two windows
	require.Equal(t, []string{"square enter 0", "square exit 6"}, p.rows())
}

// How a crossing was derived is filled in where an earlier version did not say; that
// is no news of the crossing.
func TestARecomputeAnnouncesNoCrossingOfWhichItOnlyLearnsHowItWasDerived(t *testing.T) {
	t.Parallel()
	p := newParked(t, marginal(50, 0))
	p.late(p.at(0, -50), p.at(10, 80), p.at(20, -20))
	want := p.rows()
	require.Len(t, want, 3)
	p.exec("update processor.timing_records set method = null, distance_m = null, speed = null, max_error_ms = null")
	conn, err := p.pool.Acquire(t.Context())
	require.NoError(t, err)
	defer conn.Release()
	_, err = conn.Exec(t.Context(), "listen "+store.TimingChannel)
	require.NoError(t, err)
	p.exec(`insert into processor.requests (stream, group_name, kind, shard, device_id, requested_by) values ($1, $2, 'recompute', $3, $4, 'test')`,
		scope.Stream, scope.Group, p.held.Shard, parkedDevice)
	p.serve()
	p.exec("select pg_notify($1, 'end')", store.TimingChannel)
	told, err := conn.Conn().WaitForNotification(t.Context())
	require.NoError(t, err)
	require.Equal(t, "end", told.Payload)
	require.Equal(t, want, p.rows())
	require.Equal(t, 3, p.count("select count(*) from processor.timing_records where method is not null"))
}
