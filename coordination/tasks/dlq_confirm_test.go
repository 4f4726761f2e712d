package tasks

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/devenv"
	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/store/schema"
	"github.com/trmtracking/processor/internal/stream"
	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/internal/testenv"
)

// graveyard is a Redis that loses its newest writes, and a database.
type graveyard struct {
	*testing.T
	redis      *devenv.Server
	client     *redis.Client
	dead       *stream.DeadLetters
	later      *store.Deferred
	writer     *store.Writer
	held       protocol.ShardLease
	reconciler *DLQJanitor
	exec       func(sql string, args ...any)
	count      func(sql string) int
}

func newGraveyard(t *testing.T) *graveyard {
	t.Helper()
	env := testenv.OwnServers(t, devenv.Options{Redis: true})
	opts, err := redis.ParseURL(env.Redis.URL())
	require.NoError(t, err)
	g := &graveyard{T: t, redis: env.Redis, client: redis.NewClient(opts)}
	t.Cleanup(func() { _ = g.client.Close() })
	scope := store.Scope{Stream: "telemetry", Group: "processor"}
	g.dead, err = stream.NewDeadLetters(g.client, stream.Config{Stream: scope.Stream, Group: scope.Group}, "dlq")
	require.NoError(t, err)
	url := testenv.Postgres(t, testenv.WithTemplate("migrated", func(ctx context.Context, url string) error {
		_, err := schema.Migrate(ctx, url, slog.New(slog.DiscardHandler))
		return err
	}))
	pool, err := store.Open(t.Context(), store.Config{
		URL: url, Member: "one", MaxConns: 4, ConnectTimeout: 5 * time.Second, StatementTimeout: 10 * time.Second, LockTimeout: 5 * time.Second,
	})
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	g.exec = func(sql string, args ...any) {
		t.Helper()
		_, err := pool.Exec(t.Context(), sql, args...)
		require.NoError(t, err)
	}
	g.count = func(sql string) (n int) {
		t.Helper()
		require.NoError(t, pool.QueryRow(t.Context(), sql).Scan(&n))
		return n
	}
	g.exec("insert into processor.shards (stream, group_name, shard, owner, epoch) values ($1, $2, 0, 'one', 1)", scope.Stream, scope.Group)
	g.held = protocol.ShardLease{Shard: 0, Epoch: 1}
	g.writer = store.NewWriter(pool, scope, "one", time.Minute)
	g.later = store.NewDeferred(pool, scope, "one", time.Minute)
	g.reconciler = NewDLQJanitor(DLQJanitorDeps{
		DeadLetters: g.dead, Archive: store.NewDeadLetters(pool, scope, time.Minute), Unconfirmed: store.NewUnconfirmed(pool, scope, time.Minute),
		Audit: store.NewAudit(pool, time.Minute), Deferred: g.later, Ledger: store.NewLedger(pool, scope, "one", time.Minute),
	}, DLQBounds{Retention: 48 * time.Hour, Entries: 100_000, Bytes: 1 << 30}, "one", slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	// The file must hold what is acknowledged, however busy the disk is.
	require.NoError(t, g.client.ConfigSet(t.Context(), "appendfsync", "always").Err())
	require.NoError(t, g.client.XGroupCreateMkStream(t.Context(), "telemetry", "processor", "0").Err())
	return g
}

// entry adds an entry that is pending on the queue of shard 0.
func (g *graveyard) entry(text string) telemetry.DeadLetter {
	g.Helper()
	e := telemetry.Entry{Fields: []string{"payload", text}}
	id, err := g.client.XAdd(g.Context(), &redis.XAddArgs{Stream: "telemetry", Values: e.Fields}).Result()
	require.NoError(g, err)
	e.ID, err = telemetry.ParseEntryID(id)
	require.NoError(g, err)
	require.NoError(g, g.client.Do(g.Context(), "xclaim", "telemetry", "processor", stream.Consumer(0), 0, id, "force", "justid").Err())
	require.NoError(g, g.client.Do(g.Context(), "xgroup", "setid", "telemetry", "processor", id).Err())
	at := time.Now().UTC().Truncate(time.Microsecond)
	return telemetry.DeadLetter{
		Entry: e, Class: telemetry.ClassDecode, Error: "decode: payload", Fingerprint: "decode/payload/syntax",
		Attempts: 3, FirstFailed: at, LastFailed: at, Instance: "one", Version: "test",
	}
}

// giveUp commits an entry that the owner of the shard dead-letters.
func (g *graveyard) giveUp(l telemetry.DeadLetter, queued bool) {
	g.Helper()
	_, err := g.writer.Write(g.Context(), &protocol.Batch{
		Leases: []protocol.ShardLease{g.held}, Rules: protocol.Rules{Fences: &protocol.Fences{}},
		Letters: []protocol.Unconfirmed{{DeadLetter: l, Queued: queued}},
	})
	require.NoError(g, err)
}

// failover kills Redis and truncates its append-only file to a size, which loses
// what was written since.
func (g *graveyard) failover(size int) {
	g.Helper()
	require.NoError(g, g.redis.Kill())
	file, _ := testenv.AppendOnlyFile(g, g.redis)
	require.NoError(g, os.Truncate(file, int64(size)))
	require.NoError(g, g.redis.Start(g.Context()))
	testenv.Wait(g, 10*time.Second, func() error { return g.client.Ping(g.Context()).Err() })
}

// pass makes all rows old enough, and runs a pass of the janitor.
func (g *graveyard) pass() {
	g.Helper()
	g.exec("update processor.unconfirmed_letters set written_at = written_at - interval '1 minute'")
	require.NoError(g, g.reconciler.Pass(g.Context()))
}

// letters returns the payloads of the dead letters in Redis.
func (g *graveyard) letters() (texts []string) {
	g.Helper()
	for l, err := range g.dead.All(g.Context()) {
		require.NoError(g, err)
		text, _ := l.Entry.Field("payload")
		texts = append(texts, text)
	}
	return texts
}

// P1, P6: a dead letter stays in Postgres until it is durable in Redis.
func TestP6ADeadLetterThatAFailoverLosesIsAddedAgain(t *testing.T) {
	t.Parallel()
	g := newGraveyard(t)
	deferred, queued, trimmed, dropped, stored := g.entry("deferred"), g.entry("queued"), g.entry("trimmed"), g.entry("dropped"), g.entry("stored")
	require.NoError(t, g.client.XAck(t.Context(), "telemetry", "processor", deferred.Entry.ID.String(), dropped.Entry.ID.String()).Err())
	_, size := testenv.AppendOnlyFile(g, g.redis)

	var added []telemetry.Ref
	for _, l := range []telemetry.DeadLetter{queued, trimmed} {
		g.giveUp(l, true)
		require.NoError(t, g.dead.DeadLetter(t.Context(), []telemetry.DeadLetter{l}, nil))
		added = append(added, l.Entry.Ref())
	}
	for _, l := range []telemetry.DeadLetter{deferred, dropped} {
		g.giveUp(l, false)
		require.NoError(t, g.dead.DeadLetterDeferred(t.Context(), []telemetry.DeadLetter{l}, nil))
		added = append(added, l.Entry.Ref())
	}
	require.NoError(t, g.later.Added(t.Context(), added))
	// The owner died before it was added, and the next owner decoded the entry.
	g.giveUp(stored, true)
	require.NoError(t, g.client.XAck(t.Context(), "telemetry", "processor", stored.Entry.ID.String()).Err())
	// An operator drops one.
	list, err := g.dead.List(t.Context(), telemetry.EntryID{}, 100)
	require.NoError(t, err)
	require.Len(t, list, 4)
	archive := g.reconciler.Archive.(*store.DeadLetters)
	require.NoError(t, archive.Dropped(t.Context(), list[3:]))
	// And edits two: one that its owner will add again, and one that the janitor will.
	require.NoError(t, archive.Export(t.Context(), []protocol.DLQEntry{list[0], list[2]}, "operator"))
	require.NoError(t, archive.Edit(t.Context(), []store.Edit{
		{ID: list[0].ID, Fields: []string{"payload", "queued, edited"}}, {ID: list[2].ID, Fields: []string{"payload", "deferred, edited"}},
	}, "operator"))
	_, err = g.dead.Remove(t.Context(), []telemetry.EntryID{list[3].ID})
	require.NoError(t, err)
	g.pass()
	require.Equal(t, []string{"queued", "trimmed", "deferred"}, g.letters())
	require.Equal(t, 3, g.count("select count(*) from processor.unconfirmed_letters"), "too young to be durable")

	g.failover(size)
	require.Empty(t, g.letters())
	require.NoError(t, g.client.XDel(t.Context(), "telemetry", trimmed.Entry.ID.String()).Err())
	require.NoError(t, g.client.XAck(t.Context(), "telemetry", "processor", stored.Entry.ID.String()).Err())
	for range 2 {
		g.pass()
		require.ElementsMatch(t, []string{"trimmed", "deferred"}, g.letters(), "a pending entry is its owner's to decide")
		pending, err := g.client.XPending(t.Context(), "telemetry", "processor").Result()
		require.NoError(t, err)
		require.EqualValues(t, 1, pending.Count)
		list, err = g.dead.List(t.Context(), telemetry.EntryID{}, 100)
		require.NoError(t, err)
		edited, err := archive.Edited(t.Context(), []telemetry.EntryID{list[0].ID, list[1].ID})
		require.NoError(t, err)
		require.Len(t, edited, 1, "the edit is found as soon as its letter")
	}

	// The owner dead-letters it again, and nothing is lost this time.
	g.giveUp(queued, true)
	require.NoError(t, g.dead.DeadLetter(t.Context(), []telemetry.DeadLetter{queued}, nil))
	require.NoError(t, g.later.Added(t.Context(), []telemetry.Ref{queued.Entry.Ref()}))
	g.pass()
	require.ElementsMatch(t, []string{"trimmed", "deferred", "queued"}, g.letters())
	require.Equal(t, 3, g.count("select count(*) from processor.unconfirmed_letters where added_at is not null"))
	list, err = g.dead.List(t.Context(), telemetry.EntryID{}, 100)
	require.NoError(t, err)
	for i := range list {
		edited, err := archive.Edited(t.Context(), []telemetry.EntryID{list[i].ID})
		require.NoError(t, err)
		text, _ := list[i].Entry.Field("payload")
		if text == "trimmed" {
			require.Empty(t, edited)
			continue
		}
		require.Equal(t, []string{"payload", text + ", edited"}, edited[list[i].ID], "its edit goes with it")
		// One that an operator restored has a later ID than the one Redis remembers.
		require.NoError(t, archive.Moved(t.Context(), []telemetry.Ref{list[i].Entry.Ref()}, []telemetry.EntryID{{Ms: 1}}))
		again, err := archive.Edited(t.Context(), []telemetry.EntryID{list[i].ID})
		require.NoError(t, err)
		require.Equal(t, edited, again)
	}

	// Dead letters added long ago are durable.
	deadLettered := stream.Names{Stream: "telemetry", Group: "processor"}.DeadLettered()
	for _, l := range []telemetry.DeadLetter{deferred, queued, trimmed} {
		old := fmt.Sprint(time.Now().Add(-time.Hour).UnixMilli(), "-0")
		require.NoError(t, g.client.HSet(t.Context(), deadLettered, l.Entry.ID.String()+" "+l.Entry.Digest(), old).Err())
	}
	g.pass()
	require.Zero(t, g.count("select count(*) from processor.unconfirmed_letters"))
	require.Len(t, g.letters(), 3)
}

// P1, P6: Redis was full, and the entry was trimmed while its letter waited in Postgres.
func TestP6ALetterWhoseEntryIsTrimmedBeforeItWasAddedIsAdded(t *testing.T) {
	t.Parallel()
	g := newGraveyard(t)
	group, err := stream.NewGroup(g.client, stream.Config{Stream: "telemetry", Group: "processor", Shards: 1})
	require.NoError(t, err)
	found, pending := g.entry("found gone"), g.entry("pending")
	_, err = group.Snapshot(t.Context(), nil) // which counts the queue
	require.NoError(t, err)
	for _, l := range []telemetry.DeadLetter{found, pending} {
		g.giveUp(l, true)
	}
	require.NoError(t, g.client.XTrimMaxLen(t.Context(), "telemetry", 0).Err())
	require.NoError(t, group.Ack(t.Context(), []protocol.Ack{{Gone: []telemetry.EntryID{found.Entry.ID}}}))
	lost := func() []protocol.Loss {
		losses, _, _, err := group.Losses(t.Context(), 10)
		require.NoError(t, err)
		return losses
	}
	before := lost()
	for range 2 {
		g.pass()
		require.ElementsMatch(t, []string{"found gone", "pending"}, g.letters())
		require.Equal(t, 2, g.count("select count(*) from processor.unconfirmed_letters where added_at is not null"))
	}
	_, err = group.Snapshot(t.Context(), nil)
	require.NoError(t, err)
	require.Equal(t, before, lost(), "what was restored left its queue with a trace")
}

// P6: a recreated stream assigns the same IDs again.
func TestP6ADeferredEntryAndAnotherOneWithItsIDAreBothKept(t *testing.T) {
	t.Parallel()
	g := newGraveyard(t)
	one := g.entry("one")
	other := one
	other.Entry.Fields = []string{"payload", "other"}
	for _, l := range []telemetry.DeadLetter{one, other, one} {
		l.Attempts = 1
		_, err := g.writer.Write(t.Context(), &protocol.Batch{
			Leases: []protocol.ShardLease{g.held}, Rules: protocol.Rules{Fences: &protocol.Fences{}},
			Deferred: []protocol.Deferred{{DeadLetter: l, NextAttempt: time.Now()}},
		})
		require.NoError(t, err)
	}
	require.Equal(t, 2, g.count("select count(*) from processor.deferred"))
	for _, want := range []int{1, 0} {
		rows, _, err := g.later.Claim(t.Context(), []protocol.ShardLease{g.held}, time.Hour, 100, 1<<20)
		require.NoError(t, err)
		require.Len(t, rows, 1, "one of an ID at a time")
		_, err = g.writer.Write(t.Context(), &protocol.Batch{
			Leases: []protocol.ShardLease{g.held}, Rules: protocol.Rules{Fences: &protocol.Fences{}},
			Resolved: []telemetry.Ref{rows[0].Entry.Ref()}, Letters: []protocol.Unconfirmed{{DeadLetter: rows[0].DeadLetter}},
		})
		require.NoError(t, err)
		require.Equal(t, want, g.count("select count(*) from processor.deferred"))
		require.NoError(t, g.dead.DeadLetterDeferred(t.Context(), []telemetry.DeadLetter{rows[0].DeadLetter}, nil))
	}
	require.ElementsMatch(t, []string{"one", "other"}, g.letters())
}
