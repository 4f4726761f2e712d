package pipeline

import (
	"cmp"
	"context"
	"sync/atomic"
	"time"

	"github.com/trmtracking/processor/internal/protocol"
)

// WorkStatus is the progress of the work, as a heartbeat reports it.
type WorkStatus struct {
	InFlight      int      // entries in memory and not finished
	Finished      uint64   // entries finished since the start: grows while there is progress
	Committed     uint64   // transactions committed, of batches and of the steps of requests
	CallsReturned uint64   // server calls that returned, successfully or not: grows while no worker is stuck
	Shards        []int    // owned, ascending
	ShardFinished []uint64 // entries finished of each of them since the start
	Dispatches    bool     // it holds the dispatch lease
	Blocked       bool     // the last commit failed because another session held a lock

	Waits   []protocol.Wait // its shards, and the dispatcher
	Hot     []protocol.HotDevice
	Refusal *protocol.Refusal // why the sink rejects rows that are not at fault; nil while it does not
}

// WorkStatus returns the progress of the work.
func (p *Pipeline) WorkStatus() WorkStatus {
	hot := p.hotDevices(time.Now())
	p.table.mu.Lock()
	defer p.table.mu.Unlock()
	v := WorkStatus{InFlight: p.table.records, Finished: p.table.finished, Committed: p.commitCount.Load(), Dispatches: p.table.leaseHeld, Waits: p.table.waits(), Blocked: p.blocked.Load(), Hot: hot}
	kept, since := p.breaker.keeps()
	if v.Refusal = cmp.Or(p.table.refusal(), kept); kept != nil {
		v.Waits = append(v.Waits, protocol.Wait{State: protocol.WaitKept, Shard: -1, Since: since, Detail: kept.Reason})
	}
	for _, w := range p.workers {
		v.CallsReturned += w.callsReturned.Load()
	}
	for shard := range p.table.slots {
		if p.table.slots[shard].owned {
			v.Shards = append(v.Shards, shard)
			v.ShardFinished = append(v.ShardFinished, p.table.slots[shard].finished)
		}
	}
	return v
}

// commitCountingSink counts commits, and notes whether the last one met a lock.
type commitCountingSink struct {
	Sink
	commitCount *atomic.Uint64
	blocked     *atomic.Bool
}

// Write commits a batch.
func (s commitCountingSink) Write(ctx context.Context, b *protocol.Batch) (protocol.CommitResult, error) {
	w, err := s.Sink.Write(ctx, b)
	_, blocked := protocol.BlockedBy(err)
	s.blocked.Store(blocked)
	if err == nil {
		s.commitCount.Add(1)
	}
	return w, err
}

// stepCountingRequests counts completed steps of requests.
type stepCountingRequests struct {
	Requests
	commitCount *atomic.Uint64
}

// Step does one step of a request.
func (r stepCountingRequests) Step(ctx context.Context, o protocol.RequestStep) (protocol.Progress, bool, error) {
	p, done, err := r.Requests.Step(ctx, o)
	if err == nil {
		r.commitCount.Add(1)
	}
	return p, done, err
}
