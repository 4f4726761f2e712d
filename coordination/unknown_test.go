package coordination

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
)

// A shard is force-acquired immediately from an owner that is known to be gone, even
// within the drain it announced, and never from an owner that is unknown.
func TestP8P10AnOwnerIsGoneOnlyWhenKnownToBe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := (&bench{}).quick("me")
		r, err := NewMembership(cfg, nil, Keys{}, func() WorkStatus { return WorkStatus{} }, discard())
		require.NoError(t, err)
		const owner = "owner.1"
		require.False(t, r.owner(owner, 0).Gone, "not polled yet")
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
		require.Equal(t, protocol.OwnerState{Leaving: true}, r.owner(owner, 0))
		require.True(t, r.owner("another.1", 0).Gone)
		<-time.After(cfg.MemberTTL) // bubble time
		look(m)                     // its key is there, and does not advance
		require.True(t, r.owner(owner, 0).Gone)

		m.Number++
		look(m)
		require.False(t, r.owner(owner, 0).Gone, "it is back")
		me := Member{Instance: "me", Incarnation: "1", Number: 1}
		m.Number, m.SinkDown = m.Number+1, cfg.SinkGrace
		look(m, me)
		require.False(t, r.owner(owner, 0).Gone, "this one has just found Postgres again")
		<-time.After(cfg.SinkGrace) // bubble time
		m.Number++
		me.Number++
		look(m, me)
		require.True(t, r.owner(owner, 0).Gone, "without Postgres it cannot release")
		m.Number, m.SinkDown = m.Number+1, cfg.SinkGrace-1
		look(m, me)
		require.False(t, r.owner(owner, 0).Gone)
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

func (l *lostGroup) GroupRecreations(context.Context) ([]protocol.GroupRecreation, []string, error) {
	return []protocol.GroupRecreation{{
		Receipt: "1", Dispatched: telemetry.EntryID{Ms: 4}, Entries: 4, First: telemetry.EntryID{Ms: 1}, Last: telemetry.EntryID{Ms: 4},
	}}, nil, nil
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
	w := NewDataLossDetector(lost, lost, nil, discard(), prometheus.NewRegistry())
	require.NoError(t, w.Do(t.Context(), 1))
	require.Zero(t, lost.closed)
	lost.backlog = protocol.Backlog{Pending: 1, Oldest: telemetry.EntryID{Ms: 4}, OldestKnown: true}
	require.NoError(t, w.Do(t.Context(), 1))
	require.Zero(t, lost.closed)
	lost.backlog = protocol.Backlog{OldestKnown: true}
	require.NoError(t, w.Do(t.Context(), 1))
	require.Equal(t, 1, lost.closed)
}
