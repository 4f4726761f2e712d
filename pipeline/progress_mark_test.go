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
	in := b.Start("m")
	b.AcquireAll(in)
	var last telemetry.EntryID
	for i := range 3 { // the first is marked at once, those soon after are not
		last = b.Publish(at(1, int64(i+1)))[0]
		b.Settled(10*time.Second, 0)
	}
	b.marked(last)
	names := stream.Names{Stream: b.Stream, Group: b.Group}
	testenv.Wait(t, 5*time.Second, func() error {
		known, err := b.Client.HVals(t.Context(), names.Applied()).Result()
		if err == nil && (len(known) != 1 || known[0] != last.String()) {
			err = fmt.Errorf("Redis knows of %v, want %s", known, last)
		}
		return err
	})
	require.Equal(t, 3, b.Count("select count(*) from positions"))
}

// A batch that fails is redone, without its progress marks: they are written later, though nothing else arrives.
func TestTheProgressMarkOfABatchThatFailedCatchesUp(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	var failed atomic.Bool
	in := b.Start("m", func(_ *pipeline.Config, d *pipeline.Deps) {
		d.Sink = &sink{Sink: d.Sink, before: func(*protocol.Batch) error {
			if !failed.Swap(true) {
				return &protocol.Failure{Kind: protocol.Outdated, Err: errors.New("other fences")}
			}
			return nil
		}}
	})
	b.AcquireAll(in)
	b.marked(b.Publish(at(1, 1))[0])
}

// marked waits for a progress mark.
func (b *bench) marked(id telemetry.EntryID) {
	b.TB.Helper()
	testenv.Wait(b.TB, 5*time.Second, func() error {
		if b.Count("select count(*) from processor.progress where stream = $1 and applied_id = $2", b.Stream, id.String()) == 1 {
			return nil
		}
		return fmt.Errorf("no progress mark at %s", id)
	})
}
