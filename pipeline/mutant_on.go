//go:build mutant

package pipeline

import (
	"context"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

var placed atomic.Int64

// mutantDrops forgets every Nth record where MUTANT is drop:N.
func mutantDrops() bool {
	every, ok := strings.CutPrefix(os.Getenv("MUTANT"), "drop:")
	n, err := strconv.ParseInt(every, 10, 64)
	return ok && err == nil && placed.Add(1)%n == 0
}

// mutantAcks acknowledges before the commit where MUTANT is early_ack, and then
// takes its time.
func (w *worker) mutantAcks(ctx context.Context, b *batch) {
	if os.Getenv("MUTANT") == "early_ack" {
		_ = w.acker.Ack(ctx, b.acks())
		_ = sleep(ctx, 50*time.Millisecond)
	}
}
