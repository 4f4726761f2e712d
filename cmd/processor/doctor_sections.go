package main

import "github.com/trmtracking/processor/internal/protocol"

// see leads to a page of the runbook, by its name.
func see(page string) string { return "see docs/runbook/" + page + ".md" }

// The pages of the runbook to which findings and incidents lead.
const (
	sectionLag         = "ProcessorBehind"
	sectionClaim       = "ProcessorForeignConsumer"
	sectionStalled     = "ProcessorDown"
	sectionDeadLetters = "ProcessorDeadLetters"
	sectionRedisLost   = "ProcessorRedisLostItsData"
	sectionGroupLost   = "ProcessorGroupLost"
	sectionTrimmed     = "ProcessorRecordsLost"
	sectionFences      = "recompute"
	sectionDump        = "ProcessorShardQuarantined"
	sectionRedis       = "ProcessorRedisErrors"
	sectionSwitch      = "switch-over"
	sectionArrives     = "ProcessorNothingArrives"
	sectionFull        = "redis-full"
	sectionPostgres    = "ProcessorCommitErrors"
	sectionMigration   = "migration"
	sectionShard       = "ProcessorShardStalled"
	sectionFenceQuery  = "ProcessorFenceQuery"
	sectionWillLose    = "ProcessorWillLoseRecords"
	sectionTwins       = "duplicate-identity"
)

// guide is where an open incident leads, and how bad it is.
type guide struct{ level, section, remedy string }

// incidentGuides has a guide for each kind of incident.
var incidentGuides = map[string]guide{
	protocol.ForeignConsumer:   {levelError, sectionClaim, "stop the program that reads in our group; what it holds is claimed by itself"},
	protocol.SilentMember:      {levelWarning, sectionStalled, "see what became of it, its work is elsewhere; it is forgotten after an hour"},
	protocol.StalledMember:     {levelError, sectionStalled, "take its stacks, then kill it; its work is elsewhere"},
	protocol.StalledShard:      {levelError, sectionShard, "end the session that is in the way"},
	protocol.DeadLettersAlike:  {levelError, sectionDeadLetters, "fix the cause, then replay or drop them"},
	protocol.QuarantinedShard:  {levelError, sectionDump, "nothing now, the entry is being isolated; keep the panic dump"},
	protocol.GeofenceQuery:     {levelError, sectionFenceQuery, "correct the rows or the query in the platform"},
	protocol.RecomputeRejected: {levelWarning, sectionFences, "have the neighbour send its request again as the contract has it"},
	protocol.GroupCreated:      {levelWarning, sectionGroupLost, "nothing, this is the first group of the stream"},
	protocol.GroupLost:         {levelError, sectionGroupLost, "wait, the whole stream is redelivered"},
	protocol.RedisLost:         {levelError, sectionRedisLost, "wait, what is there is redelivered; then see how much is lost"},
	protocol.RedisFailedOver:   {levelError, sectionRedisLost, "nothing can be put back from here; see from the loss in the ledger what to send again"},
}

// guideOf is the guide of a kind, also of one that only another version knows.
func guideOf(kind string) guide {
	if g, ok := incidentGuides[kind]; ok {
		return g
	}
	return guide{levelError, sectionStalled, "this version does not know it: ask the one that the fleet runs"}
}
