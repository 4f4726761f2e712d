package testenv_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/devenv"
	"github.com/trmtracking/processor/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func execSQL(t *testing.T, url, sql string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	require.NoError(t, err)
	defer conn.Close(context.WithoutCancel(t.Context()))
	_, err = conn.Exec(t.Context(), sql)
	require.NoError(t, err)
}

// Promise 1.
func TestEachTestHasADatabaseOfItsOwnAndOneTemplateServesAll(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("needs a server; not in short mode")
	}
	var built atomic.Int32
	template := testenv.WithTemplate(t.Name(), func(ctx context.Context, url string) error {
		built.Add(1)
		conn, err := pgx.Connect(ctx, url)
		if err != nil {
			return err
		}
		_, err = conn.Exec(ctx, "create table filled (n int)")
		return errors.Join(err, conn.Close(ctx))
	})
	t.Run("group", func(t *testing.T) {
		for range 4 {
			t.Run("test", func(t *testing.T) {
				t.Parallel()
				url := testenv.Postgres(t, template)
				execSQL(t, url, "insert into filled values (1)")
				execSQL(t, url, "create table mine (n int)") // fails if another test got here
			})
		}
	})
	require.EqualValues(t, 1, built.Load())
}

func TestDatabaseIsDroppedAfterItsTest(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("needs a server; not in short mode")
	}
	var url string
	t.Run("test", func(t *testing.T) { url = testenv.Postgres(t) })
	_, err := pgx.Connect(t.Context(), url)
	require.ErrorContains(t, err, "does not exist")
}

// Promise 1.
func TestRedisKeysOfATestGoWithItAndOtherKeysStay(t *testing.T) {
	t.Parallel()
	mine := testenv.Redis(t)
	require.NoError(t, mine.Client().Set(t.Context(), mine.Key("kept"), 1, 0).Err())
	var other *testenv.RedisCorner
	t.Run("test", func(t *testing.T) {
		other = testenv.Redis(t)
		require.NoError(t, other.Client().XAdd(t.Context(), &redis.XAddArgs{Stream: other.Stream, Values: []string{"a", "b"}}).Err())
	})
	require.NotEqual(t, mine.Stream, other.Stream)
	require.Zero(t, mine.Client().Exists(t.Context(), other.Stream).Val())
	require.EqualValues(t, 1, mine.Client().Exists(t.Context(), mine.Key("kept")).Val())
}

// Promise 3.
func TestOwnServersAreNotTheSharedOnes(t *testing.T) {
	t.Parallel()
	env := testenv.OwnServers(t, devenv.Options{Redis: true})
	shared := testenv.Redis(t)
	require.NotEqual(t, shared.URL, env.Redis.URL())
	require.NoError(t, env.Redis.Kill())
	require.NoError(t, shared.Client().Ping(t.Context()).Err())
}

func TestWaitReturnsWhenTheConditionHolds(t *testing.T) {
	t.Parallel()
	looks := 0
	testenv.Wait(t, 5*time.Second, func() error {
		if looks++; looks < 3 {
			return errors.New("not yet")
		}
		return nil
	})
	require.Equal(t, 3, looks)
}
