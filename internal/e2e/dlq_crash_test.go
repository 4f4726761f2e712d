package e2e_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/stream"
	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/internal/testenv/servicetest"
	"github.com/trmtracking/processor/loadtest/fleet"
)

// fragile is the processor built so that entries with a field called plant kill it.
var fragile = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "fragile")
	if err != nil {
		return "", err
	}
	program := filepath.Join(dir, "processor")
	out, err := exec.Command("go", "build", "-tags", "crashtest", "-o", program, "github.com/trmtracking/processor/cmd/processor").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return program, nil
})

// nursed runs a processor and starts it again whenever it dies, until told to
// stop. It returns how often it died.
func nursed(t *testing.T, dep *servicetest.Deployment) (stop func() int) {
	t.Helper()
	program, err := fragile()
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	deaths := 0
	var nursing sync.WaitGroup
	nursing.Go(func() {
		for ctx.Err() == nil {
			began := time.Now()
			cmd := exec.CommandContext(ctx, program, "run")
			cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "TMPDIR=" + t.TempDir()}, dep.Environ("SHARDS=8", "LOG_LEVEL=warn", "MEMBER_TTL=1500ms", "LEADER_TTL=1s")...)
			out, err := cmd.CombinedOutput()
			if err != nil && ctx.Err() == nil {
				deaths++
				if cmd.ProcessState.ExitCode() == 3 {
					t.Errorf("not a death: %s", out)
					return
				}
				t.Logf("%v after %v:\n%.3000s", err, time.Since(began).Round(time.Millisecond), out)
			}
		}
	})
	return func() int {
		cancel()
		nursing.Wait()
		return deaths
	}
}

func TestAnEntryThatKillsProcessesIsFoundAndNoOtherIsBlamed(t *testing.T) {
	for _, how := range []string{"panic", "stack", "signal"} {
		t.Run(how, func(t *testing.T) {
			if how != "stack" && !testenv.IsFull() {
				t.Skip("one way to die is enough here; TEST_FULL runs all three")
			}
			dep := servicetest.New(t)
			opts, err := redis.ParseURL(dep.RedisURL)
			require.NoError(t, err)
			client := redis.NewClient(opts)
			defer func() { _ = client.Close() }()
			var entries [][]string
			const devices, seconds, killer = 20, 40, 333
			for s := range int64(seconds) {
				for d := range devices {
					entries = append(entries, servicetest.MovingRecord(fleet.DeviceID(d), s))
				}
			}
			entries[killer] = append(entries[killer], "plant", how)
			ids, err := fleet.NewPublisher(client, dep.Stream, 0).Publish(t.Context(), entries)
			require.NoError(t, err)

			stop := nursed(t, dep)
			conn, err := pgx.Connect(t.Context(), dep.PostgresURL)
			require.NoError(t, err)
			defer func() { _ = conn.Close(context.WithoutCancel(t.Context())) }()
			stored := func() (n int) {
				require.NoError(t, conn.QueryRow(t.Context(), "select count(*) from positions").Scan(&n))
				return n
			}
			testenv.Wait(t, 2*time.Minute, func() error {
				if n := stored(); n != len(entries)-1 {
					return fmt.Errorf("%d of %d stored", n, len(entries)-1)
				}
				return nil
			})
			dead, err := stream.NewDeadLetters(client, stream.Config{Stream: dep.Stream, Group: dep.Group}, dep.Stream+":dlq")
			require.NoError(t, err)
			testenv.Wait(t, time.Minute, func() error {
				list, err := dead.List(t.Context(), telemetry.EntryID{}, 10)
				if err == nil && len(list) == 0 {
					return fmt.Errorf("no dead letter yet")
				}
				return err
			})
			var left int
			testenv.Wait(t, time.Minute, func() error {
				err := conn.QueryRow(t.Context(), "select count(*) from processor.shards where max_in_flight is not null or crash_count > 0").Scan(&left)
				if err == nil && left > 0 {
					return fmt.Errorf("%d shards are still in quarantine", left)
				}
				return err
			})
			deaths := stop()
			t.Logf("%d deaths", deaths)

			list, err := dead.List(t.Context(), telemetry.EntryID{}, 10)
			require.NoError(t, err)
			require.Len(t, list, 1, "innocents are not blamed")
			require.Equal(t, ids[killer], list[0].Entry.ID)
			require.Equal(t, telemetry.ClassCrash, list[0].Class)
			require.Equal(t, entries[killer], list[0].Entry.Fields)
			require.GreaterOrEqual(t, list[0].Attempts, 2)
			// Each death halves what is tried together, which takes seven, or comes after progress:
			// how many do depends on how far each process gets, 8 to 19 were seen.
			require.LessOrEqual(t, deaths, 28)
		})
	}
}

func TestOneOrdinaryKillBlamesNoEntry(t *testing.T) {
	testenv.Slow(t)
	dep := servicetest.New(t)
	opts, err := redis.ParseURL(dep.RedisURL)
	require.NoError(t, err)
	client := redis.NewClient(opts)
	defer func() { _ = client.Close() }()
	first := dep.Run("SHARDS=8")
	first.AwaitReady()
	var entries [][]string
	for s := range int64(50) {
		for d := range 20 {
			entries = append(entries, servicetest.MovingRecord(fleet.DeviceID(d), s))
		}
	}
	pub := fleet.NewPublisher(client, dep.Stream, 0)
	_, err = pub.Publish(t.Context(), entries[:500])
	require.NoError(t, err)
	conn, err := pgx.Connect(t.Context(), dep.PostgresURL)
	require.NoError(t, err)
	defer func() { _ = conn.Close(context.WithoutCancel(t.Context())) }()
	until := func(n int) {
		testenv.Wait(t, time.Minute, func() error {
			var have int
			err := conn.QueryRow(t.Context(), "select count(*) from positions").Scan(&have)
			if err == nil && have != n {
				return fmt.Errorf("%d of %d stored", have, n)
			}
			return err
		})
	}
	until(500)
	_, err = pub.Publish(t.Context(), entries[500:])
	require.NoError(t, err)
	require.NoError(t, first.Kill())
	second := dep.Run("SHARDS=8")
	second.AwaitReady()
	until(1000)
	var deaths int
	require.NoError(t, conn.QueryRow(t.Context(), "select coalesce(sum(crash_count), 0) from processor.shards").Scan(&deaths))
	require.Zero(t, deaths)
	require.Zero(t, client.XLen(t.Context(), dep.Stream+":dlq").Val())
	require.Zero(t, second.Terminate())
}
