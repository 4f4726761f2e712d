package main

import "github.com/trmtracking/processor/internal/protocol"

// see leads to a section of OPERATIONS.md, by its heading.
func see(section string) string { return `see "` + section + `" in OPERATIONS.md` }

// The sections to which findings and incidents lead.
const (
	sectionLag       = "Lag grows"
	sectionClaim     = "Claim stuck entries from a dead instance"
	sectionStalled   = "An instance is stalled or gone"
	sectionLetters   = "Drain, edit and replay dead letters"
	sectionRedisLost = "Redis lost its data"
	sectionGroupLost = "The group is lost"
	sectionTrimmed   = "Records were trimmed"
	sectionFences    = "Recompute after a fence change"
	sectionDump      = "Read a panic dump"
	sectionOutages   = "Outages"
	sectionSwitch    = "Switch over from the earlier service, and back"
	sectionArrives   = "Nothing arrives"
	sectionFull      = "Redis is full or evicts"
	sectionPostgres  = "Postgres is down, full, slow or read-only"
	sectionMigration = "A migration is stuck or refused"
	sectionTwins     = "Duplicate identity"
)

// guide is where an open incident leads, and how bad it is.
type guide struct{ level, section, remedy string }

// incidentGuides has a guide for each kind of incident.
var incidentGuides = map[string]guide{
	protocol.ForeignConsumer:   {levelTrouble, sectionSwitch, "stop the program that reads in our group; what it holds is claimed by itself"},
	protocol.SilentMember:      {levelWarning, sectionStalled, "see what became of it, its work is elsewhere; it is forgotten after an hour"},
	protocol.StalledMember:     {levelTrouble, sectionStalled, "take its stacks, then kill it; its work is elsewhere"},
	protocol.StalledShard:      {levelTrouble, sectionLag, "end the session that is in the way"},
	protocol.DeadLettersAlike:  {levelTrouble, sectionLetters, "mend the cause, then replay or drop them"},
	protocol.CrashSuspect:      {levelTrouble, sectionDump, "nothing at once, the entry is being isolated; keep the panic dump"},
	protocol.GeofenceQuery:     {levelTrouble, sectionFences, "mend the rows or the query in the platform"},
	protocol.RecomputeRejected: {levelWarning, sectionFences, "have the neighbour send its request again as the contract has it"},
	protocol.GroupMade:         {levelWarning, sectionGroupLost, "nothing, this is the first group of the stream"},
	protocol.GroupLost:         {levelTrouble, sectionGroupLost, "wait, all of the stream is dealt again"},
	protocol.RedisLost:         {levelTrouble, sectionRedisLost, "wait, what is there is dealt again; then see how much is lost"},
	protocol.RedisRewound:      {levelTrouble, sectionRedisLost, "nothing can be put back from here; see from the loss in the ledger what to send again"},
}

// guideOf is the guide of a kind, also of one that only another version knows.
func guideOf(kind string) guide {
	if g, ok := incidentGuides[kind]; ok {
		return g
	}
	return guide{levelTrouble, sectionStalled, "this version does not know it: ask the one that the fleet runs"}
}
