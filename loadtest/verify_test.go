package loadtest_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/store/schema"
	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/loadtest"
	"github.com/trmtracking/processor/loadtest/fleet"
	"github.com/trmtracking/processor/loadtest/observer"
	"github.com/trmtracking/processor/loadtest/oracle"
	"github.com/trmtracking/processor/loadtest/scenarios"
)

func migrated(t *testing.T) string {
	t.Helper()
	return testenv.Postgres(t, testenv.WithTemplate("loadtest", func(ctx context.Context, url string) error {
		_, err := schema.Migrate(ctx, url, slog.New(slog.DiscardHandler))
		return err
	}))
}

// What nobody has done yet is pending, never lost and never well.
func TestVerifyAccountsForWhatWasSent(t *testing.T) {
	t.Parallel()
	corner, url := testenv.Redis(t), migrated(t)
	path := filepath.Join(t.TempDir(), "sent.log")
	sent, err := loadtest.Send(t.Context(), loadtest.SendConfig{
		RedisURL: corner.URL, Stream: corner.Stream, Seed: 1, Log: slog.New(slog.DiscardHandler),
		SendLog: path, Plan: scenarios.Plan{Devices: 20, Rate: 1000, Duration: 300 * time.Millisecond, Profile: "polluted"},
	})
	require.NoError(t, err)
	require.Greater(t, sent.Sent, int64(200))

	cfg := loadtest.VerifyConfig{
		RedisURL: corner.URL, PostgresURL: url, Stream: corner.Stream, Group: corner.Group, SendLog: path,
		MaxFutureSkew: 5 * time.Minute, MinSatellites: 1, MaxCrossingGap: 10 * time.Minute,
	}
	report, err := loadtest.Verify(t.Context(), cfg)
	require.NoError(t, err)
	require.False(t, report.Good())
	require.Equal(t, sent.Sent, report.Account.Entries)
	require.Equal(t, sent.Sent, report.Account.Pending)

	// Dispatched and gone from the queues without a trace.
	require.NoError(t, corner.Client().XGroupCreate(t.Context(), corner.Stream, corner.Group, "$").Err())
	report, err = loadtest.Verify(t.Context(), cfg)
	require.NoError(t, err)
	require.Zero(t, report.Account.Pending)
	require.Equal(t, sent.Sent, report.Account.Lost)
}

// A letter that was archived says as much as one that is left in Redis: when its record was
// refused decides whether that was right.
// Nothing is no good verdict.
func TestASendLogWithoutEntriesIsNotVerified(t *testing.T) {
	t.Parallel()
	corner, path := testenv.Redis(t), filepath.Join(t.TempDir(), "sent.log")
	file, err := os.Create(path)
	require.NoError(t, err)
	writer, err := fleet.NewLogWriter(file)
	require.NoError(t, err)
	require.NoError(t, errors.Join(writer.Flush(), file.Close()))
	_, err = loadtest.Verify(t.Context(), loadtest.VerifyConfig{
		RedisURL: corner.URL, PostgresURL: migrated(t), Stream: corner.Stream, Group: corner.Group, SendLog: path, MaxCrossingGap: time.Minute,
	})
	require.ErrorContains(t, err, "holds no entry")
}

func TestAnArchivedLetterIsReadAsAWhole(t *testing.T) {
	t.Parallel()
	pool, err := pgxpool.New(t.Context(), migrated(t))
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	scope := store.Scope{Stream: "telemetry", Group: "processor"}
	at := time.Date(2026, 1, 2, 3, 4, 5, 678_000_000, time.UTC)
	letter := telemetry.DeadLetter{
		Entry: telemetry.Entry{ID: telemetry.EntryID{Ms: 7, Seq: 1}, Fields: []string{"device_id", "d", "payload", "{}"}},
		Shard: 3, Class: "sink", Error: "refused (SQLSTATE 23514)", Field: "positions_check", Fingerprint: "sink/23514", Attempts: 4,
		FirstFailed: at, LastFailed: at.Add(time.Second), Instance: "one", Version: "1",
	}
	require.NoError(t, store.NewDeadLetters(pool, scope, time.Minute).Export(t.Context(), []protocol.DLQEntry{{ID: telemetry.EntryID{Ms: 9}, DeadLetter: letter}}, "test"))
	archived, err := observer.NewObserver(pool, scope).Archived(t.Context())
	require.NoError(t, err)
	var inRedis oracle.DeadLetter
	for l, err := range observer.Letters(func(yield func(telemetry.DeadLetter, error) bool) { yield(letter, nil) }) {
		require.NoError(t, err)
		inRedis = l
	}
	require.Equal(t, map[oracle.ID]oracle.DeadLetter{{Ms: 7, Seq: 1}: inRedis}, archived)
}

// Two runs on one system have devices of their own, and a letter that was archived
// is accounted for.
func TestARunIsJudgedByItselfThoughAnotherOneWasSent(t *testing.T) {
	t.Parallel()
	corner, url := testenv.Redis(t), migrated(t)
	conn, err := pgx.Connect(t.Context(), url)
	require.NoError(t, err)
	defer func() { require.NoError(t, conn.Close(context.WithoutCancel(t.Context()))) }()
	send := func() (path string, log *fleet.Log) {
		path = filepath.Join(t.TempDir(), "sent.log")
		_, err := loadtest.Send(t.Context(), loadtest.SendConfig{
			RedisURL: corner.URL, Stream: corner.Stream, Seed: 1, Log: slog.New(slog.DiscardHandler),
			SendLog: path, Plan: scenarios.Plan{Devices: 20, Rate: 1000, Duration: 300 * time.Millisecond, Profile: "polluted"},
		})
		require.NoError(t, err)
		log, err = fleet.OpenLog(path)
		require.NoError(t, err)
		t.Cleanup(func() { _ = log.Close() })
		return path, log
	}
	path, first := send()
	began := time.Now().Unix()
	testenv.Wait(t, 5*time.Second, func() error {
		if time.Now().Unix() == began {
			return errors.New("the same second")
		}
		return nil
	})
	stored := 0
	_, second := send()
	require.NoError(t, second.Scan(func(_ int64, s *fleet.Sent) error {
		if s.Class != "" || s.Junk != "" {
			return nil
		}
		stored++
		_, err := conn.Exec(t.Context(), `
insert into positions (device_id, ts, latitude, longitude, altitude, angle, speed, satellites, priority, codec, attributes)
values ($1, $2, 1, 1, 0, 0, 0, 9, 0, '8', '{}')
on conflict do nothing`, s.Message.DeviceID, s.Message.Time)
		return err
	}))
	require.Positive(t, stored)
	require.NoError(t, corner.Client().XGroupCreate(t.Context(), corner.Stream, corner.Group, "$").Err())
	verify := func() *oracle.Report {
		report, err := loadtest.Verify(t.Context(), loadtest.VerifyConfig{
			RedisURL: corner.URL, PostgresURL: url, Stream: corner.Stream, Group: corner.Group, SendLog: path,
			MaxFutureSkew: 5 * time.Minute, MinSatellites: 1, MaxCrossingGap: 10 * time.Minute,
		})
		require.NoError(t, err)
		return report
	}
	before := verify()
	require.Equal(t, before.Account.Lost, before.Account.Mismatches, "lost, and in no range of the ledger: %v", before.Examples)
	require.Equal(t, before.Account.Entries, before.Account.Lost)

	var junk fleet.Sent
	require.NoError(t, first.Scan(func(_ int64, s *fleet.Sent) error {
		if s.Class == "decode" {
			junk = *s
		}
		return nil
	}))
	require.False(t, junk.ID.IsZero())
	_, err = conn.Exec(t.Context(), `
insert into processor.dead_letters (stream, group_name, dlq_id, source_id, digest, fields, class, error, fingerprint, attempts,
  instance, version, exported_by, replayed_as)
values ($1, $2, '1-0', $3, '', array[]::bytea[], 'decode', '', '', 3, '', '', 'test', '9-9')`, corner.Stream, corner.Group, junk.ID.String())
	require.NoError(t, err)
	after := verify()
	require.Equal(t, before.Account.Lost-1, after.Account.Lost)
	require.EqualValues(t, 1, after.Account.DeadLettered)
}

func TestVerifyIsToldWhenPositionsWereDropped(t *testing.T) {
	t.Parallel()
	cfg := loadtest.VerifyConfig{RedisURL: "redis://localhost:1"}
	require.NoError(t, cfg.Check())
	cfg.DroppedBefore = time.Unix(1_700_000_000, 0)
	require.ErrorContains(t, cfg.Check(), "give both or neither of --dropped-before and --dropped-at")
	cfg.DroppedAt = "noon"
	require.ErrorContains(t, cfg.Check(), `--dropped-at: entry ID "noon": want the form 1700000000000-0`)
	cfg.DroppedAt = "1700000000000-3"
	require.NoError(t, cfg.Check())
	cfg.DroppedBefore = time.Time{}
	require.ErrorContains(t, cfg.Check(), "give both or neither")
}
