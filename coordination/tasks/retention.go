package tasks

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// expirer removes what happened long ago.
type expirer interface {
	// Tables returns the tables that Expire knows.
	Tables() []string
	// Expire removes some of what is older than age from a table, and returns how many and
	// whether there may be more.
	Expire(ctx context.Context, table string, age time.Duration) (removed int64, more bool, err error)
}

// The time between the beginnings of two passes, and after which one goes on with the next.
const (
	retentionEvery = 10 * time.Minute
	retentionPass  = 5 * time.Minute
)

// NewRetention returns the task that removes finished requests, closed incidents,
// archived dead letters, audit, losses, conflicts and changes of crossings beyond an age. The tables
// take turns, so that one with much to remove, or that fails, holds up no other. That may take
// longer than a leader's step.
func NewRetention(e expirer, age time.Duration, log *slog.Logger, reg prometheus.Registerer) *Periodic {
	expired := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "processor_coordination_expired_rows_total", Help: "Rows removed by AUDIT_RETENTION and TIMING_RETENTION, by table.",
	}, []string{"table"})
	for _, table := range e.Tables() {
		expired.WithLabelValues(table)
	}
	reg.MustRegister(expired)
	return Every(retentionEvery, func(ctx context.Context) error {
		var all int64
		var errs []error
		began, left := time.Now(), e.Tables()
		for len(left) > 0 && ctx.Err() == nil && time.Since(began) < retentionPass {
			left = slices.DeleteFunc(left, func(table string) bool {
				removed, more, err := e.Expire(ctx, table, age)
				if err != nil {
					errs = append(errs, err)
				}
				expired.WithLabelValues(table).Add(float64(removed))
				all += removed
				return !more
			})
		}
		if all > 0 {
			log.Info("rows beyond the retention removed", "count", all, "age", age, "next_pass", left)
		}
		return errors.Join(errs...)
	})
}
