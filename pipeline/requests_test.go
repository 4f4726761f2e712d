package pipeline_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/loadtest/fleet"
	"github.com/trmtracking/processor/pipeline"
)

func (b *bench) request(id int) (state, result string, attempts int) {
	require.NoError(b.TB, b.Pool.QueryRow(b.TB.Context(),
		"select state, coalesce(result::text, ''), attempts from processor.requests where id = $1", id).Scan(&state, &result, &attempts))
	return state, result, attempts
}

// ended waits for the end of a request, without the waits between its attempts.
func (b *bench) ended(id int, within time.Duration, members ...*instance) (state, result string) {
	testenv.Wait(b.TB, within, func() error {
		_, err := b.Pool.Exec(b.TB.Context(), "update processor.requests set next_attempt_at = null where id = $1 and next_attempt_at is not null", id)
		require.NoError(b.TB, err)
		for _, in := range members {
			in.RequestsChanged()
		}
		var attempts int
		if state, result, attempts = b.request(id); state == "waiting" || state == "running" {
			return fmt.Errorf("request %d is %s after %d attempts", id, state, attempts)
		}
		return nil
	})
	return state, result
}

// oneWorker has every shard share a worker.
func oneWorker(c *pipeline.Config, _ *pipeline.Deps) { c.Workers = 1 }

func TestARequestThatCannotSucceedHoldsUpNobodyAndFails(t *testing.T) {
	t.Parallel()
	for _, kind := range []struct{ name, sql string }{
		// As where a publication of all tables meets one without replica identity.
		{"refused", `
create function refuse() returns trigger language plpgsql as
  'begin raise exception ''cannot delete from table "positions"'' using errcode = ''55000''; end';
create trigger refuse before delete on positions for each row execute function refuse()`},
		// However few rows it removes at once.
		{"slow", `
create function slow() returns trigger language plpgsql as 'begin perform pg_sleep(30); return old; end';
create trigger slow before delete on positions for each statement execute function slow()`},
	} {
		t.Run(kind.name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			_, err := b.Pool.Exec(t.Context(), kind.sql)
			require.NoError(t, err)
			one := b.Start("one", oneWorker)
			b.AcquireAll(one)
			device := fleet.DeviceID(0)
			var entries [][]string
			for s := range int64(5) {
				for d := range 50 {
					entries = append(entries, at(d, s))
				}
			}
			b.Publish(entries...)
			b.Settled(20*time.Second, 0)

			id := b.Ask("erase", device)
			one.RequestsChanged()
			testenv.Wait(t, 10*time.Second, func() error {
				var begun int
				if begun = b.Count("select count(*) from processor.requests where started_at is not null"); begun == 0 {
					return fmt.Errorf("the request was not tried")
				}
				return nil
			})
			for s := range int64(5) { // of the device, of its shard and of all others
				entries = nil
				for d := range 50 {
					entries = append(entries, at(d, 5+s))
				}
				b.Publish(entries...)
				b.Settled(8*time.Second, 0)
			}
			state, _, attempts := b.request(id)
			require.Contains(t, []string{"waiting", "running"}, state, "after %d attempts", attempts)
			require.Equal(t, 500, b.Count("select count(*) from positions"))
			if kind.name == "slow" {
				b.requireStoredBeside(telemetry.ShardOf(device, shards))
				return
			}

			// The attempts of one owner count for the next.
			testenv.Wait(t, 20*time.Second, func() error {
				if _, _, attempts = b.request(id); attempts < 3 {
					return fmt.Errorf("%d attempts", attempts)
				}
				return nil
			})
			two := b.Start("two", oneWorker)
			b.AcquireAll(two)
			one.End()
			_, _, before := b.request(id)
			require.GreaterOrEqual(t, before, 3)
			state, result := b.ended(id, 20*time.Second, two)
			require.Equal(t, "failed", state)
			require.Contains(t, result, "cannot delete from table")
			_, _, attempts = b.request(id)
			require.Equal(t, 8, attempts)
			require.EqualValues(t, 1, two.Counter(t, "processor_pipeline_failed_requests_total", "erase"))
			require.Empty(t, two.Lost())
		})
	}
}

// requireStoredBeside publishes records of another shard until one is stored while
// a step that had begun before sleeps.
func (b *bench) requireStoredBeside(shard int) {
	b.TB.Helper()
	other := 1
	for telemetry.ShardOf(fleet.DeviceID(other), shards) == shard {
		other++
	}
	const sleeping = `
select coalesce(max(extract(epoch from query_start) * 1000000), 0)::bigint
from pg_stat_activity
where datname = current_database() and wait_event = 'PgSleep'`
	published := int64(0)
	testenv.Wait(b.TB, 30*time.Second, func() error {
		began := b.Count(sleeping)
		if began == 0 {
			return fmt.Errorf("no step sleeps")
		}
		published++
		before := b.Count("select count(*) from positions")
		b.Publish(at(other, 1000+published))
		for b.Count(sleeping) == began {
			if b.Count("select count(*) from positions") > before {
				if b.Count(sleeping) == began {
					return nil
				}
				break
			}
		}
		return fmt.Errorf("%d records of another shard waited for the step", published)
	})
}

func TestAStepThatTakesTooLongIsHalvedUntilItEnds(t *testing.T) {
	testenv.Slow(t)
	t.Parallel()
	b := newBench(t)
	_, err := b.Pool.Exec(t.Context(), `
create function slow() returns trigger language plpgsql as 'begin perform pg_sleep(0.01); return old; end';
create trigger slow before delete on positions for each row execute function slow()`)
	require.NoError(t, err)
	one := b.Start("one", oneWorker)
	b.AcquireAll(one)
	device := fleet.DeviceID(0)
	_, err = b.Pool.Exec(t.Context(), `
insert into positions (device_id, ts, ingested_at, latitude, longitude, altitude, angle, speed, satellites, priority, codec, attributes)
select $1, t, t, 42, 1, 0, 0, 0, 5, 0, '8', '{}'
from generate_series(timestamptz '2026-01-01', timestamptz '2026-01-01 00:06:39', '1 second') t`, device)
	require.NoError(t, err)
	id := b.Ask("erase", device)
	state, result := b.ended(id, 30*time.Second, one)
	require.Equal(t, "done", state, result)
	require.Zero(t, b.Count("select count(*) from positions"))
	require.Contains(t, result, `"removed": 400`)
	require.Empty(t, one.Lost())
}

func TestACancelledRequestChangesNothingFromThenOn(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	_, err := b.Pool.Exec(t.Context(), `
create function slow() returns trigger language plpgsql as 'begin perform pg_sleep(1.5); return old; end';
create trigger slow before delete on positions for each statement execute function slow()`)
	require.NoError(t, err)
	one := b.Start("one", oneWorker)
	b.AcquireAll(one)
	b.Publish(at(0, 1), at(0, 2))
	b.Settled(20*time.Second, 0)
	id := b.Ask("erase", fleet.DeviceID(0))
	one.RequestsChanged()
	testenv.Wait(t, 10*time.Second, func() error {
		if b.Count("select count(*) from pg_stat_activity where datname = current_database() and wait_event = 'PgSleep'") == 0 {
			return fmt.Errorf("the step does not run")
		}
		return nil
	})
	_, err = b.Pool.Exec(t.Context(), "update processor.requests set state = 'cancelled', finished_at = now() where id = $1", id)
	require.NoError(t, err)
	next := b.Ask("rehydrate", fleet.DeviceID(0)) // runs behind what was cancelled
	state, _ := b.ended(next, 10*time.Second, one)
	require.Equal(t, "done", state)
	state, _, _ = b.request(id)
	require.Equal(t, "cancelled", state)
	require.Equal(t, 2, b.Count("select count(*) from positions"))
	require.Empty(t, one.Lost())
}

func TestADeviceIsRegisteredWithItsFirstRecordAndAfterAnErasure(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	one := b.Start("one", oneWorker)
	b.AcquireAll(one)
	registered := func() int {
		return b.Count("select count(*) from processor.devices where stream = $1", b.Stream)
	}
	var entries [][]string
	for s := range int64(3) {
		for d := range 40 {
			entries = append(entries, at(d, s))
		}
	}
	b.Publish(entries...)
	b.Settled(20*time.Second, 0)
	require.Equal(t, 40, registered())
	state, _ := b.ended(b.Ask("rehydrate", fleet.DeviceID(100)), 10*time.Second, one)
	require.Equal(t, "done", state)
	require.Equal(t, 40, registered(), "of one without positions nothing is known")
	state, _ = b.ended(b.Ask("erase", fleet.DeviceID(7)), 10*time.Second, one)
	require.Equal(t, "done", state)
	require.Equal(t, 39, registered())
	b.Publish(at(7, 9), at(100, 9))
	b.Settled(20*time.Second, 0)
	require.Equal(t, 41, registered())
}
