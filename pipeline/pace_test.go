package pipeline_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/loadtest/fleet"
	"github.com/trmtracking/processor/pipeline"
)

// A batch that cannot end within the time limit of a statement is not tried
// again as it is: 5 ms a row and 300 ms a statement are batches of some dozens.
func TestABatchThatTakesTooLongIsMadeSmaller(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	for _, sql := range []string{
		`create function slow() returns trigger language plpgsql as 'begin perform pg_sleep(0.005); return new; end'`,
		`create trigger slow before insert on positions for each row execute function slow()`,
	} {
		_, err := b.Pool.Exec(t.Context(), sql)
		require.NoError(t, err)
	}
	var entries [][]string
	for s := range int64(150) {
		for d := range 4 {
			entries = append(entries, at(d, s))
			if s%10 == 9 {
				entries = append(entries, at(d, s-200)) // late
			}
		}
	}
	b.Publish(entries...)
	in := b.Start("one", b.impatient())
	b.AcquireAll(in)
	b.Settled(20*time.Second, 0)
	require.Equal(t, len(entries), b.Count("select count(*) from positions"))
	require.Empty(t, in.Lost())
}

// impatient is a sink whose statements may take 300 ms.
func (b *bench) impatient() option {
	b.TB.Helper()
	pool, err := store.Open(b.TB.Context(), store.Config{
		URL: b.PostgresURL, Member: "one", MaxConns: 12,
		ConnectTimeout: 5 * time.Second, StatementTimeout: 300 * time.Millisecond, LockTimeout: 5 * time.Second,
	})
	require.NoError(b.TB, err)
	b.TB.Cleanup(pool.Close)
	return func(_ *pipeline.Config, d *pipeline.Deps) {
		d.Sink = store.NewWriter(pool, b.Scope(), "one", 5*time.Second)
	}
}

// slowRows is a trigger of a platform for which rows that meet a condition take too long, while a table says so.
func slowRows(condition string) string {
	return `create sequence tried;
create table slow (yes bool); insert into slow values (true);
create function slow() returns trigger language plpgsql as $$
begin
  if ` + condition + ` and exists (select from public.slow) then
    perform nextval('public.tried');
    perform pg_sleep(60);
  end if;
  return new;
end
$$;
create trigger slow before insert on positions for each row execute function slow()`
}

// P6, P7: rows that take too long by themselves stay deferred; what else is on their queues and on others goes on.
func TestARowThatTakesTooLongByItselfHoldsUpNothingElse(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name      string
		condition string
		before    [][]string
		with      [][]string // stored at once
		slow      [][]string // deferred
	}{
		{"among others", "new.attributes->>'239' = '7'", nil, [][]string{at(1, 1), at(2, 1), at(3, 1), at(61, 1)}, [][]string{seven(60, 2), seven(61, 3)}},
		{"late", "new.attributes->>'239' = '7'", [][]string{at(60, 100), at(61, 100)}, [][]string{at(1, 1), at(60, 1)}, [][]string{seven(60, 2), seven(61, 3)}},
		{"of a device, and nothing else arrives", "new.device_id = '" + fleet.DeviceID(60) + "'", [][]string{at(1, 1), at(2, 1)}, nil, [][]string{at(60, 2)}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			b.Exec(slowRows(tt.condition))
			in := b.Start("one", oneWorker, b.impatient())
			b.AcquireAll(in)
			if len(tt.before) > 0 {
				b.Publish(tt.before...)
				b.Settled(10*time.Second, 0)
			}
			b.Publish(append(tt.with, tt.slow...)...)
			b.Settled(20*time.Second, 0)
			require.Equal(t, len(tt.before)+len(tt.with), b.Count("select count(*) from positions"))
			require.Equal(t, len(tt.slow), b.Count("select count(*) from processor.deferred"))
			r := in.WorkStatus().Refusal
			require.NotNil(t, r)
			require.Contains(t, r.Remedy, "STATEMENT_TIMEOUT")
			b.Exec("delete from slow")
			b.nothingDeferred(20 * time.Second)
			require.Equal(t, len(tt.before)+len(tt.with)+len(tt.slow), b.Count("select count(*) from positions"))
			require.Empty(t, b.letters())
		})
	}
}

// P6, P7: so does a row that takes too long though no statement of it does.
func TestP7ARowWhoseTransactionTakesTooLongHoldsUpNothingElse(t *testing.T) {
	t.Parallel()
	unseen := fleet.EntryFields(&fleet.Message{DeviceID: fleet.DeviceID(60), Codec: "8", Time: time.Unix(1_700_000_002, 0).UTC(), Latitude: 1, Longitude: 1})
	const atEnd = "create constraint trigger slow after insert on positions deferrable initially deferred for each row execute function slow();"
	const before = "create trigger slow_before before insert on positions for each row execute function slow();"
	for name, slow := range map[string]struct {
		triggers string
		seconds  string // of the second that a statement may take
	}{
		"it replaces another":                       {before, "0.8"},
		"it is checked at the end":                  {atEnd, "60"},
		"it is seen before, and checked at the end": {before + atEnd, "0.8"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			sql := slowRows("new.attributes->>'239' = '7'")
			sql = sql[:strings.LastIndex(sql, "create trigger")] + slow.triggers
			b.Exec(strings.Replace(sql, "pg_sleep(60)", "pg_sleep("+slow.seconds+")", 1))
			pool, err := store.Open(t.Context(), store.Config{
				URL: b.PostgresURL, Member: "one", MaxConns: 12, ConnectTimeout: 5 * time.Second, StatementTimeout: time.Second, LockTimeout: 5 * time.Second,
			})
			require.NoError(t, err)
			t.Cleanup(pool.Close)
			in := b.Start("one", oneWorker, func(_ *pipeline.Config, d *pipeline.Deps) {
				d.Sink = store.NewWriter(pool, b.Scope(), "one", 1200*time.Millisecond)
			})
			b.AcquireAll(in)
			b.Publish(unseen)
			b.Settled(10*time.Second, 0)
			b.Publish(at(1, 1), seven(60, 2), at(60, 3), at(2, 1))
			b.Settled(30*time.Second, 0)
			require.Equal(t, 4, b.Count("select count(*) from positions"))
			require.Equal(t, 1, b.Count("select count(*) from processor.deferred"))
			require.Empty(t, in.Lost())
			b.Exec("delete from slow")
			b.nothingDeferred(20 * time.Second)
			require.Equal(t, 4, b.Count("select count(*) from positions where satellites > 0"))
			require.Empty(t, b.letters())
		})
	}
}

// P7: while every row takes too long none is at fault, so none is deferred.
func TestP7AServerThatTakesTooLongForEachRowDefersNone(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.Exec(slowRows("true"))
	in := b.Start("one", oneWorker, b.impatient())
	b.AcquireAll(in)
	b.Publish(at(1, 1), at(2, 1), at(1, 2))
	testenv.Wait(t, 20*time.Second, func() error {
		if n := b.Count("select last_value from tried"); n < 7 {
			return fmt.Errorf("%d rows were tried", n)
		}
		return nil
	})
	b.Exec("delete from slow")
	b.Settled(10*time.Second, 0)
	require.Equal(t, 3, b.Count("select count(*) from positions"))
	require.Zero(t, in.Counter(t, "processor_pipeline_records_total", "deferred"))
}
