package tasks

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/stream"
	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/internal/testenv"
)

// backlogs is a Backlog with answers set by the test.
type backlogs struct {
	now protocol.Backlog
	err error
}

func (b *backlogs) Backlog(context.Context) (protocol.Backlog, error) { return b.now, b.err }

func (b *backlogs) TrimPoint(context.Context) (protocol.TrimPoint, error) {
	return protocol.TrimPoint{}, b.err
}

// countedJanitor has counted the deferred entries, or not.
type countedJanitor struct {
	n     int64
	known bool
}

func (j *countedJanitor) Deferring() (n int64, known bool) { return j.n, j.known }

// The gauges are read while parts of their values are unknown or stale.
func TestP10AGaugeIsAbsentWhereItsValueIsNotKnown(t *testing.T) {
	const lag, pending, outstanding, age = "processor_consumer_lag", "processor_group_pending_entries",
		"processor_group_backlog_entries", "processor_group_backlog_age_seconds"
	synctest.Test(t, func(t *testing.T) {
		reg := prometheus.NewRegistry()
		janitor := &countedJanitor{}
		source := &backlogs{}
		g := NewGroupMetrics(source, janitor, 4*time.Second/3, reg)
		shown := func() map[string]float64 {
			values := make(map[string]float64)
			families, err := reg.Gather()
			require.NoError(t, err)
			for _, f := range families {
				for _, name := range []string{lag, pending, outstanding, age} {
					if f.GetName() == name {
						values[name] = f.GetMetric()[0].GetGauge().GetValue()
					}
				}
			}
			return values
		}
		require.Empty(t, shown(), "not polled yet")

		source.now = protocol.Backlog{Pending: 3, Lag: 4, LagKnown: true}
		require.NoError(t, g.Refresh(t.Context()))
		require.Equal(t, map[string]float64{pending: 3, lag: 4}, shown(), "neither the deferred entries nor the oldest entry are known")
		janitor.n, janitor.known = 2, true
		require.NoError(t, g.Refresh(t.Context()))
		require.Equal(t, map[string]float64{pending: 3, lag: 4, outstanding: 9}, shown())
		source.now = protocol.Backlog{Pending: 3, Oldest: telemetry.EntryID{Ms: uint64(time.Now().UnixMilli()) - 7000}, OldestKnown: true}
		require.NoError(t, g.Refresh(t.Context()))
		require.Equal(t, map[string]float64{pending: 3, age: 7}, shown())

		for _, ms := range []uint64{uint64(time.Now().Add(time.Hour).UnixMilli()), 999_999_999_999_999} { // the latter is in the year 33658
			source.now.Oldest = telemetry.EntryID{Ms: ms}
			require.NoError(t, g.Refresh(t.Context()))
			require.Equal(t, map[string]float64{pending: 3}, shown(), "an ID ahead of the clock has no age")
		}
		janitor.known = false
		source.now = protocol.Backlog{LagKnown: true, OldestKnown: true}
		require.NoError(t, g.Refresh(t.Context()))
		require.Equal(t, map[string]float64{pending: 0, lag: 0, age: 0}, shown(), "what was deferred is known no more")
		<-time.After(5*time.Second + 1)
		require.Empty(t, shown(), "counts are stale")

		require.NoError(t, g.Refresh(t.Context()))
		require.Len(t, shown(), 3)
		source.err = errors.New("no answer")
		require.NoError(t, g.Refresh(t.Context()))
		require.Empty(t, shown(), "Redis does not answer")
	})
}

// P10: a deletion among undispatched entries makes the lag unknown: absent, not 0.
func TestP10TheLagIsAbsentOnceTheServerCountsWrong(t *testing.T) {
	t.Parallel()
	r := testenv.Redis(t)
	client := r.Client()
	group, err := stream.NewGroup(client, stream.Config{Stream: r.Stream, Group: r.Group, Shards: 4})
	require.NoError(t, err)
	reg := prometheus.NewRegistry()
	g := NewGroupMetrics(group, &countedJanitor{known: true}, time.Minute, reg)
	var ids []string
	for range 4 {
		id, err := client.Do(t.Context(), "xadd", r.Stream, "*", "device_id", "device-1").Text()
		require.NoError(t, err)
		ids = append(ids, id)
	}
	lag := func() any {
		require.NoError(t, g.Refresh(t.Context()))
		families, err := reg.Gather()
		require.NoError(t, err)
		for _, f := range families {
			if f.GetName() == "processor_consumer_lag" {
				return f.GetMetric()[0].GetGauge().GetValue()
			}
		}
		return nil
	}
	require.Equal(t, 4.0, lag(), "without a group all of it is lag")
	require.NoError(t, client.Do(t.Context(), "xgroup", "create", r.Stream, r.Group, ids[1], "entriesread", 2).Err())
	require.Equal(t, 2.0, lag())
	require.NoError(t, client.Do(t.Context(), "xdel", r.Stream, ids[2]).Err())
	require.Nil(t, lag())
}
