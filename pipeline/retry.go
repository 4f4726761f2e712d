package pipeline

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/trmtracking/processor/internal/lograte"
	"github.com/trmtracking/processor/internal/protocol"
)

// always retries every failure, of calls that are idempotent.
func always(error) bool { return true }

// isTransient retries queries unless an operator has to fix the cause first.
func isTransient(err error) bool { return dispositionOf(err) != fatal }

// notApplied retries calls that certainly had no effect.
func notApplied(err error) bool {
	v := dispositionOf(err)
	return v == retrySame || v == pauseSame
}

// isRowIndependent is for transactions that write no row: no row can be rejected.
func isRowIndependent(err error) bool {
	v := dispositionOf(err)
	return v == retrySame || v == pauseSame || v == recompute || v == bisect
}

// retry calls f until it succeeds, ctx ends, or it fails in a way that repeat
// does not accept. The wait grows from milliseconds to two seconds, with jitter:
// no hot loop in an outage, and a prompt resumption after it.
func retry(ctx context.Context, log *slog.Logger, what string, failures prometheus.Counter, repeat func(error) bool, f func() error) error {
	var wait *backoff.ExponentialBackOff
	var began time.Time
	var quiet lograte.Limit
	for {
		err := f()
		if err == nil {
			if !began.IsZero() {
				log.Info("operation recovered", "what", what, "duration", time.Since(began))
			}
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		failures.Inc()
		if !repeat(err) {
			return err
		}
		if wait == nil {
			wait = newBackOff()
			began = time.Now()
		}
		if quiet.Pass() {
			log.Warn("operation failed, will retry", "what", what, "err", err)
		}
		if err := sleep(ctx, wait.NextBackOff()); err != nil {
			return err
		}
	}
}

func newBackOff() *backoff.ExponentialBackOff {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval, b.MaxInterval, b.Multiplier, b.RandomizationFactor = 20*time.Millisecond, 2*time.Second, 2, 0.3
	return b
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// lostState reports whether an error says that the group or the dispatch lease
// has changed.
func lostState(err error) bool {
	f, ok := errors.AsType[*protocol.Failure](err)
	return ok && f.Kind == protocol.Lost
}
