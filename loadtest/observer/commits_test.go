package observer_test

import (
	"context"
	"log/slog"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/store/schema"
	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/loadtest/observer"
	"github.com/trmtracking/processor/loadtest/oracle"
)

// watched returns connections of a member to a database with the tables of the service.
func watched(t *testing.T) *pgxpool.Pool {
	t.Helper()
	url := testenv.Postgres(t, testenv.WithTemplate("loadtest", func(ctx context.Context, url string) error {
		_, err := schema.Migrate(ctx, url, slog.New(slog.DiscardHandler))
		return err
	}))
	cfg, err := pgxpool.ParseConfig(url)
	require.NoError(t, err)
	cfg.ConnConfig.RuntimeParams["application_name"] = store.ApplicationName("a.1")
	pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	return pool
}

// The service stores rows that replace others after a savepoint. Of a row without a member
// nothing can be said.
func TestWhoCommittedARowAfterASavepointIsKnown(t *testing.T) {
	t.Parallel()
	pool := watched(t)
	o := observer.NewObserver(pool, store.Scope{Stream: "s", Group: "g"})
	require.NoError(t, o.Install(t.Context()))
	require.NoError(t, pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
		for _, sql := range []string{insertOf("before"), "savepoint late", insertOf("within"), "release savepoint late", insertOf("after")} {
			if _, err := tx.Exec(t.Context(), sql); err != nil {
				return err
			}
		}
		return nil
	}))
	members := map[string]string{}
	for c, err := range o.Commits(t.Context()) {
		require.NoError(t, err)
		require.NotZero(t, c.AtUS)
		members[c.Device] = c.Member
	}
	require.Equal(t, map[string]string{"before": "a.1", "within": "a.1", "after": "a.1"}, members)
	times, err := o.CommitTimes(t.Context())
	require.NoError(t, err)
	require.Len(t, times, 3)
	require.Equal(t, times[0], times[1], "of one commit")
}

// insertOf returns the command that stores a row of a device.
func insertOf(device string) string {
	return `
insert into public.positions (device_id, ts, latitude, longitude, altitude, angle, speed, satellites, priority, codec, attributes)
values ('` + device + `', now(), 1, 1, 0, 0, 0, 0, 0, '8', '{}')`
}

// Attempts that were used up are those of records which the database rejected.
func TestRejectionsAreWhatWasDeferredForTheDatabase(t *testing.T) {
	t.Parallel()
	pool := watched(t)
	o := observer.NewObserver(pool, store.Scope{Stream: "s", Group: "g"})
	require.NoError(t, o.Install(t.Context()))
	_, err := pool.Exec(t.Context(), `
insert into processor.deferred (stream, group_name, entry_id, digest, shard, fields, class, error, fingerprint, attempts,
  first_failed_at, last_failed_at, next_attempt_at, instance, version)
select 's', group_name, entry_id, '', 0, '{}', class, 'e', 'f', 1, 'epoch'::timestamptz + interval '7 us', now(), now(), 'i', 'v'
from (values ('1-1', 'sink', 'g'), ('1-2', 'decode', 'g'), ('1-3', 'sink', 'other')) as d (entry_id, class, group_name)`)
	require.NoError(t, err)
	list, err := o.Rejections(t.Context())
	require.NoError(t, err)
	require.Equal(t, []oracle.Rejection{{ID: oracle.ID{Ms: 1, Seq: 1}, AtUS: 7}}, list)
}
