package tasks

import (
	"context"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// expirer removes what happened long ago.
type expirer interface {
	// Expire removes some of what is older than age, and returns how many by table.
	Expire(ctx context.Context, age time.Duration) (map[string]int64, error)
}

// retentionEvery is the time between two passes, and retentionPages bounds one.
const (
	retentionEvery = 10 * time.Minute
	retentionPages = 20
)

// NewRetention returns the task that removes finished requests, closed incidents,
// archived dead letters, audit, losses and changes of crossings beyond an age.
func NewRetention(e expirer, age time.Duration, log *slog.Logger, reg prometheus.Registerer) *Periodic {
	expired := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "processor_coordination_expired_rows_total", Help: "Rows removed by AUDIT_RETENTION and TIMING_RETENTION, by table.",
	}, []string{"table"})
	for _, table := range []string{"audit", "dead_letters", "incidents", "losses", "requests", "timing_changes"} {
		expired.WithLabelValues(table)
	}
	reg.MustRegister(expired)
	return Every(retentionEvery, func(ctx context.Context) error {
		for range retentionPages {
			removed, err := e.Expire(ctx, age)
			if err != nil {
				return err
			}
			var all int64
			for table, n := range removed {
				expired.WithLabelValues(table).Add(float64(n))
				all += n
			}
			if all == 0 {
				return nil
			}
			log.Info("rows beyond the retention removed", "count", all, "age", age)
		}
		return nil
	})
}
