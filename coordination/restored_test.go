package coordination

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/stream"
	"github.com/trmtracking/processor/internal/telemetry"
)

// P6: what Postgres lost and the stream no longer holds is in the ledger when
// the shard is granted, once; and what the stream holds is redelivered.
func TestP6WhatARestoredPostgresLacksAndTheStreamTrimmedIsInTheLedger(t *testing.T) {
	for _, full := range []bool{false, true} {
		t.Run(fmt.Sprintf("in a full Redis %v", full), func(t *testing.T) {
			t.Parallel()
			client := ownRedis(t)
			b := newBenchOn(t, client, stream.Config{URL: "redis://" + client.Options().Addr, Stream: "s", Group: "g", Shards: shards, Timeout: 5 * time.Second})
			b.restore(full)
		})
	}
}

func (b *bench) restore(full bool) {
	t := b.t
	ctx := t.Context()
	var devices []string
	for i := range 60 {
		devices = append(devices, fmt.Sprint("device-", i))
	}
	ids := b.dispatched(devices...)
	m := b.start("first", "")
	b.await([]int{shards}, m)
	last := make(map[int]telemetry.EntryID)
	for i, d := range devices {
		shard := telemetry.ShardOf(d, shards)
		require.NoError(t, b.group.Ack(ctx, []protocol.Ack{{Shard: shard, Token: m.engine.token(shard), IDs: ids[i : i+1], Applied: ids[i]}}))
		last[shard] = ids[i]
	}
	m.stop()
	// As if Postgres were restored to when the first twenty were committed.
	of := make(map[int]telemetry.EntryID)
	for i, d := range devices[:20] {
		of[telemetry.ShardOf(d, shards)] = ids[i]
	}
	b.exec("delete from processor.progress")
	for shard, id := range of {
		b.exec("insert into processor.progress (stream, group_name, shard, applied_id) values ($1, $2, $3, $4)", b.where.Stream, b.where.Group, shard, id.String())
	}
	require.NoError(t, b.client.XTrimMinID(ctx, b.where.Stream, ids[50].String()).Err())

	if full { // what is written while shards are acquired may not need room
		require.NoError(t, b.client.ConfigSet(ctx, "maxmemory", "1").Err())
		require.ErrorContains(t, b.client.Set(ctx, "any", "x", 0).Err(), "OOM")
	}
	for i, name := range []string{"second", "third"} {
		m := b.start(name, "")
		b.await([]int{shards}, m)
		m.stop()
		b.requireLost(ids[20:50]...)
		b.requireKept(ids[51:]...)
		require.Zero(t, b.count("select count(*) from processor.losses where cause <> 'restored' or entries is not null or shard is null"))
		rows := b.count("select count(*) from processor.losses")
		require.Equal(t, b.count("select count(distinct shard) from processor.losses"), rows, "once")
		if i == 0 {
			require.Equal(t, float64(rows), labelled(t, m.reg, "processor_coordination_losses_total", "restored"), "each is counted, for the alert")
		}
	}
	info, err := b.group.Info(ctx)
	require.NoError(t, err)
	require.EqualValues(t, 10, info.Pending, "what is left of it is redelivered")
}
