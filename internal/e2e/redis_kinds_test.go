package e2e_test

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
	"github.com/trmtracking/processor/internal/testenv/servicetest"
	"github.com/trmtracking/processor/loadtest/fleet"
)

func TestTheServiceRunsOnARedisClusterAndThroughAFailOver(t *testing.T) {
	testenv.Full(t)
	t.Parallel()
	cluster := testenv.RedisCluster(t)
	const name = "telemetry:cluster"
	_, master, err := cluster.Master(t.Context(), "{"+name+"}") // its keys lie where its own name does
	require.NoError(t, err)
	serveThroughAFailOver(t, cluster.URL(), name, master)
}

func TestTheServiceRunsThroughSentinelAndAFailOver(t *testing.T) {
	testenv.Full(t)
	t.Parallel()
	master := testenv.OwnServers(t, devenv.Options{Redis: true}).Redis
	testenv.OwnServers(t, devenv.Options{Redis: true, RedisArgs: []string{"--replicaof", "127.0.0.1", strconv.Itoa(master.Port())}})
	testenv.InStep(t, master)
	serveThroughAFailOver(t, "redis://"+testenv.Sentinel(t, master.Port())+"?master_name=mymaster", "telemetry:sentinel", master)
}

func TestOneProcessServesStreamsOnSeveralNodesOfACluster(t *testing.T) {
	testenv.Slow(t)
	t.Parallel()
	ctx := t.Context()
	cluster := testenv.RedisCluster(t)
	dep := &servicetest.Deployment{T: t, RedisURL: cluster.URL(), Stream: "telemetry:{0..3}", Group: "processor", PostgresURL: testenv.Postgres(t, servicetest.Migrated())}
	p := dep.Run(servicetest.FourShards)
	p.AwaitReady()
	nodes, sent := map[*devenv.Server]bool{}, 0
	publish := func() {
		t.Helper()
		for n := range 4 {
			of := *dep
			of.Stream = fmt.Sprintf("telemetry:%d", n)
			of.Publish(servicetest.RecordsOfMany(100*n+sent, 10)...)
			_, node, err := cluster.Master(ctx, of.Stream)
			require.NoError(t, err)
			nodes[node] = true
		}
		sent += 10
		dep.AwaitStored(4*sent, 40*time.Second)
	}
	publish()
	require.Greater(t, len(nodes), 1)

	_, from, err := cluster.Master(ctx, "telemetry:1")
	require.NoError(t, err)
	for node := range nodes {
		if node != from {
			require.NoError(t, cluster.Move(ctx, "telemetry:1", node))
			break
		}
	}
	publish()
	var lag struct {
		Streams []struct {
			Stream  string
			Backlog *int64
			Length  int64
		}
	}
	testenv.Wait(t, 20*time.Second, func() error {
		dep.Ask(0, &lag, "lag")
		for _, s := range lag.Streams {
			if s.Backlog == nil || *s.Backlog != 0 || s.Length != int64(sent) {
				return fmt.Errorf("stream %s is not done: %+v", s.Stream, lag)
			}
		}
		return nil
	})
	require.Len(t, lag.Streams, 4)
	require.Zero(t, p.Terminate())
}

// serveThroughAFailOver runs the service and the operators' commands, kills the
// master and sees that all goes on at the one that takes its place.
func serveThroughAFailOver(t *testing.T, url, name string, master *devenv.Server) {
	t.Helper()
	ctx := t.Context()
	dep := &servicetest.Deployment{T: t, RedisURL: url, Stream: name, Group: "processor", PostgresURL: testenv.Postgres(t, servicetest.Migrated())}
	client, err := stream.Connect(stream.Config{URL: url, Timeout: 10 * time.Second})
	require.NoError(t, err)
	t.Cleanup(func() { _ = client.Close() })

	p := dep.Run(servicetest.FourShards)
	p.AwaitReady()
	ids := dep.Publish(append(servicetest.Records(0, 7), servicetest.InvalidRecord(servicetest.IMEI, 10))...)
	dep.AwaitStored(7, 20*time.Second)
	awaitDevice(dep, 0, 1)

	// What another program took from the queues, an operator claims.
	take := []any{"xclaim", name, dep.Group, "old", 0}
	for _, id := range ids[:3] {
		take = append(take, id.String())
	}
	require.NoError(t, client.Do(ctx, append(take, "force", "justid")...).Err())
	awaitDevice(dep, 3, 1)
	claim := servicetest.Spawn(t, dep.Environ(servicetest.FourShards), "claim", "--consumer", "old", "--min-idle", "0s")
	require.Zero(t, claim.Exit(20*time.Second), claim.Errors())
	require.Contains(t, claim.Output(), "moved 3 entries")
	awaitDevice(dep, 0, 1)
	require.Zero(t, client.XGroupDelConsumer(ctx, name, dep.Group, "old").Val(), "it held nothing any more")

	// The dead letter is fixed and sent again.
	var letters []struct{ ID string }
	dep.Ask(0, &letters, "dlq", "list")
	require.Len(t, letters, 1)
	for _, args := range [][]string{{"edit", letters[0].ID, "--set", "payload.latitude=41"}, {"retry", letters[0].ID}} {
		done := servicetest.Spawn(t, dep.Environ(servicetest.FourShards), append([]string{"dlq"}, args...)...)
		require.Zero(t, done.Exit(20*time.Second), "%v: %s", args, done.Errors())
	}
	dep.AwaitStored(8, 20*time.Second)

	healthy := func() {
		t.Helper()
		d := diagnose(dep)
		for _, text := range []string{"Redis: version 7", "noeviction", "scripts run", "the backlog is empty", "every shard has an owner"} {
			require.Equal(t, "ok", d.level(text), "%s: %+v", text, d.Findings)
		}
		require.Equal(t, "none", d.level("replica"))
	}
	healthy()

	testenv.InStep(t, master)
	require.NoError(t, master.Kill())
	killed := time.Now()
	testenv.Wait(t, 40*time.Second, func() error {
		_, err := fleet.NewPublisher(client, name, 0).Publish(context.Background(), servicetest.Records(20, 3))
		return err
	})
	taken := time.Since(killed)
	dep.AwaitStored(11, 40*time.Second)
	t.Logf("the next master took entries after %s, and they were stored after %s", taken.Round(time.Millisecond), time.Since(killed).Round(time.Millisecond))
	awaitDevice(dep, 0, 0)
	healthy()
	require.Zero(t, p.Terminate())
}

// awaitDevice waits until of the device so many entries are on a queue and so
// many are dead letters.
func awaitDevice(dep *servicetest.Deployment, pending, letters int64) {
	dep.T.Helper()
	var d deviceReport
	testenv.Wait(dep.T, 20*time.Second, func() error {
		dep.Ask(0, &d, "device", "show", servicetest.IMEI)
		if d.Pending == nil || *d.Pending != pending || *d.Undispatched != 0 || *d.DeadLetters != letters {
			return fmt.Errorf("want %d pending and %d dead letters, have %+v", pending, letters, d)
		}
		return nil
	})
}
