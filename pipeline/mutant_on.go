//go:build mutant

package pipeline

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/trmtracking/processor/internal/protocol"
)

var placed atomic.Int64

// mutantDrops drops every Nth record if MUTANT is drop:N.
func mutantDrops() bool {
	every, ok := strings.CutPrefix(os.Getenv("MUTANT"), "drop:")
	n, err := strconv.ParseInt(every, 10, 64)
	return ok && err == nil && placed.Add(1)%n == 0
}

// ackEarlyIfMutant acknowledges before the commit if MUTANT is early_ack, and then
// waits.
func (w *worker) ackEarlyIfMutant(ctx context.Context, b *batch) {
	if os.Getenv("MUTANT") == "early_ack" {
		_ = w.acker.Ack(ctx, b.acks(nil, w.table.wasFinished))
		_ = sleep(ctx, 50*time.Millisecond)
	}
}

// mutantWrites writes a batch, after holding it while the file INSTANCE_ID.hold
// exists in the folder MUTANT_HOLD. A file INSTANCE_ID.held-* exists until the
// batch that was held is written.
func (w *worker) mutantWrites(ctx context.Context, b *protocol.Batch) (protocol.CommitResult, error) {
	if dir := os.Getenv("MUTANT_HOLD"); dir != "" {
		name := filepath.Join(dir, os.Getenv("INSTANCE_ID")+".hold")
		if _, err := os.Stat(name); err == nil {
			held, err := os.CreateTemp(dir, os.Getenv("INSTANCE_ID")+".held-*")
			if err != nil {
				return protocol.CommitResult{}, err
			}
			defer func() { _ = os.Remove(held.Name()) }()
			_ = held.Close()
		}
		for {
			if _, err := os.Stat(name); err != nil {
				break
			}
			if err := sleep(ctx, time.Millisecond); err != nil {
				return protocol.CommitResult{}, err
			}
		}
	}
	return w.sink.Write(ctx, b)
}
