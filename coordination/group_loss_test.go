package coordination

import (
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/loadtest/fleet"
)

// P6.
func TestALostGroupIsAnIncidentUntilRedeliveryIsComplete(t *testing.T) {
	b := newBench(t)
	ctx := t.Context()
	// The bench's creation of the group, which no leader has processed.
	watch := func() (*DataLossDetector, *prometheus.Registry) {
		reg := prometheus.NewRegistry()
		ledger := store.NewLedger(b.pool, b.scope(), "watch", time.Minute)
		return NewDataLossDetector(b.group, ledger, NewLosses(ledger, reg), discard(), reg), reg
	}
	for range 2 {
		_, err := store.NewLeader(b.pool, b.scope(), "watch", time.Minute).BeginTerm(ctx)
		require.NoError(t, err)
	}
	one, reg := watch()
	require.NoError(t, one.Do(ctx, 1))
	require.Equal(t, 1, b.count("select count(*) from processor.incidents where kind = 'group_created' and closed_at is not null"))
	require.Zero(t, b.client.LLen(ctx, b.group.Names().Recreations()).Val())

	ids, err := fleet.NewPublisher(b.client, b.where.Stream, 0).Publish(ctx, [][]string{
		{"device_id", "a"}, {"device_id", "b"}, {"device_id", "c"}, {"device_id", "d"},
	})
	require.NoError(t, err)
	dispatch := func(before, token string) (acks []protocol.Ack) {
		lease, err := b.group.AcquireDispatchLease(ctx, before, token, time.Minute)
		require.NoError(t, err)
		require.True(t, lease.Acquired)
		a, err := b.group.ReadNew(ctx, lease.After, 100, time.Millisecond)
		require.NoError(t, err)
		_, err = b.group.Dispatch(ctx, protocol.DispatchRequest{Token: token, TTL: time.Minute, After: lease.After}, &a)
		require.NoError(t, err)
		a.Each(func(shard int, entries []telemetry.Entry) {
			ack := protocol.Ack{Shard: shard}
			for _, e := range entries {
				ack.IDs = append(ack.IDs, e.ID)
			}
			acks = append(acks, ack)
		})
		return acks
	}
	require.NoError(t, b.client.Del(ctx, b.group.Names().DispatchLease()).Err())
	require.NoError(t, b.group.Ack(ctx, dispatch("", "t")))
	require.NoError(t, b.client.XGroupDestroy(ctx, b.where.Stream, b.where.Group).Err())
	acks := dispatch("t", "u")
	for range 3 {
		require.NoError(t, one.Do(ctx, 1))
	}
	two, second := watch() // the next leader
	require.NoError(t, two.Do(ctx, 2))
	open := "select count(*) from processor.incidents where kind = 'group_lost' and (detail->>'entries')::int = 4 and closed_at is null"
	require.Equal(t, 1, b.count(open))
	require.Equal(t, 1.0, labelled(t, reg, "processor_group_open_incidents", "group_lost"))
	require.Equal(t, 1.0, labelled(t, reg, "processor_coordination_data_loss_events_total", "group_lost"))

	require.NoError(t, b.group.Ack(ctx, acks))
	require.NoError(t, two.Do(ctx, 2))
	require.NoError(t, one.Do(ctx, 1))
	require.Equal(t, 1, b.count("select count(*) from processor.incidents where kind = 'group_lost' and closed_at is not null and (detail->>'seconds')::float > 0"))
	require.Equal(t, 2, b.count("select count(*) from processor.incidents"))
	require.Zero(t, b.count("select count(*) from processor.losses"), "nothing was lost")
	require.Zero(t, labelled(t, second, "processor_group_open_incidents", "group_lost"))

	// Redis comes back empty: applied IDs prove that there were entries.
	b.exec("insert into processor.progress (stream, group_name, shard, applied_id, updated_at) values ($1, $2, 0, $3, now() - interval '1 hour')",
		b.where.Stream, b.where.Group, ids[3].String())
	require.NoError(t, b.client.Del(ctx, append(b.group.Names().All(), b.where.Stream)...).Err())
	_, err = b.group.AcquireDispatchLease(ctx, "", "v", time.Minute)
	require.NoError(t, err)
	require.NoError(t, b.client.LPush(ctx, b.group.Names().Recreations(), "x", "{}").Err(), "which holds up nothing behind it")
	require.NoError(t, two.Do(ctx, 2))
	require.Equal(t, 2, b.count("select count(*) from processor.incidents where kind = $1 and closed_at is not null", protocol.UnreadableRecord))
	require.Equal(t, 1, b.count("select count(*) from processor.incidents where kind = 'redis_lost' and closed_at is not null"))
	require.Equal(t, 1, b.count("select count(*) from processor.losses where cause = 'flush' and entries is null and first_id is null"))
	require.Equal(t, 1.0, labelled(t, second, "processor_coordination_losses_total", "flush"), "though nobody can tell how many entries")
	b.requireLost(ids...)
	require.Zero(t, b.client.LLen(ctx, b.group.Names().Recreations()).Val())
}

// labelled returns the value of a metric with one label.
func labelled(t *testing.T, reg *prometheus.Registry, name, label string) float64 {
	t.Helper()
	families, err := reg.Gather()
	require.NoError(t, err)
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == name && m.GetLabel()[0].GetValue() == label {
				return m.GetGauge().GetValue() + m.GetCounter().GetValue()
			}
		}
	}
	return -1
}
