package main

import (
	"encoding/json"
	"fmt"
	"reflect"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/operator"
	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/internal/testenv/servicetest"
)

func TestCommandsShowEveryStreamOrTheOneNamed(t *testing.T) {
	testenv.Slow(t)
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
	_, errs := ask(3, "dlq", "list", "1-1")
	require.Contains(t, errs, "say which one with --stream")
	ask(0, "dlq", "list", "--stream", other.Stream)
	other.Publish(servicetest.InvalidRecord("device-2", 3))
	other.AwaitDeadLetters(1)
	var letters struct {
		Streams []struct {
			Stream string
			Result []operator.DeadLetter
		}
	}
	text, _ = ask(0, "dlq", "list", "--class", "invalid", "--json")
	require.NoError(t, json.Unmarshal([]byte(text), &letters))
	require.Len(t, letters.Streams, 2)
	require.Empty(t, letters.Streams[0].Result)
	require.Len(t, letters.Streams[1].Result, 1)
	for _, args := range [][]string{{"dlq", "list"}, {"dlq", "stats"}, {"dlq", "deferred"}, {"dlq", "archive"}, {"incidents"}, {"requests"}, {"top"}} {
		text, _ = ask(0, args...)
		require.Contains(t, text, "stream "+dep.Stream, args)
		require.Contains(t, text, "stream "+other.Stream, args)
	}
	text, _ = ask(0, "dlq", "stats")
	require.Contains(t, text, "invalid/")
	for _, args := range [][]string{{"audit"}, {"geofence", "list"}, {"device", "list"}} { // of the database
		text, _ = ask(0, args...)
		require.NotContains(t, text, "stream "+dep.Stream, args)
	}
	var top struct{ Streams []struct{ Stream string } }
	text, _ = ask(0, "top", "--json")
	require.NoError(t, json.Unmarshal([]byte(text), &top))
	require.Equal(t, other.Stream, top.Streams[1].Stream)
	_, errs = ask(3, "lag", "--stream", "another")
	require.Contains(t, errs, "does not list the stream")
	text, _ = ask(0, "device", "show", "device-2")
	require.Contains(t, text, "one.")
}

func TestStreamsAreListedWithWhoServesThemAndWhatTheyHaveToDo(t *testing.T) {
	testenv.Slow(t)
	dep := servicetest.New(t)
	other, broken := *dep, *dep
	other.Stream += "-b"
	broken.Stream += "-x"
	list := "REDIS_TELEMETRY_STREAM=" + dep.Stream + "," + other.Stream
	p := dep.Run(list, servicetest.FourShards)
	p.AwaitReady()
	dep.Publish(servicetest.Record("device-1", 1))
	other.Publish(servicetest.Record("device-2", 1), servicetest.Record("device-3", 2))
	dep.AwaitStored(3, 20*time.Second)
	streams := func(want int, setting string) (s operator.Streams, errs string) {
		t.Helper()
		p := servicetest.Spawn(t, dep.Environ(setting), "streams", "--json")
		require.Equal(t, want, p.Exit(20*time.Second), p.Errors())
		require.NoError(t, json.Unmarshal([]byte(p.Output()), &s), p.Output())
		return s, p.Errors()
	}
	number := func(n int64) *int64 { return &n }
	one, four := 1, 4
	first := operator.StreamStatus{Stream: dep.Stream, Group: dep.Group, Listed: true, State: operator.StreamServed, Members: &one, Shards: &four, Backlog: number(0), Devices: number(1), Lost: number(0)}
	second := operator.StreamStatus{Stream: other.Stream, Group: dep.Group, Listed: true, State: operator.StreamServed, Members: &one, Shards: &four, Backlog: number(0), Devices: number(2), Lost: number(0)}
	testenv.Wait(t, 20*time.Second, func() error { // the last is stored before it is acknowledged
		if s, _ := streams(0, list); !reflect.DeepEqual([]operator.StreamStatus{first, second}, s.Streams) {
			return fmt.Errorf("have %+v", s)
		}
		return nil
	})

	// Another list shows it, too.
	second.Listed = false
	s, _ := streams(0, "REDIS_TELEMETRY_STREAM="+dep.Stream)
	require.Equal(t, []operator.StreamStatus{first, second}, s.Streams)

	require.Zero(t, p.Terminate())
	other.Publish(servicetest.Record("device-2", 3))
	none := 0
	first.Members, first.State = &none, operator.StreamDrained
	second.Members, second.State, second.Backlog = &none, operator.StreamNotServed, number(1)
	s, _ = streams(0, "REDIS_TELEMETRY_STREAM="+dep.Stream)
	require.Equal(t, []operator.StreamStatus{first, second}, s.Streams)

	// One that is no stream hides none of the others.
	require.NoError(t, dep.Client().Set(t.Context(), broken.Stream, "no stream", 0).Err())
	s, errs := streams(1, "REDIS_TELEMETRY_STREAM="+broken.Stream+","+dep.Stream)
	require.Len(t, s.Streams, 3)
	require.Nil(t, s.Streams[0].Backlog)
	require.Equal(t, first, s.Streams[1])
	require.Contains(t, errs, broken.Stream)
	require.Contains(t, errs, "not a stream")
}

func TestPauseAndDrainAreOfEveryStreamOrTheOneNamed(t *testing.T) {
	testenv.Slow(t)
	dep := servicetest.New(t)
	other := beside(dep, "-b")
	list := "REDIS_TELEMETRY_STREAM=" + dep.Stream + "," + other.Stream
	dep.Run(list, servicetest.FourShards, "INSTANCE_ID=one").AwaitReady()
	settings := []string{list}
	held := func(want int, args ...string) (of map[string]int) {
		t.Helper()
		text, _ := command(dep, want, settings, append(args, "--json")...)
		var all struct{ Streams []operator.Held }
		require.NoError(t, json.Unmarshal([]byte(text), &all), text)
		of = map[string]int{}
		for _, h := range all.Streams {
			of[h.Stream] = len(h.Holds)
		}
		return of
	}
	require.Equal(t, map[string]int{dep.Stream: 1, other.Stream: 1}, held(0, "pause", "--reason", "test"))
	require.Equal(t, map[string]int{dep.Stream: 0, other.Stream: 0}, held(0, "resume"))
	_, errs := command(dep, 3, settings, "pause", "--shard", "1")
	require.Contains(t, errs, "say which one with --stream")
	command(dep, 0, settings, "pause", "--shard", "1", "--stream", other.Stream)
	command(dep, 0, settings, "resume", "--shard", "1", "--stream", other.Stream)

	// Of one stream another instance could own shards, of the other one none.
	dep.Run(servicetest.FourShards, "INSTANCE_ID=two").AwaitReady()
	_, errs = command(dep, 1, settings, "drain", "one")
	require.Contains(t, errs, "stream "+other.Stream+": no other instance may own shards")
	dep.AwaitCount(0, "select count(*) from processor.holds")
	_, errs = command(dep, 1, settings, "drain", "nine")
	require.Contains(t, errs, "no instance is called nine")
	dep.Run(list, servicetest.FourShards, "INSTANCE_ID=three").AwaitReady()
	require.Equal(t, map[string]int{dep.Stream: 1, other.Stream: 1}, held(0, "drain", "one"))
	require.Equal(t, map[string]int{dep.Stream: 0, other.Stream: 0}, held(0, "undrain", "one"))
	require.Equal(t, map[string]int{dep.Stream: 1, other.Stream: 0}, held(0, "drain", "two"))
}
