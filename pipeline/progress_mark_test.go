package pipeline_test

import (
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/stream"
	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/pipeline"
)

// A take-over reads the stream from the progress mark on. That of a shard that
// fell silent within a second of its last mark must not stay behind.
func TestTheProgressMarkOfAShardThatFellSilentCatchesUp(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	in := b.start("m")
	b.acquireAll(in)
	var last telemetry.EntryID
	for i := range 3 { // the first is marked at once, those soon after are not
		last = b.publish(at(1, int64(i+1)))[0]
		b.settled(10*time.Second, 0)
	}
	b.marked(last)
	names := stream.Names{Stream: b.stream, Group: b.group}
	testenv.Wait(t, 5*time.Second, func() error {
		known, err := b.client.HVals(t.Context(), names.Applied()).Result()
		if err == nil && (len(known) != 1 || known[0] != last.String()) {
			err = fmt.Errorf("Redis knows of %v, want %s", known, last)
		}
		return err
	})
	require.Equal(t, 3, b.count("select count(*) from positions"))
}

// A batch that fails is redone, without its progress marks: they are written later, though nothing else arrives.
func TestTheProgressMarkOfABatchThatFailedCatchesUp(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	var failed atomic.Bool
	in := b.start("m", func(_ *pipeline.Config, d *pipeline.Deps) {
		d.Sink = &sink{Sink: d.Sink, before: func(*protocol.Batch) error {
			if !failed.Swap(true) {
				return &protocol.Failure{Kind: protocol.Outdated, Err: errors.New("other fences")}
			}
			return nil
		}}
	})
	b.acquireAll(in)
	b.marked(b.publish(at(1, 1))[0])
}

// marked waits for a progress mark.
func (b *bench) marked(id telemetry.EntryID) {
	b.tb.Helper()
	testenv.Wait(b.tb, 5*time.Second, func() error {
		if b.count("select count(*) from processor.progress where stream = $1 and applied_id = $2", b.stream, id.String()) == 1 {
			return nil
		}
		return fmt.Errorf("no progress mark at %s", id)
	})
}
