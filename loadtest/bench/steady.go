package bench

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/trmtracking/processor/internal/cli"
	"github.com/trmtracking/processor/loadtest/fleet"
	"github.com/trmtracking/processor/loadtest/testbed"
)

// Steady is one instance under an even load.
type Steady struct {
	Rate     float64 `json:"rate"`   // records a second that were sent for
	Stored   float64 `json:"stored"` // records a second that were stored
	P50      float64 `json:"p50_ms"` // from append to commit
	P99      float64 `json:"p99_ms"`
	P999     float64 `json:"p999_ms"`
	CPU      float64 `json:"cpu_us_per_record"` // of the service
	Redis    float64 `json:"redis_us_per_record"`
	Postgres float64 `json:"postgres_us_per_record"`
	Behind   float64 `json:"load_behind_ms"` // the most that the load was behind its plan
}

// steady sends an even load to one instance and reads its histogram at both ends
// of the window.
func (b *run) steady(ctx context.Context, rate float64) error {
	_, err := b.inRound(ctx, func(g *testbed.Servers) (drainResult, error) { return drainResult{}, b.steadyOn(ctx, g, rate) })
	if err != nil {
		return fmt.Errorf("steady load of %.0f records/s: %w", rate, err)
	}
	return nil
}

func (b *run) steadyOn(ctx context.Context, g *testbed.Servers, rate float64) (err error) {
	dir, err := b.folder()
	if err != nil {
		return err
	}
	line := &testbed.Cluster{Program: b.cfg.Processor, Env: b.cfg.Env, Dir: dir, Servers: g}
	defer func() { err = errors.Join(err, line.Close()) }()
	if err := line.StartAll(ctx, 0, 1); err != nil {
		return err
	}
	if err := line.AwaitSettled(ctx, testbed.ReadyWithin); err != nil {
		return err
	}
	in := line.Current()[0]
	sending, err := testbed.NewLoad(g, dir, b.cfg.Log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, sending.Close()) }()
	// More than is needed: the load is ended early.
	p := fleet.Steady(b.cfg.Seed, min(b.cfg.Devices, int(rate)), rate, 2*(b.cfg.WarmUp+b.cfg.Window)+10*time.Second)
	p.Start = b.second
	if err := sending.Begin(ctx, p, fleet.AtSpeed(1)); err != nil {
		return err
	}
	if err := testbed.Pause(ctx, b.cfg.WarmUp); err != nil {
		return err
	}
	before, err := in.Scrape(ctx)
	if err != nil {
		return err
	}
	from := b.spent(ctx, line, 0, time.Now())
	if err := testbed.Pause(ctx, b.cfg.Window); err != nil {
		return err
	}
	after, err := in.Scrape(ctx)
	if err != nil {
		return err
	}
	to := b.spent(ctx, line, 0, time.Now())
	behind := sending.Present.Load().Progress().Worst
	if err := sending.End(ctx, true); err != nil {
		return err
	}
	var latency testbed.Histogram
	latency.Add(after.Latency, 1)
	latency.Add(before.Latency, -1)
	records := float64(after.Stored - before.Stored)
	if records == 0 {
		return errors.New("nothing was stored within the window")
	}
	ms := func(q float64) float64 {
		if v := latency.Milliseconds(q); v != nil {
			return *v
		}
		return 0
	}
	each := func(from, to time.Duration) float64 {
		return cli.Round(float64((to-from).Microseconds())/records, 2)
	}
	r := Steady{
		Rate: rate, Stored: cli.Round(records/to.at.Sub(from.at).Seconds(), 0), P50: ms(.5), P99: ms(.99), P999: ms(.999),
		CPU: each(from.own, to.own), Redis: each(from.redis, to.redis), Postgres: each(from.postgres, to.postgres),
		Behind: float64(behind.Milliseconds()),
	}
	b.note("steady %s/s: %s stored/s, p50 %.1f ms, p99 %.1f ms, p99.9 %.1f ms; us a record: service %.1f, Redis %.1f, Postgres %.1f; load at most %.0f ms behind",
		cli.Thousands(int64(rate)), cli.Thousands(int64(r.Stored)), r.P50, r.P99, r.P999, r.CPU, r.Redis, r.Postgres, r.Behind)
	b.res.Steady = append(b.res.Steady, r)
	return line.Stop(ctx)
}
