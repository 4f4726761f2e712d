package operator

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/trmtracking/processor/coordination"
	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/stream"
)

// Shard is one shard and its queue; nil means unknown or none.
type Shard struct {
	Shard            int        `json:"shard"`
	Owner            *string    `json:"owner"`
	OwnerSince       *time.Time `json:"owner_since"`
	AssignedTo       *string    `json:"assigned_to"`
	WaitingFor       string     `json:"waiting_for,omitempty"`
	Epoch            *int64     `json:"epoch"`
	AppliedID        *string    `json:"applied_id"`
	Pending          int64      `json:"pending"`
	OldestEntry      *string    `json:"oldest_entry"`
	OldestAgeSeconds *float64   `json:"oldest_age_seconds"`
	Locked           *RowLock   `json:"locked,omitempty"` // another session has its row locked
	Wait             *Wait      `json:"wait,omitempty"`   // why it does not go on, since when, and what ends it
}

// RowLock is a lock that a shard waits for, and what ends the wait.
type RowLock struct {
	protocol.RowLock
	Remedy string `json:"remedy"`
}

// RowLocks returns the locks that members say their shards wait for, by shard.
func RowLocks(members []coordination.Member) map[int]*RowLock {
	locks := make(map[int]*RowLock)
	for i := range members {
		for _, l := range members[i].RowLocks {
			// The member that waits longest knows best.
			if known := locks[l.Shard]; known == nil || l.Since.Before(known.Since) {
				locks[l.Shard] = &RowLock{l, l.Remedy()}
			}
		}
	}
	return locks
}

// Shards is who owns each shard, and what it waits for.
type Shards struct {
	Stream  string  `json:"stream"`
	Group   string  `json:"group"`
	Number  int     `json:"number"`
	Waiting int     `json:"waiting"`
	Shards  []Shard `json:"shards"`

	// Unanswered says why owners are those of the heartbeats, and the rest of what
	// Postgres knows is unknown; nil if it answered.
	Unanswered error `json:"-"`
}

// Shards returns the shards with owner and epoch from Postgres, and the state of
// their queues from Redis. It needs Redis; without Postgres the owners are those
// that the heartbeats name.
func (f *Fleet) Shards(ctx context.Context) (Shards, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*askTimeout)
	defer cancel()
	s := Shards{Stream: f.scope.Stream, Group: f.scope.Group, Shards: []Shard{}}
	if _, err := f.redis(ctx, 1); err != nil {
		return s, err
	}
	pinned, err := f.postgres(ctx)
	s.Unanswered = err
	if err == nil && pinned.Shards == 0 {
		return s, errNeverStarted
	}
	group, err := f.redis(ctx, pinned.Shards)
	if err != nil {
		return s, err
	}
	var list []protocol.Shard
	if s.Unanswered == nil {
		list, err = f.listShards(ctx, pinned)
		s.Unanswered = f.explained(err)
	}
	if s.Unanswered != nil {
		if list, err = f.shardsOfHeartbeats(ctx, group); err != nil {
			return s, err
		}
		if group, err = f.redis(ctx, len(list)); err != nil {
			return s, err
		}
	}
	s.Number = len(list)
	queues, err := queuesOf(ctx, group)
	if err != nil {
		return s, err
	}
	there, err := f.heartbeats(ctx)
	if err != nil {
		return s, err
	}
	locks := RowLocks(there)
	var holds protocol.Holds
	if s.Unanswered == nil {
		if holds, err = f.holds().Holds(ctx); err != nil {
			return s, f.explained(err)
		}
	}
	waits := ShardWaits(list, holds, there)
	for _, x := range list {
		q := queues[x.Shard]
		j := Shard{Shard: x.Shard, Owner: orNull(x.Owner), AssignedTo: orNull(x.Assigned), Pending: q.Pending}
		if s.Unanswered == nil {
			j.OwnerSince, j.Epoch, j.WaitingFor = &x.Since, &x.Epoch, waitingFor(x)
		}
		if !x.Applied.IsZero() {
			j.AppliedID = orNull(x.Applied.String())
		}
		if !q.Oldest.IsZero() {
			j.OldestEntry = orNull(q.Oldest.String())
			j.OldestAgeSeconds, _ = ageOf(q.Oldest)
		}
		if l := locks[x.Shard]; l != nil {
			j.Locked, j.WaitingFor = l, fmt.Sprintf("the lock of its row, for %s: it %s", time.Since(l.Since).Round(time.Second), l)
		}
		if j.Wait = waits[x.Shard]; j.Wait != nil && j.WaitingFor == "" {
			j.WaitingFor = j.Wait.Text(time.Now())
		}
		if j.WaitingFor != "" {
			s.Waiting++
		}
		s.Shards = append(s.Shards, j)
	}
	return s, nil
}

// shardsOfHeartbeats returns the shards as far as Redis knows them.
func (f *Fleet) shardsOfHeartbeats(ctx context.Context, group *stream.Group) ([]protocol.Shard, error) {
	there, err := f.heartbeats(ctx)
	if err != nil {
		return nil, err
	}
	n, err := group.PinnedShards(ctx)
	if err != nil {
		return nil, err
	}
	owners := make(map[int]string)
	for _, m := range there {
		for _, shard := range m.Shards {
			owners[shard], n = m.Name(), max(n, shard+1)
		}
	}
	list := make([]protocol.Shard, n)
	for i := range list {
		list[i] = protocol.Shard{Shard: i, Owner: owners[i]}
	}
	return list, nil
}

func (f *Fleet) shards() *store.Shards { return store.NewShards(f.pool, f.scope, askTimeout) }

// listShards returns the shards, by the pinned number.
func (f *Fleet) listShards(ctx context.Context, pinned store.FleetSettings) ([]protocol.Shard, error) {
	all, err := f.shards().List(ctx)
	return slices.DeleteFunc(all, func(s protocol.Shard) bool { return s.Shard >= pinned.Shards }), err
}

// queuesOf returns the state of the queues; nothing if there is no group.
func queuesOf(ctx context.Context, group *stream.Group) (map[int]protocol.QueueState, error) {
	info, err := group.Info(ctx)
	if err != nil || !info.GroupExists {
		return nil, err
	}
	return group.Queues(ctx)
}

// waitingFor returns why no member works on a shard, or "".
func waitingFor(s protocol.Shard) string {
	switch {
	case s.Assigned == "":
		return "a leader that assigns it"
	case s.Owner == "":
		return s.Assigned + " to acquire it"
	case s.Owner != s.Assigned:
		return s.Owner + " to release it"
	}
	return ""
}
