package tasks_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/coordination"
	"github.com/trmtracking/processor/coordination/tasks"
	"github.com/trmtracking/processor/internal/history"
	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
)

// hour is a fleet of four shards and the ring of its history.
type hour struct {
	owner []string
	ring  []string
	full  bool
}

func (h *hour) List(context.Context) ([]protocol.Shard, error) {
	var list []protocol.Shard
	for i, owner := range h.owner {
		list = append(list, protocol.Shard{Shard: i, Owner: owner, Assigned: "b.1"})
		if owner == "a.1" {
			list[i].Assigned = "a.1"
		}
	}
	return list, nil
}

func (h *hour) Deferring() (int64, bool) { return 3, true }

func (h *hour) AddHistory(_ context.Context, sample string, limit int) error {
	if h.full {
		return errors.New("OOM command not allowed")
	}
	h.ring = append(h.ring, sample)
	h.ring = h.ring[max(0, len(h.ring)-limit):]
	return nil
}

func TestHistoryHasASampleEveryFewSecondsAndAtEachHandOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &hour{owner: []string{"a.1", "a.1", "b.1", "b.1"}}
		task := tasks.NewHistory(tasks.HistoryDeps{
			Shards: h, Deferred: h, Ring: h,
			Members: func() []coordination.Member { return []coordination.Member{{Version: "1.0"}, {Version: "1.1"}} },
			Backlog: func(context.Context) (protocol.Backlog, int64, error) {
				return protocol.Backlog{Pending: 7, Lag: 2, LagKnown: true, OldestKnown: true, Oldest: telemetry.EntryID{Ms: uint64(time.Now().UnixMilli()) - 1500}}, 100, nil
			},
		})
		began := time.Now()
		for time.Since(began) < time.Minute {
			require.NoError(t, task.Do(t.Context(), 1))
			<-time.After(250 * time.Millisecond)
		}
		require.Len(t, h.ring, 12)
		h.owner[0] = "" // a hand-over of one second
		<-time.After(time.Second)
		require.NoError(t, task.Do(t.Context(), 1))
		h.owner[0] = "b.1"
		<-time.After(time.Second)
		require.NoError(t, task.Do(t.Context(), 1))

		w := history.Decode(h.ring, began)
		last := w.Samples[len(w.Samples)-1]
		backlog, known := last.Backlog()
		require.True(t, known)
		require.EqualValues(t, 12, backlog)
		require.EqualValues(t, 1500, last.At-*last.Oldest)
		require.Equal(t, map[string]int{"1.0": 1, "1.1": 1}, last.Versions)
		line := w.Timeline(4, time.Now())[0]
		require.Equal(t, []string{"a.1", "", "b.1"}, []string{line[0].Owner, line[1].Owner, line[2].Owner})

		// A full Redis loses samples and no owners.
		h.full, h.owner[1] = true, "b.1"
		<-time.After(time.Second)
		require.Error(t, task.Do(t.Context(), 1))
		h.full = false
		<-time.After(history.Every)
		require.NoError(t, task.Do(t.Context(), 1))
		w = history.Decode(h.ring, began)
		require.Equal(t, "b.1", w.Owners[len(w.Owners)-1].Name(1))
	})
}
