package main

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/fault"
	"github.com/trmtracking/processor/internal/operator"
	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/internal/testenv/servicetest"
)

func TestRunHelpListsEveryVariable(t *testing.T) {
	code, help, _ := call("run", "--help")
	require.Equal(t, fault.Clean, code)
	for _, name := range []string{"REDIS_URL", "POSTGRES_URL", "DRAIN_TIMEOUT", "SHARDS", "PANIC_DUMP_DIR"} {
		require.Contains(t, help, "  "+name+" (")
	}
}

func TestLagShowsTheBacklogAndItsAge(t *testing.T) {
	dep := servicetest.New(t)
	lag := func() operator.Lag {
		p := servicetest.Spawn(t, dep.Environ(), "lag", "--json")
		require.Zero(t, p.Exit(20*time.Second), p.Errors())
		var l operator.Lag
		require.NoError(t, json.Unmarshal([]byte(p.Output()), &l))
		return l
	}
	l := lag()
	require.False(t, l.StreamExists)
	require.Nil(t, l.OldestEntry)
	for id, text := range map[string]string{"4102444800000-0": `IDs are ahead of the clock by \d+ years`, "999999999999999-0": `IDs are ahead of the clock by 316\d\d years`} {
		require.NoError(t, dep.Client().XAdd(t.Context(), &redis.XAddArgs{Stream: dep.Stream, ID: id, Values: []string{"a", "b"}}).Err())
		require.Nil(t, lag().OldestAgeSeconds, "an ID ahead of the clock has no age")
		p := servicetest.Spawn(t, dep.Environ(), "lag")
		require.Zero(t, p.Exit(20*time.Second))
		require.Regexp(t, `oldest +`+id+`, of unknown age: `+text, p.Output())
		_, d := examined(dep)
		require.Equal(t, "warning", d.has("stream "+dep.Stream+": IDs are ahead of the clock"), "%+v", d.Findings)
		require.NoError(t, dep.Client().Del(t.Context(), dep.Stream).Err())
	}
	dep.Publish(servicetest.Record("device-1", 1), servicetest.Record("device-1", 2), servicetest.Record("device-1", 3))
	l = lag()
	require.True(t, l.StreamExists)
	require.False(t, l.GroupExists)
	require.EqualValues(t, 3, *l.Lag)
	require.NotNil(t, l.OldestEntry)
	require.Less(t, *l.OldestAgeSeconds, 60.0)

	p := dep.Run()
	testenv.Wait(t, 20*time.Second, func() error {
		if l = lag(); l.Backlog == nil || *l.Backlog != 0 {
			return fmt.Errorf("want nothing unfinished, have %+v", l)
		}
		return nil
	})
	require.True(t, l.OldestKnown)
	require.Zero(t, *l.Deferred)
	require.Zero(t, *l.Lost)
	require.Nil(t, l.OldestEntry)

	text := servicetest.Spawn(t, dep.Environ(), "lag")
	require.Zero(t, text.Exit(20*time.Second))
	require.Regexp(t, `backlog +0\n`, text.Output())
	alone := servicetest.Spawn(t, append(dep.Environ(), "POSTGRES_URL="), "lag")
	require.Zero(t, alone.Exit(20*time.Second))
	require.Regexp(t, `lag +0\n`, alone.Output())
	require.Regexp(t, `backlog +unknown\n`, alone.Output(), "never 0 for want of knowing")
	require.Zero(t, p.Terminate())
}
