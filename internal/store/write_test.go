package store_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/store/schema"
	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/internal/testenv"
)

var scope = store.Scope{Stream: "telemetry:it's \\ here", Group: "g"}

// bench is a database with the rows of 32 shards.
type bench struct {
	tb     testing.TB
	url    string
	pool   *pgxpool.Pool
	shards *store.Shards
	fences *protocol.Fences
}

const shards = 32

func newBench(tb testing.TB) *bench {
	tb.Helper()
	b := &bench{tb: tb, url: testenv.Postgres(tb, testenv.WithTemplate("migrated", func(ctx context.Context, url string) error {
		_, err := schema.Migrate(ctx, url, slog.New(slog.DiscardHandler))
		return err
	}))}
	b.pool = b.open("bench", b.url)
	b.shards = store.NewShards(b.pool, scope, 10*time.Second)
	require.NoError(tb, b.shards.Ensure(tb.Context(), shards))
	var bad []error
	var err error
	b.fences, bad, err = store.NewFences(b.pool, 10*time.Second).Load(tb.Context())
	require.NoError(tb, err)
	require.Empty(tb, bad)
	return b
}

func (b *bench) open(member, url string) *pgxpool.Pool {
	b.tb.Helper()
	pool, err := store.Open(context.WithoutCancel(b.tb.Context()), store.Config{
		URL: url, Member: member, MaxConns: 8,
		ConnectTimeout: 5 * time.Second, StatementTimeout: 10 * time.Second, LockTimeout: 5 * time.Second,
	})
	require.NoError(b.tb, err)
	b.tb.Cleanup(pool.Close)
	return pool
}

func (b *bench) exec(sql string, args ...any) {
	b.tb.Helper()
	_, err := b.pool.Exec(b.tb.Context(), sql, args...)
	require.NoError(b.tb, err)
}

func (b *bench) count(sql string, args ...any) (n int) {
	b.tb.Helper()
	require.NoError(b.tb, b.pool.QueryRow(b.tb.Context(), sql, args...).Scan(&n))
	return n
}

// take assigns shards to a member, which acquires them.
func (b *bench) take(member string, which ...int) []protocol.ShardLease {
	b.tb.Helper()
	var held []protocol.ShardLease
	for _, n := range which {
		b.exec("update processor.assignments set member = $1 where shard = $2", member, n)
		s, err := b.shards.Acquire(b.tb.Context(), n, member, "")
		require.NoError(b.tb, err)
		held = append(held, protocol.ShardLease{Shard: n, Epoch: s.Epoch})
	}
	return held
}

// records returns n records of one device.
func records(device string, from, n int) []telemetry.Record {
	list := make([]telemetry.Record, n)
	for i := range list {
		us := time.Date(2026, 1, 1, 0, 0, from+i, 0, time.UTC).UnixMicro()
		list[i] = telemetry.Record{
			DeviceID: device, Codec: "8", TimeUS: us, StreamUS: us, Latitude: 42, Longitude: 1, Attributes: []byte(`{}`),
		}
	}
	return list
}

func (b *bench) batch(held []protocol.ShardLease, fresh []telemetry.Record) *protocol.Batch {
	return &protocol.Batch{
		Leases: held, Fresh: fresh, Rules: protocol.Rules{Fences: b.fences, Eligibility: telemetry.Eligibility{MaxFutureSkew: time.Minute}, MaxGap: time.Minute},
	}
}

func requireFenced(tb testing.TB, err error, shards ...int) {
	tb.Helper()
	var f *protocol.Failure
	require.ErrorAs(tb, err, &f)
	require.Equal(tb, protocol.Fenced, f.Kind, "%v", err)
	require.Equal(tb, shards, f.Shards)
}

func TestP4ACommitUnderARaisedEpochIsRefusedAndNamesTheShards(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	held := b.take("old.1", 3, 7, 9)
	w := store.NewWriter(b.pool, scope, "old.1", 10*time.Second)
	_, err := w.Write(t.Context(), b.batch(held, records("d", 0, 5)))
	require.NoError(t, err)
	b.take("new.1", 3, 9)
	for name, batch := range map[string]*protocol.Batch{
		"in one round trip": b.batch(held, records("d", 10, 5)),
		"with late records": {Leases: held, Late: records("d", 20, 5), Fresh: records("d", 30, 5), Rules: b.batch(nil, nil).Rules},
		"with marks":        {Leases: held, Applied: []protocol.Applied{{Shard: 3, ID: telemetry.EntryID{Ms: 1}}}, Rules: b.batch(nil, nil).Rules},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := w.Write(t.Context(), batch)
			requireFenced(t, err, 3, 9)
		})
	}
	require.Equal(t, 5, b.count("select count(*) from positions"))
	require.Zero(t, b.count("select count(*) from processor.progress"))
	_, err = w.Write(t.Context(), b.batch(held[1:2], records("d", 40, 5)))
	require.NoError(t, err, "what is still its own it goes on with, on the same connections")
}

func TestACommitOfAnotherMemberUnderTheSameEpochIsRefused(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	held := b.take("a.1", 1)
	_, err := store.NewWriter(b.pool, scope, "a.2", time.Second).Write(t.Context(), b.batch(held, records("d", 0, 1)))
	requireFenced(t, err, 1)
	_, err = store.NewWriter(b.pool, store.Scope{Stream: "other", Group: "g"}, "a.1", time.Second).Write(t.Context(), b.batch(held, records("d", 0, 1)))
	requireFenced(t, err, 1)
	b.exec("delete from processor.shards where shard = 1")
	_, err = store.NewWriter(b.pool, scope, "a.1", time.Second).Write(t.Context(), b.batch(held, records("d", 0, 1)))
	requireFenced(t, err, 1)
	require.Zero(t, b.count("select count(*) from positions"))
}

func TestP3AnAcquireWaitsForARunningCommitAndThenSeesItsRows(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	held := b.take("old.1", 5)
	ctx := t.Context()
	conn, err := pgx.Connect(ctx, b.url)
	require.NoError(t, err)
	defer conn.Close(context.WithoutCancel(ctx))
	// A commit that has passed its check but not ended.
	_, err = conn.Exec(ctx, "begin; insert into positions (device_id, ts, ingested_at, latitude, longitude, altitude, angle, speed, satellites, priority, codec, attributes) values ('d', now(), now(), 1, 1, 1, 1, 1, 1, 0, '8', '{}')")
	require.NoError(t, err)
	_, err = conn.Exec(ctx, "select processor.fence($1, $2, $3, $4, 'old.1')", scope.Stream, scope.Group, []int32{5}, []int64{held[0].Epoch})
	require.NoError(t, err)

	b.exec("update processor.assignments set member = 'new.1' where shard = 5")
	taken := make(chan error, 1)
	go func() {
		_, err := b.shards.Acquire(ctx, 5, "new.1", "")
		taken <- err
	}()
	testenv.Wait(t, 5*time.Second, func() error {
		if n := b.count("select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"); n == 0 {
			return fmt.Errorf("the take does not wait")
		}
		return nil
	})
	select {
	case err := <-taken:
		require.Fail(t, "taken before the commit had ended", "%v", err)
	default:
	}
	require.Zero(t, b.count("select count(*) from positions"))
	_, err = conn.Exec(ctx, "commit")
	require.NoError(t, err)
	require.NoError(t, <-taken)
	require.Equal(t, 1, b.count("select count(*) from positions"))
}

func TestOnlyTheAssignedMemberAcquiresAShard(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.take("a.1", 4)
	_, err := b.shards.Acquire(t.Context(), 4, "b.1", "")
	require.ErrorIs(t, err, protocol.ErrNotAssigned)
	_, err = b.shards.Acquire(t.Context(), 999, "b.1", "")
	require.ErrorIs(t, err, protocol.ErrNotAssigned)
	require.Equal(t, 1, b.count("select epoch from processor.shards where shard = 4"))
}

func TestAReleaseNeedsItsEpochAndOwner(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	held := b.take("a.1", 4)[0]
	mark := telemetry.EntryID{Ms: 7, Seq: 1}
	require.NoError(t, b.shards.Release(t.Context(), protocol.ShardLease{Shard: 4, Epoch: held.Epoch - 1}, "a.1", mark))
	require.NoError(t, b.shards.Release(t.Context(), held, "b.1", mark))
	require.Equal(t, 1, b.count("select count(*) from processor.shards where owner = 'a.1'"))
	require.Zero(t, b.count("select count(*) from processor.progress"))
	require.NoError(t, b.shards.Release(t.Context(), held, "a.1", mark))
	require.Zero(t, b.count("select count(owner) from processor.shards"))
	list, err := b.shards.List(t.Context())
	require.NoError(t, err)
	require.Equal(t, mark, list[4].Applied)
	_, err = store.NewWriter(b.pool, scope, "a.1", time.Second).Write(t.Context(), b.batch([]protocol.ShardLease{held}, records("d", 0, 1)))
	requireFenced(t, err, 4)
}

func TestALostReplyToACommitIsAnUnknownOutcome(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	u, err := url.Parse(b.url)
	require.NoError(t, err)
	proxy := testenv.Proxy(t, u.Host)
	through, err := proxy.URL(b.url)
	require.NoError(t, err)
	pool := b.open("cut.1", through)
	held := b.take("cut.1", 2)
	w := store.NewWriter(pool, scope, "cut.1", 2*time.Second)
	for i := range 2 { // the second one finds the chunks that the first one made
		_, err = w.Write(t.Context(), b.batch(held, records("d", i, 1)))
		require.NoError(t, err)
	}

	require.NoError(t, proxy.DropReplies())
	_, err = w.Write(t.Context(), b.batch(held, records("d", 2, 1)))
	var f *protocol.Failure
	require.ErrorAs(t, err, &f)
	require.Equal(t, protocol.Unknown, f.Kind, "%v", err)
	require.NoError(t, proxy.Refuse())
	testenv.Wait(t, 5*time.Second, func() error {
		_, err = w.Write(t.Context(), b.batch(held, records("d", 2, 1)))
		if err == nil {
			return fmt.Errorf("committed through a refusing proxy")
		}
		require.ErrorAs(t, err, &f)
		if f.Kind != protocol.Unavailable {
			return fmt.Errorf("without a connection nothing happened, and it says %v: %w", f.Kind, err)
		}
		return nil
	})
	require.NoError(t, proxy.Resume())
	testenv.Wait(t, 10*time.Second, func() error {
		_, err := w.Write(t.Context(), b.batch(held, records("d", 3, 1)))
		return err
	})
}

func TestP8OnlyTheSessionsOfTheMemberEnd(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	other, frozen := b.open("other.1", b.url), b.open("frozen.1", b.url)
	ctx := t.Context()
	conn, err := frozen.Acquire(ctx)
	require.NoError(t, err)
	defer conn.Release()
	pid := conn.Conn().PgConn().PID()
	require.NoError(t, other.Ping(ctx))
	// In the middle of a COPY no timeout of the server applies.
	_, err = conn.Exec(ctx, "begin; select * from processor.shards for update")
	require.NoError(t, err)
	conn.Conn().PgConn().Frontend().SendQuery(&pgproto3.Query{String: "copy positions (device_id) from stdin"})
	require.NoError(t, conn.Conn().PgConn().Frontend().Flush())

	ended, err := store.NewSessions(b.pool, 5*time.Second).End(ctx, "frozen.1")
	require.NoError(t, err)
	require.Positive(t, ended.Count)
	testenv.Wait(t, 5*time.Second, func() error {
		if left := b.count("select count(*) from pg_stat_activity where pid = $1", pid); left > 0 {
			return fmt.Errorf("its session lives")
		}
		return nil
	})
	require.NoError(t, other.Ping(ctx))
	b.take("other.1", 1) // nothing is locked any more
}

func TestAPinnedValueIsKeptAndADifferenceNamesTheWayOut(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	pin := func(value string) error {
		return store.Pin(t.Context(), b.pool, scope, "m", time.Second, []store.Setting{
			{Name: "SHARDS", Value: value, Remedy: "change it with processor shards resize"}, {Name: "HASH", Value: "xx", Remedy: "no"},
		})
	}
	require.NoError(t, pin("32"))
	require.NoError(t, pin("32"))
	err := pin("64")
	var pinned *store.SettingMismatchError
	require.ErrorAs(t, err, &pinned)
	require.Equal(t, 3, pinned.ExitCode())
	require.EqualError(t, err, "SHARDS is 64 here and 32 for the fleet; change it with processor shards resize")
	var f *protocol.Failure
	require.ErrorAs(t, b.shards.Ensure(t.Context(), 64), &f)
	require.Equal(t, protocol.Misconfigured, f.Kind)
	require.Equal(t, shards, b.count("select count(*) from processor.shards"))
}

// A rule that a fleet had not pinned is a change of what was derived before.
func TestARuleThatIsPinnedLaterDerivesEverythingAgain(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	pin := func(settings ...store.Setting) int {
		require.NoError(t, store.Pin(t.Context(), b.pool, scope, "m", time.Second, settings))
		return b.count("select count(*) from processor.requests where kind = 'recompute' and device_id is null")
	}
	size, rule := store.Setting{Name: "SHARDS", Value: "16"}, store.Setting{Name: "MIN_SATELLITES", Value: "1", Derives: true}
	require.Zero(t, pin(size), "nothing is derived yet")
	require.Equal(t, 16, pin(size, rule))
	require.Equal(t, 16, pin(size, rule), "it is pinned")
	other := rule
	other.Value = "4"
	var differs *store.SettingMismatchError
	require.ErrorAs(t, store.Pin(t.Context(), b.pool, scope, "m", time.Second, []store.Setting{other}), &differs)
	require.Equal(t, "1", differs.Fleet)

	fresh := store.Scope{Stream: "another", Group: "group"}
	require.NoError(t, store.Pin(t.Context(), b.pool, fresh, "m", time.Second, []store.Setting{size, rule}))
	require.Zero(t, b.count("select count(*) from processor.requests where stream = 'another'"), "a new fleet has derived nothing")
}

func TestP6ALossIsRecordedOnce(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ledger := store.NewLedger(b.pool, scope, "m", time.Second)
	losses := []protocol.Loss{
		{Cause: "trimmed_unread", First: telemetry.EntryID{Ms: 1}, Last: telemetry.EntryID{Ms: 9}, Entries: 4, Shard: -1},
		{Cause: "trimmed_pending", First: telemetry.EntryID{Ms: 5}, Last: telemetry.EntryID{Ms: 5}, Entries: 1, Shard: 2},
	}
	for range 2 {
		require.NoError(t, ledger.RecordLosses(t.Context(), losses))
	}
	n, unknown, err := ledger.TotalLost(t.Context())
	require.NoError(t, err)
	require.Equal(t, int64(5), n)
	require.False(t, unknown)
	require.NoError(t, ledger.RecordLosses(t.Context(), []protocol.Loss{{Cause: protocol.LossRestored, Entries: -1, Shard: -1}}))
	_, unknown, err = ledger.TotalLost(t.Context())
	require.NoError(t, err)
	require.True(t, unknown)

	for range 2 {
		require.NoError(t, ledger.Open(t.Context(), "foreign_consumer", "x", map[string]any{"pending": 1}))
	}
	require.Equal(t, 1, b.count("select count(*) from processor.incidents where closed_at is null"))
	require.NoError(t, ledger.Close(t.Context(), "foreign_consumer", "x"))
	require.NoError(t, ledger.Open(t.Context(), "foreign_consumer", "x", nil))
	require.Equal(t, 2, b.count("select count(*) from processor.incidents"))
}

// BenchmarkCheckedCommit is four workers that commit for eight shards each, as
// often as in ten minutes, under a snapshot that stays open: the last commits
// cost what the first ones did.
func BenchmarkCheckedCommit(b *testing.B) {
	bench := newBench(b)
	var all []int
	for n := range shards {
		all = append(all, n)
	}
	held := bench.take("m.1", all...)
	snapshot, err := pgx.Connect(b.Context(), bench.url)
	require.NoError(b, err)
	defer snapshot.Close(context.WithoutCancel(b.Context()))
	_, err = snapshot.Exec(b.Context(), "begin isolation level repeatable read; select count(*) from processor.shards")
	require.NoError(b, err)

	const workers, commits = 4, 7000
	for b.Loop() {
		took := make([][]time.Duration, workers)
		var running sync.WaitGroup
		for w := range workers {
			writer := store.NewWriter(bench.pool, scope, "m.1", 10*time.Second)
			mine := held[w*shards/workers : (w+1)*shards/workers]
			running.Go(func() {
				for i := range commits / workers {
					batch := bench.batch(mine, nil)
					if i%10 == 0 { // once a second
						for _, h := range mine {
							batch.Applied = append(batch.Applied, protocol.Applied{Shard: h.Shard, ID: telemetry.EntryID{Ms: uint64(i)}})
						}
					}
					batch.Late = records(fmt.Sprint("device-", w), 0, 1) // stored already: only the check costs
					began := time.Now()
					_, err := writer.Write(b.Context(), batch)
					if err != nil {
						b.Error(err)
						return
					}
					took[w] = append(took[w], time.Since(began))
				}
			})
		}
		running.Wait()
		tenth := commits / workers / 10
		first, last := time.Duration(0), time.Duration(0)
		for w := range workers {
			first += median(took[w][tenth : 2*tenth])
			last += median(took[w][len(took[w])-tenth:])
		}
		b.ReportMetric(float64(first.Microseconds())/workers, "first-us/commit")
		b.ReportMetric(float64(last.Microseconds())/workers, "last-us/commit")
		require.Less(b, last, 2*first, "a snapshot that stays open slows commits down")
	}
}

func median(d []time.Duration) time.Duration {
	sorted := slices.Sorted(slices.Values(d))
	return sorted[len(sorted)/2]
}
