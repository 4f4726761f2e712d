package main

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/console"
	"github.com/trmtracking/processor/internal/operator"
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/internal/testenv/servicetest"
)

// look returns what processor top --once --json prints.
func look(dep *servicetest.Deployment) (g console.Glance) {
	dep.Ask(0, &g, "top", "--once")
	return g
}

// fails returns what a command writes that must end with a code.
func fails(dep *servicetest.Deployment, code int, args ...string) string {
	dep.T.Helper()
	p := servicetest.Spawn(dep.T, dep.Environ(), args...)
	require.Equal(dep.T, code, p.Exit(30*time.Second), "%v: %s", args, p.Errors())
	return p.Errors()
}

func TestAPausedFleetDispatchesNothingAndLosesNothing(t *testing.T) {
	dep := servicetest.New(t)
	dep.Run(servicetest.FourShards, "INSTANCE_ID=one").AwaitReady()
	dep.Publish(servicetest.Records(0, 10)...)
	dep.AwaitStored(10, 20*time.Second)

	var held operator.Held
	dep.Ask(0, &held, "pause", "--reason", "a \x1b[31mmigration\u202e")
	require.True(t, held.Changed)
	testenv.Wait(t, 10*time.Second, func() error {
		if n := dep.Client().Exists(t.Context(), "{"+dep.Stream+"}:"+dep.Group+":paused").Val(); n != 1 {
			return fmt.Errorf("the leader has not told the dispatcher")
		}
		return nil
	})
	// The dispatcher asks when it renews its lease, at least every second.
	testenv.Wait(t, 20*time.Second, func() error {
		before, err := dep.Stored()
		require.NoError(t, err)
		dep.Publish(servicetest.Records(int64(100+before), 1)...)
		<-time.After(1500 * time.Millisecond)
		if after, err := dep.Stored(); err != nil || after != before {
			return fmt.Errorf("still dispatching, %w", err)
		}
		return nil
	})
	g := look(dep)
	require.Equal(t, "warn", g.Level)
	require.Contains(t, g.Verdict, "dispatching is paused by ")
	require.Positive(t, *g.Lag)
	require.NotContains(t, dep.Ask(0, nil, "top", "--once"), "\x1b")

	dep.Ask(0, &held, "resume")
	require.Empty(t, held.Holds)
	length := int(dep.Client().XLen(t.Context(), dep.Stream).Val())
	dep.AwaitStored(length, 20*time.Second)
	require.Zero(t, *look(dep).Lost)

	var audit operator.Page[store.AuditRow]
	dep.Ask(0, &audit, "audit")
	require.Equal(t, []string{"release fleet", "hold fleet"}, []string{audit.Rows[0].Action, audit.Rows[1].Action})
	require.Contains(t, string(audit.Rows[1].Detail), "migration")
}

func TestAPausedShardAndADrainedMember(t *testing.T) {
	testenv.Slow(t)
	dep := servicetest.New(t)
	dep.Run(servicetest.FourShards, "INSTANCE_ID=one").AwaitReady()
	require.Contains(t, fails(dep, 1, "drain", "one"), "no other instance")
	dep.Run(servicetest.FourShards, "INSTANCE_ID=two").AwaitReady()
	owners := func() map[string]int {
		var s operator.Shards
		dep.Ask(0, &s, "shards")
		n := make(map[string]int)
		for _, x := range s.Shards {
			name := ""
			if x.Owner != nil {
				name, _, _ = strings.Cut(*x.Owner, ".")
			}
			n[name]++
		}
		return n
	}
	await := func(want map[string]int) {
		t.Helper()
		testenv.Wait(t, 20*time.Second, func() error {
			if have := owners(); fmt.Sprint(have) != fmt.Sprint(want) {
				return fmt.Errorf("want %v, have %v", want, have)
			}
			return nil
		})
	}
	await(map[string]int{"one": 2, "two": 2})
	dep.Ask(0, nil, "drain", "two", "--reason", "its node goes")
	await(map[string]int{"one": 4})
	require.Contains(t, fails(dep, 1, "drain", "one"), "no other instance")
	var c operator.Claimed
	dep.Ask(0, &c, "claim", "--member", "one", "--dry-run")
	require.Len(t, c.Shards, 4)
	require.Empty(t, c.Shards[0].To, "the only other instance is drained")
	dep.Ask(0, nil, "undrain", "two")
	await(map[string]int{"one": 2, "two": 2})

	dep.Ask(0, nil, "pause", "--shard", "3")
	testenv.Wait(t, 20*time.Second, func() error {
		if have := owners(); have[""] != 1 {
			return fmt.Errorf("shard 3 has an owner: %v", have)
		}
		return nil
	})
	require.Contains(t, fails(dep, 3, "pause", "--shard", "4"), "no shard 4 of 4")
	var list [][]string
	for i := range 40 {
		list = append(list, servicetest.Record(fmt.Sprintf("device-%d", i), 1))
	}
	dep.Publish(list...)
	testenv.Wait(t, 20*time.Second, func() error {
		g := look(dep)
		stored, err := dep.Stored()
		if err != nil || g.Pending == nil || *g.Pending == 0 || int64(stored)+*g.Pending != 40 {
			return fmt.Errorf("want the rest on the queue of the shard: %d stored, %+v, %w", stored, g, err)
		}
		return nil
	})
	require.Equal(t, 1, look(dep).Waiting)
	dep.Ask(0, nil, "resume", "--shard", "3")
	dep.AwaitStored(40, 20*time.Second)
}

func TestReplayAddsWhatIsMissingAndChangesNothingElse(t *testing.T) {
	testenv.Slow(t)
	dep := servicetest.New(t)
	dep.Run(servicetest.FourShards).AwaitReady()
	dep.Publish(append(servicetest.Records(0, 30), servicetest.Record("other", 1))...)
	dep.AwaitStored(31, 20*time.Second)
	dep.Exec("delete from positions where device_id = $1 and ts < (select max(ts) from positions where device_id = $1) - interval '9 seconds'", servicetest.IMEI)
	dep.Exec("delete from positions where device_id = 'other'")
	left, err := dep.Stored()
	require.NoError(t, err)

	var r operator.Replayed
	dep.Ask(0, &r, "replay", "--since", "1h", "--dry-run")
	require.Equal(t, 31, r.Entries)
	require.Equal(t, 2, r.Devices)
	after, err := dep.Stored()
	require.NoError(t, err)
	require.Equal(t, left, after)

	dep.Ask(0, &r, "replay", "--since", "1h", "--device", servicetest.IMEI)
	require.Equal(t, 30, r.Entries)
	dep.AwaitStored(30, 40*time.Second)
	dep.Ask(0, &r, "replay", "--since", "1h")
	dep.AwaitStored(31, 40*time.Second)
	require.Contains(t, fails(dep, 3, "replay", "--since", "yesterday"), "want 2026-08-01")
}

func TestDroppedDeadLettersComeBackWithTheirEdits(t *testing.T) {
	testenv.Slow(t)
	dep := servicetest.New(t)
	dep.Run(servicetest.FourShards).AwaitReady()
	dep.Publish(servicetest.InvalidRecord("a", 1), servicetest.InvalidRecord("b", 2))
	dep.AwaitDeadLetters(2)
	var letters []operator.DeadLetter
	dep.Ask(0, &letters, "dlq", "list")
	dep.Ask(0, nil, "dlq", "edit", letters[0].ID, "--set", "payload.latitude=42.5")
	dep.Ask(0, nil, "dlq", "drop", "--all", "--confirm", "2")
	dep.AwaitDeadLetters(0)

	var page operator.Page[store.ArchivedLetter]
	dep.Ask(0, &page, "dlq", "archive", "--open")
	require.Len(t, page.Rows, 2)
	var restored []operator.Restored
	dep.Ask(0, &restored, "dlq", "restore", "--all", "--dry-run")
	require.Len(t, restored, 2)
	dep.AwaitDeadLetters(0)
	dep.Ask(0, &restored, "dlq", "restore", "--all")
	dep.AwaitDeadLetters(2)
	dep.Ask(0, &restored, "dlq", "restore", "--all")
	require.Equal(t, []string{"present", "present"}, []string{restored[0].Outcome, restored[1].Outcome})
	dep.AwaitDeadLetters(2)
	// The edit went with it.
	dep.Ask(0, nil, "dlq", "retry", "--device", letters[0].Device)
	dep.AwaitStored(1, 20*time.Second)
	dep.Ask(0, &restored, "dlq", "restore", "--all")
	require.Len(t, restored, 1, "what was replayed is not restored")
}
