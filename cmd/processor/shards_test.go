package main

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/stream"
	"github.com/trmtracking/processor/internal/testenv"
)

// riders is n valid entries of as many devices.
func riders(from, n int) [][]string {
	list := make([][]string, n)
	for i := range list {
		list[i] = good(fmt.Sprintf("device-%d", from+i), int64(from+i))
	}
	return list
}

func (pl *place) count(sql string) (n int, err error) {
	conn, err := pgx.Connect(pl.t.Context(), pl.pgURL)
	if err != nil {
		return 0, err
	}
	defer conn.Close(pl.t.Context())
	return n, conn.QueryRow(pl.t.Context(), sql).Scan(&n)
}

func (pl *place) awaitRows(n int) {
	pl.t.Helper()
	pl.awaitCount(n, "select count(*) from positions")
}

func (pl *place) awaitCount(n int, sql string) {
	pl.t.Helper()
	testenv.Wait(pl.t, 40*time.Second, func() error {
		have, err := pl.count(sql)
		if err == nil && have != n {
			err = fmt.Errorf("want %d, have %d: %s", n, have, sql)
		}
		return err
	})
}

func TestOperatorsSeeTheFleetAndMoveShards(t *testing.T) {
	pl := newPlace(t)
	require.Contains(t, pl.ask(exitFinding, nil, "shards"), "no instance has ever started")
	var m membersJSON
	pl.ask(exitClean, &m, "members")
	require.Empty(t, m.Members)

	settings := []string{"SHARDS=8", "QUEUE_RESCAN=1s", "CLAIM_INTERVAL_MS=100", "CLAIM_THRESHOLD_MS=10000", "STATEMENT_TIMEOUT=5s"}
	first := pl.run(append(settings, "INSTANCE_ID=first")...)
	first.awaitReady()
	second := pl.run(append(settings, "INSTANCE_ID=second")...)
	second.awaitReady()
	pl.publish(riders(0, 50)...)
	pl.awaitRows(50)
	pl.awaitCount(4, "select count(*) from processor.shards where owner like 'second.%'")

	pl.ask(exitClean, &m, "members")
	require.Len(t, m.Members, 2)
	leaders := 0
	for _, x := range m.Members {
		require.Equal(t, memberWorking, x.State)
		require.Equal(t, 4, x.Shards)
		require.NotZero(t, x.PID)
		if x.Leads {
			leaders++
		}
	}
	require.Equal(t, 1, leaders)
	var s shardsJSON
	pl.ask(exitClean, &s, "shards")
	require.Len(t, s.Shards, 8)
	require.Zero(t, s.Waiting)
	for _, x := range s.Shards {
		require.NotNil(t, x.Owner)
		require.Equal(t, *x.Owner, *x.AssignedTo)
		require.Nil(t, x.OldestEntry)
		require.NotNil(t, x.AppliedID)
	}

	// Two processes with one identity: the second is refused and harms nobody.
	twin := pl.run(append(settings, "INSTANCE_ID=second")...)
	require.Equal(t, exitIdentity, twin.exit(20*time.Second))
	require.Contains(t, twin.output(), "give each instance its own INSTANCE_ID")

	// One shard, by hand: nothing changes but its owner and its epoch.
	one := s.Shards[0]
	var c claimJSON
	pl.ask(exitClean, &c, "claim", "--shard", "0", "--dry-run")
	require.True(t, c.DryRun)
	require.Equal(t, *one.Owner, c.Shards[0].From)
	pl.awaitCount(int(one.Epoch), "select epoch from processor.shards where shard = 0")
	pl.ask(exitClean, &c, "claim", "--shard", "0")
	testenv.Wait(t, 10*time.Second, func() error {
		epoch, err := pl.count("select epoch from processor.shards where shard = 0 and owner is not null")
		if err == nil && epoch <= int(one.Epoch) {
			err = fmt.Errorf("epoch is still %d", epoch)
		}
		return err
	})
	pl.publish(riders(50, 50)...)
	pl.awaitRows(100)
	require.Contains(t, pl.ask(exitFinding, nil, "claim", "--member", "third"), "nobody is called third")
	require.Contains(t, pl.ask(exitConfig, nil, "claim"), "one of --member, --shard and --consumer")

	// A frozen member: its shards move now, not when it counts as gone.
	second.signal(syscall.SIGSTOP)
	pl.ask(exitClean, &c, "claim", "--member", "second")
	require.GreaterOrEqual(t, len(c.Shards), 4)
	pl.awaitCount(8, "select count(*) from processor.shards where owner like 'first.%'")
	pl.publish(riders(100, 50)...)
	pl.awaitRows(150)
	second.signal(syscall.SIGCONT)
	pl.awaitCount(4, "select count(*) from processor.shards where owner like 'second.%'")
	pl.awaitCount(2, "select count(*) from processor.audit where action = 'shards.claim' and who like '%@%'")
	require.Zero(t, terminated(first))
	require.Zero(t, terminated(second))
}

func TestForeignConsumersAreNamedClaimedAndForgotten(t *testing.T) {
	pl := newPlace(t)
	client := pl.client()
	ctx := t.Context()
	settings := []string{"SHARDS=8", "QUEUE_RESCAN=1s", "CLAIM_INTERVAL_MS=100", "CLAIM_THRESHOLD_MS=8000", "STATEMENT_TIMEOUT=5s"}
	p := pl.run(settings...)
	p.awaitReady()
	pl.publish(riders(0, 15)...)
	pl.awaitRows(15)
	require.Zero(t, terminated(p))

	// Somebody else reads while we are away, and the trace of where dealing stopped is lost.
	pl.publish(riders(15, 25)...)
	read := func(consumer string, n int64) {
		t.Helper()
		err := client.XReadGroup(ctx, &redis.XReadGroupArgs{Group: pl.group, Consumer: consumer, Streams: []string{pl.stream, ">"}, Count: n, Block: -1}).Err()
		require.True(t, err == nil || err == redis.Nil, "%v", err) //nolint:errorlint // never wrapped
	}
	read("earlier", 20)
	read("by-hand", 5)
	require.NoError(t, client.Del(ctx, stream.Names{Stream: pl.stream, Group: pl.group}.Dealt()).Err())
	p = pl.run(settings...)
	p.awaitReady()
	var c claimJSON
	pl.ask(exitClean, &c, "claim", "--consumer", "by-hand", "--min-idle", "1h")
	require.Zero(t, c.Entries)
	pl.ask(exitClean, &c, "claim", "--consumer", "by-hand", "--min-idle", "0s", "--dry-run")
	require.Equal(t, 5, c.Entries)
	pl.ask(exitClean, &c, "claim", "--consumer", "by-hand", "--min-idle", "0s")
	require.Equal(t, 5, c.Entries)
	pl.awaitRows(20)
	pl.awaitCount(5, "select count from processor.audit where action = 'consumer.claim'")
	require.Contains(t, pl.ask(exitFinding, nil, "claim", "--consumer", "nobody"), "no consumer")
	require.Contains(t, pl.ask(exitConfig, nil, "claim", "--consumer", "shard-01"), "--shard 1")
	// The rest comes by itself.
	pl.awaitRows(40)

	// One that reads in our group is an incident while it does; what it took is done all the same.
	for n := 40; ; n += 5 {
		pl.publish(riders(n, 5)...)
		read("alive", 2)
		open, err := pl.count("select count(*) from processor.incidents where kind = 'foreign_consumer' and subject = 'alive' and closed_at is null")
		require.NoError(t, err)
		if open == 1 {
			pl.awaitRows(n + 5)
			break
		}
		require.Less(t, n, 4000, "nobody notices")
	}
	p.await("a foreign consumer reads in our group")
	pl.awaitCount(0, "select count(*) from processor.incidents where closed_at is null")
	group, err := stream.NewGroup(client, stream.Config{Stream: pl.stream, Group: pl.group, Shards: 8})
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
	require.Zero(t, terminated(p))
	unfinished, err := group.Pending(ctx, 10)
	require.NoError(t, err)
	require.Empty(t, unfinished)
}

func TestTheNumberOfShardsIsChangedByResizeOnly(t *testing.T) {
	pl := newPlace(t)
	p := pl.run("SHARDS=8")
	p.awaitReady()
	pl.publish(riders(0, 100)...)
	pl.awaitRows(100)
	wrong := pl.run("SHARDS=12")
	require.Equal(t, exitConfig, wrong.exit(20*time.Second))
	require.Contains(t, wrong.output(), "SHARDS is 12 here and 8 for the fleet")
	require.Contains(t, wrong.output(), "processor shards resize")

	resize := spawn(t, pl.environ(), "shards", "resize", "12", "--json")
	testenv.Wait(t, 20*time.Second, func() error {
		if !strings.Contains(resize.errors(), "stop the instances now") {
			return fmt.Errorf("it says %q", resize.errors())
		}
		return nil
	})
	pl.publish(riders(100, 100)...) // waits in the stream
	require.Zero(t, terminated(p))
	require.Equal(t, exitClean, resize.exit(20*time.Second), resize.errors())
	require.Contains(t, resize.output(), `"from":8,"to":12,"changed":true`)

	late := pl.run("SHARDS=8")
	require.Equal(t, exitConfig, late.exit(20*time.Second))
	next := pl.run("SHARDS=12")
	next.awaitReady()
	pl.awaitRows(200)
	var s shardsJSON
	pl.ask(exitClean, &s, "shards")
	require.Equal(t, 12, s.Number)
	require.Len(t, s.Shards, 12)
	require.Zero(t, terminated(next))
	pl.ask(exitConfig, nil, "shards", "resize", "0")
}

func TestBadInputAndHandsOnTheGroup(t *testing.T) {
	pl := newPlace(t)
	client := pl.client()
	ctx := t.Context()
	p := pl.run("SHARDS=8", "QUEUE_RESCAN=1s")
	p.awaitReady()
	pl.publish(riders(0, 50)...)
	pl.awaitRows(50)

	// An entry without a device is a dead letter and holds nobody up.
	require.NoError(t, client.XAdd(ctx, &redis.XAddArgs{Stream: pl.stream, Values: []any{"payload", "{}"}}).Err())
	pl.publish(riders(50, 10)...)
	pl.awaitRows(60)

	// The group is deleted under our feet.
	require.NoError(t, client.XGroupDestroy(ctx, pl.stream, pl.group).Err())
	pl.publish(riders(60, 40)...)
	pl.awaitRows(100)
	p.await("consumer group made at the start of the stream")

	// The last-delivered ID is moved forward past entries, and back.
	ids := pl.publish(riders(100, 50)...)
	require.NoError(t, client.XGroupSetID(ctx, pl.stream, pl.group, ids[49].String()).Err())
	pl.awaitRows(150)
	require.NoError(t, client.XGroupSetID(ctx, pl.stream, pl.group, ids[10].String()).Err())
	pl.publish(riders(150, 50)...)
	pl.awaitRows(200)

	group, err := stream.NewGroup(client, stream.Config{Stream: pl.stream, Group: pl.group, Shards: 8})
	require.NoError(t, err)
	testenv.Wait(t, 20*time.Second, func() error {
		b, err := group.Backlog(ctx)
		if want := (protocol.Backlog{LagKnown: true, OldestKnown: true}); err == nil && b != want {
			err = fmt.Errorf("still to do: %+v", b)
		}
		return err
	})
	losses, err := pl.count("select count(*) from processor.losses")
	require.NoError(t, err)
	require.Zero(t, losses)
	letters, err := client.XLen(ctx, pl.stream+":dlq").Result()
	require.NoError(t, err)
	require.Equal(t, int64(1), letters, "dealt again it is the same dead letter")

	// The key becomes something else: a clear word, and no crash loop over data.
	require.NoError(t, client.Rename(ctx, pl.stream, pl.stream+":aside").Err())
	require.NoError(t, client.Set(ctx, pl.stream, "text", 0).Err())
	p.await("the key holds something else than a stream; check REDIS_TELEMETRY_STREAM")
	require.NoError(t, client.Del(ctx, pl.stream).Err())
	require.NoError(t, client.Rename(ctx, pl.stream+":aside", pl.stream).Err())
	if p.cmd.ProcessState == nil {
		p.signal(syscall.SIGTERM)
	}
	p.exit(40 * time.Second)
	again := pl.run("SHARDS=8")
	again.awaitReady()
	pl.publish(riders(200, 10)...)
	pl.awaitRows(210)
	require.Zero(t, terminated(again))
}
