package e2e_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
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

// P8: tables that the commit of a good record does not rest on may be locked, as by an index
// that is built or a table that is rewritten.
func TestP8ALockOfTablesThatCommitsDoNotNeedStopsNone(t *testing.T) {
	needed := []string{
		"shards", "progress", // what a commit checks and marks
		"settings",     // by which a new connection knows its database
		"devices",      // which stream a device belongs to, once a day
		"geofence_set", // the version of the fences that crossings are derived by
	}
	dep := servicetest.New(t)
	dep.Run("SHARDS=8").AwaitReady()
	conn, err := pgx.Connect(t.Context(), dep.PostgresURL)
	require.NoError(t, err)
	defer func() { _ = conn.Close(context.WithoutCancel(t.Context())) }()
	rows, err := conn.Query(t.Context(), "select tablename from pg_tables where schemaname = 'processor'")
	require.NoError(t, err)
	tables, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(t, err)
	tables = slices.DeleteFunc(tables, func(table string) bool { return slices.Contains(needed, table) })
	require.Greater(t, len(tables), 15)
	dep.Publish(servicetest.RecordsOfMany(0, 40)...)
	dep.AwaitStored(40, 20*time.Second)
	_, err = conn.Exec(t.Context(), "begin; set local idle_in_transaction_session_timeout = 0; lock table processor."+
		strings.Join(tables, ", processor.")+" in access exclusive mode")
	require.NoError(t, err)
	dep.Publish(servicetest.RecordsOfMany(20, 40)...) // half of them again, half of new devices
	dep.AwaitStored(60, 20*time.Second)
	var later [][]string
	for i := range 60 {
		device := fmt.Sprintf("device-%d", i)
		later = append(later, servicetest.Record(device, 1000), servicetest.Record(device, 500))
	}
	dep.Publish(later...)
	dep.AwaitStored(180, 20*time.Second)
}
