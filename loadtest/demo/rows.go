package demo

import (
	"context"
	"fmt"
	"iter"

	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/telemetry"
)

// rows are what the service left in Postgres.
type rows struct {
	positions func(ctx context.Context) iter.Seq2[telemetry.Record, error]
	close     func()
}

func openRows(ctx context.Context, url string) (rows, error) {
	pool, err := store.Open(ctx, store.Config{
		URL: url, Member: "demo", MaxConns: connections,
		ConnectTimeout: serverTimeout, StatementTimeout: serverTimeout, LockTimeout: serverTimeout,
	})
	if err != nil {
		return rows{}, fmt.Errorf("connect the judge: %w", err)
	}
	return rows{
		positions: func(ctx context.Context) iter.Seq2[telemetry.Record, error] { return store.Positions(ctx, pool) },
		close:     pool.Close,
	}, nil
}
