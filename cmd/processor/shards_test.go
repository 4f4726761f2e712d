package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/fault"
	"github.com/trmtracking/processor/internal/operator"
	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/stream"
	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/internal/testenv/servicetest"
)

func TestOperatorsSeeTheFleetAndMoveShards(t *testing.T) {
	dep := servicetest.New(t)
	require.Contains(t, dep.Ask(fault.Finding, nil, "shards"), "no instance has ever started")
	var m operator.Members
	dep.Ask(fault.Clean, &m, "members")
	require.Empty(t, m.Members)

	settings := []string{"SHARDS=8", "QUEUE_RESCAN=1s", "CLAIM_INTERVAL_MS=100", "CLAIM_THRESHOLD_MS=10000", "STATEMENT_TIMEOUT=5s"}
	first := dep.Run(append(settings, "INSTANCE_ID=first")...)
	first.AwaitReady()
	second := dep.Run(append(settings, "INSTANCE_ID=second")...)
	second.AwaitReady()
	dep.Publish(servicetest.RecordsOfMany(0, 50)...)
	dep.AwaitStored(50, 40*time.Second)
	dep.AwaitCount(4, "select count(*) from processor.shards where owner like 'second.%'")

	dep.Ask(fault.Clean, &m, "members")
	require.Len(t, m.Members, 2)
	leaders := 0
	for _, x := range m.Members {
		require.Equal(t, operator.MemberWorking, x.State)
		require.Equal(t, 4, x.Shards)
		require.NotZero(t, x.PID)
		if *x.Leads {
			leaders++
		}
	}
	require.Equal(t, 1, leaders)
	var s operator.Shards
	dep.Ask(fault.Clean, &s, "shards")
	require.Len(t, s.Shards, 8)
	require.Zero(t, s.Waiting)
	for _, x := range s.Shards {
		require.NotNil(t, x.Owner)
		require.Equal(t, *x.Owner, *x.AssignedTo)
		require.Nil(t, x.OldestEntry)
		require.NotNil(t, x.AppliedID)
	}

	// Without Postgres heartbeats tell who is there and who owns what, a beat later.
	for command, want := range map[string]int{"members": 2, "shards": 8} {
		testenv.Wait(t, 20*time.Second, func() error {
			p := servicetest.Spawn(t, dep.Environ("POSTGRES_URL=postgres://127.0.0.1:1/d"), command, "--json")
			require.Equal(t, fault.Finding, p.Exit(30*time.Second))
			require.Contains(t, p.Errors(), "Postgres at 127.0.0.1:1 (POSTGRES_URL) does not answer")
			var m operator.Members
			var s operator.Shards
			require.NoError(t, json.Unmarshal([]byte(p.Output()), &m))
			require.NoError(t, json.Unmarshal([]byte(p.Output()), &s))
			require.Equal(t, want, len(m.Members)+len(s.Shards), command)
			require.Nil(t, m.Term)
			for _, x := range m.Members {
				require.Nil(t, x.Leads, "unknown is not no")
				if x.Shards != 4 {
					return fmt.Errorf("%s owns %d by its heartbeat", x.Member, x.Shards)
				}
			}
			for _, x := range s.Shards {
				require.NotNil(t, x.Owner)
				require.Nil(t, x.Epoch)
			}
			return nil
		})
	}

	// Two processes with one identity: the second is refused and harms nobody.
	twin := dep.Run(append(settings, "INSTANCE_ID=second")...)
	require.Equal(t, fault.Identity, twin.Exit(20*time.Second))
	require.Contains(t, twin.Output(), "give each instance its own INSTANCE_ID")

	// One shard, by hand: nothing changes but its owner and its epoch.
	one := s.Shards[0]
	var c operator.Claimed
	dep.Ask(fault.Clean, &c, "claim", "--shard", "0", "--dry-run")
	require.True(t, c.DryRun)
	require.Equal(t, *one.Owner, c.Shards[0].From)
	dep.AwaitCount(int(*one.Epoch), "select epoch from processor.shards where shard = 0")
	dep.Ask(fault.Clean, &c, "claim", "--shard", "0")
	testenv.Wait(t, 10*time.Second, func() error {
		epoch, err := dep.Count("select epoch from processor.shards where shard = 0 and owner is not null")
		if err == nil && epoch <= int(*one.Epoch) {
			err = fmt.Errorf("epoch is still %d", epoch)
		}
		return err
	})
	dep.Publish(servicetest.RecordsOfMany(50, 50)...)
	dep.AwaitStored(100, 40*time.Second)
	require.Contains(t, dep.Ask(fault.Finding, nil, "claim", "--member", "third"), "no member is called third")
	require.Contains(t, dep.Ask(fault.Config, nil, "claim"), "one of --member, --shard and --consumer")

	// A frozen member: its shards move now, not when it counts as gone.
	second.Signal(syscall.SIGSTOP)
	dep.Ask(fault.Clean, &c, "claim", "--member", "second")
	require.GreaterOrEqual(t, len(c.Shards), 3, "less the one that was claimed")
	dep.AwaitCount(8, "select count(*) from processor.shards where owner like 'first.%'")
	dep.Publish(servicetest.RecordsOfMany(100, 50)...)
	dep.AwaitStored(150, 40*time.Second)
	testenv.Wait(t, 20*time.Second, func() error {
		back, err := dep.Count("select count(*) from processor.assignments where member like 'second.%'")
		require.NoError(t, err)
		require.Zero(t, back, "what was claimed is assigned to the frozen member again")
		kept, err := dep.Count("select count(*) from processor.assignments where term = 0")
		if err == nil && kept > 0 {
			err = fmt.Errorf("it does not count as gone yet")
		}
		return err
	})
	second.Signal(syscall.SIGCONT)
	dep.AwaitCount(4, "select count(*) from processor.shards where owner like 'second.%'")
	dep.AwaitCount(2, "select count(*) from processor.audit where action = 'shards.claim' and who like '%@%'")
	require.Zero(t, first.Terminate())
	require.Zero(t, second.Terminate())
}

func TestForeignConsumersAreNamedClaimedAndRemoved(t *testing.T) {
	testenv.Slow(t)
	dep := servicetest.New(t)
	client := dep.Client()
	ctx := t.Context()
	common := []string{"SHARDS=8", "QUEUE_RESCAN=1s", "CLAIM_INTERVAL_MS=100", "STATEMENT_TIMEOUT=5s"}
	settings := append(common, "CLAIM_THRESHOLD_MS=600000")
	p := dep.Run(settings...)
	p.AwaitReady()
	dep.Publish(servicetest.RecordsOfMany(0, 15)...)
	dep.AwaitStored(15, 40*time.Second)
	require.Zero(t, p.Terminate())

	// Another member reads while we are away, and the trace of where dispatching stopped is lost.
	dep.Publish(servicetest.RecordsOfMany(15, 25)...)
	read := func(consumer string, n int64) {
		t.Helper()
		err := client.XReadGroup(ctx, &redis.XReadGroupArgs{Group: dep.Group, Consumer: consumer, Streams: []string{dep.Stream, ">"}, Count: n, Block: -1}).Err()
		require.True(t, err == nil || err == redis.Nil, "%v", err) //nolint:errorlint // never wrapped
	}
	read("earlier", 20)
	read("by-hand", 5)
	// age makes a consumer's entries older than the threshold.
	age := func(consumer string) {
		t.Helper()
		pending, err := client.XPendingExt(ctx, &redis.XPendingExtArgs{Stream: dep.Stream, Group: dep.Group, Start: "-", End: "+", Count: 1000, Consumer: consumer}).Result()
		require.NoError(t, err)
		args := []any{"xclaim", dep.Stream, dep.Group, consumer, 0}
		for _, p := range pending {
			args = append(args, p.ID)
		}
		if len(pending) > 0 {
			require.NoError(t, client.Do(ctx, append(args, "idle", 700_000, "justid")...).Err())
		}
	}
	require.NoError(t, client.Del(ctx, stream.Names{Stream: dep.Stream, Group: dep.Group}.Dispatched()).Err())
	p = dep.Run(settings...)
	p.AwaitReady()
	var c operator.Claimed
	dep.Ask(fault.Clean, &c, "claim", "--consumer", "by-hand", "--min-idle", "1h")
	require.Zero(t, c.Entries)
	dep.Ask(fault.Clean, &c, "claim", "--consumer", "by-hand", "--min-idle", "0s", "--dry-run")
	require.Equal(t, 5, c.Entries)
	dep.Ask(fault.Clean, &c, "claim", "--consumer", "by-hand", "--min-idle", "0s")
	require.Equal(t, 5, c.Entries)
	dep.AwaitStored(20, 40*time.Second)
	dep.AwaitCount(5, "select count from processor.audit where action = 'consumer.claim'")
	require.Contains(t, dep.Ask(fault.Finding, nil, "claim", "--consumer", "nobody"), "no consumer")
	require.Contains(t, dep.Ask(fault.Config, nil, "claim", "--consumer", "shard-01"), "--shard 1")
	// The rest comes by itself.
	age("earlier")
	dep.AwaitStored(40, 40*time.Second)

	// One that reads in our group is an incident while it does; what it took is done all the same.
	for n := 40; ; n += 5 {
		dep.Publish(servicetest.RecordsOfMany(n, 5)...)
		read("alive", 2)
		open, err := dep.Count("select count(*) from processor.incidents where kind = 'foreign_consumer' and subject = 'alive' and closed_at is null")
		require.NoError(t, err)
		if open == 1 {
			age("alive")
			dep.AwaitStored(n+5, 40*time.Second)
			break
		}
		require.Less(t, n, 4000, "nobody notices")
	}
	p.Await("foreign consumer reads in our group")
	require.Zero(t, p.Terminate())
	p = dep.Run(append(common, "CLAIM_THRESHOLD_MS=8000")...) // after that long without a read it is gone
	dep.AwaitCount(0, "select count(*) from processor.incidents where closed_at is null")
	group, err := stream.NewGroup(client, stream.Config{Stream: dep.Stream, Group: dep.Group, Shards: 8})
	require.NoError(t, err)
	testenv.Wait(t, 30*time.Second, func() error {
		list, err := group.Consumers(ctx)
		for _, x := range list {
			if x.Shard < 0 {
				return fmt.Errorf("%s is still there", x.Name)
			}
		}
		return err
	})
	require.Zero(t, p.Terminate())
	unfinished, err := group.Pending(ctx, 10)
	require.NoError(t, err)
	require.Empty(t, unfinished)
}

func TestTheNumberOfShardsIsChangedByResizeOnly(t *testing.T) {
	testenv.Slow(t)
	dep := servicetest.New(t)
	p := dep.Run("SHARDS=8")
	p.AwaitReady()
	dep.Publish(servicetest.RecordsOfMany(0, 100)...)
	dep.AwaitStored(100, 40*time.Second)
	wrong := dep.Run("SHARDS=12")
	require.Equal(t, fault.Config, wrong.Exit(20*time.Second))
	require.Contains(t, wrong.Output(), "SHARDS is 12 here and 8 for the fleet")
	require.Contains(t, wrong.Output(), "processor shards resize")

	resize := servicetest.Spawn(t, dep.Environ(), "shards", "resize", "12", "--json")
	testenv.Wait(t, 20*time.Second, func() error {
		if !strings.Contains(resize.Errors(), "stop the instances now") {
			return fmt.Errorf("it says %q", resize.Errors())
		}
		return nil
	})
	dep.Publish(servicetest.RecordsOfMany(100, 100)...) // waits in the stream
	require.Zero(t, p.Terminate())
	require.Equal(t, fault.Clean, resize.Exit(20*time.Second), resize.Errors())
	require.Contains(t, resize.Output(), `"from":8,"to":12,"changed":true`)

	late := dep.Run("SHARDS=8")
	require.Equal(t, fault.Config, late.Exit(20*time.Second))
	next := dep.Run("SHARDS=12")
	next.AwaitReady()
	dep.AwaitStored(200, 40*time.Second)
	var s operator.Shards
	dep.Ask(fault.Clean, &s, "shards")
	require.Equal(t, 12, s.Number)
	require.Len(t, s.Shards, 12)
	require.Zero(t, next.Terminate())
	dep.Ask(fault.Config, nil, "shards", "resize", "0")
}

func TestBadInputAndManualCommandsOnTheGroup(t *testing.T) {
	dep := servicetest.New(t)
	client := dep.Client()
	ctx := t.Context()
	p := dep.Run("SHARDS=8", "QUEUE_RESCAN=1s")
	p.AwaitReady()
	dep.Publish(servicetest.RecordsOfMany(0, 50)...)
	dep.AwaitStored(50, 40*time.Second)

	// An entry without a device is a dead letter and holds nobody up.
	require.NoError(t, client.XAdd(ctx, &redis.XAddArgs{Stream: dep.Stream, Values: []any{"payload", "{}"}}).Err())
	dep.Publish(servicetest.RecordsOfMany(50, 10)...)
	dep.AwaitStored(60, 40*time.Second)

	// The group is deleted under our feet.
	require.NoError(t, client.XGroupDestroy(ctx, dep.Stream, dep.Group).Err())
	dep.Publish(servicetest.RecordsOfMany(60, 40)...)
	dep.AwaitStored(100, 40*time.Second)
	p.Await("consumer group created at the start of the stream")

	// The last-delivered ID is moved forward past entries, and back.
	ids := dep.Publish(servicetest.RecordsOfMany(100, 50)...)
	require.NoError(t, client.XGroupSetID(ctx, dep.Stream, dep.Group, ids[49].String()).Err())
	dep.AwaitStored(150, 40*time.Second)
	require.NoError(t, client.XGroupSetID(ctx, dep.Stream, dep.Group, ids[10].String()).Err())
	dep.Publish(servicetest.RecordsOfMany(150, 50)...)
	dep.AwaitStored(200, 40*time.Second)

	group, err := stream.NewGroup(client, stream.Config{Stream: dep.Stream, Group: dep.Group, Shards: 8})
	require.NoError(t, err)
	testenv.Wait(t, 20*time.Second, func() error {
		b, err := group.Backlog(ctx)
		if want := (protocol.Backlog{LagKnown: true, OldestKnown: true}); err == nil && b != want {
			err = fmt.Errorf("still to do: %+v", b)
		}
		return err
	})
	losses, err := dep.Count("select count(*) from processor.losses")
	require.NoError(t, err)
	require.Zero(t, losses)
	letters, err := client.XLen(ctx, dep.Stream+":dlq").Result()
	require.NoError(t, err)
	require.Equal(t, int64(1), letters, "redelivered it is the same dead letter")

	// The key becomes something else: a clear word, and no crash loop over data.
	require.NoError(t, client.Rename(ctx, dep.Stream, dep.Stream+":aside").Err())
	require.NoError(t, client.Set(ctx, dep.Stream, "text", 0).Err())
	p.Await("the key is not a stream; check REDIS_TELEMETRY_STREAM")
	require.NoError(t, client.Del(ctx, dep.Stream).Err())
	require.NoError(t, client.Rename(ctx, dep.Stream+":aside", dep.Stream).Err())
	if p.Running() {
		p.Signal(syscall.SIGTERM)
	}
	p.Exit(40 * time.Second)
	again := dep.Run("SHARDS=8")
	again.AwaitReady()
	dep.Publish(servicetest.RecordsOfMany(200, 10)...)
	dep.AwaitStored(210, 40*time.Second)
	require.Zero(t, again.Terminate())
}

// P1: what an operator changes in Redis and in Postgres is of one fleet.
func TestChangesOfAFleetWithAnotherDatabaseAreRejected(t *testing.T) {
	d := newDLQ(t)
	id := d.deadLetter(servicetest.InvalidRecord("a", 1), servicetest.InvalidRecord("b", 2))[0].String()
	first := d.Run(servicetest.FourShards)
	first.AwaitReady()
	require.Zero(t, first.Terminate())
	file := servicetest.File(t, `{"id":"`+id+`","fields":[{"name":"payload","value":"{}"}]}`)
	key := stream.Names{Stream: d.Stream, Group: d.Group}.Database()
	require.NoError(t, d.client.Set(t.Context(), key, "ANOTHER 192.0.2.1:5432/other", 0).Err())
	for _, args := range [][]string{
		{"claim", "--shard", "0"},
		{"claim", "--consumer", "any"},
		{"shards", "resize", "8"},
		{"pause"},
		{"replay", "--since", "1h"},
		{"streams", "add", d.Stream + "-b"},
		{"streams", "remove", d.Stream},
		{"dlq", "drop", "--all", "--confirm", "2"},
		{"dlq", "retry", "--all"},
		{"dlq", "edit", id, "--set", "payload.latitude=42.5"},
		{"dlq", "edit", "--from-file", file},
		{"dlq", "edit", "--all", "--replace", "{", "--with", "["},
		{"dlq", "restore", "--all"},
	} {
		text := d.Ask(fault.Config, nil, args...)
		require.Contains(t, text, "works with the database ANOTHER 192.0.2.1:5432/other", "%v", args)
		require.Contains(t, text, "nothing was changed", "%v", args)
	}
	d.AwaitCount(0, "select count(*) from processor.audit")
	d.AwaitCount(0, "select count(*) from processor.dead_letters")
	d.AwaitCount(0, "select count(*) from processor.shards where stream like '%-b'")
	require.EqualValues(t, 2, d.client.XLen(t.Context(), d.Stream+":dlq").Val())
	var m operator.Members
	d.Ask(fault.Clean, &m, "members")
	var letters []operator.DeadLetter
	d.Ask(fault.Clean, &letters, "dlq", "list")
	require.Len(t, letters, 2)
}

// P1: what may not be adopted, or is only asked about, stays as it is.
func TestAnAdoptionThatIsNotDoneChangesNothing(t *testing.T) {
	dep := servicetest.New(t)
	p := dep.Run(servicetest.FourShards)
	p.AwaitReady()
	other := *dep
	other.PostgresURL = testenv.Postgres(t, servicetest.Migrated())
	other.Exec("insert into processor.settings (name, value, set_by) values ($1, 'RESTORED', 'test')", store.DatabaseSetting)
	const settings = "select count(*) from processor.settings"
	confirmed := []string{"fleet", "adopt", "--confirm", "--reason", "moved"}
	require.Contains(t, other.Ask(fault.Finding, nil, confirmed...), "nothing was changed")
	other.AwaitCount(1, settings)
	require.Zero(t, p.Terminate())
	var a operator.Adopted
	other.Ask(0, &a, "fleet", "adopt")
	require.Equal(t, "RESTORED", a.To.ID)
	other.AwaitCount(1, settings)
	other.AwaitCount(0, "select count(*) from processor.audit")

	other.Exec("insert into processor.shards (stream, group_name, shard) values ($1, 'another', 0)", dep.Stream)
	require.Contains(t, other.Ask(fault.Config, nil, "fleet", "adopt"), "is processed by group another")
	other.Exec("delete from processor.shards")
	other.Ask(0, &a, confirmed...)
	require.True(t, a.Changed)
	require.Equal(t, "RESTORED", a.To.ID)
	other.AwaitCount(2, settings)
}
