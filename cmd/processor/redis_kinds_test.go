package main

import (
	"context"
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/devenv"
	"github.com/trmtracking/processor/internal/stream"
	"github.com/trmtracking/processor/internal/testenv"
)

func TestTheServiceRunsOnARedisClusterAndThroughAFailOver(t *testing.T) {
	testenv.Full(t)
	t.Parallel()
	cluster := testenv.NewRedisCluster(t, 3)
	const name = "telemetry:cluster"
	master := cluster.Master("{" + name + "}") // its keys lie where its own name does
	cluster.Replicate(master)
	serveThroughAFailOver(t, cluster.URL, name, master)
}

func TestTheServiceRunsThroughSentinelAndAFailOver(t *testing.T) {
	testenv.Full(t)
	t.Parallel()
	master := testenv.OwnServers(t, devenv.Options{Redis: true}).Redis
	testenv.OwnServers(t, devenv.Options{Redis: true, RedisArgs: []string{"--replicaof", "127.0.0.1", strconv.Itoa(master.Port())}})
	testenv.InStep(t, master)
	serveThroughAFailOver(t, "redis://"+testenv.Sentinel(t, master.Port())+"?master_name=mymaster", "telemetry:sentinel", master)
}

// serveThroughAFailOver runs the service and the operators' commands, kills the
// master and sees that all goes on at the one that takes its place.
func serveThroughAFailOver(t *testing.T, url, name string, master *devenv.Server) {
	t.Helper()
	ctx := t.Context()
	pl := &place{t: t, redisURL: url, stream: name, group: "processor", pgURL: testenv.Postgres(t, migrated())}
	client, err := stream.Connect(stream.Config{URL: url, Timeout: 10 * time.Second})
	require.NoError(t, err)
	t.Cleanup(func() { _ = client.Close() })

	p := pl.run(fourShards)
	p.awaitReady()
	ids := pl.publish(append(rides(0, 7), letter(imei, 10))...)
	pl.awaitStored(7, 20*time.Second)
	pl.awaitDevice(0, 1)

	// What another program took from the queues, an operator claims.
	take := []any{"xclaim", name, pl.group, "old", 0}
	for _, id := range ids[:3] {
		take = append(take, id.String())
	}
	require.NoError(t, client.Do(ctx, append(take, "force", "justid")...).Err())
	pl.awaitDevice(3, 1)
	claim := spawn(t, pl.environ(fourShards), "claim", "--consumer", "old", "--min-idle", "0s")
	require.Zero(t, claim.exit(20*time.Second), claim.errors())
	require.Contains(t, claim.output(), "moved 3 entries")
	pl.awaitDevice(0, 1)
	require.Zero(t, client.XGroupDelConsumer(ctx, name, pl.group, "old").Val(), "it held nothing any more")

	// The dead letter is mended and sent again.
	var letters []letterJSON
	pl.ask(exitClean, &letters, "dlq", "list")
	require.Len(t, letters, 1)
	for _, args := range [][]string{{"edit", letters[0].ID, "--set", "payload.latitude=41"}, {"retry", letters[0].ID}} {
		done := spawn(t, pl.environ(fourShards), append([]string{"dlq"}, args...)...)
		require.Zero(t, done.exit(20*time.Second), "%v: %s", args, done.errors())
	}
	pl.awaitStored(8, 20*time.Second)

	healthy := func() {
		t.Helper()
		code, d := pl.examined()
		require.Equal(t, exitClean, code, "%+v", d.Findings)
		for _, text := range []string{"Redis: version 7", "noeviction", "scripts run", "nothing is undone", "every shard has an owner"} {
			require.Equal(t, levelOK, d.has(text), "%s: %+v", text, d.Findings)
		}
		require.Equal(t, "none", d.has("replica"))
	}
	healthy()

	testenv.InStep(t, master)
	require.NoError(t, master.Kill())
	killed := time.Now()
	testenv.Wait(t, 40*time.Second, func() error {
		_, err := stream.NewPublisher(client, name, 0).Publish(context.Background(), rides(20, 3))
		return err
	})
	taken := time.Since(killed)
	pl.awaitStored(11, 40*time.Second)
	t.Logf("the next master took entries after %s, and they were stored after %s", taken.Round(time.Millisecond), time.Since(killed).Round(time.Millisecond))
	pl.awaitDevice(0, 0)
	healthy()
	require.Zero(t, terminated(p))
}

// awaitDevice waits until of the device so many entries are on a queue and so
// many are dead letters.
func (pl *place) awaitDevice(pending, letters int64) {
	pl.t.Helper()
	var d deviceShown
	testenv.Wait(pl.t, 20*time.Second, func() error {
		pl.ask(exitClean, &d, "device", "show", imei)
		if d.Pending == nil || *d.Pending != pending || *d.Undealt != 0 || *d.DeadLetters != letters {
			return fmt.Errorf("want %d pending and %d dead letters, have %+v", pending, letters, d)
		}
		return nil
	})
}
