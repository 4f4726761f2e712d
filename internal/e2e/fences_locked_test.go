package e2e_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/internal/testenv/servicetest"
)

// P7, P8: an instance that cannot work yet, since it has no fences, takes no shard from
// those that can, and does not say that it is ready.
func TestAnInstanceWithoutFencesTakesNoShard(t *testing.T) {
	dep := servicetest.New(t)
	dep.Run("SHARDS=8", "INSTANCE_ID=first").AwaitReady()
	held, err := pgx.Connect(t.Context(), dep.PostgresURL)
	require.NoError(t, err)
	defer func() { _ = held.Close(context.WithoutCancel(t.Context())) }()
	_, err = held.Exec(t.Context(), "begin; lock table processor.geofences in access exclusive mode")
	require.NoError(t, err)
	second := dep.Run("SHARDS=8", "INSTANCE_ID=second", "MIGRATE=off") // which reads the catalogue, and waits there
	second.Await("load fences")
	dep.Publish(servicetest.RecordsOfMany(0, 40)...)
	dep.AwaitStored(40, 20*time.Second)
	owned := func(instance string, want int) error {
		n, err := dep.Count("select count(*) from processor.shards where owner like '" + instance + ".%'")
		if err == nil && n != want {
			err = fmt.Errorf("%s owns %d shards, want %d", instance, n, want)
		}
		return err
	}
	require.NoError(t, owned("first", 8))
	require.NotContains(t, second.Output(), "acquired shards")
	_, err = held.Exec(t.Context(), "rollback")
	require.NoError(t, err)
	second.AwaitReady()
	testenv.Wait(t, 20*time.Second, func() error { return owned("second", 4) })
}
