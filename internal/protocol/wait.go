package protocol

import "time"

// Wait is something that does not go on: a shard, or the dispatcher.
type Wait struct {
	State  string    `json:"state"`
	Shard  int       `json:"shard"` // -1 for none
	Since  time.Time `json:"since"`
	Detail string    `json:"detail,omitempty"`
}

// The states in which something waits. Each has its row in docs/reference/waits.md,
// which says what it means and what ends it.
const (
	WaitUnassigned    = "unassigned"     // a shard has no member assigned
	WaitUnacquired    = "unacquired"     // a shard is assigned to a member that has not acquired it
	WaitUnreleased    = "unreleased"     // a shard is assigned to another member than its owner
	WaitHeld          = "held"           // a person paused a shard, or all of them
	WaitLocked        = "locked"         // another session has the row of a shard locked
	WaitRefused       = "refused"        // Postgres refuses the rows of a shard for a reason that is not theirs
	WaitRedisFull     = "redis_full"     // a full Redis refuses the dead letters of a shard
	WaitDLQRefused    = "dlq_refused"    // Redis refuses the dead letters of a shard for another reason than that
	WaitQuarantined   = "quarantined"    // an entry of a shard may kill processes
	WaitDraining      = "draining"       // a shard that is to be released has entries in flight
	WaitKept          = "kept"           // deferred entries stay so: rows of several devices are refused alike
	WaitDispatchHeld  = "dispatch_held"  // the dispatcher is told not to dispatch
	WaitDispatchAhead = "dispatch_ahead" // DISPATCH_AHEAD entries are dispatched and not finished
	WaitDispatchFull  = "dispatch_full"  // the workers of the dispatcher have no room
	// WaitDispatchUnread: a lone instance has no shard yet, or has not read its queues to their end.
	WaitDispatchUnread = "dispatch_unread"
)
