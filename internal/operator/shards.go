package operator

import (
	"context"
	"slices"
	"time"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/stream"
)

// Shard is one shard and its queue; nil means unknown or none.
type Shard struct {
	Shard            int       `json:"shard"`
	Owner            *string   `json:"owner"`
	OwnerSince       time.Time `json:"owner_since"`
	AssignedTo       *string   `json:"assigned_to"`
	WaitingFor       string    `json:"waiting_for,omitempty"`
	Epoch            int64     `json:"epoch"`
	AppliedID        *string   `json:"applied_id"`
	Pending          int64     `json:"pending"`
	OldestEntry      *string   `json:"oldest_entry"`
	OldestAgeSeconds *float64  `json:"oldest_age_seconds"`
}

// Shards is who owns each shard, and what it waits for.
type Shards struct {
	Stream  string  `json:"stream"`
	Group   string  `json:"group"`
	Number  int     `json:"number"`
	Waiting int     `json:"waiting"`
	Shards  []Shard `json:"shards"`
}

// Shards returns the shards with owner and epoch from Postgres, and the state of
// their queues from Redis. It needs both servers.
func (f *Fleet) Shards(ctx context.Context) (Shards, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	s := Shards{Stream: f.scope.Stream, Group: f.scope.Group, Shards: []Shard{}}
	group, pinned, err := f.both(ctx)
	if err != nil {
		return s, err
	}
	if s.Number = pinned.Shards; s.Number == 0 {
		return s, ErrNeverStarted
	}
	list, err := f.listShards(ctx, pinned)
	if err != nil {
		return s, err
	}
	queues, err := queuesOf(ctx, group)
	if err != nil {
		return s, err
	}
	for _, x := range list {
		q := queues[x.Shard]
		j := Shard{
			Shard: x.Shard, Owner: orNull(x.Owner), OwnerSince: x.Since, AssignedTo: orNull(x.Assigned),
			Epoch: x.Epoch, Pending: q.Pending, WaitingFor: waitingFor(x),
		}
		if !x.Applied.IsZero() {
			j.AppliedID = orNull(x.Applied.String())
		}
		if !q.Oldest.IsZero() {
			age := max(0, time.Since(q.Oldest.Time()).Seconds())
			j.OldestEntry, j.OldestAgeSeconds = orNull(q.Oldest.String()), &age
		}
		if j.WaitingFor != "" {
			s.Waiting++
		}
		s.Shards = append(s.Shards, j)
	}
	return s, nil
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
