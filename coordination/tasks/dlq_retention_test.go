package tasks

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/store/schema"
	"github.com/trmtracking/processor/internal/stream"
	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/internal/testenv"
)

func TestTwoJanitorsCountGroupAndArchiveWithoutLoss(t *testing.T) {
	t.Parallel()
	r := testenv.Redis(t)
	client := r.Client()
	dlq := r.Stream + ":dlq"
	dead, err := stream.NewDeadLetters(client, stream.Config{Stream: r.Stream, Group: r.Group}, dlq)
	require.NoError(t, err)
	url := testenv.Postgres(t, testenv.WithTemplate("migrated", func(ctx context.Context, url string) error {
		_, err := schema.Migrate(ctx, url, slog.New(slog.DiscardHandler))
		return err
	}))
	pool, err := store.Open(t.Context(), store.Config{
		URL: url, Member: "house", MaxConns: 4, ConnectTimeout: 5 * time.Second, StatementTimeout: 10 * time.Second, LockTimeout: 5 * time.Second,
	})
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	scope := store.Scope{Stream: r.Stream, Group: r.Group}

	// 700 expired, 50 not, and one foreign entry.
	old := time.Now().Add(-50 * time.Hour)
	pipe := client.Pipeline()
	deadLetter := func(ms int64, n int) telemetry.DeadLetter {
		return telemetry.DeadLetter{
			Entry: telemetry.Entry{ID: telemetry.EntryID{Ms: uint64(ms), Seq: uint64(n)}, Fields: []string{"payload", "x"}},
			Class: telemetry.ClassDecode, Error: "decode: payload", Fingerprint: "decode/payload/syntax",
			FirstFailed: time.UnixMilli(ms), LastFailed: time.UnixMilli(ms),
		}
	}
	for n := range 700 {
		l := deadLetter(old.UnixMilli(), n)
		args := []any{"xadd", dlq, l.Entry.ID.String()}
		for _, f := range stream.EncodeDeadLetter(&l) {
			args = append(args, f)
		}
		pipe.Do(t.Context(), args...)
		pipe.HSet(t.Context(), stream.Names{Stream: r.Stream, Group: r.Group}.DeadLettered(), l.Entry.ID.String()+" "+l.Entry.Digest(), l.Entry.ID.String())
	}
	_, err = pipe.Exec(t.Context())
	require.NoError(t, err)
	var young []telemetry.DeadLetter
	for n := range 50 {
		young = append(young, deadLetter(time.Now().UnixMilli(), n))
	}
	require.NoError(t, dead.DeadLetterDeferred(t.Context(), young, nil))
	require.NoError(t, client.Do(t.Context(), "xadd", dlq, "*", "not", "ours").Err())

	reconcilers := make([]*DLQJanitor, 2)
	registries := make([]*prometheus.Registry, 2)
	for i, name := range []string{"one", "two"} {
		registries[i] = prometheus.NewRegistry()
		reconcilers[i] = NewDLQJanitor(DLQJanitorDeps{
			DeadLetters: dead, Archive: store.NewDeadLetters(pool, scope, time.Minute),
			Unconfirmed: store.NewUnconfirmed(pool, scope, time.Minute), Audit: store.NewAudit(pool, time.Minute),
			Deferred: store.NewDeferred(pool, scope, name, time.Minute), Ledger: store.NewLedger(pool, scope, name, time.Minute),
		}, DLQBounds{Retention: 48 * time.Hour, Entries: 100_000, Bytes: 1 << 30}, name, slog.New(slog.DiscardHandler), registries[i])
	}
	all := func(h *DLQJanitor) {
		for h.scannedAt.IsZero() {
			if err := h.Pass(t.Context()); err != nil {
				t.Error(err)
				return
			}
		}
	}
	var both sync.WaitGroup
	for _, h := range reconcilers {
		both.Go(func() { all(h) })
	}
	both.Wait()

	require.EqualValues(t, 51, client.XLen(t.Context(), dlq).Val())
	count := func(sql string) (n int) {
		require.NoError(t, pool.QueryRow(t.Context(), sql).Scan(&n))
		return n
	}
	require.Equal(t, 700, count("select count(*) from processor.dead_letters"))
	require.Equal(t, 700, count("select sum(count)::int from processor.audit where action = 'dlq retention'"))
	require.Equal(t, 1, count("select count(*) from processor.incidents where kind = 'dead_letters' and subject = 'decode/payload/syntax' and (detail->>'count')::int = 50 and closed_at is null"))
	require.EqualValues(t, 50, client.HLen(t.Context(), stream.Names{Stream: r.Stream, Group: r.Group}.DeadLettered()).Val(), "entries that cannot return are forgotten")
	for _, reg := range registries {
		families, err := reg.Gather()
		require.NoError(t, err)
		depths := make(map[string]float64)
		for _, f := range families {
			if f.GetName() != "processor_group_dead_letters" {
				continue
			}
			for _, m := range f.GetMetric() {
				depths[m.GetLabel()[0].GetValue()] = m.GetGauge().GetValue()
			}
		}
		require.Equal(t, map[string]float64{"crash": 0, "decode": 50, "foreign": 1, "invalid": 0, "sink": 0, "too_large": 0}, depths)
	}

	// What was counted is not read again, since it may be large.
	h := reconcilers[0]
	read := &countingDeadLetters{DeadLetters: dead}
	h.DeadLetters = read
	again := func() {
		h.scannedAt = time.Time{}
		all(h)
	}
	again()
	require.Zero(t, read.letters)
	require.NoError(t, dead.DeadLetterDeferred(t.Context(), []telemetry.DeadLetter{deadLetter(time.Now().UnixMilli(), 50)}, nil))
	again()
	require.Equal(t, 1, read.letters)
	require.EqualValues(t, 52, h.scanned.count)
	first, err := dead.List(t.Context(), telemetry.EntryID{}, 1)
	require.NoError(t, err)
	_, err = dead.Remove(t.Context(), []telemetry.EntryID{first[0].ID})
	require.NoError(t, err)
	again()
	require.Equal(t, 1+51, read.letters, "all of them, since some are gone")
	require.EqualValues(t, 51, h.scanned.count)

	// Drained between two leaders: the next one closes the incident.
	require.NoError(t, client.XTrimMaxLen(t.Context(), dlq, 1).Err())
	all(NewDLQJanitor(reconcilers[0].DLQJanitorDeps, DLQBounds{Retention: 48 * time.Hour, Entries: 100_000, Bytes: 1 << 30}, "three", slog.New(slog.DiscardHandler), prometheus.NewRegistry()))
	require.Zero(t, count("select count(*) from processor.incidents where closed_at is null"))
}

// countingDeadLetters counts the dead letters that are read.
type countingDeadLetters struct {
	DeadLetters
	letters int
}

func (c *countingDeadLetters) List(ctx context.Context, after telemetry.EntryID, count int) ([]protocol.DLQEntry, error) {
	list, err := c.DeadLetters.List(ctx, after, count)
	c.letters += len(list)
	return list, err
}
