package pipeline_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/devenv"
	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/stream"
	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/loadtest/fleet"
	"github.com/trmtracking/processor/pipeline"
)

func junk(tb testing.TB, kind string, device int, seconds int64) *fleet.Junk {
	tb.Helper()
	j, err := fleet.NewJunk(kind, fleet.DeviceID(device), time.Unix(1_700_000_000+seconds, 0).UTC())
	require.NoError(tb, err)
	return j
}

// letters is all dead letters by source ID.
func (b *bench) letters() map[telemetry.EntryID]stream.DLQEntry {
	dead, err := stream.NewDeadLetters(b.Client, stream.Config{Stream: b.Stream, Group: b.Group}, b.Stream+":dlq")
	require.NoError(b.TB, err)
	all := make(map[telemetry.EntryID]stream.DLQEntry)
	after := telemetry.EntryID{}
	for {
		page, err := dead.List(b.TB.Context(), after, 500)
		require.NoError(b.TB, err)
		for _, l := range page {
			require.NoError(b.TB, l.Err)
			require.NotContains(b.TB, all, l.Entry.ID, "two dead letters of one entry")
			all[l.Entry.ID] = l
			after = l.ID
		}
		if len(page) == 0 {
			return all
		}
	}
}

func (b *bench) awaitDeadLetters(within time.Duration, n int) map[telemetry.EntryID]stream.DLQEntry {
	testenv.Wait(b.TB, within, func() error {
		if have := b.Client.XLen(b.TB.Context(), b.Stream+":dlq").Val(); have != int64(n) {
			return fmt.Errorf("want %d dead letters, have %d", n, have)
		}
		return nil
	})
	return b.letters()
}

func TestBadEntriesBecomeDeadLettersOfTheirClassAndBlockNothing(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	in := b.Start("one")
	b.AcquireAll(in)
	entries := [][]string{{"ts", "x"}}
	want := []telemetry.Class{telemetry.ClassInvalid}
	for i, kind := range fleet.JunkKinds() {
		j := junk(t, kind, 1, int64(i))
		entries, want = append(entries, at(1, int64(2*i)), j.Fields), append(want, "", j.Class)
	}
	ids := b.Publish(entries...)
	b.Settled(20*time.Second, 0)
	require.Equal(t, len(fleet.JunkKinds()), b.Count("select count(*) from positions"))

	// What cannot be decoded is given up after its third attempt.
	letters := b.awaitDeadLetters(20*time.Second, len(fleet.JunkKinds())+1)
	require.Zero(t, b.Count("select count(*) from processor.deferred"))
	for i, id := range ids {
		if want[i] == "" {
			require.NotContains(t, letters, id)
			continue
		}
		l := letters[id]
		require.Equal(t, want[i], l.Class, "%s", l.Error)
		require.Equal(t, entries[i], l.Entry.Fields)
		require.Equal(t, "one", l.Instance)
		require.NotEmpty(t, l.Field)
		require.NotEmpty(t, l.Fingerprint)
		attempts := 1
		if l.Class == telemetry.ClassDecode {
			attempts = 3
			require.Greater(t, l.LastFailed.Sub(l.FirstFailed), 150*time.Millisecond, "attempts are spaced")
		}
		require.Equal(t, attempts, l.Attempts)
	}
}

func TestADeferredEntryIsStoredAsLateOnceItDecodes(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	slow := func(c *pipeline.Config, _ *pipeline.Deps) { c.DeadLetters.RetryDelays = []time.Duration{time.Hour} }
	old := b.Start("old", slow)
	b.AcquireAll(old)
	bad := junk(t, "truncated", 5, 100)
	ids := b.Publish(at(5, 1), bad.Fields, at(5, 200))
	b.Settled(10*time.Second, 0)
	require.Equal(t, 1, b.Count("select count(*) from processor.deferred where attempts = 1 and class = 'decode'"))
	require.Equal(t, 2, b.Count("select count(*) from positions"))
	old.End()

	// The newer instance understands it: here, since the entry is whole now.
	good := at(5, 100)
	raw := make([][]byte, len(good))
	for i := range good {
		raw[i] = []byte(good[i])
	}
	_, err := b.Pool.Exec(t.Context(), "update processor.deferred set fields = $1, digest = $2, next_attempt_at = now()", raw, (&telemetry.Entry{Fields: good}).Digest())
	require.NoError(t, err)
	b.AcquireAll(b.Start("new"))
	testenv.Wait(t, 10*time.Second, func() error {
		if n := b.Count("select count(*) from positions"); n != 3 {
			return fmt.Errorf("want 3 positions, have %d", n)
		}
		return nil
	})
	require.Zero(t, b.Count("select count(*) from processor.deferred"), "deleted by the transaction that stores the record")
	require.Equal(t, 1, b.Count("select count(*) from positions where ts = $1 and ingested_at = $2",
		time.Unix(1_700_000_100, 0), ids[1].Time()))
	require.Empty(t, b.letters())
}

// sink is a Sink that a test gets in the way of.
type sink struct {
	pipeline.Sink
	before func(b *protocol.Batch) error
}

func (s *sink) Write(ctx context.Context, b *protocol.Batch) (protocol.CommitResult, error) {
	if err := s.before(b); err != nil {
		return protocol.CommitResult{}, err
	}
	return s.Sink.Write(ctx, b)
}

func isRetry(b *protocol.Batch) bool { return len(b.Deferred) > 0 && b.Deferred[0].Attempts > 1 }

func TestAnOutageUsesNoAttempt(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	var outages atomic.Int32
	in := b.Start("one", func(c *pipeline.Config, d *pipeline.Deps) {
		c.DeadLetters.RetryDelays = []time.Duration{time.Millisecond, time.Hour}
		d.Sink = &sink{Sink: d.Sink, before: func(b *protocol.Batch) error {
			if isRetry(b) && outages.Add(1) <= 5 {
				return &protocol.Failure{Kind: protocol.Unavailable, Err: errors.New("not now")}
			}
			return nil
		}}
	})
	b.AcquireAll(in)
	b.Publish(junk(t, "not_json", 1, 1).Fields, at(1, 2))
	testenv.Wait(t, 10*time.Second, func() error {
		if n := outages.Load(); n < 6 {
			return fmt.Errorf("%d attempts to write", n)
		}
		return nil
	})
	b.Settled(10*time.Second, 0)
	in.End()
	require.Equal(t, 1, b.Count("select count(*) from processor.deferred where attempts = 2 and class = 'decode'"))
	require.Empty(t, b.letters())
}

func TestAnAttemptThatEndsWithTheOwnershipIsNotCounted(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	var fenced atomic.Int32
	in := b.Start("one", func(c *pipeline.Config, d *pipeline.Deps) {
		c.DeadLetters.RetryDelays = []time.Duration{time.Millisecond}
		d.Sink = &sink{Sink: d.Sink, before: func(b *protocol.Batch) error {
			if isRetry(b) {
				fenced.Add(1)
				return &protocol.Failure{Kind: protocol.Fenced, Err: errors.New("owned by another member")}
			}
			return nil
		}}
	})
	b.AcquireAll(in)
	b.Publish(junk(t, "not_json", 1, 1).Fields)
	testenv.Wait(t, 10*time.Second, func() error {
		if fenced.Load() == 0 || b.Count("select count(*) from processor.deferred where class = 'decode'") == 0 {
			return errors.New("not tried again and returned")
		}
		return nil
	})
	require.Equal(t, 1, b.Count("select attempts from processor.deferred"))
	require.Empty(t, b.letters())
}

func TestADeferredEntryOnWhichProcessesDieIsTriedAloneAndGivenUp(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	// Unfinished attempts are what crashed processes leave behind.
	in := b.Start("one", func(c *pipeline.Config, _ *pipeline.Deps) { c.DeadLetters.PollEvery = time.Hour })
	b.AcquireAll(in)
	ids := b.Publish(junk(t, "not_json", 1, 1).Fields, junk(t, "not_json", 1, 2).Fields)
	b.Settled(10*time.Second, 0)
	deferred := store.NewDeferred(b.Pool, b.Scope(), "one", 10*time.Second)
	shard := telemetry.ShardOf(fleet.DeviceID(1), shards)
	epoch, _, ok := in.Owned(shard)
	require.True(t, ok)
	due := func() []protocol.Deferred {
		_, err := b.Pool.Exec(t.Context(), "update processor.deferred set next_attempt_at = now()")
		require.NoError(t, err)
		rows, _, err := deferred.Claim(t.Context(), []protocol.ShardLease{{Shard: shard, Epoch: epoch}}, time.Hour, 100, 1<<20)
		require.NoError(t, err)
		return rows
	}
	for range 5 {
		require.Len(t, due(), 2, "processes that end while entries wait for their attempt show nothing")
	}
	begin := func(rows []protocol.Deferred) {
		for range 2 { // the first reply may be lost
			begun, err := deferred.Begin(t.Context(), rows)
			require.NoError(t, err)
			require.Len(t, begun, len(rows))
		}
	}
	begin(due())
	for attempt := 1; attempt <= 2; attempt++ {
		rows := due()
		require.Len(t, rows, 1, "then alone")
		require.Equal(t, ids[0], rows[0].Entry.ID)
		require.Equal(t, attempt+1, rows[0].Attempts)
		begin(rows)
	}
	wrong, _, err := deferred.Claim(t.Context(), []protocol.ShardLease{{Shard: shard, Epoch: epoch + 1}}, time.Hour, 100, 1<<20)
	require.NoError(t, err)
	require.Empty(t, wrong, "nothing for who does not own the shard")
	in.End()

	_, err = b.Pool.Exec(t.Context(), "update processor.deferred set next_attempt_at = now()")
	require.NoError(t, err)
	b.AcquireAll(b.Start("two"))
	letters := b.awaitDeadLetters(10*time.Second, 2)
	require.Equal(t, telemetry.ClassCrash, letters[ids[0]].Class)
	require.Equal(t, telemetry.ClassDecode, letters[ids[1]].Class, "the other one is not blamed")
}

func TestAFullRedisHoldsTheDeadLetterBackUntilItHasRoom(t *testing.T) {
	testenv.Slow(t)
	t.Parallel()
	b := newBench(t)
	var refusals atomic.Int32
	in := b.Start("one", func(_ *pipeline.Config, d *pipeline.Deps) {
		d.DeadLetterSink = &deadLetterSink{DeadLetterSink: d.DeadLetterSink, before: func() error {
			if refusals.Add(1) <= 4 {
				return &protocol.Failure{Kind: protocol.Unavailable, Code: "OOM", Err: errors.New("full")}
			}
			return nil
		}}
	})
	b.AcquireAll(in)
	b.Publish(at(1, 1), junk(t, "nul", 1, 2).Fields, at(1, 3))
	b.Settled(20*time.Second, 0)
	require.Greater(t, refusals.Load(), int32(4))
	require.Len(t, b.letters(), 1)
	require.Equal(t, 2, b.Count("select count(*) from positions"))
}

func TestAnEntryThatVanishedFromItsQueueHasTheQueueReadAgain(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	var once sync.Once
	in := b.Start("one", func(_ *pipeline.Config, d *pipeline.Deps) {
		d.DeadLetterSink = &deadLetterSink{DeadLetterSink: d.DeadLetterSink, before: func() error {
			// Another client acknowledges the entry that is about to be moved.
			once.Do(func() {
				for _, p := range b.Client.XPendingExt(context.Background(), &redis.XPendingExtArgs{
					Stream: b.Stream, Group: b.Group, Start: "-", End: "+", Count: 10,
				}).Val() {
					b.Client.XAck(context.Background(), b.Stream, b.Group, p.ID)
				}
			})
			return nil
		}}
	})
	b.AcquireAll(in)
	b.Publish(junk(t, "nul", 1, 2).Fields)
	b.Settled(20*time.Second, 0)
	b.Publish(at(1, 3), junk(t, "nul", 1, 4).Fields)
	b.awaitDeadLetters(10*time.Second, 1)
	b.Settled(20*time.Second, 0)
	require.Equal(t, 1, b.Count("select count(*) from positions"))
	testenv.Wait(t, 10*time.Second, func() error {
		if n := in.InFlight(); n != 0 {
			return fmt.Errorf("%d in flight", n)
		}
		return nil
	})
}

type deadLetterSink struct {
	pipeline.DeadLetterSink
	before func() error
}

func (p *deadLetterSink) DeadLetter(ctx context.Context, letters []telemetry.DeadLetter, tokens map[int]string) error {
	if err := p.before(); err != nil {
		return err
	}
	return p.DeadLetterSink.DeadLetter(ctx, letters, tokens)
}

// oneMissing is a sink that finds one of several entries not pending any more, once.
type oneMissing struct {
	pipeline.DeadLetterSink
	b    *bench
	once sync.Once
}

func (m *oneMissing) DeadLetter(ctx context.Context, letters []telemetry.DeadLetter, tokens map[int]string) (err error) {
	if len(letters) > 1 {
		m.once.Do(func() { err = m.b.Client.XAck(ctx, m.b.Stream, m.b.Group, letters[0].Entry.ID.String()).Err() })
	}
	return cmp.Or(err, m.DeadLetterSink.DeadLetter(ctx, letters, tokens))
}

// P6: dead letters are counted and noted as added though another one of their shard could not be moved.
func TestP6DeadLettersAreCountedThoughOneOfTheirShardIsNotMoved(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	bad := []string{"ts", "1700000000000", "device_id", fleet.DeviceID(0), "codec", "8", "payload", "no JSON"}
	const entries = 20
	b.Publish(slices.Repeat([][]string{bad}, entries)...)
	in := b.Start("one", func(c *pipeline.Config, d *pipeline.Deps) {
		c.DeadLetters.MaxAttempts = 1
		d.DeadLetterSink = &oneMissing{DeadLetterSink: d.DeadLetterSink, b: b}
	})
	b.AcquireAll(in)
	testenv.Wait(t, 10*time.Second, func() error {
		if n := in.Counter(t, "processor_pipeline_records_total", "dead_lettered"); n != entries-1 {
			return fmt.Errorf("%v are counted, %d are there", n, len(b.letters()))
		}
		return nil
	})
	require.Len(t, b.letters(), entries-1)
	testenv.Wait(t, 10*time.Second, func() error {
		if n := b.Count("select count(*) from processor.unconfirmed_letters where added_at is null"); n != 1 {
			return fmt.Errorf("%d are not noted as added", n)
		}
		return nil
	})
}

func TestARowThatPostgresRefusesIsAloneInTheDeadLetters(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	_, err := b.Pool.Exec(t.Context(), "alter table positions add constraint no_seven check (attributes->>'239' is distinct from '7')")
	require.NoError(t, err)
	refused := func(device int, s int64) []string {
		m := fleet.Message{DeviceID: fleet.DeviceID(device), Codec: "8", Time: time.Unix(1_700_000_000+s, 0).UTC(), Latitude: 1, Longitude: 1, Satellites: 9}
		m.Attributes = append(m.Attributes, fleet.NumberAttribute("239", 7))
		return fleet.EntryFields(&m)
	}
	var entries [][]string
	var bad []int
	for s := range int64(200) {
		for d := range 5 {
			if s%50 == 17 && d == 3 {
				bad = append(bad, len(entries))
				entries = append(entries, refused(d, s))
				continue
			}
			entries = append(entries, at(d, s))
		}
	}
	ids := b.Publish(entries...)
	in := b.Start("one")
	b.AcquireAll(in)
	b.Settled(20*time.Second, 0)
	letters := b.awaitDeadLetters(10*time.Second, len(bad))
	for _, i := range bad {
		require.Equal(t, telemetry.ClassSink, letters[ids[i]].Class)
		require.Equal(t, "no_seven", letters[ids[i]].Field)
		require.Equal(t, "sink/no_seven/23514", letters[ids[i]].Fingerprint)
	}
	require.Equal(t, len(entries)-len(bad), b.Count("select count(*) from positions"))
}

// TestEverythingIsStoredOrADeadLetter is the account of a fleet of two, one of
// which is stopped dead on the way.
func TestEverythingIsStoredOrADeadLetter(t *testing.T) {
	t.Parallel()
	account(t, 20_000, 1_000)
}

func TestEverythingIsStoredOrADeadLetterFull(t *testing.T) {
	testenv.Full(t)
	account(t, 100_000, 5_000)
}

func account(t *testing.T, n, bad int) {
	t.Helper()
	const seed = 5
	t.Logf("seed %d", seed)
	b := newBench(t)
	rng := rand.New(rand.NewPCG(seed, 0))
	kinds := fleet.JunkKinds()
	isBad := make([]bool, n)
	for _, i := range rng.Perm(n)[:bad] {
		isBad[i] = true
	}
	entries, want := make([][]string, n), make([]telemetry.Class, n)
	k := 0
	for i := range entries {
		device, s := i%200, int64(i/200)
		if !isBad[i] {
			entries[i] = at(device, s)
			continue
		}
		kind := kinds[k%(len(kinds)-1)] // the last one, huge, is a megabyte each
		if k < 20 {
			kind = kinds[k%len(kinds)]
		}
		k++
		j := junk(t, kind, device, s)
		entries[i], want[i] = j.Fields, j.Class
	}
	ids := b.Publish(entries...)

	one, two := b.Start("one"), b.Start("two")
	b.AcquireAll(one)
	testenv.Wait(t, 30*time.Second, func() error {
		if have := b.Count("select count(*) from positions"); have < n/4 {
			return fmt.Errorf("want a quarter of %d stored, have %d", n, have)
		}
		return nil
	})
	b.AcquireAll(two) // one finds itself fenced in the middle of its work
	b.Settled(60*time.Second, 0)
	letters := b.awaitDeadLetters(60*time.Second, bad)
	for i, id := range ids {
		l, dead := letters[id]
		require.Equal(t, isBad[i], dead)
		if dead {
			require.Equal(t, want[i], l.Class)
			require.True(t, slices.Equal(entries[i], l.Entry.Fields))
		}
	}
	require.Equal(t, n-bad, b.Count("select count(*) from positions"))
	require.Zero(t, b.Count("select count(*) from processor.deferred"))
}

// chatty is a test whose log a test reads.
type chatty struct {
	testing.TB
	mu  sync.Mutex
	log strings.Builder
}

func (c *chatty) Log(args ...any) {
	c.TB.Log(args...)
	c.mu.Lock()
	defer c.mu.Unlock()
	_, _ = fmt.Fprintln(&c.log, args...)
}

func (c *chatty) said(text string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return strings.Contains(c.log.String(), text)
}

func TestP1AFullRedisReportsItAndAcceptsTheDeadLetterOnceThereIsRoom(t *testing.T) {
	t.Parallel()
	heard := &chatty{TB: t}
	env := testenv.OwnServers(t, devenv.Options{Redis: true})
	b := newBench(heard)
	opts, err := redis.ParseURL(env.Redis.URL())
	require.NoError(t, err)
	client := redis.NewClient(opts)
	t.Cleanup(func() { _ = client.Close() })
	b.RedisURL, b.Client = env.Redis.URL(), client
	ids := b.Publish(at(1, 1), junk(t, "nul", 1, 2).Fields, at(1, 3))
	require.NoError(t, client.ConfigSet(t.Context(), "maxmemory", "1").Err())

	in := b.Start("one")
	b.AcquireAll(in)
	testenv.Wait(t, 20*time.Second, func() error {
		if n := b.Count("select count(*) from positions"); n != 2 || !heard.said("Redis is full; raise maxmemory") {
			return fmt.Errorf("%d stored, and the log does not say what is wrong", n)
		}
		return nil
	})
	require.True(t, heard.said("move to the dead letters"))
	require.Empty(t, b.letters())
	b.Settled(10*time.Second, 1) // the bad one lies on its queue
	b.awaitWait(in, protocol.WaitRedisFull, telemetry.ShardOf(fleet.DeviceID(1), shards))

	require.NoError(t, client.ConfigSet(t.Context(), "maxmemory", "0").Err())
	letters := b.awaitDeadLetters(10*time.Second, 1)
	require.Contains(t, letters, ids[1])
	b.Settled(10*time.Second, 0)
	b.nothingWaits(in)
	require.True(t, heard.said("operation recovered"))
}

// A dead letter that waits for room holds up its own shard only.
func TestP7ADeadLetterThatWaitsDoesNotHoldUpTheOtherShardsOfItsWorker(t *testing.T) {
	t.Parallel()
	env := testenv.OwnServers(t, devenv.Options{Redis: true})
	b := newBench(t)
	opts, err := redis.ParseURL(env.Redis.URL())
	require.NoError(t, err)
	client := redis.NewClient(opts)
	t.Cleanup(func() { _ = client.Close() })
	b.RedisURL, b.Client = env.Redis.URL(), client
	entries := [][]string{junk(t, "nul", 1, 2).Fields}
	const good = 600
	for i := range good {
		entries = append(entries, at(i%50, int64(10+i)))
	}
	ids := b.Publish(entries...)
	require.NoError(t, client.ConfigSet(t.Context(), "maxmemory", "1").Err())
	b.AcquireAll(b.Start("one", func(cfg *pipeline.Config, _ *pipeline.Deps) { cfg.Workers, cfg.BatchMaxRecords = 1, 20 }))
	t.Cleanup(func() { client.ConfigSet(context.Background(), "maxmemory", "0") })
	testenv.Wait(t, 20*time.Second, func() error {
		if n := b.Count("select count(*) from positions"); n != good {
			return fmt.Errorf("%d of %d stored while one letter waits", n, good)
		}
		return nil
	})
	require.Empty(t, b.letters())
	b.Settled(10*time.Second, 1)
	require.NoError(t, client.ConfigSet(t.Context(), "maxmemory", "0").Err())
	require.Contains(t, b.awaitDeadLetters(10*time.Second, 1), ids[0])
	b.Settled(10*time.Second, 0)
	require.Equal(t, good, b.Count("select count(*) from positions"))
}

// So does one that Redis refuses for its key.
func TestP7ADeadLetterWhoseKeyIsNoStreamHoldsUpNothingElse(t *testing.T) {
	testenv.Slow(t)
	t.Parallel()
	heard := &chatty{TB: t}
	b := newBench(heard)
	dlq := b.Stream + ":dlq"
	require.NoError(t, b.Client.Set(t.Context(), dlq, "of another program", 0).Err())
	entries := [][]string{junk(t, "nul", 1, 2).Fields}
	const good = 300
	for i := range good {
		entries = append(entries, at(i%50, int64(10+i)))
	}
	ids := b.Publish(entries...)
	in := b.Start("one", func(cfg *pipeline.Config, _ *pipeline.Deps) { cfg.Workers, cfg.BatchMaxRecords = 1, 20 })
	b.AcquireAll(in)
	testenv.Wait(t, 20*time.Second, func() error {
		if n := b.Count("select count(*) from positions"); n != good {
			return fmt.Errorf("%d of %d stored while one letter waits", n, good)
		}
		return nil
	})
	b.awaitWait(in, protocol.WaitDLQRefused, telemetry.ShardOf(fleet.DeviceID(1), shards))
	b.Settled(10*time.Second, 1)
	require.True(t, heard.said("the key "+dlq+" is not a stream; rename it, or correct REDIS_DLQ_STREAM"))
	require.Equal(t, 1, b.Count("select count(*) from processor.unconfirmed_letters"))

	require.NoError(t, b.Client.Del(t.Context(), dlq).Err())
	require.Contains(t, b.awaitDeadLetters(10*time.Second, 1), ids[0])
	b.Settled(10*time.Second, 0)
	b.nothingWaits(in)
	require.True(t, heard.said("operation recovered"))
}
