package pipeline

import (
	"context"
	"sync/atomic"

	"github.com/trmtracking/processor/internal/protocol"
)

// Vitals is how the work stands, as a heartbeat reports it.
type Vitals struct {
	InHand   int    // entries in memory and not finished
	Finished uint64 // entries finished since the start: it moves while there is progress
	Worked   uint64 // transactions committed: of batches, and of steps of requests, which may be long
	Tried    uint64 // calls of servers that came back, well or not: it moves while workers are not stuck
	Shards   []int  // held, ascending
}

// Vitals tells how the work stands.
func (p *Pipeline) Vitals() Vitals {
	p.table.mu.Lock()
	defer p.table.mu.Unlock()
	v := Vitals{InHand: p.table.records, Finished: p.table.finished, Worked: p.worked.Load()}
	for _, w := range p.workers {
		v.Tried += w.tried.Load()
	}
	for shard := range p.table.slots {
		if p.table.slots[shard].held {
			v.Shards = append(v.Shards, shard)
		}
	}
	return v
}

// workedSink counts what is committed.
type workedSink struct {
	Sink
	worked *atomic.Uint64
}

// Write commits a batch.
func (s workedSink) Write(ctx context.Context, b *protocol.Batch) (protocol.Written, error) {
	w, err := s.Sink.Write(ctx, b)
	if err == nil {
		s.worked.Add(1)
	}
	return w, err
}

// workedRequests counts the steps that are done.
type workedRequests struct {
	Requests
	worked *atomic.Uint64
}

// Step does one step of a request.
func (r workedRequests) Step(ctx context.Context, o protocol.Order) (protocol.Progress, bool, error) {
	p, done, err := r.Requests.Step(ctx, o)
	if err == nil {
		r.worked.Add(1)
	}
	return p, done, err
}
