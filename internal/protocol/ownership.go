package protocol

import (
	"errors"
	"time"
)

// ErrNotAssigned says that a shard may not be taken: it is assigned to somebody
// else by now, or has no row.
var ErrNotAssigned = errors.New("the shard is not assigned to this member")

// ShardRecord is what Postgres says of a shard.
type ShardRecord struct {
	Assigned string // the member that should own it, "" for nobody
	Owner    string // the member that owns it, "" after a release
	Epoch    int64
}

// LocalShard is how a member itself holds a shard.
type LocalShard struct {
	Owned    bool
	Epoch    int64
	Stopping bool
}

// Action is what a member does next about a shard.
type Action uint8

const (
	// Leave it as it is.
	Leave Action = iota
	// Acquire it: it is assigned to us and nobody else owns it.
	Acquire
	// ForceAcquire it from an owner that is gone or has had its time: end its
	// Postgres sessions, then take the shard.
	ForceAcquire
	// HandOver finishes what is in flight and releases it: it is assigned to another member.
	HandOver
	// Lose it at once: another member has taken it.
	Lose
	// Await the release of the owner it was assigned away from.
	Await
)

func (a Action) String() string {
	return [...]string{"leave", "take", "force-acquire", "hand over", "drop", "await"}[a]
}

// OwnerState is what is known of the owner a shard is to be taken from.
type OwnerState struct {
	Gone    bool // it will not release anything any more
	Ended   bool // its process was seen to end, and not because it was told to
	Leaving bool // it is shutting down, and may use its whole drain for it
	Waited  time.Duration
}

// Budgets bound the wait for a release.
type Budgets struct {
	HandOff time.Duration
	Drain   time.Duration
}

// Next decides what a member does about a shard. Safety does not rest on it:
// whatever it decides, an owner that has been replaced cannot commit.
func Next(me string, c ShardRecord, h LocalShard, owner OwnerState, b Budgets) Action {
	if h.Owned {
		switch {
		case c.Owner != me || c.Epoch != h.Epoch:
			return Lose
		case c.Assigned != me:
			return HandOver
		default:
			return Leave
		}
	}
	if c.Assigned != me {
		return Leave
	}
	if c.Owner == "" || c.Owner == me {
		return Acquire
	}
	budget := b.HandOff
	if owner.Leaving {
		budget = max(b.HandOff, b.Drain)
	}
	if owner.Gone || owner.Waited >= budget {
		return ForceAcquire
	}
	return Await
}
