package tasks

import (
	"context"
	"slices"
	"time"

	"github.com/trmtracking/processor/coordination"
	"github.com/trmtracking/processor/internal/history"
	"github.com/trmtracking/processor/internal/protocol"
)

// HistoryDeps are what the history is taken from and where it is kept.
type HistoryDeps struct {
	Shards interface {
		List(ctx context.Context) ([]protocol.Shard, error)
	}
	Backlog  func(ctx context.Context) (b protocol.Backlog, added int64, err error)
	Deferred interface {
		Deferring() (n int64, known bool)
	}
	Members func() []coordination.Member
	Ring    interface {
		AddHistory(ctx context.Context, sample string, limit int) error
	}
}

// History is the leader's task that keeps the fleet's last hour in Redis, for the
// console: a sample every history.Every, and one at each change of owners.
type History struct {
	HistoryDeps
	encoder history.Encoder
	term    int64
	polled  time.Time // when owners were read
	added   time.Time // when a sample was added
	before  history.Owners
}

// NewHistory returns the task.
func NewHistory(deps HistoryDeps) *History { return &History{HistoryDeps: deps} }

// ownersEvery is the shortest time between two reads of the owners.
const ownersEvery = time.Second

// Do adds a sample if one is due.
func (h *History) Do(ctx context.Context, term int64) error {
	if term != h.term {
		h.term, h.encoder, h.added = term, history.Encoder{}, time.Time{}
	}
	now := time.Now()
	if now.Sub(h.polled) < ownersEvery {
		return nil
	}
	h.polled = now
	list, err := h.Shards.List(ctx)
	if err != nil {
		return err
	}
	owners := ownersOf(list)
	if now.Sub(h.added) < history.Every && owners.Equal(h.before) {
		return nil
	}
	b, total, err := h.Backlog(ctx)
	if err != nil {
		return err
	}
	s := history.Sample{At: now.UnixMilli(), Added: total, Pending: b.Pending, Versions: make(map[string]int)}
	if b.LagKnown {
		s.Lag = &b.Lag
	}
	if n, known := h.Deferred.Deferring(); known {
		s.Deferred = &n
	}
	if b.OldestKnown {
		oldest := int64(0)
		if !b.Oldest.IsZero() {
			oldest = b.Oldest.Time().UnixMilli()
		}
		s.Oldest = &oldest
	}
	for _, m := range h.Members() {
		s.Versions[m.Version]++
	}
	text, err := h.encoder.Encode(s, owners)
	if err != nil {
		return err
	}
	h.added, h.before = now, owners
	if err := h.Ring.AddHistory(ctx, text, history.Limit); err != nil {
		h.encoder = history.Encoder{} // the reader may not have the owners
		return err
	}
	return nil
}

// ownersOf returns who works on the shards.
func ownersOf(list []protocol.Shard) history.Owners {
	var o history.Owners
	for _, s := range list {
		if s.Owner != "" && !slices.Contains(o.Members, s.Owner) {
			o.Members = append(o.Members, s.Owner)
		}
	}
	slices.Sort(o.Members)
	for _, s := range list {
		of := history.Waits
		if s.Owner != "" && s.Owner == s.Assigned {
			of = slices.Index(o.Members, s.Owner)
		}
		o.Of = append(o.Of, of)
	}
	return o
}
