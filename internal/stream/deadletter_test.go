package stream_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/devenv"
	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/stream"
	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/loadtest/fleet"
)

// dlqClient is a stream with a group whose entries are on the queue of shard 3.
type dlqClient struct {
	tb     testing.TB
	client redis.UniversalClient
	cfg    stream.Config
	dead   *stream.DeadLetters
}

func newDLQClient(tb testing.TB) *dlqClient {
	tb.Helper()
	c := testenv.Redis(tb)
	return dlqClientOn(tb, c.Client(), c.Stream, c.Group)
}

func dlqClientOn(tb testing.TB, client redis.UniversalClient, name, group string) *dlqClient {
	tb.Helper()
	m := &dlqClient{tb: tb, client: client, cfg: stream.Config{Stream: name, Group: group, Shards: 16}}
	var err error
	m.dead, err = stream.NewDeadLetters(m.client, m.cfg, name+":dlq")
	require.NoError(tb, err)
	require.NoError(tb, m.client.XGroupCreateMkStream(tb.Context(), name, group, "0").Err())
	return m
}

// add appends an entry and puts it on the queue.
func (m *dlqClient) add(fields ...string) telemetry.DeadLetter {
	ids, err := fleet.NewPublisher(m.client, m.cfg.Stream, 0).Publish(m.tb.Context(), [][]string{fields})
	require.NoError(m.tb, err)
	require.NoError(m.tb, m.client.Do(m.tb.Context(), "xclaim", m.cfg.Stream, m.cfg.Group, stream.Consumer(3), 0, ids[0].String(), "force", "justid").Err())
	return deadLetter(telemetry.Entry{ID: ids[0], Fields: fields})
}

func deadLetter(e telemetry.Entry) telemetry.DeadLetter {
	at := time.Date(2026, 8, 1, 10, 0, 0, 123456000, time.UTC)
	return telemetry.DeadLetter{
		Entry: e, Shard: 3, Class: telemetry.ClassInvalid, Error: "invalid: payload.latitude: must be from -90 to 90",
		Field: "payload.latitude", Fingerprint: "invalid/payload.latitude/range", Attempts: 1,
		FirstFailed: at, LastFailed: at.Add(time.Minute), Instance: "one", Version: "v1",
	}
}

func (m *dlqClient) pending() int64 {
	p, err := m.client.XPending(m.tb.Context(), m.cfg.Stream, m.cfg.Group).Result()
	require.NoError(m.tb, err)
	return p.Count
}

func (m *dlqClient) letters() []stream.DLQEntry {
	var list []stream.DLQEntry
	for after := (telemetry.EntryID{}); ; after = list[len(list)-1].ID {
		page, err := m.dead.List(m.tb.Context(), after, 1000)
		require.NoError(m.tb, err)
		if list = append(list, page...); len(page) == 0 {
			return list
		}
	}
}

func TestADeadLetterHoldsTheEntryByteForByte(t *testing.T) {
	t.Parallel()
	wide := []string{"device_id", "1"}
	for i := range 5000 {
		wide = append(wide, fmt.Sprint("field ", i), strings.Repeat("x", i%7))
	}
	for name, fields := range map[string][]string{
		"ordinary":         {"ts", "1", "device_id", "356307042441013", "codec", "8E", "payload", `{"a":9007199254740993}`},
		"bytes":            {"a\x00b", "\xff\xfe\r\n$3", "", ""},
		"names like ours":  {"dlq_class", "sink", "dlq_source_id", "1-1", "dlq_original_fields", "0"},
		"a name twice":     {"payload", "1", "payload", "2"},
		"a name of ours":   {"dlq_packed_fields", "3:abc"},
		"too many to pass": wide,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newDLQClient(t)
			want := m.add(fields...)
			require.NoError(t, m.dead.DeadLetter(t.Context(), []telemetry.DeadLetter{want}, nil))
			got := m.letters()
			require.Len(t, got, 1)
			require.NoError(t, got[0].Err)
			require.Equal(t, want, got[0].DeadLetter)
			require.Zero(t, m.pending())
		})
	}
}

func TestMovingAnEntryTwiceLeavesOneDeadLetter(t *testing.T) {
	t.Parallel()
	m := newDLQClient(t)
	var letters []telemetry.DeadLetter
	for i := range 100 {
		letters = append(letters, m.add("payload", fmt.Sprint(i)))
	}
	// Two instances concurrently, one of which has a deferred entry.
	var both sync.WaitGroup
	for range 4 {
		both.Go(func() {
			if err := m.dead.DeadLetter(t.Context(), slices.Clone(letters), nil); err != nil {
				t.Error(err)
			}
		})
	}
	both.Go(func() {
		if err := m.dead.DeadLetterDeferred(t.Context(), slices.Clone(letters[:10]), nil); err != nil {
			t.Error(err)
		}
	})
	both.Wait()
	require.Len(t, m.letters(), 100)
	require.Zero(t, m.pending())

	// Dispatched again after the group was lost: acknowledged, and not added again.
	require.NoError(t, m.client.Do(t.Context(), "xclaim", m.cfg.Stream, m.cfg.Group, stream.Consumer(3), 0, letters[0].Entry.ID.String(), "force", "justid").Err())
	require.EqualValues(t, 1, m.pending())
	require.NoError(t, m.dead.DeadLetter(t.Context(), letters[:1], nil))
	require.Len(t, m.letters(), 100)
	require.Zero(t, m.pending())
}

func TestAnEntryThatIsNotPendingHereIsNotMoved(t *testing.T) {
	t.Parallel()
	m := newDLQClient(t)
	acked, elsewhere, good := m.add("payload", "1"), m.add("payload", "2"), m.add("payload", "3")
	require.NoError(t, m.client.XAck(t.Context(), m.cfg.Stream, m.cfg.Group, acked.Entry.ID.String()).Err())
	elsewhere.Shard = 7
	letters := []telemetry.DeadLetter{acked, elsewhere, good}
	err := m.dead.DeadLetter(t.Context(), letters, nil)
	require.Equal(t, []bool{false, false, true}, []bool{letters[0].Moved, letters[1].Moved, letters[2].Moved})
	var f *protocol.Failure
	require.ErrorAs(t, err, &f, "%v", err)
	require.Equal(t, protocol.Lost, f.Kind)
	require.Equal(t, []int{3, 7}, f.Shards)
	list := m.letters()
	require.Len(t, list, 1)
	require.Equal(t, good.Entry, list[0].Entry)
	require.EqualValues(t, 1, m.pending())
}

// Acquiring a shard registers a token; from
// then on no entry of it is moved under an earlier one.
func TestP4AStaleOwnerMovesNothing(t *testing.T) {
	t.Parallel()
	m := newDLQClient(t)
	group, err := stream.NewGroup(m.client, m.cfg)
	require.NoError(t, err)
	before, now := map[int]string{3: "before", 7: "before"}, map[int]string{3: "now", 7: "before"}
	_, err = group.RegisterOwner(t.Context(), "before", []int{3, 7})
	require.NoError(t, err)
	queued, moved, deferred := m.add("payload", "1"), m.add("payload", "2"), m.add("payload", "3")
	require.NoError(t, m.client.XAck(t.Context(), m.cfg.Stream, m.cfg.Group, deferred.Entry.ID.String()).Err())
	require.NoError(t, m.dead.DeadLetter(t.Context(), []telemetry.DeadLetter{moved}, before))
	absent := deadLetter(telemetry.Entry{ID: telemetry.EntryID{Ms: 1}, Fields: []string{"payload", "4"}})
	absent.Shard = 7
	_, err = group.RegisterOwner(t.Context(), "now", []int{3})
	require.NoError(t, err)

	for name, moveToDLQ := range map[string]func(context.Context, []telemetry.DeadLetter, map[int]string) error{
		"queued": m.dead.DeadLetter, "deferred": m.dead.DeadLetterDeferred,
	} {
		letters, shards := []telemetry.DeadLetter{queued, moved, absent}, []int{3, 7}
		if name == "deferred" {
			letters, shards = []telemetry.DeadLetter{deferred}, []int{3}
		}
		for _, tokens := range []map[int]string{before, nil} {
			err := moveToDLQ(t.Context(), letters, tokens)
			var f *protocol.Failure
			require.ErrorAs(t, err, &f, "%s: %v", name, err)
			require.Equal(t, protocol.Fenced, f.Kind)
			require.Equal(t, shards, f.Shards)
			require.Len(t, m.letters(), 1)
			require.EqualValues(t, 1, m.pending())
		}
	}
	require.NoError(t, m.dead.DeadLetter(t.Context(), []telemetry.DeadLetter{queued}, now))
	require.NoError(t, m.dead.DeadLetterDeferred(t.Context(), []telemetry.DeadLetter{deferred}, now))
	require.Len(t, m.letters(), 3)
	require.Zero(t, m.pending())
}

func TestWithoutTheGroupNothingIsMoved(t *testing.T) {
	t.Parallel()
	m := newDLQClient(t)
	l := m.add("payload", "1")
	require.NoError(t, m.client.XGroupDestroy(t.Context(), m.cfg.Stream, m.cfg.Group).Err())
	err := m.dead.DeadLetter(t.Context(), []telemetry.DeadLetter{l}, nil)
	var f *protocol.Failure
	require.ErrorAs(t, err, &f, "%v", err)
	require.Equal(t, protocol.Lost, f.Kind)
	require.Empty(t, m.letters())
}

func TestAnotherEntryThatCameToHaveTheIDOfADeadLetterIsMovedToo(t *testing.T) {
	t.Parallel()
	m := newDLQClient(t)
	l := m.add("payload", "1")
	require.NoError(t, m.dead.DeadLetter(t.Context(), []telemetry.DeadLetter{l}, nil))
	other := l
	other.Entry.Fields = []string{"payload", "2"}
	require.NoError(t, m.client.Do(t.Context(), "xclaim", m.cfg.Stream, m.cfg.Group, stream.Consumer(3), 0, l.Entry.ID.String(), "force", "justid").Err())
	require.NoError(t, m.dead.DeadLetter(t.Context(), []telemetry.DeadLetter{other}, nil))
	require.Len(t, m.letters(), 2)
}

func TestAFullRedisRefusesTheMoveAndLosesNothing(t *testing.T) {
	t.Parallel()
	env := testenv.OwnServers(t, devenv.Options{Redis: true})
	opts, err := redis.ParseURL(env.Redis.URL())
	require.NoError(t, err)
	opts.MaxRetries = -1
	client := redis.NewClient(opts)
	t.Cleanup(func() { _ = client.Close() })
	m := dlqClientOn(t, client, "telemetry", "processor")
	l := m.add("payload", strings.Repeat("x", 1000))
	require.NoError(t, client.ConfigSet(t.Context(), "maxmemory", "1").Err())

	for range 3 { // the first may have to bring the script
		err = m.dead.DeadLetter(t.Context(), []telemetry.DeadLetter{l}, nil)
		var f *protocol.Failure
		require.ErrorAs(t, err, &f, "%v", err)
		require.Equal(t, protocol.Unavailable, f.Kind)
		require.ErrorContains(t, err, "Redis is full; raise maxmemory")
		require.EqualValues(t, 1, m.pending())
		require.Empty(t, m.letters())
		require.Zero(t, client.HLen(t.Context(), stream.Names{Stream: "telemetry", Group: "processor"}.DeadLettered()).Val())
	}

	require.NoError(t, client.ConfigSet(t.Context(), "maxmemory", "0").Err())
	require.NoError(t, m.dead.DeadLetter(context.WithoutCancel(t.Context()), []telemetry.DeadLetter{l}, nil))
	require.Len(t, m.letters(), 1)
	require.Zero(t, m.pending())
}
