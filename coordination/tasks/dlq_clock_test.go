package tasks

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
)

// clocks are servers whose clocks a test sets.
type clocks struct {
	DeadLetters
	Archive
	redis, postgres time.Time
	letters         []protocol.DLQEntry
	archived        int
	took            time.Duration // for a page
}

type redisClock struct{ *clocks }

func (c redisClock) Now(context.Context) (time.Time, error) { return c.redis, nil }

func (c redisClock) List(_ context.Context, after telemetry.EntryID, count int) ([]protocol.DLQEntry, error) {
	var page []protocol.DLQEntry
	for _, l := range c.letters {
		if after.Less(l.ID) && len(page) < count {
			page = append(page, l)
		}
	}
	time.Sleep(c.took)
	return page, nil
}

func (c redisClock) Remove(_ context.Context, ids []telemetry.EntryID) (int, error) {
	c.letters = c.letters[len(ids):]
	return len(ids), nil
}

type postgresClock struct{ *clocks }

func (c postgresClock) Now(context.Context) (time.Time, error) { return c.postgres, nil }

func (c postgresClock) Export(_ context.Context, letters []protocol.DLQEntry, _ string) error {
	c.archived += len(letters)
	return nil
}

func (postgresClock) Dropped(context.Context, []protocol.DLQEntry) error { return nil }

type noAudit struct{}

func (noAudit) Note(context.Context, string, string, string, int, map[string]any) error { return nil }

func TestRetentionGoesByTheEarlierClockOfBothServers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) { // its clock is the leader's
		now := time.Now()
		const day = 24 * time.Hour
		for _, tt := range []struct {
			redis, postgres time.Duration // ahead of the dead letters
			archived        int
		}{{time.Hour, time.Hour, 0}, {31 * day, time.Hour, 0}, {time.Hour, 31 * day, 0}, {31 * day, 31 * day, 100}} {
			c := &clocks{redis: now.Add(-40 * day).Add(tt.redis), postgres: now.Add(-40 * day).Add(tt.postgres)}
			for i := range 100 {
				c.letters = append(c.letters, protocol.DLQEntry{ID: telemetry.EntryID{Ms: uint64(now.Add(-40 * day).UnixMilli()), Seq: uint64(i)}})
			}
			h := &DLQJanitor{
				DLQJanitorDeps: DLQJanitorDeps{DeadLetters: redisClock{c}, Archive: postgresClock{c}, Audit: noAudit{}},
				bounds:         DLQBounds{Retention: 30 * day, Entries: 100_000, Bytes: 1 << 30}, metrics: newJanitorMetrics(prometheus.NewRegistry()), scan: &scan{tally: make(countsByClass), kinds: make(map[string]*kind)},
			}
			at, err := h.now(t.Context())
			require.NoError(t, err)
			for done := false; !done; {
				done, _, err = h.page(t.Context(), at)
				require.NoError(t, err)
			}
			require.Equal(t, tt.archived, c.archived, "%+v", tt)
		}
	})
}
