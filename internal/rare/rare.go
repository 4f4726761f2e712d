// Package rare counts how often the rare branches of the protocol are reached.
//
// A test that never reaches a branch proves nothing about it. The simulation and
// the load test say which they reached, and a campaign that has reached none of
// those it is expected to fails.
//
// The service counts only if it is built with the tag mutant and RARE_DIR names a
// folder: one file for each branch, a byte for each time, so that what a killed
// process has reached counts too. Without the tag Reached is empty and costs nothing.
package rare

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Branch is the name of a rare branch, and of its file.
type Branch string

// The branches.
const (
	Fenced             Branch = "commit-fenced"                       // a commit under an epoch that is no longer the newest was refused
	OutcomeUnknown     Branch = "commit-outcome-unknown"              // a commit may have happened: its shards are acquired again
	GenerationChanged  Branch = "commit-meets-another-server"         // Postgres was replaced between computing a batch and its commit
	SetAside           Branch = "shard-set-aside-for-a-lock"          // another session has the row of a shard locked
	Halved             Branch = "batch-halved"                        // what was too much for the server is made smaller
	Bisected           Branch = "batch-bisected"                      // a row is refused, and the batch divided until it is alone
	Recomputed         Branch = "batch-recomputed"                    // rows that were taken for new are there already
	RefusalWaits       Branch = "sink-refusal-waits"                  // rows are refused for what is not their fault: a shard waits
	AckRefused         Branch = "acknowledgement-refused"             // the group is gone or the shard has another owner
	Trimmed            Branch = "entry-trimmed-on-its-queue"          // the content of a pending entry is gone
	DeferredRetry      Branch = "deferred-entry-retried"              // an entry is tried again later
	Probed             Branch = "quarantine-probe"                    // a probe batch of a quarantined shard
	CulpritFound       Branch = "quarantine-culprit"                  // the entry that ends processes is dead-lettered
	DispatchRefused    Branch = "dispatch-refused"                    // the lease was lost, or the group moved, between reading and dispatching
	LeaseProlonged     Branch = "dispatch-lease-prolonged"            // a dispatch took longer than its lease
	UnqueuedOverdue    Branch = "unqueued-entries-put-on-their-queue" // since they were not finished in time, or the lease ends
	Orphaned           Branch = "unqueued-entries-orphaned"           // their work was given up before they were on any queue
	DispatchedAgain    Branch = "dispatched-again"                    // what an earlier dispatcher had unqueued, perhaps finished
	LastIDMoved        Branch = "last-delivered-id-moved"             // by another client
	GroupCreated       Branch = "group-created"                       // at the start of a fleet, and whenever the group is lost
	HandedOver         Branch = "shard-handed-over"                   // released by its owner for another member
	ForceAcquired      Branch = "shard-force-acquired"                // without a release
	ReleaseOverdue     Branch = "release-overdue"                     // a living owner did not release in time
	AcquisitionBlocked Branch = "acquisition-blocked"                 // by a lock of the row of the shard
	ShardLost          Branch = "shard-lost"                          // an owner finds out that another member has acquired it
	Redelivered        Branch = "redelivered"                         // acknowledged entries whose commit is gone are on their queue again
	RedeliveredTrimmed Branch = "redelivered-after-trim"              // and some are not in the stream any more
	SilentMember       Branch = "silent-member"                       // the heartbeat of an owner expired
	StalledMember      Branch = "stalled-member"                      // a member does not advance
	Swept              Branch = "foreign-entries-swept"               // the claim sweep found entries of a foreign consumer
	TermRefused        Branch = "term-refused"                        // a leader learns from Postgres that another one leads
	RedisFailedOver    Branch = "redis-failover-with-a-cut-tail"      // Redis continues with an older state
	LetterWaits        Branch = "dead-letter-waits-for-durability"    // its copy in Postgres is kept until then
	LetterRestored     Branch = "dead-letter-restored"                // Redis had lost it
	Resized            Branch = "resized"                             // the number of shards was changed
	LossRecorded       Branch = "loss-recorded"                       // entries that Redis reported gone are in the ledger
	ServerChanged      Branch = "redis-changed"                       // another generation of Redis answers
	Inherited          Branch = "state-inherited"                     // a new owner continues with the state that the last one left
	SnapshotRefused    Branch = "state-left-refused"                  // what was left belongs to another owner, or is not whole
)

// Counts is how often each branch was reached.
type Counts map[Branch]int

// Missing returns those of the expected branches that were not reached, in order.
func (c Counts) Missing(expected []Branch) []Branch {
	var missing []Branch
	for _, b := range expected {
		if c[b] == 0 {
			missing = append(missing, b)
		}
	}
	slices.Sort(missing)
	return missing
}

// String lists the branches in order, with their counts.
func (c Counts) String() string {
	all := make([]string, 0, len(c))
	for _, b := range slices.Sorted(maps.Keys(c)) {
		all = append(all, fmt.Sprintf("%s %d", b, c[b]))
	}
	return strings.Join(all, ", ")
}

// Join lists branches.
func Join(branches []Branch) string {
	all := make([]string, len(branches))
	for i, b := range branches {
		all[i] = string(b)
	}
	return strings.Join(all, ", ")
}

// Add adds the counts of another run.
func (c Counts) Add(other Counts) {
	for b, n := range other {
		c[b] += n
	}
}

// Env is the variable that names the folder to count in.
const Env = "RARE_DIR"

// Read returns what the processes that count in a folder have reached so far.
func Read(dir string) (Counts, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("read what was reached: %w", err)
	}
	counts := make(Counts)
	for _, e := range entries {
		info, err := e.Info()
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return nil, fmt.Errorf("read what was reached: %w", err)
		default:
			counts[Branch(filepath.Base(e.Name()))] = int(info.Size())
		}
	}
	return counts, nil
}
