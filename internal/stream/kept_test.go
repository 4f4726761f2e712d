package stream_test

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/stream"
	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/internal/testenv"
)

// A step that fails leaves the entry pending: nothing undoes an acknowledgement.
func TestADeadLetterThatCannotBeAddedStaysPending(t *testing.T) {
	t.Parallel()
	m := newDLQClient(t)
	letter := m.add("payload", "1")
	require.NoError(t, m.client.Set(t.Context(), m.cfg.Stream+":dlq", "no stream", 0).Err())
	require.Error(t, m.dead.DeadLetter(t.Context(), []telemetry.DeadLetter{letter}, nil))
	require.EqualValues(t, 1, m.pending())
	known, err := m.dead.Known(t.Context(), []telemetry.Ref{letter.Entry.Ref()})
	require.NoError(t, err)
	require.True(t, known[0].IsZero(), "nor is it known as one")
	require.NoError(t, m.client.Del(t.Context(), m.cfg.Stream+":dlq").Err())
	require.NoError(t, m.dead.DeadLetter(t.Context(), []telemetry.DeadLetter{letter}, nil))
	require.Len(t, m.letters(), 1)
	require.Zero(t, m.pending())
}

// The record that an entry is dead-lettered is what makes its redelivery
// harmless: it stays as long as the entry can be delivered, or its letter is young.
func TestADeadLetterIsRememberedAsLongAsItsEntryCanCome(t *testing.T) {
	t.Parallel()
	m := newDLQClient(t)
	first, second := m.add("payload", "1"), m.add("payload", "2")
	require.NoError(t, m.dead.DeadLetter(t.Context(), []telemetry.DeadLetter{first, second}, nil))
	forget := func(before telemetry.EntryID) int {
		n, next, err := m.dead.ForgetDeadLettered(t.Context(), before, 0)
		require.NoError(t, err)
		require.Zero(t, next)
		return n
	}
	require.Zero(t, forget(telemetry.MaxEntryID), "both are still in the stream")
	require.NoError(t, m.client.XTrimMinID(t.Context(), m.cfg.Stream, second.Entry.ID.String()).Err())
	require.Zero(t, forget(telemetry.EntryID{Ms: 1}), "the letter is young")
	require.Equal(t, 1, forget(telemetry.MaxEntryID))
	known, err := m.dead.Known(t.Context(), []telemetry.Ref{first.Entry.Ref(), second.Entry.Ref()})
	require.NoError(t, err)
	require.True(t, known[0].IsZero())
	require.False(t, known[1].IsZero())
}

// The acked mark does not follow an acknowledgement of earlier entries back:
// redelivery compares it with what Postgres has.
func TestTheAckedMarkNeverGoesBack(t *testing.T) {
	t.Parallel()
	m := newDLQClient(t)
	group, err := stream.NewGroup(m.client, m.cfg)
	require.NoError(t, err)
	first, second := m.add("payload", "1").Entry.ID, m.add("payload", "2").Entry.ID
	mark := func() telemetry.EntryID {
		work, _, err := group.Work(t.Context())
		require.NoError(t, err)
		return work[3].Acked
	}
	for _, id := range []telemetry.EntryID{second, first} {
		require.NoError(t, group.Ack(t.Context(), []protocol.Ack{{Shard: 3, IDs: []telemetry.EntryID{id}}}))
		require.Equal(t, second, mark())
	}
	require.Zero(t, m.pending())
}

// A command that waits for a connection was decided for the server before: its caller is told, and
// nothing is sent.
func TestACommandForAServerThatWasReplacedFails(t *testing.T) {
	t.Parallel()
	env := testenv.OwnServers(t, redisOnly())
	cfg := stream.Config{URL: env.Redis.URL(), Stream: "s", Group: "g", Shards: shards, Timeout: waitFor}
	client := connect(t, cfg.URL)
	group, err := stream.NewGroup(client, cfg)
	require.NoError(t, err)
	group.OnServerChange(func() {})
	require.NoError(t, client.Ping(t.Context()).Err())
	require.NoError(t, env.Redis.Restart(t.Context()))
	told := false
	testenv.Wait(t, waitFor, func() error {
		_, err := group.ReadNew(t.Context(), telemetry.EntryID{}, 1, time.Millisecond)
		if err != nil && !told {
			told = told || strings.Contains(err.Error(), "another Redis server answers")
		}
		return err
	})
	require.True(t, told)
}
