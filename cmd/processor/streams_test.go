package main

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/operator"
	"github.com/trmtracking/processor/internal/testenv/servicetest"
)

func TestCommandsShowEveryStreamOrTheOneNamed(t *testing.T) {
	dep := servicetest.New(t)
	other := *dep
	other.Stream += "-b"
	list := "REDIS_TELEMETRY_STREAM=" + dep.Stream + "," + other.Stream
	dep.Run(list, servicetest.FourShards, "INSTANCE_ID=one").AwaitReady()
	dep.Publish(servicetest.Record("device-1", 1))
	other.Publish(servicetest.Record("device-2", 1), servicetest.Record("device-2", 2))
	dep.AwaitStored(3, 20*time.Second)
	ask := func(want int, args ...string) (text, errs string) {
		p := servicetest.Spawn(t, dep.Environ(list), args...)
		require.Equal(t, want, p.Exit(20*time.Second), "%v: %s", args, p.Errors())
		return p.Output(), p.Errors()
	}
	text, _ := ask(0, "lag", "--json")
	var lag struct{ Streams []operator.Lag }
	require.NoError(t, json.Unmarshal([]byte(text), &lag))
	require.Len(t, lag.Streams, 2)
	require.Equal(t, other.Stream, lag.Streams[1].Stream)
	require.EqualValues(t, 2, lag.Streams[1].Length)
	for _, command := range []string{"members", "shards", "doctor"} {
		text, _ = ask(0, command)
		require.Contains(t, text, "stream "+dep.Stream)
		require.Contains(t, text, "stream "+other.Stream)
	}
	text, _ = ask(0, "lag", "--json", "--stream", other.Stream)
	var one operator.Lag
	require.NoError(t, json.Unmarshal([]byte(text), &one))
	require.EqualValues(t, 2, one.Length)
	_, errs := ask(3, "dlq", "list")
	require.Contains(t, errs, "say which one with --stream")
	ask(0, "dlq", "list", "--stream", other.Stream)
	_, errs = ask(3, "lag", "--stream", "another")
	require.Contains(t, errs, "does not list the stream")
	text, _ = ask(0, "device", "show", "device-2")
	require.Contains(t, text, "one.")
}
