package pipeline_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/pipeline"
)

// TestP7AConnectionLostInACommitBlamesNoRow loses the connection in one commit
// after another. Each time the shard is given up and taken again, as coordination
// does; the entry is not accused of it.
func TestP7AConnectionLostInACommitBlamesNoRow(t *testing.T) {
	t.Parallel()
	for name, lost := range map[string]error{
		"unknown outcome": &protocol.Failure{Kind: protocol.Unknown, Err: errors.New("connection reset")},
		"not sorted":      errors.New("connection reset"),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			var failing atomic.Bool
			failing.Store(true)
			in := b.Start("one", func(_ *pipeline.Config, d *pipeline.Deps) {
				d.Sink = &sink{Sink: d.Sink, before: func(*protocol.Batch) error {
					if failing.Load() {
						return lost
					}
					return nil
				}}
			})
			b.Publish(at(1, 1), at(1, 2), at(1, 3))
			for range 4 {
				b.AcquireAll(in)
				testenv.Wait(t, 10*time.Second, func() error {
					lost := in.Lost()
					if len(lost) == 0 {
						return errors.New("the shard is not given up")
					}
					require.Equal(t, pipeline.OutcomeUnknown, lost[0].Cause)
					return nil
				})
			}
			failing.Store(false)
			b.AcquireAll(in)
			b.Settled(10*time.Second, 0)
			require.NoError(t, b.rows(3))
			require.Zero(t, b.Client.XLen(t.Context(), b.Stream+":dlq").Val(), "nothing was given up")
			require.Zero(t, b.Count("select count(*) from processor.deferred"))
		})
	}
}

// TestP7WhereNoStatementIsAcceptedNoEntryIsDeadLettered has the platform refuse every
// statement, also one without a row, as a trigger does that keeps a table as it is
// for a while. Whom to blame cannot be found out then: it is waited for.
func TestP7WhereNoStatementIsAcceptedNoEntryIsDeadLettered(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	var attempts atomic.Int32
	in := b.Start("one", func(_ *pipeline.Config, d *pipeline.Deps) {
		d.Sink = &sink{Sink: d.Sink, before: func(*protocol.Batch) error {
			attempts.Add(1)
			return nil
		}}
	})
	b.AcquireAll(in)
	for _, sql := range []string{
		`create function public.closed() returns trigger language plpgsql as $$ begin raise 'closed for maintenance'; end $$`,
		`create trigger closed before insert on positions for each statement execute function public.closed()`,
	} {
		_, err := b.Pool.Exec(t.Context(), sql)
		require.NoError(t, err)
	}
	opened := func() {
		_, err := b.Pool.Exec(context.Background(), `drop trigger if exists closed on positions`)
		require.NoError(t, err)
	}
	t.Cleanup(opened)
	const n = 8
	var entries [][]string
	for i := range n {
		entries = append(entries, at(1, int64(i)))
	}
	b.Publish(entries...)
	testenv.Wait(t, 10*time.Second, func() error {
		if attempts.Load() < 10 {
			return errors.New("not tried yet")
		}
		return nil
	})
	<-time.After(time.Second)
	require.Less(t, attempts.Load(), int32(40), "it waits between two attempts")
	require.Zero(t, b.Client.XLen(t.Context(), b.Stream+":dlq").Val())
	opened()
	b.Settled(10*time.Second, 0)
	letters := int(b.Client.XLen(t.Context(), b.Stream+":dlq").Val())
	require.LessOrEqual(t, letters, 1, "the one that was refused alone")
	require.NoError(t, b.rows(n-letters))
}
