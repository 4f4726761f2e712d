package store_test

import (
	"context"
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/testenv"
)

func TestRetentionRemovesWhatIsOldCountsItAndKeepsTheSumOfLosses(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.exec(`
insert into processor.requests (stream, group_name, kind, shard, requested_by, state, requested_at, finished_at)
select $1, $2, 'recompute', 0, 'test', case when age is null then 'waiting' else 'done' end, now() - interval '9 years', now() - age
from unnest(array[interval '400 days', '300 days', null]) as age
cross join generate_series(1, 10)`, scope.Stream, scope.Group)
	b.exec(`
insert into processor.incidents (stream, group_name, kind, subject, opened_at, closed_at)
select $1, $2, 'lost_group', n::text, now() - interval '9 years', case when n > 5 then now() - n * interval '100 days' end
from generate_series(1, 10) n`, scope.Stream, scope.Group)
	b.exec(`
insert into processor.losses (dedupe_key, stream, group_name, cause, entries, detected_at, detected_by)
select n::text, $1, $2, 'flush', case when n < 9 then n end, now() - n * interval '100 days', 'test'
from generate_series(1, 10) n`, scope.Stream, scope.Group)
	b.exec(`
insert into processor.audit (at, who, action, target)
select now() - n * interval '100 days', 'test', 'test', 'test'
from generate_series(1, 10) n`)
	b.exec(`
insert into processor.dead_letters (stream, group_name, dlq_id, source_id, digest, fields, class, error, fingerprint, attempts,
  instance, version, exported_at, exported_by)
select $1, $2, n || '-0', n || '-0', '', array[]::bytea[], 'decode', '', '', 1, '', '', now() - n * interval '100 days', 'test'
from generate_series(1, 10) n`, scope.Stream, scope.Group)
	b.exec(`
insert into processor.conflicts (stream, group_name, device_id, ts, digest, ingested_at, priority, differs, record, detected_at)
select $1, $2, 'd', now(), n::text, now(), 0, '{}', '{}', now() - n * interval '100 days'
from generate_series(1, 10) n`, scope.Stream, scope.Group)
	b.exec(`insert into processor.requests (stream, group_name, kind, shard, requested_by, state, finished_at) values ('other', 'g', 'erase', 0, '', 'done', '2001-01-01')`)

	r := store.NewRetention(b.pool, scope, "a.1", time.Hour, 10*time.Second)
	const lost = "select sum(entries) from processor.losses"
	before := b.count(lost)
	for i := range 2 {
		removed, err := expireEach(t.Context(), r, 350*24*time.Hour)
		require.NoError(t, err)
		want := map[string]int64{"requests": 10, "incidents": 5, "losses": 7, "audit": 7, "dead_letters": 7, "conflicts": 7, "timing_changes": 0}
		if i > 0 {
			want = map[string]int64{"requests": 0, "incidents": 0, "losses": 0, "audit": 0, "dead_letters": 0, "conflicts": 0, "timing_changes": 0}
		}
		require.Equal(t, want, removed)
		require.Equal(t, before, b.count(lost))
		require.Equal(t, 3+2, b.count("select count(*) from processor.losses"), "a sum of what is known, and one of what is not")
		require.Equal(t, 2, b.count("select (detail ->> 'sum')::int from processor.losses where entries is null"))
		require.Equal(t, 43, b.count("select sum(count) from processor.audit where action = 'retention'"))
		require.Equal(t, 5, b.count("select count(*) from processor.incidents where closed_at is null"))
		require.Equal(t, 10, b.count("select count(*) from processor.requests where state = 'waiting'"))
		require.Equal(t, 1, b.count("select count(*) from processor.requests where stream = 'other'"))
	}
	removed, err := expireEach(t.Context(), r, 0)
	require.NoError(t, err)
	require.EqualValues(t, 3, removed["audit"], "nothing of the last day, whatever is asked for")
}

// A number is taken by each attempt to note a conflict, also of one that is noted.
func TestRetentionCountsConflictsAndNotTheirNumbers(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	conflict := func(n int) {
		b.exec(`
insert into processor.conflicts (stream, group_name, device_id, ts, digest, ingested_at, priority, differs, record)
values ($1, $2, 'd', now(), $3, now(), 0, '{}', '{}')`, scope.Stream, scope.Group, strconv.Itoa(n))
	}
	conflict(1)
	b.exec("select setval(pg_get_serial_sequence('processor.conflicts', 'id'), 2000000)")
	conflict(2)
	removed, err := expireEach(t.Context(), store.NewRetention(b.pool, scope, "a.1", time.Hour, 10*time.Second), 10*365*24*time.Hour)
	require.NoError(t, err)
	require.Zero(t, removed["conflicts"])
	require.Equal(t, 2, b.count("select count(*) from processor.conflicts"))
}

// expireEach removes a page of each table.
func expireEach(ctx context.Context, r *store.Retention, age time.Duration) (map[string]int64, error) {
	removed := make(map[string]int64)
	for _, table := range r.Tables() {
		n, _, err := r.Expire(ctx, table, age)
		if err != nil {
			return nil, err
		}
		removed[table] = n
	}
	return removed, nil
}

// Devices without later crossings are passed over once a pass, a page at a time.
func TestRetentionPassesOverWhatStaysAPageAtATime(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.exec(`
insert into processor.timing_changes (tx, id, device_id, number, change, old)
overriding system value
select 1, n, 'dormant-' || n, 1, 'withdrawn', '{}'
from generate_series(1, 12000) n`)
	b.exec(insertTiming, "a", 0, 30)
	b.exec(insertTiming, "b", 0, 1)
	r := store.NewRetention(b.pool, scope, "a.1", 24*time.Hour, 10*time.Second)
	pass := func() (pages int, all int64) {
		for more := true; more; pages++ {
			var removed int64
			var err error
			removed, more, err = r.Expire(t.Context(), "timing_changes", time.Hour)
			require.NoError(t, err)
			all += removed
		}
		return pages, all
	}
	pages, removed := pass()
	require.Equal(t, 1, pages, "nothing was shown for that long")
	require.Zero(t, removed)
	all := int64(0)
	testenv.Wait(t, time.Minute, func() error { // transactions of others on the server hold the feed back
		b.exec("update processor.timing_shown set at = at - interval '25 hours'")
		pages, removed = pass()
		if all += removed; all < 29 {
			return fmt.Errorf("%d of 29 changes removed", all)
		}
		return nil
	})
	require.Equal(t, 3, pages)
	require.EqualValues(t, 29, all)
	pages, removed = pass()
	require.Equal(t, 3, pages, "it began again")
	require.Zero(t, removed)
}
