package tasks

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/trmtracking/processor/coordination"
	"github.com/trmtracking/processor/internal/protocol"
)

// fenceSyncer copies fences from a platform's own tables as fence versions, and
// requests recomputation of what they change. It rejects a leader of an earlier
// term.
type fenceSyncer interface {
	Renew(ctx context.Context, term int64) (protocol.FenceSyncResult, error)
}

// FenceSync is the leader's task that polls the fences a platform keeps. An
// invalid row is skipped and reported; the other rows apply. The platform's query
// takes as long as the platform likes, so the task runs beside the leader's steps.
type FenceSync struct {
	syncer   fenceSyncer
	ledger   coordination.Ledger
	every    time.Duration
	log      *slog.Logger
	bad      prometheus.Gauge
	failures prometheus.Counter

	term   int64
	polled time.Time
	noted  string // invalid rows that have an incident
	failed bool   // an incident for the failing query is open
}

// NewFenceSync returns the task.
func NewFenceSync(reconciler fenceSyncer, ledger coordination.Ledger, every time.Duration, log *slog.Logger, reg prometheus.Registerer) *FenceSync {
	return &FenceSync{
		syncer: reconciler, ledger: ledger, every: every, log: log.With("component", "fence query"),
		bad: promauto.With(reg).NewGauge(prometheus.GaugeOpts{
			Name: "processor_coordination_fence_query_invalid_rows", Help: "Invalid rows of GEOFENCE_QUERY, at the leader.",
		}),
		failures: promauto.With(reg).NewCounter(prometheus.CounterOpts{
			Name: "processor_coordination_fence_query_errors_total", Help: "Runs of GEOFENCE_QUERY that failed as a whole.",
		}),
	}
}

// Subjects of the query's incidents.
const (
	fenceRows = "rows"
	fenceRun  = "query"
)

// Do polls the platform's fences when the interval has passed.
func (q *FenceSync) Do(ctx context.Context, term int64) error {
	if term != q.term {
		q.term, q.polled, q.noted, q.failed = term, time.Time{}, "unknown", true
	}
	if time.Since(q.polled) < q.every {
		return nil
	}
	q.polled = time.Now()
	renewed, err := q.syncer.Renew(ctx, term)
	if f, ok := errors.AsType[*protocol.Failure](err); ok && f.Kind == protocol.Fenced {
		return fmt.Errorf("GEOFENCE_QUERY: %w", err) // another member leads, and polls the same fences
	}
	if err != nil && ctx.Err() != nil {
		return fmt.Errorf("GEOFENCE_QUERY: %w", err) // the term ended
	}
	if err != nil {
		q.failures.Inc()
		q.failed = true
		if noteErr := q.ledger.Open(ctx, protocol.GeofenceQuery, fenceRun, map[string]any{"error": err.Error()}); noteErr != nil {
			q.log.Warn("recording incident failed, will retry", "err", noteErr)
		}
		return fmt.Errorf("GEOFENCE_QUERY: %w", err)
	}
	if q.failed {
		if err := q.ledger.Close(ctx, protocol.GeofenceQuery, fenceRun); err != nil {
			return err
		}
		q.failed = false
	}
	if renewed.Added+renewed.Closed > 0 {
		q.log.Info("platform fences synchronised", "added", renewed.Added, "closed", renewed.Closed)
	}
	return q.note(ctx, renewed.Bad)
}

// note keeps the incident of the rows that are skipped.
func (q *FenceSync) note(ctx context.Context, bad []error) error {
	q.bad.Set(float64(len(bad)))
	const named = 20
	var texts []string
	for _, err := range bad[:min(named, len(bad))] {
		texts = append(texts, err.Error())
	}
	now := fmt.Sprintf("%d\n%s", len(bad), strings.Join(texts, "\n"))
	if now == q.noted {
		return nil
	}
	var err error
	if len(bad) == 0 {
		err = q.ledger.Close(ctx, protocol.GeofenceQuery, fenceRows)
	} else {
		for _, b := range bad[:len(texts)] {
			q.log.Error("invalid row of GEOFENCE_QUERY skipped; fix it in the platform", "err", b)
		}
		err = q.ledger.Open(ctx, protocol.GeofenceQuery, fenceRows, map[string]any{"count": len(bad), "rows": texts})
	}
	if err == nil {
		q.noted = now
	}
	return err
}
