package store_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/loadtest/observer"
)

const insertTiming = `
insert into processor.timing_records (device_id, fence_id, fence_version, kind, at, earlier_ts, later_ts, latitude, longitude)
select $1, 'f', 1, 'enter', t, t - interval '1 s', t + interval '1 s', 48.1, 0.1::float8 + 0.2::float8
from generate_series(timestamptz '2026-03-01', '2026-03-01 23:59', interval '1 min') with ordinality as g (t, n)
where n > $2 and n <= $3
on conflict (device_id, fence_id, kind, later_ts, ordinal) do update set revision = timing_records.revision + 1`

// feedOf reads the feed until it has everything that is committed, however long others
// on the server keep their transactions open.
func (b *bench) feedOf(f *observer.Feed) {
	b.tb.Helper()
	testenv.Wait(b.tb, time.Minute, func() error {
		if n := b.count("select (select count(*) from processor.timing_changes) - (select count(*) from processor.timing_feed)"); n > 0 {
			return fmt.Errorf("%d changes are held back", n)
		}
		return nil
	})
	require.NoError(b.tb, f.Read(b.tb.Context()))
	require.NoError(b.tb, f.Finish(b.tb.Context()))
}

// slow begins a transaction that writes ten crossings and stays open.
func (b *bench) slow() pgx.Tx {
	b.tb.Helper()
	tx, err := b.pool.Begin(b.tb.Context())
	require.NoError(b.tb, err)
	b.tb.Cleanup(func() { _ = tx.Rollback(context.Background()) })
	_, err = tx.Exec(b.tb.Context(), insertTiming, "slow", 0, 10)
	require.NoError(b.tb, err)
	return tx
}

// A reader that went on behind what it sees would miss the transaction that began
// first and commits last.
func TestAReaderOfTheFeedMissesNoTransactionThatCommitsLate(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	feed := observer.NewFeed(b.pool)
	b.exec(insertTiming, "before", 0, 5)
	b.feedOf(feed)
	first := b.slow()
	b.exec(insertTiming, "quick", 0, 10)
	require.Zero(t, b.count("select count(*) from processor.timing_feed where device_id <> 'before'"), "committed, and held back")
	require.Equal(t, 10, b.count("select count(*) from processor.timing_changes where device_id <> 'before'"))
	require.NoError(t, feed.Read(t.Context()))
	require.Equal(t, 0, feed.Changes(), "what the copy had at the start")
	require.NoError(t, first.Commit(t.Context()))
	b.feedOf(feed)
	require.Equal(t, 20, feed.Changes())
	require.Equal(t, 1, feed.Starts())
}

// Whatever writes to the table, and however: all of it is told, with the old values.
func TestEachChangeOfACrossingIsTold(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	feed := observer.NewFeed(b.pool)
	b.feedOf(feed)
	b.exec(insertTiming, "a", 0, 1200) // more than a page
	b.exec(insertTiming, "b", 0, 5)
	b.exec(insertTiming, "b", 3, 8) // two are there
	b.exec("update processor.timing_records set at = at + interval '1 us', revision = revision + 1 where device_id = 'b'")
	b.exec("update processor.timing_records set at = at where false")
	b.feedOf(feed)
	b.exec("delete from processor.timing_records where device_id = 'b' and revision = 3")
	require.NoError(t, pgx.BeginFunc(t.Context(), b.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(t.Context(), "delete from processor.timing_records where device_id = 'b'"); err != nil {
			return err
		}
		_, err := tx.Exec(t.Context(), insertTiming, "b", 0, 2)
		return err
	}))
	b.feedOf(feed)
	require.Equal(t, 1, feed.Starts())
	require.Equal(t, 1200+8+2+8+2+6+2, feed.Changes())
	require.Equal(t, 8+2+8+2+6+2, b.count("select max(number) from processor.timing_changes where device_id = 'b'"))
	require.Equal(t, 2, b.count("select count(*) from processor.timing_changes where change = 'withdrawn' and (old ->> 'revision')::int = 3 and old ->> 'longitude' = '0.30000000000000004'"))
	require.Equal(t, 8, b.count("select count(*) from processor.timing_changes where change = 'revised' and crossing ->> 'at' like '%:00.000001+00:00' and old ->> 'at' like '%:00+00:00'"))
}

func TestRetentionOfTheFeedKeepsWhatTellsAReaderWhereItIs(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	current, away := observer.NewFeed(b.pool), observer.NewFeed(b.pool)
	b.feedOf(current)
	b.feedOf(away)
	b.exec(insertTiming, "a", 0, 3)
	b.feedOf(away)
	b.exec(insertTiming, "a", 0, 30)
	b.exec(insertTiming, "b", 0, 4)
	b.feedOf(current)
	retention := store.NewRetention(b.pool, scope, "a.1", 26*time.Hour, 10*time.Second)
	for range 2 {
		removed, err := expireEach(t.Context(), retention, time.Hour)
		require.NoError(t, err)
		require.Zero(t, removed["timing_changes"])
		b.exec("update processor.timing_shown set at = at - interval '25 hours 10 minutes' where at > now() - interval '1 hour'")
	}
	retention = store.NewRetention(b.pool, scope, "a.1", 24*time.Hour, 10*time.Second)
	removed, err := expireEach(t.Context(), retention, time.Hour)
	require.NoError(t, err)
	require.EqualValues(t, 3+30+4-2, removed["timing_changes"])
	require.Equal(t, 35, b.count("select sum(count) from processor.audit where action = 'retention' and target = 'processor.timing_changes' and detail ->> 'retention' = '24:00:00'"))
	require.Equal(t, 2, b.count("select count(*) from processor.timing_changes"), "the newest of each device")
	b.exec(insertTiming, "b", 4, 5)
	b.feedOf(current)
	require.Equal(t, 1, current.Starts(), "it had read everything")
	b.feedOf(away)
	require.Equal(t, 2, away.Starts(), "what it had not read may be gone")
	require.Equal(t, 5, b.count("select max(number) from processor.timing_changes where device_id = 'b'"), "counted on")

	// A dump of a server that was ahead of this one by the last of its rows: who had not read
	// them would not know, since its own row is there, and the next one has its number.
	leader := store.NewTimingFeed(b.pool, 10*time.Second)
	var at protocol.TimingPosition
	position := "select tx, id, changed_at from processor.timing_changes order by tx desc, id desc limit 1"
	require.NoError(t, b.pool.QueryRow(t.Context(), position).Scan(&at.Tx, &at.ID, &at.At))
	b.exec(insertTiming, "ahead", 40, 41)
	b.exec("update processor.timing_changes set tx = tx + 1000000000 where device_id = 'ahead'")
	var ahead protocol.TimingPosition
	require.NoError(t, b.pool.QueryRow(t.Context(), position).Scan(&ahead.Tx, &ahead.ID, &ahead.At))
	continues, err := leader.Continues(t.Context(), ahead)
	require.NoError(t, err)
	require.False(t, continues, "it is of another server")
	_, err = expireEach(t.Context(), retention, time.Hour)
	require.NoError(t, err)
	continues, err = leader.Continues(t.Context(), at)
	require.NoError(t, err)
	require.False(t, continues, "what followed is gone")
	b.exec("delete from processor.timing_removed")
	b.exec("delete from processor.timing_records where device_id = 'ahead'")
	b.exec("delete from processor.timing_changes where device_id = 'ahead'")

	// A dump of a server that was ahead: its rows would hide those that follow.
	for _, table := range []string{"changes", "shown", "removed"} {
		b.exec("update processor.timing_" + table + " set tx = tx + 1000000000")
	}
	removed, err = expireEach(t.Context(), retention, time.Hour)
	require.NoError(t, err)
	require.Equal(t, 0, b.count("select count(*) from processor.timing_changes"))
	require.EqualValues(t, 3, removed["timing_changes"])
	require.Equal(t, 1, b.count("select count(*) from processor.timing_shown"), "its own")
	require.Equal(t, 1, b.count("select count(*) from processor.timing_removed where tx < pg_snapshot_xmax(pg_current_snapshot())::text::bigint"))
	b.exec(insertTiming, "a", 40, 41)
	b.feedOf(current)
	require.Equal(t, 2, current.Starts())
}

// What a dump of a server that was ahead brought is more than one call removes.
func TestAReaderThatBeganAfterARestoreIsNotToldToBeginAgain(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	restored := func(rows int) {
		b.exec(`
insert into processor.timing_changes (tx, device_id, number, change, old)
select 4000000000 + n, 'ahead', n, 'withdrawn', '{}'
from generate_series(1, $1::int) n`, rows)
	}
	retention := store.NewRetention(b.pool, scope, "a.1", 24*time.Hour, 10*time.Second)
	leader := store.NewTimingFeed(b.pool, 10*time.Second)
	expire := func(rows int) {
		t.Helper()
		removed, err := expireEach(t.Context(), retention, time.Hour)
		require.NoError(t, err)
		require.EqualValues(t, rows, removed["timing_changes"])
	}
	// begin waits for the transactions of others on the server, which hold the feed back.
	begin := func() (p protocol.TimingPosition) {
		testenv.Wait(t, time.Minute, func() (err error) {
			if p, err = leader.Begin(t.Context()); err == nil && p.Tx <= int64(b.count("select coalesce(max(tx), 0) from processor.timing_removed")) {
				err = errors.New("the feed is held back")
			}
			return err
		})
		return p
	}
	continues := func(p protocol.TimingPosition) bool {
		ok, err := leader.Continues(t.Context(), p)
		require.NoError(t, err)
		return ok
	}
	before := begin()
	restored(12000)
	expire(5000)
	require.False(t, continues(before), "it may not have read what is gone")
	p := begin()
	for _, rows := range []int{5000, 2000, 0} {
		expire(rows)
		require.True(t, continues(p), "it has all")
	}
	restored(5000)
	expire(5000)
	require.False(t, continues(p), "another restore")
	p = begin()
	restored(1)
	expire(1)
	require.False(t, continues(p), "nothing was left of the one before")
}

func TestAnErasureIsToldAndLeavesNothingElseInTheFeed(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	feed := observer.NewFeed(b.pool)
	b.fill(2, 1, 10)
	b.exec(insertTiming, "device-0", 0, 9)
	b.feedOf(feed)
	b.exec(insertTiming, "device-1", 0, 9)
	b.exec(insertTiming, "device-0", 0, 30)
	late := observer.NewFeed(b.pool)
	b.feedOf(late)
	b.exec(insertTiming, "device-1", 9, 10)
	b.feedOf(late)
	held := b.take("a.1", 5)[0]
	p, _ := b.runRequest(protocol.RequestErase, "device-0", held, "a.1")
	require.EqualValues(t, 10+30, p.Removed)
	b.feedOf(feed)
	require.Equal(t, 1, feed.Starts())
	b.feedOf(late)
	require.Equal(t, 1, late.Starts())
	require.Equal(t, 1, b.count("select count(*) from processor.timing_changes where device_id = 'device-0' and change = 'erased'"))
	require.Equal(t, 1, b.count("select count(*) from processor.timing_changes where device_id = 'device-0'"))
	b.exec(insertTiming, "device-0", 0, 2)
	b.feedOf(feed)
	require.Equal(t, 2, b.count("select max(number) from processor.timing_changes where device_id = 'device-0'"))
	b.runRequest(protocol.RequestErase, "device-0", held, "a.1")
	b.feedOf(late)
}

// The row at which a reader is that has read all may be an erasure: it stays until a row
// behind it is as old, or who resumes there would be told to start over.
func TestRetentionKeepsAnErasureWithNothingOldBehindIt(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	feed := observer.NewFeed(b.pool)
	b.fill(1, 1, 10)
	b.exec(insertTiming, "device-0", 0, 9)
	b.feedOf(feed)
	b.runRequest(protocol.RequestErase, "device-0", b.take("a.1", 5)[0], "a.1")
	b.feedOf(feed)
	var at protocol.TimingPosition
	require.NoError(t, b.pool.QueryRow(t.Context(), "select tx, id, changed_at from processor.timing_changes where change = 'erased'").Scan(&at.Tx, &at.ID, &at.At))
	retention := store.NewRetention(b.pool, scope, "a.1", 24*time.Hour, 10*time.Second)
	leader := store.NewTimingFeed(b.pool, 10*time.Second)
	continues := func() bool {
		_, err := expireEach(t.Context(), retention, time.Hour)
		require.NoError(t, err)
		ok, err := leader.Continues(t.Context(), at)
		require.NoError(t, err)
		return ok
	}
	older := func() { b.exec("update processor.timing_shown set at = at - interval '25 hours'") }
	require.True(t, continues(), "it is new")
	older()
	require.True(t, continues(), "the last row")
	b.exec(insertTiming, "b", 0, 3)
	require.True(t, continues(), "what follows is younger")
	b.feedOf(feed)
	require.Equal(t, 1, feed.Starts())
	older()
	require.True(t, continues(), "nobody knows yet since when it could be read")
	older()
	require.False(t, continues(), "it goes in the end")
	require.Equal(t, 1, b.count("select count(*) from processor.timing_changes"))
}

// A transaction that writes for longer than changes are kept holds the feed back: they are
// kept for as long as they could be read.
func TestRetentionRemovesNothingThatTheFeedHasNotShown(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.exec("alter table processor.timing_changes alter changed_at set default now() - interval '25 hours'")
	feed := observer.NewFeed(b.pool)
	b.feedOf(feed)
	first := b.slow()
	b.exec(insertTiming, "quick", 0, 20)
	retention := store.NewRetention(b.pool, scope, "a.1", 24*time.Hour, 10*time.Second)
	expire := func() {
		t.Helper()
		removed, err := expireEach(t.Context(), retention, time.Hour)
		require.NoError(t, err)
		require.Zero(t, removed["timing_changes"])
	}
	expire()
	b.exec("update processor.timing_shown set at = at - interval '25 hours'")
	expire()
	require.NoError(t, first.Commit(t.Context()))
	expire()
	b.feedOf(feed)
	require.Equal(t, 30, feed.Changes())
	require.Equal(t, 1, feed.Starts())
}

// What is committed while retention removes other changes stays.
func TestRetentionRemovesNothingThatIsCommittedMeanwhile(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	lock, err := b.pool.Begin(t.Context())
	require.NoError(t, err)
	defer func() { _ = lock.Rollback(context.Background()) }()
	_, err = lock.Exec(t.Context(), "lock table processor.timing_removed in exclusive mode")
	require.NoError(t, err)
	expired := make(chan error, 1)
	go func() {
		_, err := expireEach(t.Context(), store.NewRetention(b.pool, scope, "a.1", time.Hour, 30*time.Second), time.Hour)
		expired <- err
	}()
	testenv.Wait(t, 20*time.Second, func() error {
		var waiting int
		if err := b.pool.QueryRow(t.Context(), `select count(*) from pg_locks where not granted and relation = 'processor.timing_removed'::regclass
  and database = (select oid from pg_database where datname = current_database())`).Scan(&waiting); err != nil || waiting == 0 {
			return fmt.Errorf("retention does not wait yet: %w", err)
		}
		return nil
	})
	b.exec(insertTiming, "meanwhile", 0, 20)
	require.NoError(t, lock.Rollback(t.Context()))
	require.NoError(t, <-expired)
	require.Equal(t, 20, b.count("select count(*) from processor.timing_changes"))
}
