package loadtest

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/loadtest/fleet"
	"github.com/trmtracking/processor/loadtest/observer"
	"github.com/trmtracking/processor/loadtest/oracle"
	"github.com/trmtracking/processor/loadtest/testbed"
)

// VerifyConfig says which system to judge, and by what.
type VerifyConfig struct {
	RedisURL       string
	PostgresURL    string
	Stream         string
	Group          string
	DLQStream      string // empty means the stream's name and :dlq
	SendLog        string // file
	MaxFutureSkew  time.Duration
	MaxPast        time.Duration
	MinSatellites  int
	MaxSpeed       int
	MaxCrossingGap time.Duration
	DroppedBefore  time.Time // retention dropped positions with device times before; zero is none
	DroppedAt      string    // the first entry that was not done by then
}

// Check returns the problems that no retry can fix.
func (c VerifyConfig) Check() error {
	if c.DroppedBefore.IsZero() != (c.DroppedAt == "") {
		return errors.New("give both or neither of --dropped-before and --dropped-at: what stays of dropped positions depends on which entries came before")
	}
	if _, err := c.droppedAt(); err != nil {
		return fmt.Errorf("--dropped-at: %w", err)
	}
	return testbed.CheckRedis(c.RedisURL)
}

func (c VerifyConfig) droppedAt() (oracle.ID, error) {
	if c.DroppedAt == "" {
		return oracle.ID{}, nil
	}
	id, err := telemetry.ParseEntryID(c.DroppedAt)
	return oracle.ID(id), err
}

// Verify compares the tables of a system with a recorded send log. It reads
// only. Rows of devices that are not in the log are none of its business.
func Verify(ctx context.Context, cfg VerifyConfig) (_ *oracle.Report, err error) {
	log, err := fleet.OpenLog(cfg.SendLog)
	if err != nil {
		return nil, err
	}
	defer func() { _ = log.Close() }()
	o, err := oracle.New(log)
	if err != nil {
		return nil, err
	}
	if o.Entries() == 0 {
		return nil, fmt.Errorf("%s holds no entry, so that there is nothing to verify; send again with another --log", cfg.SendLog)
	}
	g := &testbed.Servers{RedisURL: cfg.RedisURL, PostgresURL: cfg.PostgresURL, Stream: cfg.Stream, Group: cfg.Group, DLQ: cfg.DLQStream}
	defer func() { err = errors.Join(err, g.Close(context.WithoutCancel(ctx))) }()
	if err := g.Connect(ctx); err != nil {
		return nil, err
	}
	seen := oracle.Observed{OthersToo: true, Positions: g.Positions(ctx)}
	archived, err := g.Observer.Archived(ctx)
	if err != nil {
		return nil, err
	}
	seen.DeadLetters = observer.WithArchived(g.Letters(ctx), archived)
	left, err := g.Left(ctx)
	if err != nil {
		return nil, err
	}
	if seen.Losses, err = g.Observer.Losses(ctx); err != nil {
		return nil, err
	}
	seen.Pending, seen.Dispatched = observer.Among(left.Pending), (*oracle.ID)(&left.Dispatched)
	fences, err := g.FenceRows(ctx)
	if err != nil {
		return nil, err
	}
	marked, err := g.Marked(ctx)
	if err != nil {
		return nil, err
	}
	seen.Crossings = g.Crossings(ctx)
	seen.Rules = oracle.Rules{
		Fences: fences, Faulty: marked,
		Limits: oracle.Limits{MaxFutureSkew: cfg.MaxFutureSkew, MaxPast: cfg.MaxPast, MinSatellites: cfg.MinSatellites, MaxSpeed: cfg.MaxSpeed, MaxCrossingGap: cfg.MaxCrossingGap},
	}
	if !cfg.DroppedBefore.IsZero() {
		seen.DroppedUS = cfg.DroppedBefore.UnixMicro()
		if seen.DroppedAt, err = cfg.droppedAt(); err != nil {
			return nil, err
		}
	}
	return o.Judge(seen)
}
