package fleet_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/stream"
	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/loadtest/fleet"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// TestSendLogEqualsTheStreamOfRedis (promise 4) sends through a proxy that
// refuses, cuts, stalls and drops replies, to a real server.
func TestSendLogEqualsTheStreamOfRedis(t *testing.T) {
	corner := testenv.Redis(t)
	opts := corner.Options()
	proxy := testenv.Proxy(t, opts.Addr)
	opts.Addr = proxy.Addr()
	opts.MaxRetries = -1
	opts.ReadTimeout, opts.DialTimeout = 50*time.Millisecond, 50*time.Millisecond
	client := redis.NewClient(opts)
	defer client.Close()

	p := fleet.Polluted(8)
	p.Devices, p.Junk, p.Limit = 60, 0.005, 20_000
	p.Gaps, p.LostAcks = 0.3, 0.3
	source, err := p.Source()
	require.NoError(t, err)
	cfg := fleet.DefaultSenderConfig()
	cfg.MaxBatchRecords, cfg.RetryDelay = 100, 5*time.Millisecond
	s, buf := send(t, source, fleet.AtRate(10_000), fleet.NewPublisher(client, corner.Stream, 0), cfg)

	done := make(chan error, 1)
	go func() { done <- s.Run(t.Context()) }()
	const seed = 1
	random := rand.New(rand.NewPCG(seed, seed))
	t.Logf("seed %d", seed)
	for running := true; running; {
		var err error
		switch random.IntN(4) {
		case 0:
			err = proxy.Refuse()
		case 1:
			proxy.Cut()
		case 2:
			err = proxy.Stall()
		case 3:
			err = proxy.DropReplies()
		}
		require.NoError(t, err)
		require.NoError(t, wait(done, &running, time.Duration(20+random.IntN(100))*time.Millisecond))
		require.NoError(t, proxy.Resume())
		require.NoError(t, wait(done, &running, time.Duration(50+random.IntN(100))*time.Millisecond))
	}

	// What was held up may still arrive; one look is too few to know.
	reader, err := stream.NewGroup(corner.Client(), stream.Config{Stream: corner.Stream, Group: corner.Group, Shards: 1})
	require.NoError(t, err)
	testenv.Wait(t, 10*time.Second, func() error {
		if _, err := s.Settle(t.Context(), reader); err != nil {
			return err
		}
		added, err := corner.Client().Do(t.Context(), "xlen", corner.Stream).Int64()
		if err == nil && added != s.Progress().Sent {
			err = fmt.Errorf("the stream has %d entries, the log %d", added, s.Progress().Sent)
		}
		return err
	})
	require.NotZero(t, s.Progress().Failures)
	all := logged(t, buf)
	require.Greater(t, len(all), p.Limit, "some were added twice")
	slices.SortFunc(all, func(a, b fleet.Sent) int { return a.ID.Compare(b.ID) })
	entries, err := reader.ReadRange(t.Context(), telemetry.EntryID{}, len(all)+1)
	require.NoError(t, err)
	require.Len(t, entries, len(all))
	for i := range all {
		require.Equal(t, entries[i].ID, all[i].ID)
		if all[i].Class == "" {
			require.Equal(t, entries[i].Fields, fleet.EntryFields(&all[i].Message))
		}
	}
	t.Logf("%+v, %d entries in the stream", s.Progress(), len(entries))
}

// wait passes time while the sender runs.
func wait(done <-chan error, running *bool, d time.Duration) error {
	if !*running {
		return nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case err := <-done:
		*running = false
		return err
	case <-timer.C:
		return nil
	}
}

// BenchmarkSenderAt20000 sends 20,000 entries a second for a few seconds and
// reports which share of one core the generator takes, publisher and send log
// included.
func BenchmarkSenderAt20000(b *testing.B) {
	corner := testenv.Redis(b)
	opts := corner.Options()
	opts.MaxRetries = -1
	client := redis.NewClient(opts)
	defer client.Close()
	publisher := fleet.NewPublisher(client, corner.Stream, 10_000)
	const rate, seconds = 20_000, 3
	for b.Loop() {
		p := fleet.Steady(1, 100_000, rate, seconds*time.Second)
		source, err := p.Source()
		require.NoError(b, err)
		var buf bytes.Buffer
		log, err := fleet.NewLogWriter(&buf)
		require.NoError(b, err)
		s, err := fleet.NewSender(fleet.DefaultSenderConfig(), source, fleet.AtSpeed(1), publisher, log, slog.New(slog.DiscardHandler))
		require.NoError(b, err)
		var before, after syscall.Rusage
		require.NoError(b, syscall.Getrusage(syscall.RUSAGE_SELF, &before))
		begin := time.Now()
		require.NoError(b, s.Run(b.Context()))
		elapsed := time.Since(begin)
		require.NoError(b, syscall.Getrusage(syscall.RUSAGE_SELF, &after))
		require.Equal(b, rate*seconds, log.Len())
		used := time.Duration(after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano())
		b.ReportMetric(used.Seconds()/elapsed.Seconds(), "cores")
		b.ReportMetric(float64(log.Len())/elapsed.Seconds(), "entries/s")
		b.ReportMetric(float64(s.Progress().Worst.Milliseconds()), "behind-ms")
	}
}
