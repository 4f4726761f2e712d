package operator_test

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/config"
	"github.com/trmtracking/processor/internal/operator"
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/store/schema"
	"github.com/trmtracking/processor/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// deployment is what commands of one test work on.
type deployment struct {
	*testing.T
	redis    *testenv.RedisCorner
	database string // its URL
	pool     *pgxpool.Pool
}

func newDeployment(t *testing.T) *deployment {
	t.Helper()
	d := &deployment{T: t, redis: testenv.Redis(t)}
	d.database = testenv.Postgres(t, testenv.WithTemplate("migrated", func(ctx context.Context, url string) error {
		_, err := schema.Migrate(ctx, url, slog.New(slog.DiscardHandler))
		return err
	}))
	var err error
	d.pool, err = store.Open(t.Context(), store.Config{URL: d.database, Member: "test", MaxConns: 2, ConnectTimeout: time.Minute, StatementTimeout: time.Minute, LockTimeout: time.Minute})
	require.NoError(t, err)
	t.Cleanup(d.pool.Close)
	return d
}

// fleet opens a stream of 16 shards without instances, whose entries are delivered.
func (d *deployment) fleet(stream string) *operator.Fleet {
	d.Helper()
	scope := store.Scope{Stream: stream, Group: d.redis.Group}
	require.NoError(d, store.Pin(d.Context(), d.pool, scope, "test", time.Minute, []store.Setting{{Name: "SHARDS", Value: "16"}}))
	require.NoError(d, store.NewShards(d.pool, scope, time.Minute).Ensure(d.Context(), 16))
	require.NoError(d, d.redis.Client().XGroupCreateMkStream(d.Context(), stream, d.redis.Group, "$").Err())
	cfg, err := config.LoadServers([]string{
		"REDIS_URL=" + d.redis.URL, "POSTGRES_URL=" + d.database, "REDIS_TELEMETRY_STREAM=" + stream, "REDIS_CONSUMER_GROUP=" + d.redis.Group,
	})
	require.NoError(d, err)
	fleet, err := operator.Open(d.Context(), cfg, "test", "test")
	require.NoError(d, err)
	d.Cleanup(fleet.Close)
	return fleet
}
