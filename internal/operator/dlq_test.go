package operator_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/operator"
	"github.com/trmtracking/processor/internal/stream"
	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/internal/testenv/servicetest"
	"github.com/trmtracking/processor/loadtest/fleet"
)

// deadLetters adds a dead letter of each entry.
func (d *deployment) deadLetters(entries ...[]string) {
	d.Helper()
	pipe := d.redis.Client().Pipeline()
	for i, fields := range entries {
		l := telemetry.DeadLetter{
			Entry: telemetry.Entry{ID: telemetry.EntryID{Ms: uint64(1_800_000_000_000 + i)}, Fields: fields},
			Class: telemetry.ClassInvalid, Error: "invalid: of the test", Fingerprint: fmt.Sprint("invalid/payload/", i), Attempts: 1,
		}
		pipe.Do(d.Context(), append([]any{"xadd", d.redis.Stream + ":dlq", "*"}, anys(stream.EncodeDeadLetter(&l))...)...)
	}
	_, err := pipe.Exec(d.Context())
	require.NoError(d, err)
}

func anys(list []string) []any {
	out := make([]any, len(list))
	for i, s := range list {
		out[i] = s
	}
	return out
}

// An instance waits, with its whole worker, for what a dry run has written and not yet taken back.
func TestADryRunHoldsUpOneDeviceAtATime(t *testing.T) {
	dep := newDeployment(t)
	f := dep.fleet(dep.redis.Stream)
	const a, b = "860000000000001", "860000000000002"
	noFix := &fleet.Message{DeviceID: a, Codec: "8", Time: time.Unix(1_700_000_002, 0).UTC(), Satellites: 11}
	dep.deadLetters(servicetest.MovingRecord(a, 1), servicetest.MovingRecord(a, 1), fleet.EntryFields(noFix), servicetest.MovingRecord(a, 2), servicetest.MovingRecord(a, 2),
		servicetest.MovingRecord(b, 1), servicetest.MovingRecord(a, 3))
	const insert = `
insert into positions (device_id, ts, latitude, longitude, altitude, angle, speed, satellites, priority, codec, attributes)
values ($1, $2, 0, 0, 0, 0, 0, 0, 0, '8', '{}')`
	tx, err := dep.pool.Begin(t.Context())
	require.NoError(t, err)
	defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }()
	_, err = tx.Exec(t.Context(), insert, b, time.Unix(1_700_000_001, 0))
	require.NoError(t, err)

	type outcome struct {
		operator.Retried
		err error
	}
	done := make(chan outcome, 1)
	go func() {
		defer close(done)
		r, err := f.RetryDeadLetters(t.Context(), operator.Filter{}, operator.RetryOptions{DryRun: true, PerSecond: 1})
		done <- outcome{r, err}
	}()
	testenv.Wait(t, 20*time.Second, func() (err error) {
		select {
		case r := <-done:
			t.Fatal(r)
		default:
		}
		var waits bool
		require.NoError(t, dep.pool.QueryRow(t.Context(), "select exists (select from pg_stat_activity where $1 = any (pg_blocking_pids(pid)))", tx.Conn().PgConn().PID()).Scan(&waits))
		if !waits {
			err = errors.New("it does not wait for the other device")
		}
		return err
	})
	live, err := dep.pool.Begin(t.Context())
	require.NoError(t, err)
	defer func() { _ = live.Rollback(context.WithoutCancel(t.Context())) }()
	_, err = live.Exec(t.Context(), "set local lock_timeout = '1s'")
	require.NoError(t, err)
	_, err = live.Exec(t.Context(), insert, a, time.Unix(1_700_000_001, 0))
	require.NoError(t, err, "the first device is locked while the dry run is at the second")
	require.NoError(t, live.Rollback(t.Context()))
	require.NoError(t, tx.Rollback(t.Context()))
	r := <-done
	require.NoError(t, r.err)
	var told []string
	for _, l := range r.Letters {
		told = append(told, l.Outcome)
	}
	require.Equal(t, []string{"stored", "duplicate", "stored", "stored", "duplicate", "stored", "stored"}, told, "as they would replace each other")
	var n int
	require.NoError(t, dep.pool.QueryRow(t.Context(), "select count(*) from positions").Scan(&n))
	require.Zero(t, n)
}

// What is kept of a dead letter is a part of the reply with all of its content.
func TestP9WhatIsCountedAndReportedOfDeadLettersIsNotTheirContent(t *testing.T) {
	dep := newDeployment(t)
	f := dep.fleet(dep.redis.Stream)
	const letters, size = 400, 16 << 10
	content := strings.Repeat("x", size)
	entries := make([][]string, letters)
	for i := range entries {
		entries[i] = []string{"device_id", fmt.Sprint("device-", i), "payload", content}
	}
	dep.deadLetters(entries...)
	live := func() int {
		runtime.GC()
		runtime.GC() // what pools kept
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int(m.HeapAlloc)
	}
	ctx := t.Context()
	for _, tt := range []struct {
		name string
		call func() any
	}{
		{"counted", func() any {
			groups, _, err := f.FailureGroups(ctx, operator.Filter{})
			require.NoError(t, err)
			require.Len(t, groups, letters)
			return groups
		}},
		{"listed", func() any {
			list, err := f.DeadLetters(ctx, operator.Filter{}, "", letters)
			require.NoError(t, err)
			require.Len(t, list.Letters, letters)
			return list
		}},
		{"replayed", func() any {
			r, err := f.RetryDeadLetters(ctx, operator.Filter{}, operator.RetryOptions{Unchecked: true, PerSecond: 1e6, PauseAt: 1e6})
			require.NoError(t, err)
			require.Equal(t, letters, r.Done)
			return r
		}},
	} {
		began := live()
		result := tt.call()
		require.Less(t, live()-began, letters*size/4, tt.name)
		runtime.KeepAlive(result)
	}
}

// One that another program added would keep its stream from being removed.
func TestAForeignEntryIsDroppedAndStaysInTheArchive(t *testing.T) {
	dep := newDeployment(t)
	f := dep.fleet(dep.redis.Stream)
	client, dlq := dep.redis.Client(), dep.redis.Stream+":dlq"
	dep.deadLetters(servicetest.MovingRecord("860000000000001", 1))
	id := client.XAdd(t.Context(), &redis.XAddArgs{Stream: dlq, Values: []string{"by", "hand"}}).Val()
	_, err := f.RetryDeadLetters(t.Context(), operator.Filter{Class: "foreign"}, operator.RetryOptions{PerSecond: 1, PauseAt: 1, Unchecked: true})
	require.ErrorIs(t, err, operator.ErrNoMatch, "it is no dead letter")
	out, err := f.DropDeadLetters(t.Context(), operator.Filter{Class: "foreign"}, 1)
	require.NoError(t, err)
	require.Equal(t, 1, out.Dropped)
	require.EqualValues(t, 1, client.XLen(t.Context(), dlq).Val())
	var n int
	require.NoError(t, dep.pool.QueryRow(t.Context(), "select count(*) from processor.dead_letters where dlq_id = $1 and class = 'foreign'", id).Scan(&n))
	require.Equal(t, 1, n)
	another := client.XAdd(t.Context(), &redis.XAddArgs{Stream: dlq, Values: []string{"by", "hand"}}).Val()
	out, err = f.DropDeadLetters(t.Context(), operator.Filter{IDs: []string{another}}, 1)
	require.NoError(t, err)
	require.Equal(t, 1, out.Dropped)
}
