package demo

import (
	"context"
	"fmt"
	"iter"

	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/loadtest/observer"
	"github.com/trmtracking/processor/loadtest/oracle"
)

// rows are what the service left in Postgres.
type rows struct {
	positions func(ctx context.Context) iter.Seq2[oracle.Row, error]
	deferred  func(ctx context.Context) ([]telemetry.EntryID, error)
	close     func()
}

func openRows(ctx context.Context, url string, scope store.Scope) (rows, error) {
	pool, err := store.Open(ctx, store.Config{
		URL: url, Member: "demo", MaxConns: connections,
		ConnectTimeout: serverTimeout, StatementTimeout: serverTimeout, LockTimeout: serverTimeout,
	})
	if err != nil {
		return rows{}, fmt.Errorf("connect the judge: %w", err)
	}
	return rows{
		positions: func(ctx context.Context) iter.Seq2[oracle.Row, error] { return observer.Positions(ctx, pool) },
		deferred:  store.NewDeferred(pool, scope, "demo", serverTimeout).IDs,
		close:     pool.Close,
	}, nil
}
