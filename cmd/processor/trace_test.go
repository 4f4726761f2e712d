package main

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/internal/testenv"
)

func (pl *place) traced() traceJSON {
	pl.t.Helper()
	p := spawn(pl.t, pl.environ(fourShards), "trace", imei, "--json")
	require.Zero(pl.t, p.exit(40*time.Second), p.errors())
	var tr traceJSON
	require.NoError(pl.t, json.Unmarshal([]byte(p.output()), &tr))
	return tr
}

func TestTraceSaysThatThereIsNoStream(t *testing.T) {
	pl := newPlace(t)
	p := spawn(t, pl.environ(), "trace", "nosuch")
	require.Zero(t, p.exit(40*time.Second), p.errors())
	require.Contains(t, p.output(), "stream "+pl.stream+" does not exist: set REDIS_TELEMETRY_STREAM")
	require.NotContains(t, p.output(), "no entries")
}

func TestTraceSaysWhereEachEntryIs(t *testing.T) {
	pl := newPlace(t)
	p := pl.run(fourShards)
	p.awaitReady()
	garbled := []string{"ts", "2026-01-01T00:00:00.000Z", "device_id", imei, "codec", "8", "payload", "$GPRMC,081836,A*62"}
	ids := pl.publish(good(imei, 1), letter(imei, 2), garbled, good("another-device", 1))
	pl.awaitStored(2, 30*time.Second)
	pl.awaitLetters(1)
	var tr traceJSON
	testenv.Wait(t, 30*time.Second, func() error {
		if tr = pl.traced(); len(tr.Entries) != 3 || tr.Entries[0].State != "deferred" {
			return fmt.Errorf("have %+v", tr.Entries)
		}
		return nil
	})
	require.Equal(t, telemetry.ShardOf(imei, 4), tr.Shard)
	require.Contains(t, *tr.Owner, ".")
	require.True(t, tr.Complete)
	require.Equal(t, "dead letter", tr.Entries[1].State)
	require.Equal(t, "stored", tr.Entries[2].State)
	require.Equal(t, ids[0].String(), tr.Entries[2].ID)
	require.Zero(t, terminated(p))

	pl.publish(good(imei, 5), good(imei, 6))
	tr = pl.traced()
	require.Nil(t, tr.Owner, "never a name that is not true any more")
	require.Equal(t, []string{"in the stream", "in the stream"}, []string{tr.Entries[0].State, tr.Entries[1].State})
	c := pl.client()
	got, err := c.XReadGroup(t.Context(), &redis.XReadGroupArgs{
		Group: pl.group, Consumer: "somebody", Streams: []string{pl.stream, ">"}, Count: 2,
	}).Result()
	require.NoError(t, err)
	require.NoError(t, c.XAck(t.Context(), pl.stream, pl.group, got[0].Messages[0].ID).Err())
	tr = pl.traced()
	require.Equal(t, "pending", tr.Entries[0].State)
	require.Contains(t, tr.Entries[0].Detail, "somebody")
	require.Equal(t, "done, no row", tr.Entries[1].State, "it was acknowledged by hand")

	pl.publish(good(imei, 7), good("another-device", 2), good(imei, 8))
	var shown deviceShown
	pl.ask(exitClean, &shown, "device", "show", imei)
	require.EqualValues(t, 1, *shown.Pending, "its own, not those of its shard")
	require.EqualValues(t, 2, *shown.Undealt)
	require.EqualValues(t, 1, *shown.DeadLetters)
	require.EqualValues(t, 1, shown.Deferred)
	require.False(t, shown.AtLeast)
	pl.ask(exitClean, &shown, "device", "show", "another-device")
	require.Zero(t, *shown.Pending)
	require.EqualValues(t, 1, *shown.Undealt)

	text := spawn(t, pl.environ(fourShards), "trace", imei, "--last", "4")
	require.Zero(t, text.exit(40*time.Second), text.errors())
	require.Regexp(t, `owner +nobody\n`, text.output())
	require.Regexp(t, `\d+-\d+ +2023-11-14 22:13:26 +pending`, text.output())
}
