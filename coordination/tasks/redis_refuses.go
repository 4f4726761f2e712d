package tasks

import (
	"context"
	"log/slog"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/trmtracking/processor/coordination"
	"github.com/trmtracking/processor/internal/protocol"
)

// writeProbe asks with which code Redis refuses writes, "" if it accepts them.
type writeProbe interface {
	Refuses(ctx context.Context) (code string, err error)
}

// RedisRefuses keeps the incident of a Redis that refuses new entries. Where it is
// full, the service goes on with what is there, and where it refuses all writes
// there is no leader: so each member looks.
type RedisRefuses struct {
	probe  writeProbe
	ledger coordination.Ledger
	every  time.Duration
	gauge  *prometheus.GaugeVec
	log    *slog.Logger

	logged string // what was logged last
}

// NewRedisRefuses returns a component that probes every interval.
func NewRedisRefuses(probe writeProbe, ledger coordination.Ledger, every time.Duration, log *slog.Logger, reg prometheus.Registerer) *RedisRefuses {
	return &RedisRefuses{
		probe: probe, ledger: ledger, every: every, log: log.With("component", "redis_refuses"),
		gauge: promauto.With(reg).NewGaugeVec(prometheus.GaugeOpts{
			Name: "processor_redis_refuses_writes", Help: "1 while Redis refuses writes, by the code of its answer; absent while it accepts them or does not answer.",
		}, []string{"code"}),
	}
}

// Run probes until the context ends.
func (r *RedisRefuses) Run(ctx context.Context) error {
	tick := time.NewTicker(r.every)
	defer tick.Stop()
	for {
		_ = r.probeOnce(ctx) // readiness and the others' errors say what fails
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}

// probeTimeout bounds a probe and its note in the ledger.
const probeTimeout = 10 * time.Second

func (r *RedisRefuses) probeOnce(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	code, err := r.probe.Refuses(ctx)
	r.gauge.Reset()
	if code != "" {
		r.gauge.WithLabelValues(code).Set(1)
	}
	if err != nil {
		return err
	}
	switch {
	case code == r.logged:
	case code != "":
		r.log.Error("Redis refuses new entries; processor doctor says what to do", "code", code)
	default:
		r.log.Info("Redis accepts new entries again")
	}
	r.logged = code
	// Read each time: a member that is gone may have left one open.
	open, err := r.ledger.Opened(ctx, protocol.RedisRefuses)
	if err != nil {
		return err
	}
	if code != "" && !slices.Contains(open, code) {
		if err := r.ledger.Open(ctx, protocol.RedisRefuses, code, map[string]any{}); err != nil {
			return err
		}
	}
	for _, other := range open {
		if other == code {
			continue
		}
		if err := r.ledger.Close(ctx, protocol.RedisRefuses, other); err != nil {
			return err
		}
	}
	return nil
}
