package main

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/fault"
	"github.com/trmtracking/processor/internal/operator"
	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/internal/testenv/servicetest"
)

func traced(dep *servicetest.Deployment) operator.Trace {
	dep.T.Helper()
	p := servicetest.Spawn(dep.T, dep.Environ(servicetest.FourShards), "trace", servicetest.IMEI, "--json")
	require.Zero(dep.T, p.Exit(40*time.Second), p.Errors())
	var tr operator.Trace
	require.NoError(dep.T, json.Unmarshal([]byte(p.Output()), &tr))
	return tr
}

func TestTraceSaysThatThereIsNoStream(t *testing.T) {
	dep := servicetest.New(t)
	p := servicetest.Spawn(t, dep.Environ(), "trace", "nosuch")
	require.Zero(t, p.Exit(40*time.Second), p.Errors())
	require.Contains(t, p.Output(), "stream "+dep.Stream+" does not exist: set REDIS_TELEMETRY_STREAM")
	require.NotContains(t, p.Output(), "no entries")
}

func TestTraceSaysWhereEachEntryIs(t *testing.T) {
	dep := servicetest.New(t)
	p := dep.Run(servicetest.FourShards)
	p.AwaitReady()
	garbled := []string{"ts", "2026-01-01T00:00:00.000Z", "device_id", servicetest.IMEI, "codec", "8", "payload", "$GPRMC,081836,A*62"}
	ids := dep.Publish(servicetest.Record(servicetest.IMEI, 1), servicetest.InvalidRecord(servicetest.IMEI, 2), garbled, servicetest.Record("another-device", 1))
	dep.AwaitStored(2, 30*time.Second)
	dep.AwaitDeadLetters(1)
	var tr operator.Trace
	testenv.Wait(t, 30*time.Second, func() error {
		if tr = traced(dep); len(tr.Entries) != 3 || tr.Entries[0].State != "deferred" {
			return fmt.Errorf("have %+v", tr.Entries)
		}
		return nil
	})
	require.Equal(t, telemetry.ShardOf(servicetest.IMEI, 4), tr.Shard)
	require.Contains(t, *tr.Owner, ".")
	require.True(t, tr.Complete)
	require.Equal(t, "dead letter", tr.Entries[1].State)
	require.Equal(t, "stored", tr.Entries[2].State)
	require.Equal(t, ids[0].String(), tr.Entries[2].ID)
	require.Zero(t, p.Terminate())

	dep.Publish(servicetest.Record(servicetest.IMEI, 5), servicetest.Record(servicetest.IMEI, 6))
	tr = traced(dep)
	require.Nil(t, tr.Owner, "never a name that is not true any more")
	require.Equal(t, []string{"in the stream", "in the stream"}, []string{tr.Entries[0].State, tr.Entries[1].State})
	c := dep.Client()
	got, err := c.XReadGroup(t.Context(), &redis.XReadGroupArgs{
		Group: dep.Group, Consumer: "stranger", Streams: []string{dep.Stream, ">"}, Count: 2,
	}).Result()
	require.NoError(t, err)
	require.NoError(t, c.XAck(t.Context(), dep.Stream, dep.Group, got[0].Messages[0].ID).Err())
	tr = traced(dep)
	require.Equal(t, "pending", tr.Entries[0].State)
	require.Contains(t, tr.Entries[0].Detail, "stranger")
	require.Equal(t, "done, no row", tr.Entries[1].State, "it was acknowledged by hand")

	dep.Publish(servicetest.Record(servicetest.IMEI, 7), servicetest.Record("another-device", 2), servicetest.Record(servicetest.IMEI, 8))
	var shown operator.Device
	dep.Ask(fault.Clean, &shown, "device", "show", servicetest.IMEI)
	require.EqualValues(t, 1, *shown.Pending, "its own, not those of its shard")
	require.EqualValues(t, 2, *shown.Undispatched)
	require.EqualValues(t, 1, *shown.DeadLetters)
	require.EqualValues(t, 1, shown.Deferred)
	require.False(t, shown.AtLeast)
	dep.Ask(fault.Clean, &shown, "device", "show", "another-device")
	require.Zero(t, *shown.Pending)
	require.EqualValues(t, 1, *shown.Undispatched)

	text := servicetest.Spawn(t, dep.Environ(servicetest.FourShards), "trace", servicetest.IMEI, "--last", "4")
	require.Zero(t, text.Exit(40*time.Second), text.Errors())
	require.Regexp(t, `owner +none\n`, text.Output())
	require.Regexp(t, `\d+-\d+ +2023-11-14 22:13:26 +pending`, text.Output())
}
