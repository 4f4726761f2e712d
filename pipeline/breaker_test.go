package pipeline_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/loadtest/fleet"
	"github.com/trmtracking/processor/pipeline"
)

// raising is a trigger of a platform that refuses every row while a table says so.
const raising = `
create table down (code text);
insert into down values ('P0001');
create function refuse() returns trigger language plpgsql as $$
begin
  if exists (select from public.down) then
    raise exception 'the registry of % does not answer', new.device_id using errcode = (select code from public.down);
  end if;
  return new;
end
$$;
create trigger refuse before insert on positions for each row execute function refuse();
`

// faults are those of no row, and what takes each away.
var faults = []struct {
	name, breaks, repairs, reason string
}{
	{
		"a constraint of the platform",
		"alter table positions add constraint fast check (speed > 1000) not valid", "alter table positions drop constraint fast", "23514/fast",
	},
	{
		"a new column without a default",
		"alter table positions add column tenant text not null", "alter table positions alter column tenant drop not null", "23502/tenant",
	},
	{
		"an exhausted sequence",
		"create sequence s maxvalue 3; alter table positions add column n bigint not null default nextval('s')", "alter sequence s maxvalue 1000000", "2200H/",
	},
	{
		"a default that overflows",
		"create sequence s start 40000; alter table positions add column n smallint not null default nextval('s')", "alter table positions alter column n type bigint", "22003/",
	},
	{
		"no partition for the day",
		`drop table positions;
create table positions (device_id text not null, ts timestamptz not null, ingested_at timestamptz not null default now(),
  latitude double precision not null, longitude double precision not null, altitude real not null, angle real not null,
  speed real not null, satellites smallint not null, priority smallint not null, codec text not null, attributes jsonb not null,
  faulty boolean not null default false) partition by range (ts);
create unique index on positions (device_id, ts);
create table positions_other partition of positions for values from ('2020-01-01') to ('2020-01-02')`,
		"create table positions_day partition of positions for values from ('2023-11-01') to ('2023-12-01')", "23514/no partition of relation found for row",
	},
	{"a trigger that raises", raising, "delete from down", "P0001/"},
	{"a table that is damaged", strings.Replace(raising, "'P0001'", "'XX001'", 1), "delete from down", "XX001/"},
	{"a limit of the server", strings.Replace(raising, "'P0001'", "'54000'", 1), "delete from down", "54000/"},
}

// P5, P6: what is no row's fault gives no row up, and needs nobody once it is gone.
func TestAFaultThatIsNoRowsOwnPausesAndDeadLettersNothing(t *testing.T) {
	t.Parallel()
	for _, tt := range faults {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			b.Exec(tt.breaks)
			in := b.Start("one")
			b.AcquireAll(in)
			var entries [][]string
			for s := range int64(20) {
				for d := range 30 {
					entries = append(entries, at(d, s))
				}
			}
			b.Publish(entries...)
			testenv.Wait(t, 20*time.Second, func() error {
				if r := in.WorkStatus().Refusal; r == nil || !strings.HasPrefix(r.Reason, tt.reason) || r.Remedy == "" {
					return fmt.Errorf("not paused for %s: %+v", tt.reason, r)
				}
				return nil
			})
			require.Empty(t, b.letters())
			b.Exec(tt.repairs)
			b.Settled(20*time.Second, 0)
			require.Equal(t, len(entries), b.Count("select count(*) from positions"))
			require.Empty(t, b.letters())
			require.Zero(t, b.Count("select count(*) from processor.unconfirmed_letters"))
			require.Nil(t, in.WorkStatus().Refusal)
		})
	}
}

// A trigger raises while much is under way, for a time, and stops by itself.
func TestAFaultThatComesAndGoesInTheMiddleDeadLettersNothing(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.Exec(raising + "delete from down")
	in := b.Start("one")
	b.AcquireAll(in)
	n := 0
	publish := func() {
		var entries [][]string
		for d := range 50 {
			entries = append(entries, at(d, int64(n)))
		}
		n++
		b.Publish(entries...)
	}
	for range 20 {
		publish()
	}
	b.Exec("insert into down values ('P0001')")
	for range 20 {
		publish()
	}
	testenv.Wait(t, 20*time.Second, func() error {
		if in.WorkStatus().Refusal == nil {
			return errors.New("not paused")
		}
		return nil
	})
	publish()
	b.Exec("delete from down")
	b.Settled(20*time.Second, 0)
	require.Equal(t, 50*n, b.Count("select count(*) from positions"))
	require.Empty(t, b.letters())
}

// A single poison row is dead-lettered after its attempts, with and without entries behind it.
func TestASinglePoisonRowIsGivenUpPromptly(t *testing.T) {
	t.Parallel()
	for _, others := range []int{0, 1, 200} {
		t.Run(fmt.Sprint(others, " others"), func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			b.Exec("alter table positions add constraint no_seven check (attributes->>'239' is distinct from '7')")
			entries := [][]string{seven(0, 0)}
			for i := range others {
				entries = append(entries, at(i%40, int64(1+i)))
			}
			ids := b.Publish(entries...)
			b.AcquireAll(b.Start("one"))
			letters := b.awaitDeadLetters(5*time.Second, 1)
			require.Equal(t, "sink/no_seven/23514", letters[ids[0]].Fingerprint)
			b.Settled(5*time.Second, 0)
			require.Equal(t, others, b.Count("select count(*) from positions"))
		})
	}
}

// Whose fault it is shows at once, though nothing waits and nothing else arrives.
func TestADeviceThatATriggerRefusesIsGivenUpThoughNothingElseArrives(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.Exec(`create function known() returns trigger language plpgsql as $$
begin
  if new.device_id = '` + fleet.DeviceID(0) + `' then
    raise exception 'the registry does not know %', new.device_id;
  end if;
  return new;
end
$$;
create trigger known before insert on positions for each row execute function known()`)
	b.AcquireAll(b.Start("one"))
	b.Publish(at(1, 1), at(2, 1), at(3, 1))
	b.Settled(10*time.Second, 0)
	ids := b.Publish(at(0, 1))
	letters := b.awaitDeadLetters(5*time.Second, 1)
	require.Equal(t, telemetry.ClassSink, letters[ids[0]].Class)
	b.Settled(5*time.Second, 0)
}

// Most rows of many devices are refused for one reason, and some are not.
func TestAConstraintThatMostRowsBreakPausesAfterAFew(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.Exec("alter table positions add constraint no_seven check (attributes->>'239' is distinct from '7')")
	in := b.Start("one")
	b.AcquireAll(in)
	var entries [][]string
	for s := range int64(30) {
		for d := range 40 {
			if d%4 == 0 {
				entries = append(entries, at(d, s))
			} else {
				entries = append(entries, seven(d, s))
			}
		}
	}
	b.Publish(entries...)
	testenv.Wait(t, 20*time.Second, func() error {
		if in.gauge(t, "processor_pipeline_paused_shards") == 0 {
			return fmt.Errorf("not paused, refusal %v", in.WorkStatus().Refusal)
		}
		return nil
	})
	b.Exec("alter table positions drop constraint no_seven")
	b.Settled(20*time.Second, 0)
	b.nothingDeferred(20 * time.Second)
	require.Empty(t, b.letters(), "of 900 that the constraint refuses")
	require.Equal(t, len(entries), b.Count("select count(*) from positions"))
}

// P6, P7: the rows of a few faulty devices open the breaker of their shard; what else waits
// there is not refused, so it closes, and the rows become dead letters as any.
func TestAFewFaultyDevicesDoNotHoldTheirShard(t *testing.T) {
	testenv.Slow(t)
	t.Parallel()
	b := newBench(t)
	b.Exec("alter table positions add constraint no_seven check (attributes->>'239' is distinct from '7')")
	var same, others []int
	for d := 0; len(same) < 20 || len(others) < 20; d++ {
		switch telemetry.ShardOf(fleet.DeviceID(d), shards) {
		case 3:
			same = append(same, d)
		case 5:
			others = append(others, d)
		}
	}
	in := b.Start("one", func(c *pipeline.Config, _ *pipeline.Deps) {
		c.DeadLetters.RetryDelays = []time.Duration{500 * time.Millisecond}
	})
	b.AcquireAll(in)
	second, n := int64(0), 0
	ofOthers := func() (entries [][]string) {
		for range 60 {
			for _, d := range others[:20] {
				entries = append(entries, at(d, second))
			}
			second++
		}
		n += len(entries)
		return entries
	}
	var faulty [][]string
	entries := ofOthers()
	for s := range int64(6) {
		for _, d := range same[:7] {
			faulty = append(faulty, seven(d, s))
		}
	}
	entries = append(entries, faulty...)
	for s := range int64(10) {
		for _, d := range same[7:20] {
			entries = append(entries, at(d, s))
			n++
		}
	}
	b.Publish(entries...)
	b.Settled(20*time.Second, 0)
	require.Equal(t, n, b.Count("select count(*) from positions"))
	for range 100 { // until ten times as many are stored
		if len(b.letters()) == len(faulty) {
			break
		}
		b.Publish(ofOthers()...)
		b.Settled(20*time.Second, 0)
	}
	b.awaitDeadLetters(20*time.Second, len(faulty))
	require.Zero(t, in.gauge(t, "processor_pipeline_paused_shards"))
}

// P6, P7: what waits in the worker is of the faulty devices alone, since their stored logs fill
// all that is read of the shard, or only one entry of a quarantined shard is. That shows
// nothing of the others, and other shards are not refused.
func TestFaultyDevicesThatFillWhatIsReadDoNotHoldTheirShard(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		faulty int // entries
		limit  int // of the quarantine
	}{{"logs longer than what is read", 40, 0}, {"a quarantined shard", 30, 1}} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			b.Exec("alter table positions add constraint no_seven check (attributes->>'239' is distinct from '7')")
			var same, others []int
			for d := 0; len(same) < 6 || len(others) < 20; d++ {
				switch telemetry.ShardOf(fleet.DeviceID(d), shards) {
				case 3:
					same = append(same, d)
				case 5:
					others = append(others, d)
				}
			}
			in := b.Start("one", oneWorker, func(c *pipeline.Config, _ *pipeline.Deps) {
				c.MaxInFlightRecords, c.ReadBatchRecords = 64, 16
				c.DeadLetters.RetryDelays = []time.Duration{time.Second}
			})
			second, n := int64(0), 1
			ofOthers := func() (entries [][]string) {
				for range 100 {
					for _, d := range others[:20] {
						entries = append(entries, at(d, second))
					}
					second++
				}
				n += len(entries)
				return entries
			}
			var entries [][]string
			for s := range tt.faulty / 5 {
				for _, d := range same[:5] {
					entries = append(entries, seven(d, int64(s)))
				}
			}
			ids := b.Publish(append(entries, at(same[5], 0))...)
			b.Publish(ofOthers()...)
			if tt.limit > 0 {
				b.Exec(fmt.Sprintf("update processor.shards set max_in_flight = %d, crash_count = 3 where shard = 3", tt.limit))
				_, err := b.Pool.Exec(t.Context(), "insert into processor.incidents (stream, group_name, kind, subject, detail) values ($1, $2, $3, '3', jsonb_build_object('until', $4::text))",
					b.Stream, b.Group, protocol.QuarantinedShard, ids[tt.faulty].String())
				require.NoError(t, err)
			}
			b.AcquireAll(in)
			// The others go on sending: the shard is judged by what is stored meanwhile.
			testenv.Wait(t, 180*time.Second, func() error {
				stored, deferred := b.Count("select count(*) from positions"), b.Count("select count(*) from processor.deferred")
				letters := int(b.Client.XLen(t.Context(), b.Stream+":dlq").Val())
				if letters == tt.faulty && deferred == 0 {
					return nil
				}
				if stored >= n-1 {
					b.Publish(ofOthers()...)
				}
				return fmt.Errorf("%d are stored, %d deferred, %d dead letters, %+v", stored, deferred, letters, in.WorkStatus())
			})
			require.Equal(t, 1, b.Count("select count(*) from positions where device_id = $1", fleet.DeviceID(same[5])), "the healthy device")
			b.Settled(60*time.Second, 0)
			b.awaitDeadLetters(60*time.Second, tt.faulty)
			require.Equal(t, n, b.Count("select count(*) from positions"))
			require.Zero(t, in.gauge(t, "processor_pipeline_paused_shards"))
		})
	}
}

// What a shard waits with may be acknowledged by another program, or moved to the dead
// letters by hand: then it waits for nothing.
func TestAPauseEndsWithAnEmptyQueue(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.Exec(raising)
	in := b.Start("one")
	b.AcquireAll(in)
	ids := b.Publish(at(1, 1), at(1, 2))
	paused := func(n float64) func() error {
		return func() error {
			if have := in.gauge(t, "processor_pipeline_paused_shards"); have != n {
				return fmt.Errorf("%v shards are paused", have)
			}
			return nil
		}
	}
	testenv.Wait(t, 10*time.Second, paused(1))
	for _, id := range ids {
		require.NoError(t, b.Client.XAck(t.Context(), b.Stream, b.Group, id.String()).Err())
	}
	testenv.Wait(t, 10*time.Second, paused(0))
	require.Nil(t, in.WorkStatus().Refusal)
}

func (b *bench) nothingDeferred(within time.Duration) {
	b.TB.Helper()
	testenv.Wait(b.TB, within, func() error {
		if n := b.Count("select count(*) from processor.deferred"); n > 0 {
			return fmt.Errorf("%d entries are deferred", n)
		}
		return nil
	})
}

// The day has no partition, and more is stored of other days: 150 of 750.
func TestRowsThatAFewRefuseAlikeOfManyDevicesAreKept(t *testing.T) {
	testenv.Slow(t)
	t.Parallel()
	b := newBench(t)
	b.Exec("alter table positions add constraint no_seven check (attributes->>'239' is distinct from '7')")
	in := b.Start("one")
	b.AcquireAll(in)
	var entries [][]string
	for s := range int64(15) {
		for d := range 50 {
			if d%5 == 4 {
				entries = append(entries, seven(d, s))
			} else {
				entries = append(entries, at(d, s))
			}
		}
	}
	b.Publish(entries...)
	b.Settled(20*time.Second, 0)
	require.Equal(t, 600, b.Count("select count(*) from positions"), "what is not refused goes on")
	b.triedInVain(in, 150)
	b.Exec("alter table positions drop constraint no_seven")
	b.nothingDeferred(20 * time.Second)
	require.Empty(t, b.letters())
	require.Equal(t, len(entries), b.Count("select count(*) from positions"))
}

// triedInVain waits until entries were refused more often than one is that is given
// up, or a worker pauses for them.
func (b *bench) triedInVain(in *instance, n int) {
	b.TB.Helper()
	var all time.Time // since when each has but its last attempt left
	testenv.Wait(b.TB, 30*time.Second, func() error {
		require.Empty(b.TB, b.letters())
		again := b.Count("select count(*) from processor.deferred where attempts >= 2 and last_failed_at > $1", all)
		switch {
		case all.IsZero() && again == n:
			all = time.Now()
		case !all.IsZero() && again >= n/10, in.gauge(b.TB, "processor_pipeline_paused_shards") > 0:
			return nil
		}
		return fmt.Errorf("%d of %d were tried again since %v", again, n, all)
	})
}

// As TimescaleDB's limit on rows that one transaction decompresses.
func TestALimitOfTheServerThatARowMeetsAloneHoldsUpNothingElse(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.Exec(strings.Replace(strings.Replace(raising, "'P0001'", "'53400'", 1), "if exists", "if new.attributes->>'239' = '7' and exists", 1))
	in := b.Start("one", oneWorker)
	b.AcquireAll(in)
	var entries [][]string
	for s := range int64(10) {
		for d := range 50 {
			entries = append(entries, at(d, s))
		}
		entries = append(entries, seven(60, s))
	}
	b.Publish(entries...)
	b.Settled(15*time.Second, 0)
	require.Equal(t, 500, b.Count("select count(*) from positions"))
	r := in.WorkStatus().Refusal
	require.NotNil(t, r)
	require.Contains(t, r.Remedy, "max_tuples_decompressed_per_dml_transaction")
	require.Empty(t, b.letters())
	b.Exec("delete from down")
	b.nothingDeferred(20 * time.Second)
	require.Empty(t, b.letters())
	require.Equal(t, 510, b.Count("select count(*) from positions"))
	require.Nil(t, in.WorkStatus().Refusal)
}

// P3, P6: a constraint refuses what the devices of one shard send; another shard of the
// same worker does not wait for it.
func TestARefusedShardHoldsUpNoOtherOfItsWorker(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	var refused, others []int
	for d := 0; len(refused) < 8 || len(others) < 8; d++ {
		switch telemetry.ShardOf(fleet.DeviceID(d), shards) {
		case 3:
			refused = append(refused, d)
		case 5:
			others = append(others, d)
		}
	}
	b.Exec(`create table order_log (n bigserial, device_id text, ts timestamptz);
create function note() returns trigger language plpgsql as 'begin insert into public.order_log (device_id, ts) values (new.device_id, new.ts); return new; end';
create trigger note after insert on positions for each row execute function note()`)
	names := make([]string, 0, len(refused))
	for _, d := range refused {
		names = append(names, "'"+fleet.DeviceID(d)+"'")
	}
	in := b.Start("one", oneWorker, func(c *pipeline.Config, _ *pipeline.Deps) {
		c.DeadLetters.MaxAttempts, c.DeadLetters.RetryDelays = 2, []time.Duration{time.Millisecond} // ends before enough rows of several devices are counted
	})
	b.AcquireAll(in)
	second := int64(0)
	publish := func(devices []int, seconds int64) (n int) {
		var entries [][]string
		for s := range seconds {
			for _, d := range devices {
				entries = append(entries, at(d, second+s))
			}
		}
		second += seconds
		b.Publish(entries...)
		return len(entries)
	}
	stored := func(devices int, what string, n int) {
		testenv.Wait(t, 20*time.Second, func() error {
			have := b.Count("select count(*) from positions where (device_id in ("+strings.Join(names, ",")+")) = $1", devices == 3)
			if have < n {
				return fmt.Errorf("%d of %d stored %s; %d deferred, %d dead letters, %+v", have, n, what,
					b.Count("select count(*) from processor.deferred"), len(b.letters()), in.WorkStatus().Refusal)
			}
			return nil
		})
	}
	began := time.Now()
	ofOthers := publish(others, 1000)
	stored(5, "before", ofOthers)
	alone := time.Since(began)
	b.Exec("alter table positions add constraint allowed check (device_id not in (" + strings.Join(names, ",") + ")) not valid")
	ofRefused := publish(refused, 200)
	paused := func() error {
		if n := in.gauge(t, "processor_pipeline_paused_shards"); n != 1 {
			return fmt.Errorf("%v shards are paused", n)
		}
		return nil
	}
	testenv.Wait(t, 20*time.Second, paused)
	began = time.Now()
	for range 5 {
		ofRefused += publish(refused, 20)
		ofOthers += publish(others, 200)
	}
	stored(5, "while one shard is refused", ofOthers)
	beside := time.Since(began)
	t.Logf("8,000 records took %s alone, and %s beside a refused shard", alone.Round(time.Millisecond), beside.Round(time.Millisecond))
	require.Less(t, beside, 3*alone+time.Second)
	testenv.Wait(t, 20*time.Second, paused) // a few rows may be deferred, now that others are taken
	require.Contains(t, in.WorkStatus().Refusal.Reason, "allowed")
	deferred := b.Count("select count(*) from processor.deferred")
	require.Less(t, deferred, 60, "the shard waits; it does not go on without its records")
	b.Exec("alter table positions drop constraint allowed")
	stored(3, "once the constraint is gone", ofRefused)
	b.Settled(20*time.Second, 0)
	b.nothingDeferred(20 * time.Second)
	require.Empty(t, b.letters())
	require.Equal(t, ofRefused+ofOthers, b.Count("select count(*) from positions"))
	require.Nil(t, in.WorkStatus().Refusal)
	early := b.Count("select count(*) from (select ts < max(ts) over (partition by device_id order by n) as early from order_log) x where early")
	require.LessOrEqual(t, early, deferred, "only what was deferred is out of order")
}

// A shard that is taken while its owner pauses goes on with the new one.
func TestAPausedShardCanBeTaken(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.Exec(raising)
	one := b.Start("one")
	b.AcquireAll(one)
	b.Publish(at(1, 1), at(2, 1), at(3, 1))
	paused := func(in *instance) func() error {
		return func() error {
			if in.WorkStatus().Refusal == nil {
				return errors.New("not paused")
			}
			return nil
		}
	}
	testenv.Wait(t, 10*time.Second, paused(one))
	two := b.Start("two")
	b.AcquireAll(two)
	testenv.Wait(t, 10*time.Second, paused(two))
	b.Exec("delete from down")
	b.Settled(10*time.Second, 0)
	require.Equal(t, 3, b.Count("select count(*) from positions"))
	require.Empty(t, b.letters())
}

// What fails by turns uses up nothing: a probe that cannot be made decides nothing.
func TestAProbeThatDoesNotAnswerDecidesNothing(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.Exec("alter table positions add constraint no_seven check (attributes->>'239' is distinct from '7')")
	var probes atomic.Int32
	b.Publish(seven(0, 0))
	b.AcquireAll(b.Start("one", func(_ *pipeline.Config, d *pipeline.Deps) {
		d.Sink = &probed{Sink: d.Sink, before: func() error {
			if probes.Add(1) <= 3 {
				return &protocol.Failure{Kind: protocol.Unavailable, Err: errors.New("not now")}
			}
			return nil
		}}
	}))
	b.awaitDeadLetters(10*time.Second, 1)
	require.EqualValues(t, 3+3, probes.Load(), "those without an answer, and one for each attempt")
}

type probed struct {
	pipeline.Sink
	before func() error
}

func (p *probed) Probe(ctx context.Context, records []telemetry.Record, enough int) (taken, refused int, err error) {
	if err := p.before(); err != nil {
		return 0, 0, err
	}
	return p.Sink.Probe(ctx, records, enough)
}

// seven is a record that the constraint no_seven refuses.
func seven(device int, s int64) []string {
	m := fleet.Message{DeviceID: fleet.DeviceID(device), Codec: "8", Time: time.Unix(1_700_000_000+s, 0).UTC(), Latitude: 1, Longitude: 1, Satellites: 9}
	m.Attributes = append(m.Attributes, fleet.NumberAttribute("239", 7))
	return fleet.EntryFields(&m)
}
