package modules

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/pipeline"
)

func TestOnlyAnInstanceThatIsStuckIsEnded(t *testing.T) {
	const timeout = time.Minute
	answering := func(context.Context) error { return nil }
	inFlight := func(context.Context) pipeline.WorkStatus {
		return pipeline.WorkStatus{InFlight: 7, Finished: 3, CallsReturned: 5}
	}
	since := time.Now
	tests := []struct {
		name       string
		workStatus func(ctx context.Context) pipeline.WorkStatus
		answers    func(context.Context) error
		stuck      bool
	}{
		{"nothing moves", inFlight, answering, true},
		{"the poll itself is stuck", func(ctx context.Context) pipeline.WorkStatus { <-ctx.Done(); return pipeline.WorkStatus{} }, answering, true},
		{"nothing in flight", func(context.Context) pipeline.WorkStatus { return pipeline.WorkStatus{} }, answering, false},
		{"the servers are unavailable", inFlight, func(context.Context) error { return errors.New("refused") }, false},
		{"entries are finished", func(context.Context) pipeline.WorkStatus {
			return pipeline.WorkStatus{InFlight: 7, Finished: uint64(since().Unix() / 50)}
		}, answering, false},
		{"calls return, all with errors", func(context.Context) pipeline.WorkStatus {
			return pipeline.WorkStatus{InFlight: 7, CallsReturned: uint64(since().Unix() / 50)}
		}, answering, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), 20*timeout)
				defer cancel()
				gaveUp := 0
				l := &logs{}
				w := &watchdog{
					workStatus: func() pipeline.WorkStatus { return tt.workStatus(ctx) }, answers: tt.answers,
					giveUp: func() { gaveUp++ }, timeout: timeout, log: slog.New(slog.NewTextHandler(l, nil)),
				}
				began := time.Now()
				err := w.Run(ctx)
				took := time.Since(began)
				cancel()
				if !tt.stuck {
					require.NoError(t, err)
					require.Zero(t, gaveUp)
					return
				}
				require.Equal(t, 2, code(t, err))
				require.Equal(t, 1, gaveUp)
				require.InDelta(t, timeout.Seconds(), took.Seconds(), timeout.Seconds()/watchTicks+1)
				require.Contains(t, l.String(), "TestOnlyAnInstanceThatIsStuckIsEnded", "stacks of all goroutines")
			})
		})
	}
}

// blocking is a log handler that never returns from one message: the goroutine that
// logs it is stuck.
type blocking struct {
	slog.Handler
	on     string
	once   *sync.Once
	said   chan struct{} // closed when it was said
	resume chan struct{}
}

func (b blocking) Handle(ctx context.Context, r slog.Record) error {
	if r.Message == b.on {
		b.once.Do(func() { close(b.said) })
		<-b.resume
	}
	return b.Handler.Handle(ctx, r)
}

func (b blocking) WithAttrs(attrs []slog.Attr) slog.Handler {
	b.Handler = b.Handler.WithAttrs(attrs)
	return b
}

// P8: a stall inside a live process.
func TestAStuckInstanceGivesItsShardsUpAndEndsWithCode2(t *testing.T) {
	testenv.Slow(t)
	if os.Getenv(stuckChild) == "" && !testing.Short() {
		t.Parallel()
		child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=2m")
		child.Env = append(os.Environ(), stuckChild+"=1")
		out, err := child.CombinedOutput()
		require.NoError(t, err, "%s", out)
		require.Contains(t, string(out), "--- PASS: "+t.Name())
		return
	}
	b := newBench(t)
	settings := []string{"STALL_TIMEOUT=5s", "STATEMENT_TIMEOUT=3s", "LOCK_TIMEOUT=3s", "DRAIN_TIMEOUT=1s", "SHUTDOWN_TIMEOUT=8s", "MEMBER_TTL=2s", "LEADER_TTL=1s"}
	cfg := b.config(append(settings, "INSTANCE_ID=stuck")...)
	l := &logs{}
	trap := blocking{
		Handler: NewLogger(cfg.Log, cfg.Instance.ID, l).Handler(), on: "operation failed, will retry",
		once: &sync.Once{}, said: make(chan struct{}), resume: make(chan struct{}),
	}
	stuck, err := New(cfg, slog.New(trap), Build{Version: "test"})
	require.NoError(t, err)
	done := make(chan error, 1)
	go func() { done <- stuck.Run(context.Background()) }()
	t.Cleanup(func() { close(trap.resume) })
	owned := func(want string) {
		testenv.Wait(t, 20*time.Second, func() error {
			var have string
			err := b.query(`select coalesce(string_agg(distinct split_part(owner, '.', 1), ' '), 'nobody') from processor.shards`, &have)
			if err != nil || have != want {
				return fmt.Errorf("want owner %q, have %q, %w", want, have, err)
			}
			return nil
		})
	}
	owned("stuck")

	// A session that ends in the middle of a commit makes the committer log it.
	conn, err := pgx.Connect(t.Context(), b.pgURL)
	require.NoError(t, err)
	defer conn.Close(context.Background())
	_, err = conn.Exec(t.Context(), "begin; lock table positions in access exclusive mode")
	require.NoError(t, err)
	b.publish(50)
	testenv.Wait(t, 10*time.Second, func() error {
		var ended int
		if err := b.query(`select count(*) filter (where pg_terminate_backend(pid)) from pg_stat_activity
			where application_name like 'processor/stuck%' and wait_event_type = 'Lock'`, &ended); err != nil || ended == 0 {
			return fmt.Errorf("no commit waits: %w", err)
		}
		return nil
	})
	_, err = conn.Exec(t.Context(), "rollback")
	require.NoError(t, err)
	select {
	case <-trap.said:
	case <-time.After(10 * time.Second):
		require.FailNow(t, "the failed commit is not logged", l.String())
	}
	began := time.Now()
	next := b.start(append(settings, "INSTANCE_ID=next")...)
	owned("next")
	t.Logf("shards moved %s after the stall began", time.Since(began).Round(time.Millisecond))
	require.Less(t, time.Since(began), 5*time.Second+2*time.Second+5*time.Second, "STALL_TIMEOUT, MEMBER_TTL and 5 s")
	b.awaitStored(50)
	select {
	case err = <-done:
	case <-time.After(20 * time.Second):
		require.FailNow(t, "it does not end")
	}
	require.Equal(t, 2, code(t, err))
	t.Logf("ended %s after the stall began", time.Since(began).Round(time.Millisecond))
	require.Contains(t, l.String(), "releasing shards to restart")
	require.Contains(t, l.String(), "blocking.Handle", "the stacks show where it is stuck")
	require.NotContains(t, next.logs.String(), `"level":"ERROR"`, "the other instance logs no error")
	next.stop()
	require.NoError(t, next.end())
}
