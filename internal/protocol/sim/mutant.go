package sim

// Mutant is a rule of the protocol that is switched off.
type Mutant uint8

// The mutants.
const (
	Sound Mutant = iota
	NoEpochCheck
	AckBelowApplied
	EpochAfterReading
	AcquireUnassigned
	NoIncarnation
	NoTermCheck
	NoTokenCheck
	NoDeliveredCheck
	FeedUnknown
	CursorsNeverReset
	GroupNotAtZero
	KeptOverRun
	InFlightKeptOverRun
	EvictUncommitted
	PostgresRunIgnored
	NothingRedelivered
	SessionsNotEnded
	AckBeforeCommit
	AckOutlivesGrant
	FeedKnownLate
	LockIsOutage
	LockedTakenForStuck
	LockedKeptInFlight
	SweptAhead
	LeftStateOfAnyEpoch
	RefusedAckFinishes
	ClaimedAheadOfUnqueued
	LookedForOnce
	LastIDPassesUnqueued
	OrphansForgotten
	UnqueuedAgain
	SettledUnknown
	FeedRead
	mutants
)

func (m Mutant) String() string {
	return [...]string{
		"sound",
		"no epoch check",
		"entries at or below the applied ID acknowledged unseen",
		"epoch raised after reading",
		"take-over by one that is no longer assigned",
		"identity without incarnation",
		"term not compared",
		"dispatching without the token check",
		"dispatching without the check of the last-delivered ID",
		"feeding a queue not known to be empty",
		"cursors never reset",
		"group recreated anywhere but at 0",
		"cursors and known-empty queues kept over a changed run_id",
		"work in flight kept over a changed run_id",
		"eviction of uncommitted state",
		"another generation of Postgres taken for the same",
		"nothing redelivered after a take-over",
		"sessions of a force-acquired owner not ended",
		"acknowledged before the commit",
		"acknowledged under a grant that has ended",
		"feeding a queue found to be empty after the dispatch was sent",
		"a locked row taken for an outage, by a pass that grants all shards or none",
		"a member that waits for a lock taken for stuck",
		"work of a locked shard kept in flight",
		"entries of a foreign consumer swept ahead of dispatching",
		"state left by an owner used by any later one",
		"a refused acknowledgement of unqueued entries finishes them",
		"entries of a shard claimed while earlier ones are unqueued",
		"entries put on their queue in flight looked for only once",
		"last-delivered ID moved past unqueued entries",
		"orphans forgotten",
		"entries unqueued that are dispatched again",
		"settled after a dispatch of unknown outcome",
		"feeding a queue from which a read has delivered the same",
	}[m]
}

// Mutants lists all mutants.
func Mutants() []Mutant {
	var all []Mutant
	for m := Sound + 1; m < mutants; m++ {
		all = append(all, m)
	}
	return all
}
