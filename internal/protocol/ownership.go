package protocol

import (
	"cmp"
	"errors"
	"slices"
	"time"
)

// ErrNotAssigned says that a shard may not be acquired: it is assigned to
// another member, or has no row.
var ErrNotAssigned = errors.New("the shard is not assigned to this member")

// ShardRecord is the state of a shard in Postgres.
type ShardRecord struct {
	Assigned string // the member that should own it, "" for none
	Owner    string // the member that owns it, "" after a release
	Epoch    int64
}

// EndedSessions is what became of the database sessions of a member.
type EndedSessions struct {
	Count int
	None  bool // there were none, nor any since it acquired its shards
	// Left are those of a role whose sessions this one may not end, and Role is that one,
	// "" if it was dropped. A transaction that one of them has open keeps its locks.
	Left int
	Role string
}

// Remedy says how the sessions that are left come to an end; "" if none are.
func (e *EndedSessions) Remedy() string {
	if e.Left == 0 {
		return ""
	}
	return "end them as " + cmp.Or(e.Role, "a superuser") + " (select pg_terminate_backend); grant that role to the one this fleet connects with, " +
		"or pg_signal_backend, so that it can (docs/reference/permissions.md)"
}

// LocalShard is a member's own state of a shard.
type LocalShard struct {
	Owned    bool
	Epoch    int64
	Stopping bool // it is being handed over
}

// Action is what a member does next about a shard.
type Action uint8

const (
	// Leave it unchanged.
	Leave Action = iota
	// Acquire it: it is assigned to us and has no other owner.
	Acquire
	// ForceAcquire it from an owner that is gone or has used up its budget: if force
	// helps (ForceHelps), end the owner's Postgres sessions, then acquire the shard.
	ForceAcquire
	// HandOver finishes what is in flight and releases it: it is assigned to another member.
	HandOver
	// Lose it immediately: another member has acquired it.
	Lose
	// Await the release of the owner it was assigned away from.
	Await
)

func (a Action) String() string {
	return [...]string{"leave", "acquire", "force-acquire", "hand over", "lose", "await"}[a]
}

// OwnerState is what is known of a shard's current owner.
type OwnerState struct {
	Gone    bool // it will not release anything any more
	Leaving bool // it is shutting down, and may use its whole drain
	Works   bool // it has committed something within the budget for a release
	Waited  time.Duration
}

// Budgets bound the wait for a release.
type Budgets struct {
	HandOff time.Duration
	Drain   time.Duration
}

// workingFactor is by how much longer an owner is waited for that works: what is in flight of a
// shard is committed with that of others, which takes long on a busy machine. To end its
// sessions would set it back, and others would be no faster.
const workingFactor = 6

// For returns how long an owner may take to release a shard.
func (b Budgets) For(owner OwnerState) time.Duration {
	budget := b.HandOff
	if owner.Works {
		budget *= workingFactor
	}
	if owner.Leaving {
		budget = max(budget, b.Drain)
	}
	return budget
}

// Next decides what a member does about a shard. Safety does not depend on it:
// an owner that was replaced cannot commit, whatever Next returns.
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
	if c.Assigned != me || h.Stopping {
		return Leave // until a hand-over has ended, it gives up what it finds
	}
	if c.Owner == "" || c.Owner == me {
		return Acquire
	}
	if owner.Gone || owner.Waited >= b.For(owner) {
		return ForceAcquire
	}
	return Await
}

// ForceHelps reports whether a shard may be taken by force from an owner. A shard
// is moved by force only if there is evidence that another member could do better:
// the owner is gone, or the shard's row can be locked, or it is the owner itself
// that has it locked. If anybody else has, the owner waits as its successor would,
// and ending its sessions would harm the rest of its work. name is the
// owner's.
func ForceHelps(owner OwnerState, name string, blocked bool, by []Blocker) bool {
	if owner.Gone || !blocked {
		return true
	}
	return slices.ContainsFunc(by, func(b Blocker) bool { return b.Member == name })
}
