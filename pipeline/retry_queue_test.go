package pipeline_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/loadtest/fleet"
	"github.com/trmtracking/processor/pipeline"
)

var errNotNow = &protocol.Failure{Kind: protocol.Unavailable, Err: errors.New("not now")}

// TestP7ADrainUsesNoAttempt ends instances while an entry is tried again and
// Postgres does not answer.
func TestP7ADrainUsesNoAttempt(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	trying := make(chan struct{}, 1)
	var outage atomic.Bool
	outage.Store(true)
	start := func(name string) *instance {
		in := b.Start(name, func(c *pipeline.Config, d *pipeline.Deps) {
			c.DeadLetters.RetryDelays = []time.Duration{time.Millisecond}
			d.Sink = &sink{Sink: d.Sink, before: func(w *protocol.Batch) error {
				if !isRetry(w) || !outage.Load() {
					return nil
				}
				select {
				case trying <- struct{}{}:
				default:
				}
				return errNotNow
			}}
		})
		b.AcquireAll(in)
		return in
	}
	await := func() {
		select {
		case <-trying:
		case <-time.After(10 * time.Second):
			t.Fatal("nothing is tried again")
		}
	}
	in := start("first")
	ids := b.Publish(junk(t, "not_json", 1, 1).Fields)
	for n := range 4 {
		await()
		in.Cut()
		require.Equal(t, 1, b.Count("select attempts from processor.deferred where class = 'decode' and next_attempt_at <= now()"))
		select {
		case <-trying: // of the instance that is gone
		default:
		}
		in = start(fmt.Sprint("after drain ", n+1))
	}

	// What the drain leaves time for is an attempt, once.
	await()
	in.Drain()
	outage.Store(false)
	in.End()
	require.Equal(t, 2, b.Count("select attempts from processor.deferred where class = 'decode'"))
	start("last")
	letters := b.awaitDeadLetters(10*time.Second, 1)
	require.Equal(t, telemetry.ClassDecode, letters[ids[0]].Class)
	require.Equal(t, 3, letters[ids[0]].Attempts)
}

// deferrals is a Deferrals that a test is told of.
type deferrals struct {
	pipeline.Deferrals
	claimed func()
}

func (d *deferrals) Claim(ctx context.Context, held []protocol.ShardLease, lease time.Duration, limit int, maxBytes int64) ([]protocol.Deferred, bool, error) {
	rows, more, err := d.Deferrals.Claim(ctx, held, lease, limit, maxBytes)
	if len(rows) > 0 {
		d.claimed()
	}
	return rows, more, err
}

func TestP7AnEntryClaimedAsTheDrainBeginsKeepsItsAttempts(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	shard := telemetry.ShardOf(fleet.DeviceID(1), shards)
	var in *instance
	claimed := make(chan struct{})
	var once sync.Once
	in = b.Start("one", func(c *pipeline.Config, d *pipeline.Deps) {
		c.DeadLetters.RetryDelays = []time.Duration{time.Millisecond}
		d.Deferrals = &deferrals{Deferrals: d.Deferrals, claimed: func() {
			in.Drop(shard)
			in.Drain()
			once.Do(func() { close(claimed) })
		}}
	})
	b.AcquireAll(in)
	b.Publish(junk(t, "not_json", 1, 1).Fields)
	select {
	case <-claimed:
	case <-time.After(10 * time.Second):
		t.Fatal("nothing is tried again")
	}
	in.End()
	require.Equal(t, 1, b.Count("select attempts from processor.deferred where class = 'decode' and next_attempt_at <= now()"))
}

// refusing is a Parker that refuses its first call of each kind.
type refusing struct {
	pipeline.DeadLetterSink
	first    sync.Once
	deferred sync.Once
	err      error
}

func (p *refusing) DeadLetter(ctx context.Context, letters []telemetry.DeadLetter, tokens map[int]string) (err error) {
	if p.first.Do(func() { err = p.err }); err != nil {
		return err
	}
	return p.DeadLetterSink.DeadLetter(ctx, letters, tokens)
}

func (p *refusing) DeadLetterDeferred(ctx context.Context, letters []telemetry.DeadLetter, tokens map[int]string) (err error) {
	if p.deferred.Do(func() { err = p.err }); err != nil {
		return err
	}
	return p.DeadLetterSink.DeadLetterDeferred(ctx, letters, tokens)
}

// TestAnEntryLeftOnItsQueueIsReadAgain: nothing but the worker knows that there
// is something to read, and the queue is not read from its start by itself.
func TestAnEntryLeftOnItsQueueIsReadAgain(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	in := b.Start("one", func(c *pipeline.Config, d *pipeline.Deps) {
		c.QueueRescan = time.Hour
		d.DeadLetterSink = &refusing{DeadLetterSink: d.DeadLetterSink, err: &protocol.Failure{
			Kind: protocol.Lost, Shards: []int{telemetry.ShardOf(fleet.DeviceID(1), shards)}, Err: errors.New("not there"),
		}}
	})
	b.AcquireAll(in)
	b.Publish(junk(t, "nul", 1, 1).Fields)
	b.awaitDeadLetters(10*time.Second, 1)
	b.Settled(10*time.Second, 0)
	require.Empty(t, in.Lost(), "the shard is held all the time")
}

// TestP4AnOwnerWhoseMoveIsRefusedGivesTheShardUp: the next owner
// finds the entry as it was: on its queue, or deferred with the same attempts.
func TestP4AnOwnerWhoseMoveIsRefusedGivesTheShardUp(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"nul", "not_json"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			shard := telemetry.ShardOf(fleet.DeviceID(1), shards)
			in := b.Start("stale", func(c *pipeline.Config, d *pipeline.Deps) {
				c.QueueRescan = time.Hour
				c.DeadLetters.RetryDelays = []time.Duration{time.Millisecond}
				d.DeadLetterSink = &refusing{DeadLetterSink: d.DeadLetterSink, err: &protocol.Failure{
					Kind: protocol.Fenced, Shards: []int{shard}, Err: errors.New("another member's"),
				}}
			})
			b.AcquireAll(in)
			ids := b.Publish(junk(t, kind, 1, 1).Fields)
			testenv.Wait(t, 10*time.Second, func() error {
				if len(in.Lost()) == 0 {
					return errors.New("the shard is not given up")
				}
				return nil
			})
			testenv.Wait(t, 10*time.Second, func() error {
				if n := b.Count("select count(*) from processor.deferred where class = 'crash'"); n > 0 {
					return errors.New("the attempt is not given back")
				}
				return nil
			})
			_, _, held := in.Owned(shard)
			require.False(t, held)
			require.Empty(t, b.letters())
			in.End()
			if kind == "not_json" {
				// Deferred: its letter is committed, so it is the leader that adds it to Redis.
				require.Zero(t, b.Count("select count(*) from processor.deferred"))
				require.Equal(t, 1, b.Count("select count(*) from processor.unconfirmed_letters where class = 'decode' and attempts = 3"))
				return
			}

			b.AcquireAll(b.Start("next"))
			letters := b.awaitDeadLetters(10*time.Second, 1)
			require.Equal(t, []telemetry.EntryID{ids[0]}, slices.Collect(maps.Keys(letters)))
			testenv.Wait(t, 10*time.Second, func() error {
				if n := b.Count("select count(*) from processor.deferred"); n > 0 {
					return fmt.Errorf("%d deferred", n)
				}
				return nil
			})
		})
	}
}

// P2: a deferred entry that is delivered again, as after Redis lost its acknowledgement, or the dispatcher
// was lost in a backlog, may be stored by its owner. It does not become a dead letter meanwhile.
func TestP2ADeferredEntryIsNotGivenUpWhileItIsDeliveredAgain(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	var claims atomic.Int64
	in := b.Start("one", func(c *pipeline.Config, d *pipeline.Deps) {
		c.DeadLetters.RetryDelays = []time.Duration{200 * time.Millisecond}
		d.Deferrals = &deferrals{Deferrals: d.Deferrals, claimed: func() { claims.Add(1) }}
	})
	b.AcquireAll(in)
	id := b.Publish(junk(t, "not_json", 1, 1).Fields)[0]
	const waiting = "select count(*) from processor.deferred"
	testenv.Wait(t, 10*time.Second, func() error {
		if n := b.Count(waiting); n != 1 {
			return fmt.Errorf("%d are deferred", n)
		}
		return nil
	})
	require.NoError(t, b.Client.Do(t.Context(), "xclaim", b.Stream, b.Group, "another", 0, id.String(), "force", "justid").Err())
	before := claims.Load()
	testenv.Wait(t, 10*time.Second, func() error {
		if n := claims.Load() - before; n < 5 {
			return fmt.Errorf("it was due %d times", n)
		}
		return nil
	})
	require.Equal(t, 1, b.Count(waiting), "five attempts would be too many")
	require.NoError(t, b.Client.XAck(t.Context(), b.Stream, b.Group, id.String()).Err())
	require.Contains(t, b.awaitDeadLetters(10*time.Second, 1), id)
}

// Deferred entries that are refused again, each slowly, let what arrives on the queues go first.
func TestDeferredEntriesThatTakeLongLetTheQueuesGoFirst(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.Exec(`create sequence tried;
create table wait (seconds float8); insert into wait values (0);
create function refuse() returns trigger language plpgsql as $$
begin
  if new.attributes->>'239' = '7' then
    if (select seconds > 0 from public.wait) then
      perform nextval('public.tried'), pg_sleep(seconds) from public.wait;
    end if;
    raise exception 'no seven';
  end if;
  return new;
end
$$;
create trigger refuse before insert on positions for each row execute function refuse()`)
	in := b.Start("one", oneWorker, func(c *pipeline.Config, _ *pipeline.Deps) {
		c.DeadLetters.MaxAttempts, c.DeadLetters.RetryDelays = 100, []time.Duration{time.Second}
	})
	b.AcquireAll(in)
	entries := [][]string{at(1, 1)}
	for s := range int64(20) {
		entries = append(entries, seven(60, s))
	}
	b.Publish(entries...)
	b.Settled(20*time.Second, 0)
	b.Exec("update wait set seconds = 0.3")
	testenv.Wait(t, 20*time.Second, func() error {
		if b.Count("select last_value from tried") < 3 {
			return errors.New("none was tried again")
		}
		return nil
	})
	b.Publish(at(1, 2))
	testenv.Wait(t, 8*time.Second, func() error { // all of them take 20 s
		if b.Count("select count(*) from positions") < 2 {
			return errors.New("what arrives waits for what is deferred")
		}
		return nil
	})
	b.Exec("update wait set seconds = 0")
	require.Equal(t, 20, b.Count("select count(*) from processor.deferred"))
}
