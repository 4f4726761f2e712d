package tasks_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/coordination/tasks"
	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/store/schema"
	"github.com/trmtracking/processor/internal/stream"
	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/loadtest/observer"
)

// publishing is a feed, and leaders that publish it.
type publishing struct {
	*testing.T
	pool   *pgxpool.Pool
	client redis.UniversalClient
	ledger *store.Ledger
	key    string
	most   int64
}

func newPublishing(t *testing.T) *publishing {
	t.Helper()
	corner := testenv.Redis(t)
	url := testenv.Postgres(t, testenv.WithTemplate("migrated", func(ctx context.Context, url string) error {
		_, err := schema.Migrate(ctx, url, slog.New(slog.DiscardHandler))
		return err
	}))
	pool, err := pgxpool.New(t.Context(), url)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	return &publishing{
		T: t, pool: pool, client: corner.Client(), key: corner.Key("crossings"), most: 100_000,
		ledger: store.NewLedger(pool, store.Scope{Stream: corner.Stream, Group: corner.Group}, "one", time.Minute),
	}
}

func (p *publishing) exec(sql string, args ...any) {
	p.Helper()
	_, err := p.pool.Exec(p.Context(), sql, args...)
	require.NoError(p, err)
}

// cross writes crossings of a device, and waits until the feed has them.
func (p *publishing) cross(device string, from, to int) {
	p.Helper()
	p.exec(`
insert into processor.timing_records (device_id, fence_id, fence_version, kind, at, earlier_ts, later_ts, latitude, longitude)
select $1, 'f', 1, 'enter', t, t, t, 48.1, 11
from generate_series($2::int, $3) n
cross join lateral (select timestamptz '2026-03-01' + n * interval '1 min' as t) x
on conflict (device_id, fence_id, kind, later_ts, ordinal) do update set revision = timing_records.revision + 1`, device, from, to)
	p.settled()
}

func (p *publishing) count(sql string) (n int) {
	p.Helper()
	require.NoError(p, p.pool.QueryRow(p.Context(), sql).Scan(&n))
	return n
}

func (p *publishing) settled() {
	p.Helper()
	testenv.Wait(p, time.Minute, func() error {
		var n int
		if err := p.pool.QueryRow(p.Context(), "select (select count(*) from processor.timing_changes) - (select count(*) from processor.timing_feed)").Scan(&n); err != nil || n > 0 {
			return fmt.Errorf("%d changes are held back: %w", n, err)
		}
		return nil
	})
}

// killed is a stream whose leader is killed once, before or after what it has asked for
// was done.
type killed struct {
	*stream.TimingStream
	before, after bool
}

var errKilled = errors.New("killed")

func (k *killed) Append(ctx context.Context, after string, changes []protocol.TimingChange) (string, bool, error) {
	if k.before {
		return "", false, errKilled
	}
	id, ok, err := k.TimingStream.Append(ctx, after, changes)
	if k.after {
		return "", false, errors.Join(err, errKilled)
	}
	return id, ok, err
}

func (p *publishing) leader() (*tasks.TimingFeed, *killed, *prometheus.Registry) {
	reg := prometheus.NewRegistry()
	k := &killed{TimingStream: stream.NewTimingStream(p.client, p.key, "telemetry", "ours", p.most)}
	return tasks.NewTimingFeed(store.NewTimingFeed(p.pool, time.Minute), k, p.ledger, slog.New(slog.DiscardHandler), reg), k, reg
}

func (p *publishing) entries() (list []string) {
	p.Helper()
	found, err := p.client.XRange(p.Context(), p.key, "-", "+").Result()
	require.NoError(p, err)
	for _, m := range found {
		list = append(list, fmt.Sprint(m.Values["device_id"], " ", m.Values["number"], " ", m.Values["change"]))
	}
	return list
}

// Each change is on the stream once and in order, whichever leader dies when.
func TestChangesOfCrossingsArePublishedOnceAndInOrder(t *testing.T) {
	t.Parallel()
	p := newPublishing(t)
	ctx := t.Context()
	p.cross("a", 1, 3)
	one, fateOfOne, reg := p.leader()
	require.NoError(t, one.Do(ctx, 1))
	require.Equal(t, []string{" 0 restart"}, p.entries(), "a copy has what was before")
	reader := observer.NewTimingStream(p.pool, testenv.Entries(p.client, p.key))
	require.NoError(t, reader.Finish(ctx))
	p.cross("a", 3, 4)
	p.cross("b", 1, 1)
	require.NoError(t, one.Do(ctx, 1))
	want := []string{" 0 restart", "a 4 revised", "a 5 inserted", "b 1 inserted"}
	require.Equal(t, want, p.entries())
	require.InEpsilon(t, 4, counter(t, reg, "processor_coordination_timing_changes_published_total"), 1e-9)
	require.NoError(t, reader.Finish(ctx))

	// It is killed, and whether what it asked for was done it does not know.
	two, _, _ := p.leader()
	p.cross("a", 5, 6)
	fateOfOne.after = true
	require.ErrorIs(t, one.Do(ctx, 1), errKilled)
	require.NoError(t, two.Do(ctx, 2))
	want = append(want, "a 6 inserted", "a 7 inserted")
	require.Equal(t, want, p.entries())
	p.cross("b", 2, 500)
	fateOfOne.after, fateOfOne.before = false, true
	require.ErrorIs(t, one.Do(ctx, 1), errKilled)
	require.NoError(t, two.Do(ctx, 2))
	for n := 2; n <= 500; n++ {
		want = append(want, fmt.Sprint("b ", n, " inserted"))
	}
	require.Equal(t, want, p.entries())

	// One that was paused, with what it read before, appends nothing that is there.
	fateOfOne.before = false
	require.NoError(t, one.Do(ctx, 1))
	p.cross("a", 7, 7)
	require.NoError(t, two.Do(ctx, 2))
	p.cross("a", 8, 8)
	require.NoError(t, one.Do(ctx, 1))
	require.NoError(t, two.Do(ctx, 2))
	require.Equal(t, append(want, "a 8 inserted", "a 9 inserted"), p.entries())
	require.NoError(t, reader.Finish(ctx))
	require.Equal(t, 1, reader.Starts())
	all := p.entries()

	// Redis continues with an older state: what it lost is there again, and more.
	found, err := p.client.XRevRangeN(ctx, p.key, "+", "-", 3).Result()
	require.NoError(t, err)
	for _, m := range found {
		require.NoError(t, p.client.XDel(ctx, p.key, m.ID).Err())
	}
	p.exec("delete from processor.timing_records where device_id = 'b' and at < '2026-03-01 00:05:00Z'")
	p.settled()
	require.NoError(t, two.Do(ctx, 2))
	require.Equal(t, all, p.entries()[:len(all)])
	require.Len(t, p.entries(), len(all)+4)
	require.NoError(t, reader.Finish(ctx))
	require.Equal(t, 2, reader.Starts(), "what it has read last is gone")
}

// counter returns the value of a metric.
func counter(t *testing.T, reg *prometheus.Registry, name string) float64 {
	t.Helper()
	families, err := reg.Gather()
	require.NoError(t, err)
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetCounter().GetValue() + f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	require.Fail(t, "no metric "+name)
	return 0
}

// Readers start over where a change can be missing, and only there.
func TestReadersOfTheStreamStartOverWhereAChangeMayBeMissing(t *testing.T) {
	t.Parallel()
	p := newPublishing(t)
	p.most = 100
	ctx := t.Context()
	reader, slow := observer.NewTimingStream(p.pool, testenv.Entries(p.client, p.key)), observer.NewTimingStream(p.pool, testenv.Entries(p.client, p.key))
	leader, _, _ := p.leader()
	term := int64(0)
	next := func(starts int, why string) {
		t.Helper()
		term++
		require.NoError(t, leader.Do(ctx, term))
		require.NoError(t, reader.Finish(ctx))
		require.Equal(t, starts, reader.Starts(), why)
	}
	require.NoError(t, reader.Read(ctx))
	next(2, "the first entry of all")
	require.NoError(t, slow.Read(ctx))
	p.cross("a", 1, 10)
	next(2, "continued")
	next(2, "a new leader finds the position")

	// More than the stream keeps, of which one reader was too slow.
	for n := range 20 {
		p.cross("a", 10*n, 10*n+49)
		next(2, "read all along")
	}
	length, err := p.client.XLen(ctx, p.key).Result()
	require.NoError(t, err)
	require.Less(t, length, int64(300), "bounded")
	require.Equal(t, 1, slow.Starts())
	require.NoError(t, slow.Finish(ctx))
	require.Equal(t, 2, slow.Starts())

	// An erased device takes the position with it.
	p.exec("delete from processor.timing_changes where device_id = 'a'")
	p.exec("delete from processor.timing_records where device_id = 'a'")
	p.settled()
	next(3, "the position is gone")
	p.exec("insert into processor.timing_changes (device_id, number, change) values ('a', 0, 'erased')")
	p.settled()
	next(3, "told")

	// The database is another server's, whose transactions have not come so far.
	p.exec("update processor.timing_changes set tx = tx + 1000000000")
	require.NoError(t, p.client.XAdd(ctx, &redis.XAddArgs{Stream: p.key, Values: []any{
		"tx", 1 << 40, "id", 0, "device_id", "", "number", 0, "change", "restart", "changed_at", time.Now().UTC().Format(time.RFC3339Nano),
	}}).Err())
	require.NoError(t, reader.Read(ctx))
	p.exec("delete from processor.timing_changes")
	next(5, "its own restart, and ours")
	p.cross("b", 1, 2)
	next(5, "continued there")

	// Nobody published for longer than changes are kept.
	require.NoError(t, p.client.XAdd(ctx, &redis.XAddArgs{Stream: p.key, Values: []any{
		"tx", 1, "id", 0, "device_id", "", "number", 0, "change", "restart", "changed_at", time.Now().Add(-2 * time.Hour).UTC().Format(time.RFC3339Nano),
	}}).Err())
	require.NoError(t, reader.Read(ctx))
	p.expire()
	next(7, "away for too long")
}

// A key that cannot be written to is an incident, and everything else goes on.
func TestATimingStreamThatIsNoneIsAnIncident(t *testing.T) {
	t.Parallel()
	p := newPublishing(t)
	ctx := t.Context()
	leader, _, reg := p.leader()
	incidents := func() (n, open int) {
		require.NoError(t, p.pool.QueryRow(ctx, "select count(*), count(*) filter (where closed_at is null) from processor.incidents where kind = 'timing_stream'").Scan(&n, &open))
		return n, open
	}
	require.NoError(t, p.client.Set(ctx, p.key, "no stream", 0).Err())
	p.cross("a", 1, 1)
	for term := range int64(3) {
		err := leader.Do(ctx, term+1)
		require.ErrorContains(t, err, "TIMING_STREAM "+p.key+": the key is not a stream")
		n, open := incidents()
		require.Equal(t, [2]int{1, 1}, [2]int{n, open})
	}
	require.InEpsilon(t, 3, counter(t, reg, "processor_coordination_timing_stream_errors_total"), 1e-9)
	require.Equal(t, "no stream", p.client.Get(ctx, p.key).Val(), "left alone")
	require.NoError(t, p.client.Del(ctx, p.key).Err())
	next, _, _ := p.leader()
	require.NoError(t, next.Do(ctx, 4))
	n, open := incidents()
	require.Equal(t, [2]int{1, 0}, [2]int{n, open})

	// Nor does it write into a stream of others.
	require.NoError(t, p.client.XAdd(ctx, &redis.XAddArgs{Stream: p.key, Values: []string{"device_id", "x"}}).Err())
	require.ErrorContains(t, leader.Do(ctx, 5), "TIMING_STREAM "+p.key+" is a foreign key: its last entry")
	require.Equal(t, int64(2), p.client.XLen(ctx, p.key).Val())
	require.NoError(t, p.client.Del(ctx, p.key).Err())
	// That has no entry yet, but a fleet that waits for some.
	require.NoError(t, p.client.XGroupCreateMkStream(ctx, p.key, "processor", "$").Err())
	require.ErrorContains(t, leader.Do(ctx, 5), `is a foreign key: it is empty and has the consumer group "processor"`)
	require.Zero(t, p.client.XLen(ctx, p.key).Val())
	// Or to which another fleet publishes its crossings.
	require.NoError(t, p.client.Del(ctx, p.key).Err())
	theirs := stream.NewTimingStream(p.client, p.key, "telemetry", "theirs", 100)
	_, ok, err := theirs.Append(ctx, "", []protocol.TimingChange{{Change: protocol.TimingRestart, TimingPosition: protocol.TimingPosition{At: time.Now()}}})
	require.NoError(t, err)
	require.True(t, ok)
	require.ErrorContains(t, leader.Do(ctx, 5), `is a foreign key: the fleet "telemetry theirs" publishes there`)
	require.Equal(t, int64(1), p.client.XLen(ctx, p.key).Val())
	require.NoError(t, p.client.Del(ctx, p.key).Err())
	require.NoError(t, leader.Do(ctx, 5))

	// Nobody publishes any more.
	require.NoError(t, p.ledger.Open(ctx, protocol.TimingStream, "old", nil))
	off := tasks.NewTimingFeed(store.NewTimingFeed(p.pool, time.Minute), nil, p.ledger, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	require.NoError(t, off.Do(ctx, 6))
	_, open = incidents()
	require.Zero(t, open)
}

// expire makes what is in the feed two hours old, and removes what is older than one.
func (p *publishing) expire() {
	p.Helper()
	for range 2 {
		p.exec("update processor.timing_shown set at = at - interval '2 hours'")
		p.exec("select processor.expire_timing_changes('1 hour')")
	}
}

// Nobody publishes for longer than changes are kept. The last one that was published is the
// newest of its device and stays, and what is gone lies behind it.
func TestReadersStartOverWhereRetentionRemovedWhatNobodyPublished(t *testing.T) {
	t.Parallel()
	p := newPublishing(t)
	ctx := t.Context()
	leader, _, _ := p.leader()
	require.NoError(t, leader.Do(ctx, 1))
	p.cross("a", 1, 1)
	require.NoError(t, leader.Do(ctx, 1))
	want := []string{" 0 restart", "a 1 inserted"}
	require.Equal(t, want, p.entries())
	p.cross("b", 1, 5)
	p.exec("insert into processor.timing_changes (device_id, number, change) values ('d', 0, 'erased')")
	p.cross("b", 6, 6)
	p.exec("update processor.timing_changes set changed_at = changed_at - interval '2 hours' where device_id <> 'a'")
	p.expire()
	require.Equal(t, 1, p.count("select count(*) from processor.timing_changes where device_id = 'a'"))
	require.Equal(t, 2, p.count("select count(*) from processor.timing_changes"))
	leader, _, _ = p.leader()
	require.NoError(t, leader.Do(ctx, 2))
	require.Equal(t, append(want, " 0 restart"), p.entries())
	// It began there, and the same happens again.
	p.cross("c", 1, 5)
	p.expire()
	leader, _, _ = p.leader()
	require.NoError(t, leader.Do(ctx, 3))
	require.Equal(t, append(want, " 0 restart", " 0 restart"), p.entries())
}

// Nothing happens for longer than changes are kept, then another leader comes: nobody
// starts over.
func TestAQuietFeedGoesOnAtAChangeOfLeader(t *testing.T) {
	t.Parallel()
	p := newPublishing(t)
	ctx := t.Context()
	reader := observer.NewTimingStream(p.pool, testenv.Entries(p.client, p.key))
	term := int64(0)
	leader, _, _ := p.leader()
	quiet := func(why string) {
		t.Helper()
		p.expire()
		length := p.client.XLen(ctx, p.key).Val()
		for range 2 {
			term++
			leader, _, _ = p.leader()
			require.NoError(t, leader.Do(ctx, term))
			require.NoError(t, reader.Finish(ctx))
		}
		require.Equal(t, length, p.client.XLen(ctx, p.key).Val(), why)
		require.Equal(t, 1, reader.Starts(), why)
	}
	require.NoError(t, leader.Do(ctx, term))
	require.NoError(t, reader.Finish(ctx))
	quiet("it began, and there was no crossing")
	change := func() {
		t.Helper()
		p.settled()
		require.NoError(t, leader.Do(ctx, term))
		require.NoError(t, reader.Finish(ctx))
	}
	p.cross("a", 1, 5)
	change()
	quiet("a crossing was the last")
	p.cross("b", 1, 2)
	change()
	quiet("and more")
	require.Equal(t, 2, p.count("select count(*) from processor.timing_changes"), "the newest of each device; the others have expired")
}

// What a transaction holds back shows with its age.
func TestTheAgeOfWhatTheFeedHoldsBack(t *testing.T) {
	t.Parallel()
	p := newPublishing(t)
	ctx := t.Context()
	leader, fate, reg := p.leader()
	p.cross("a", 1, 1)
	require.NoError(t, leader.Do(ctx, 1))
	expect := func(name string, atLeast, below float64) {
		t.Helper()
		v := counter(t, reg, name)
		require.GreaterOrEqual(t, v, atLeast, name)
		require.Less(t, v, below, name)
	}
	const held, unpublished = "processor_group_timing_feed_held_seconds", "processor_group_timing_unpublished_seconds"
	expect(unpublished, 0, 1e-9)
	forgotten, err := p.pool.Begin(ctx)
	require.NoError(t, err)
	defer func() { _ = forgotten.Rollback(ctx) }()
	_, err = forgotten.Exec(ctx, "create temporary table mine (n int)")
	require.NoError(t, err)
	p.exec("alter table processor.timing_changes alter changed_at set default now() - interval '10 minutes'")
	p.exec("insert into processor.timing_records (device_id, fence_id, fence_version, kind, at, earlier_ts, later_ts, latitude, longitude) values ('b', 'f', 1, 'enter', now(), now(), now(), 1, 1)")
	require.NoError(t, leader.Do(ctx, 2))
	expect(held, 600, 700)
	expect(unpublished, 0, 1e-9)
	require.NoError(t, forgotten.Rollback(ctx))
	p.settled()
	fate.before = true
	require.ErrorIs(t, leader.Do(ctx, 3), errKilled)
	expect(unpublished, 600, 700)
	fate.before = false
	require.NoError(t, leader.Do(ctx, 4))
	expect(unpublished, 0, 1e-9)
}

// lockedFeed is a feed that cannot be read.
type lockedFeed struct{ *store.TimingFeed }

func (lockedFeed) After(ctx context.Context, _ protocol.TimingPosition, _ int) ([]protocol.TimingChange, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// A leader's step is cut off when it takes too long, and the leader stays.
func TestPublishingThatIsCutOffIsCounted(t *testing.T) {
	t.Parallel()
	p := newPublishing(t)
	_, k, _ := p.leader()
	reg := prometheus.NewRegistry()
	task := tasks.NewTimingFeed(lockedFeed{store.NewTimingFeed(p.pool, time.Minute)}, k, p.ledger, slog.New(slog.DiscardHandler), reg)
	cut, stop := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer stop()
	require.ErrorIs(t, task.Do(cut, 1), context.DeadlineExceeded)
	require.InDelta(t, 1, counter(t, reg, "processor_coordination_timing_stream_errors_total"), 0)
	ended, stop := context.WithCancel(t.Context())
	time.AfterFunc(100*time.Millisecond, stop)
	require.ErrorIs(t, task.Do(ended, 1), context.Canceled)
	require.InDelta(t, 1, counter(t, reg, "processor_coordination_timing_stream_errors_total"), 0, "the term ended, which is no error")
}
