package tasks

import (
	"context"
	"log/slog"
	"time"

	"github.com/trmtracking/processor/coordination"
	"github.com/trmtracking/processor/internal/protocol"
)

// memoryProbe asks whether Redis refuses what takes memory, XADD above all.
type memoryProbe interface {
	Full(ctx context.Context) (bool, error)
}

// memory is the subject of the incident.
const memory = "memory"

// RedisFull keeps the incident of a Redis that refuses new entries. The service
// goes on with what is there, so nothing else shows that vehicles get lost before
// they arrive.
type RedisFull struct {
	probe  memoryProbe
	ledger coordination.Ledger
	every  time.Duration
	log    *slog.Logger

	term   int64
	probed time.Time
	noted  *bool // what the ledger says; nil if that is not known
}

// NewRedisFull returns a task that probes every interval.
func NewRedisFull(probe memoryProbe, ledger coordination.Ledger, every time.Duration, log *slog.Logger) *RedisFull {
	return &RedisFull{probe: probe, ledger: ledger, every: every, log: log.With("component", "redis_full")}
}

// Do implements coordination.Task.
func (r *RedisFull) Do(ctx context.Context, term int64) error {
	if term != r.term {
		r.term, r.noted = term, nil
	}
	if time.Since(r.probed) < r.every {
		return nil
	}
	r.probed = time.Now()
	full, err := r.probe.Full(ctx)
	if err != nil || r.noted != nil && *r.noted == full {
		return err
	}
	if full {
		r.log.Error("Redis is full and refuses new entries; raise maxmemory")
		err = r.ledger.Open(ctx, protocol.RedisFull, memory, map[string]any{})
	} else {
		if r.noted != nil {
			r.log.Info("Redis accepts new entries again")
		}
		err = r.ledger.Close(ctx, protocol.RedisFull, memory)
	}
	if err == nil {
		r.noted = &full
	}
	return err
}
