package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
)

// Probe counts which records would be stored now, and which refused, until enough are
// taken: each is inserted by itself, with all that is due at the end of its transaction,
// and taken back. One that is there already proves nothing, and one that takes longer than its
// share of the time is refused: those behind it are tried. An error says that it is not known.
func (w *Writer) Probe(ctx context.Context, records []telemetry.Record, enough int) (taken, refused int, err error) {
	ctx, cancel := context.WithTimeout(ctx, w.timeout)
	defer cancel()
	conn, err := w.pool.Acquire(ctx)
	if err != nil {
		return 0, 0, &protocol.Failure{Kind: protocol.Unavailable, Err: fmt.Errorf("acquire a connection: %w", err)}
	}
	defer conn.Release()
	defer w.rollBack(ctx, conn.Conn())
	share := (w.timeout / time.Duration(len(records)+1)).Milliseconds() + 1
	for i := range records {
		stored := make([]bool, 1)
		batch := &pgx.Batch{}
		batch.Queue("begin")
		batch.Queue("select set_config('statement_timeout', least($1, nullif(setting::bigint, 0))::text, true) from pg_settings where name = 'statement_timeout'", share)
		queueLate(batch, records[i:i+1], stored)
		batch.Queue(dueNow)
		err := failure("probe the sink", conn.Conn().SendBatch(ctx, batch).Close())
		w.rollBack(ctx, conn.Conn())
		if err == nil {
			if stored[0] {
				taken++
			}
			if taken >= enough {
				return taken, refused, nil
			}
			continue
		}
		if f, ok := errors.AsType[*protocol.Failure](err); !mayBeOneRow(err) && !(ok && f.Kind == protocol.Unavailable && f.TooMuch) {
			return 0, 0, err
		}
		refused++
	}
	return taken, refused, nil
}
