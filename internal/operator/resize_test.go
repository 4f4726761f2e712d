package operator_test

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/config"
	"github.com/trmtracking/processor/internal/operator"
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/store/schema"
	"github.com/trmtracking/processor/internal/testenv"
)

// A request for the second stream comes once both are drained.
func TestOfStreamsThatAreResizedOneThatFailsEndsNoOther(t *testing.T) {
	corner := testenv.Redis(t)
	database := testenv.Postgres(t, testenv.WithTemplate("migrated", func(ctx context.Context, url string) error {
		_, err := schema.Migrate(ctx, url, slog.New(slog.DiscardHandler))
		return err
	}))
	pool, err := store.Open(t.Context(), store.Config{URL: database, Member: "test", MaxConns: 2, ConnectTimeout: time.Minute, StatementTimeout: time.Minute, LockTimeout: time.Minute})
	require.NoError(t, err)
	defer pool.Close()
	var fleets []*operator.Fleet
	one, two := corner.Stream, corner.Stream+"-b"
	for _, name := range []string{one, two} {
		scope := store.Scope{Stream: name, Group: corner.Group}
		require.NoError(t, store.Pin(t.Context(), pool, scope, "test", time.Minute, []store.Setting{{Name: "SHARDS", Value: "16"}}))
		require.NoError(t, store.NewShards(pool, scope, time.Minute).Ensure(t.Context(), 16))
		require.NoError(t, corner.Client().XGroupCreateMkStream(t.Context(), name, corner.Group, "$").Err())
		cfg, err := config.LoadServers([]string{
			"REDIS_URL=" + corner.URL, "POSTGRES_URL=" + database, "REDIS_TELEMETRY_STREAM=" + name, "REDIS_CONSUMER_GROUP=" + corner.Group,
		})
		require.NoError(t, err)
		fleet, err := operator.Open(t.Context(), cfg, "test", "test")
		require.NoError(t, err)
		defer fleet.Close()
		fleets = append(fleets, fleet)
	}

	request, err := pool.Begin(t.Context())
	require.NoError(t, err)
	_, err = request.Exec(t.Context(), "insert into processor.requests (stream, group_name, kind, shard, requested_by) values ($1, $2, 'recompute', 3, 'test')", two, corner.Group)
	require.NoError(t, err)
	resized := make(chan error, 1)
	go func() {
		_, err := operator.ResizeAll(t.Context(), fleets, 64, nil)
		resized <- err
	}()
	testenv.Wait(t, 20*time.Second, func() error {
		var waiting int
		if err := pool.QueryRow(t.Context(), `select count(*) from pg_locks where not granted and relation = 'processor.requests'::regclass
  and database = (select oid from pg_database where datname = current_database())`).Scan(&waiting); err != nil || waiting == 2 {
			return err
		}
		return errors.New("not all streams are about to be changed")
	})
	require.NoError(t, request.Commit(t.Context()))
	err = <-resized
	require.ErrorContains(t, err, "stream "+two+": change the number of shards from 16 to 64")
	require.ErrorContains(t, err, "changed: "+one+"; not changed: "+two+": run it again for the rest; if it waits for what "+two+
		" has to do, start an instance with REDIS_TELEMETRY_STREAM="+two+" SHARDS=16 meanwhile")
	_, err = pool.Exec(t.Context(), "update processor.requests set state = 'done'")
	require.NoError(t, err)
	all, err := operator.ResizeAll(t.Context(), fleets, 64, nil)
	require.NoError(t, err)
	require.False(t, all[0].Changed)
	require.True(t, all[1].Changed)
}
