//go:build mutant

package modules

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/trmtracking/processor/coordination"
	"github.com/trmtracking/processor/internal/fencelog"
	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/pipeline"
)

// recorderOf returns nil if nobody wants a history.
func recorderOf(m Member, stream string) *fencelog.Recorder {
	dir := os.Getenv(fencelog.Env)
	if dir == "" {
		return nil
	}
	recorder, err := fencelog.Open(dir, string(m), stream)
	if err != nil {
		panic(err) // a history that is missing would look like one without a fault
	}
	return recorder
}

func recordPipeline(d pipeline.Deps, m Member, stream string) pipeline.Deps {
	if r := recorderOf(m, stream); r != nil {
		d.Source, d.Acker, d.Sink = recordedSource{d.Source, r}, recordedAcker{d.Acker, r}, recordedSink{d.Sink, r}
	}
	return d
}

func recordFleet(d coordination.Deps, m Member, stream string) coordination.Deps {
	if r := recorderOf(m, stream); r != nil {
		d.Shards = recordedShards{d.Shards.(*store.Shards), r}
		d.Stream, d.Terms = recordedStream{d.Stream, r}, recordedTerms{d.Terms, r}
	}
	return d
}

const leaseRegister = "dispatch lease"

type recordedSource struct {
	pipeline.Source
	r *fencelog.Recorder
}

func (s recordedSource) AcquireDispatchLease(ctx context.Context, before, token string, ttl time.Duration) (protocol.DispatchLease, error) {
	began := time.Now()
	lease, err := s.Source.AcquireDispatchLease(ctx, before, token, ttl)
	if err == nil && lease.Acquired {
		s.r.Done(began, fencelog.Op{Register: leaseRegister, Kind: fencelog.Take, Token: token})
	}
	return lease, err
}

func (s recordedSource) ReleaseDispatchLease(ctx context.Context, token string) error {
	began := time.Now()
	err := s.Source.ReleaseDispatchLease(ctx, token)
	if err == nil {
		s.r.Done(began, fencelog.Op{Register: leaseRegister, Kind: fencelog.Give, Token: token})
	}
	return err
}

func (s recordedSource) Dispatch(ctx context.Context, d protocol.DispatchRequest, a *protocol.NewEntries) (protocol.DispatchResult, error) {
	began := time.Now()
	result, err := s.Source.Dispatch(ctx, d, a)
	if err == nil {
		s.r.Done(began, fencelog.Op{Register: leaseRegister, Kind: fencelog.Use, Token: d.Token})
	}
	return result, err
}

func tokenRegister(shard int) string { return fmt.Sprintf("acknowledge/%d", shard) }

type recordedAcker struct {
	pipeline.Acker
	r *fencelog.Recorder
}

func (a recordedAcker) Ack(ctx context.Context, acks []protocol.Ack) error {
	began := time.Now()
	err := a.Acker.Ack(ctx, acks)
	if err == nil {
		ops := make([]fencelog.Op, len(acks))
		for i := range acks {
			ops[i] = fencelog.Op{Register: tokenRegister(acks[i].Shard), Kind: fencelog.Use, Token: acks[i].Token}
		}
		a.r.Done(began, ops...)
	}
	return err
}

func epochOp(kind string, shard int, epoch int64) fencelog.Op {
	return fencelog.Op{Register: fmt.Sprintf("epoch/%d", shard), Kind: kind, Token: strconv.FormatInt(epoch, 10), Number: epoch}
}

type recordedSink struct {
	pipeline.Sink
	r *fencelog.Recorder
}

func (s recordedSink) Write(ctx context.Context, b *protocol.Batch) (protocol.CommitResult, error) {
	began := time.Now()
	result, err := s.Sink.Write(ctx, b)
	if err == nil {
		ops := make([]fencelog.Op, len(b.Leases))
		for i, l := range b.Leases {
			ops[i] = epochOp(fencelog.Use, l.Shard, l.Epoch)
		}
		s.r.Done(began, ops...)
	}
	return result, err
}

type recordedShards struct {
	*store.Shards
	r *fencelog.Recorder
}

func (s recordedShards) Acquire(ctx context.Context, shard int, member, alive string) (protocol.Shard, error) {
	began := time.Now()
	row, err := s.Shards.Acquire(ctx, shard, member, alive)
	if err == nil {
		s.r.Done(began, epochOp(fencelog.Take, shard, row.Epoch))
	}
	return row, err
}

func (s recordedShards) Release(ctx context.Context, held protocol.ShardLease, member string, applied telemetry.EntryID) error {
	began := time.Now()
	err := s.Shards.Release(ctx, held, member, applied)
	if err == nil {
		s.r.Done(began, epochOp(fencelog.Give, held.Shard, held.Epoch))
	}
	return err
}

type recordedStream struct {
	coordination.Stream
	r *fencelog.Recorder
}

func (s recordedStream) RegisterOwner(ctx context.Context, token string, shards []int) (protocol.Entered, error) {
	began := time.Now()
	in, err := s.Stream.RegisterOwner(ctx, token, shards)
	if err == nil {
		ops := make([]fencelog.Op, len(shards))
		for i, shard := range shards {
			ops[i] = fencelog.Op{Register: tokenRegister(shard), Kind: fencelog.Take, Token: token}
		}
		s.r.Done(began, ops...)
	}
	return in, err
}

type recordedTerms struct {
	coordination.LeaderStore
	r *fencelog.Recorder
}

func termOp(kind string, term int64) fencelog.Op {
	return fencelog.Op{Register: "leader", Kind: kind, Token: strconv.FormatInt(term, 10), Number: term}
}

func (t recordedTerms) BeginTerm(ctx context.Context) (int64, error) {
	began := time.Now()
	term, err := t.LeaderStore.BeginTerm(ctx)
	if err == nil {
		t.r.Done(began, termOp(fencelog.Take, term))
	}
	return term, err
}

func (t recordedTerms) Resign(ctx context.Context, term int64) error {
	began := time.Now()
	err := t.LeaderStore.Resign(ctx, term)
	if err == nil {
		t.r.Done(began, termOp(fencelog.Give, term))
	}
	return err
}

func (t recordedTerms) Assign(ctx context.Context, term int64, shards []int, members []string) ([]int, error) {
	began := time.Now()
	written, err := t.LeaderStore.Assign(ctx, term, shards, members)
	if err == nil {
		t.r.Done(began, termOp(fencelog.Use, term))
	}
	return written, err
}
