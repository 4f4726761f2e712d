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
)

// The service stores rows that replace others after a savepoint. Of a row without a member
// nothing can be said.
func TestWhoCommittedARowAfterASavepointIsKnown(t *testing.T) {
	t.Parallel()
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
