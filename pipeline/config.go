package pipeline

import (
	"errors"
	"fmt"
	"time"

	"github.com/trmtracking/processor/internal/telemetry"
)

// Config bounds the work of one instance. Every field is required; config.Load
// fills them from the environment.
type Config struct {
	Shards             int
	Workers            int // goroutines that process and commit, each with one commit in flight
	MaxInFlightRecords int // maximum entries held in memory
	MaxInFlightBytes   int64
	ReadBatchRecords   int // maximum entries of one read
	BatchMaxRecords    int
	BatchMaxAge        time.Duration // how long entries gather before they are committed, see gatherTime
	StateMaxDevices    int           // devices whose state is kept in memory
	Eligibility        telemetry.Eligibility
	MaxCrossingGap     time.Duration // gap between two fixes above which only the net change counts
	FenceRefresh       time.Duration // interval of polls for changed fences
	DispatchAhead      int           // maximum dispatched and unfinished entries before dispatch pauses, see protocol.ProgressTracker
	StallAfter         time.Duration // time without progress after which dispatch no longer waits for a shard
	DispatchBlock      time.Duration
	DispatchLeaseTTL   time.Duration
	QueueRescan        time.Duration // interval of re-reads of every queue from its start
	Limits             telemetry.Limits
	DeadLetters        DeadLetterConfig
}

// gatherTime is how long new entries gather in the stream between two dispatches that found
// no backlog: one wait for what is dispatched together, committed together and acknowledged
// together costs a fraction of a wait in each worker, and delays a lone entry not at all.
// It is at most DispatchBlock, since nothing else happens under the lease meanwhile (docs/adr/0026-entries-gather-in-the-stream.md).
func (c Config) gatherTime() time.Duration { return min(c.BatchMaxAge, c.DispatchBlock) }

// batchMaxBytes returns the size beyond which nothing is added to a batch. It keeps a
// transaction of large records from growing out of proportion to its statement timeout, and
// a batch that gathers from holding what the others would need to go on.
func (c Config) batchMaxBytes() int64 { return min(8<<20, c.MaxInFlightBytes/int64(2*c.Workers)) }

func (c Config) check() error {
	var errs []error
	positive := func(name string, v int64) {
		if v <= 0 {
			errs = append(errs, fmt.Errorf("pipeline: %s is %d; set it to more than 0", name, v))
		}
	}
	positive("Shards", int64(c.Shards))
	positive("Workers", int64(c.Workers))
	positive("MaxInFlightRecords", int64(c.MaxInFlightRecords))
	positive("MaxInFlightBytes", c.MaxInFlightBytes)
	positive("ReadBatchRecords", int64(c.ReadBatchRecords))
	positive("BatchMaxRecords", int64(c.BatchMaxRecords))
	positive("BatchMaxAge", int64(c.BatchMaxAge))
	positive("StateMaxDevices", int64(c.StateMaxDevices))
	positive("Eligibility.MaxFutureSkew", int64(c.Eligibility.MaxFutureSkew))
	positive("MaxCrossingGap", int64(c.MaxCrossingGap))
	positive("FenceRefresh", int64(c.FenceRefresh))
	positive("DispatchAhead", int64(c.DispatchAhead))
	positive("StallAfter", int64(c.StallAfter))
	positive("DispatchBlock", int64(c.DispatchBlock))
	positive("DispatchLeaseTTL", int64(c.DispatchLeaseTTL))
	positive("QueueRescan", int64(c.QueueRescan))
	errs = append(errs, c.DeadLetters.check())
	return errors.Join(errs...)
}
