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
	MaxCrossingGap time.Duration
}

// Check returns the problems that no retry can fix.
func (c VerifyConfig) Check() error { return checkRedis(c.RedisURL) }

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
	g := &testbed{redisURL: cfg.RedisURL, postgresURL: cfg.PostgresURL, stream: cfg.Stream, group: cfg.Group, dlq: cfg.DLQStream}
	defer func() { err = errors.Join(err, g.close(context.WithoutCancel(ctx))) }()
	if err := g.connect(ctx); err != nil {
		return nil, err
	}
	seen := oracle.Observed{OthersToo: true, Positions: g.positions(ctx)}
	archived, err := g.observer.Archived(ctx)
	if err != nil {
		return nil, err
	}
	seen.DeadLetters = observer.WithArchived(g.letters(ctx), archived)
	left, err := g.left(ctx)
	if err != nil {
		return nil, err
	}
	seen.Pending, seen.Dispatched = observer.Among(left.pending), (*oracle.ID)(&left.dispatched)
	fences, err := g.fenceRows(ctx)
	if err != nil {
		return nil, err
	}
	marked, err := g.marked(ctx)
	if err != nil {
		return nil, err
	}
	seen.Crossings = g.crossings(ctx)
	seen.Rules = oracle.Rules{Fences: fences, Faulty: marked, MaxFutureSkew: cfg.MaxFutureSkew, MaxCrossingGap: cfg.MaxCrossingGap}
	return o.Judge(seen)
}

// left returns what is not done yet.
func (g *testbed) left(ctx context.Context) (leftover, error) {
	info, err := g.inspector.Info(ctx)
	if err != nil {
		return leftover{}, fmt.Errorf("ask what is left: %w", err)
	}
	deferred, err := g.observer.Deferred(ctx)
	if err != nil {
		return leftover{}, err
	}
	var ids []telemetry.EntryID
	if info.GroupExists {
		if ids, err = g.inspector.Pending(ctx, int(info.Pending)+1); err != nil {
			return leftover{}, fmt.Errorf("list what is left: %w", err)
		}
	}
	left := leftover{pending: map[telemetry.EntryID]bool{}, dispatched: info.Delivered}
	for _, id := range append(ids, deferred...) {
		left.pending[id] = true
	}
	outstanding, _ := backlogOf(info)
	left.outstanding = outstanding + int64(len(deferred))
	return left, nil
}

// outstanding returns how many entries are not done, deferred ones included.
func (g *testbed) outstanding(ctx context.Context) (n int64, known bool, err error) {
	info, err := g.inspector.Info(ctx)
	if err != nil {
		return 0, false, fmt.Errorf("ask what is left: %w", err)
	}
	deferred, err := g.observer.Deferred(ctx)
	if err != nil {
		return 0, false, err
	}
	n, known = backlogOf(info)
	return n + int64(len(deferred)), known, nil
}
