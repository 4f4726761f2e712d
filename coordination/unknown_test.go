package coordination

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
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
	noJanitor
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
		g := newGroupGauges(source, janitor, 5*time.Second)
		reg.MustRegister(g)
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
		g.refresh(t.Context())
		require.Equal(t, map[string]float64{pending: 3, lag: 4}, shown(), "neither the deferred entries nor the oldest entry are known")
		janitor.n, janitor.known = 2, true
		g.refresh(t.Context())
		require.Equal(t, map[string]float64{pending: 3, lag: 4, outstanding: 9}, shown())
		source.now = protocol.Backlog{Pending: 3, Oldest: telemetry.EntryID{Ms: uint64(time.Now().UnixMilli()) - 7000}, OldestKnown: true}
		g.refresh(t.Context())
		require.Equal(t, map[string]float64{pending: 3, age: 7}, shown())

		janitor.known = false
		source.now = protocol.Backlog{LagKnown: true, OldestKnown: true}
		g.refresh(t.Context())
		require.Equal(t, map[string]float64{pending: 0, lag: 0, age: 0}, shown(), "what was deferred is known no more")
		<-time.After(5*time.Second + 1)
		require.Empty(t, shown(), "counts are stale")

		g.refresh(t.Context())
		require.Len(t, shown(), 3)
		source.err = errors.New("no answer")
		g.refresh(t.Context())
		require.Empty(t, shown(), "Redis does not answer")
	})
}

// A shard is force-acquired immediately from an owner that is known to be gone, even
// within the drain it announced, and never from an owner that is unknown.
func TestP8P10AnOwnerIsGoneOnlyWhenKnownToBe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := (&bench{}).quick("me")
		r, err := NewMembership(cfg, nil, Keys{}, func() WorkStatus { return WorkStatus{} }, discard())
		require.NoError(t, err)
		const owner = "owner.1"
		require.False(t, r.owner(owner).Gone, "not polled yet")
		_, silent := r.silent(owner)
		require.False(t, silent)

		look := func(members ...Member) {
			beats := make([]protocol.Beat, len(members))
			for i, m := range members {
				beats[i] = m.beat()
			}
			r.watch.Observe(time.Now(), beats)
			r.members, r.polled = members, true
		}
		m := Member{Instance: "owner", Incarnation: "1", Number: 1, Leaving: true}
		look(m)
		require.Equal(t, protocol.OwnerState{Leaving: true}, r.owner(owner))
		require.True(t, r.owner("another.1").Gone)
		<-time.After(cfg.MemberTTL) // bubble time
		look(m)                     // its key is there, and does not advance
		require.True(t, r.owner(owner).Gone)

		m.Number++
		look(m)
		require.False(t, r.owner(owner).Gone, "it is back")
		m.Number, m.SinkDown = m.Number+1, cfg.SinkGrace
		look(m)
		require.True(t, r.owner(owner).Gone, "without Postgres it cannot release")
		m.Number, m.SinkDown = m.Number+1, cfg.SinkGrace-1
		look(m)
		require.False(t, r.owner(owner).Gone)
	})
}

// recreations renames GroupRecreations, so that the method name is free.
type recreations interface{ GroupRecreations }

// lostGroup is a stream whose group was lost, and a ledger.
type lostGroup struct {
	recreations
	RecreationLedger
	backlog protocol.Backlog
	closed  int
}

func (l *lostGroup) GroupRecreations(context.Context) ([]protocol.GroupRecreation, error) {
	return []protocol.GroupRecreation{{
		Receipt: "1", Dispatched: telemetry.EntryID{Ms: 4}, Entries: 4, First: telemetry.EntryID{Ms: 1}, Last: telemetry.EntryID{Ms: 4},
	}}, nil
}

func (l *lostGroup) Backlog(context.Context) (protocol.Backlog, error) { return l.backlog, nil }

func (l *lostGroup) Snapshot(context.Context, []telemetry.EntryID) (protocol.StreamSnapshot, error) {
	return protocol.StreamSnapshot{}, nil
}

func (l *lostGroup) HighWatermark(context.Context) (protocol.HighWatermark, error) {
	return protocol.HighWatermark{}, nil
}

func (l *lostGroup) ResolveRecreation(context.Context, *protocol.GroupRecreation) error { return nil }

func (l *lostGroup) GroupHistory(context.Context, string, time.Duration) (protocol.GroupHistory, error) {
	return protocol.GroupHistory{}, nil
}

func (l *lostGroup) OpenIncidents(context.Context) (map[string]int, error) { return nil, nil }

func (l *lostGroup) Open(context.Context, string, string, map[string]any) error { return nil }

func (l *lostGroup) Close(context.Context, string, string) error {
	l.closed++
	return nil
}

// An unknown oldest entry does not mean that there is none.
func TestP10ALostGroupStaysOpenWhileTheBacklogIsUnknown(t *testing.T) {
	t.Parallel()
	lost := &lostGroup{}
	w := NewDataLossDetector(lost, lost, discard(), prometheus.NewRegistry())
	require.NoError(t, w.Do(t.Context(), 1))
	require.Zero(t, lost.closed)
	lost.backlog = protocol.Backlog{Pending: 1, Oldest: telemetry.EntryID{Ms: 4}, OldestKnown: true}
	require.NoError(t, w.Do(t.Context(), 1))
	require.Zero(t, lost.closed)
	lost.backlog = protocol.Backlog{OldestKnown: true}
	require.NoError(t, w.Do(t.Context(), 1))
	require.Equal(t, 1, lost.closed)
}
