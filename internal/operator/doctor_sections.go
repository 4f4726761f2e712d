package operator

import "github.com/trmtracking/processor/internal/protocol"

// see refers to a page of the runbook, by its name.
func see(page string) string { return "see docs/runbook/" + page + ".md" }

// The pages of the runbook to which findings and incidents refer.
const (
	sectionLag         = "ProcessorBehind"
	sectionClaim       = "ProcessorForeignConsumer"
	sectionStalled     = "ProcessorDown"
	sectionDeadLetters = "ProcessorDeadLetters"
	sectionRedisLost   = "ProcessorRedisLostItsData"
	sectionGroupLost   = "ProcessorGroupLost"
	sectionTrimmed     = "ProcessorRecordsLost"
	sectionRestored    = "postgres-restored"
	sectionFences      = "recompute"
	sectionDump        = "ProcessorShardQuarantined"
	sectionRedis       = "ProcessorRedisErrors"
	sectionSwitch      = "switch-over"
	sectionArrives     = "ProcessorNothingArrives"
	sectionFull        = "ProcessorRedisRefuses"
	sectionPostgres    = "ProcessorCommitErrors"
	sectionMigration   = "migration"
	sectionRefuses     = "ProcessorSinkRefuses"
	sectionShard       = "ProcessorShardStalled"
	sectionFenceQuery  = "ProcessorFenceQuery"
	sectionWillLose    = "ProcessorWillLoseRecords"
	sectionTwins       = "duplicate-identity"
	sectionTwoStreams  = "two-streams"
	sectionDatabase    = "other-database"
	sectionCopy        = "database-copy"
	sectionRequests    = "ProcessorRequestFailed"
	sectionTimingFeed  = "ProcessorTimingFeedStalled"
)

// guide is the page and severity of an open incident.
type guide struct{ level, section, remedy string }

// incidentGuides has a guide for each kind of incident.
var incidentGuides = map[string]guide{
	protocol.ForeignConsumer:    {LevelError, sectionClaim, "stop the program that reads in our group; its entries are claimed automatically"},
	protocol.SilentMember:       {LevelWarning, sectionStalled, "find out why it ended; its shards were reassigned; it is forgotten after an hour"},
	protocol.StalledMember:      {LevelError, sectionStalled, "take its stacks, then kill it; its shards were reassigned"},
	protocol.StalledShard:       {LevelError, sectionShard, "end the session that blocks it"},
	protocol.DeadLettersAlike:   {LevelError, sectionDeadLetters, "fix the cause, then replay or drop them"},
	protocol.SinkRefuses:        {LevelError, sectionRefuses, "correct what the error names; nothing is dead-lettered, and all continues by itself"},
	protocol.QuarantinedShard:   {LevelError, sectionDump, "none: the entry is being isolated; keep the panic dump"},
	protocol.GeofenceQuery:      {LevelError, sectionFenceQuery, "correct the rows or the query in the platform; one that is too slow: make it faster, or raise STATEMENT_TIMEOUT"},
	protocol.TimingStream:       {LevelError, sectionTimingFeed, "name another key in TIMING_STREAM, or correct this one; crossings are recorded meanwhile, and published afterwards"},
	protocol.UnreadableRecord:   {LevelError, sectionTrimmed, "find out which program wrote it; if it is an instance of another version, its text may tell of a loss"},
	protocol.RecomputeRejected:  {LevelWarning, sectionFences, "the other service must send a request that follows the contract"},
	protocol.RedisRefuses:       {LevelError, sectionFull, "by its code: OOM: raise maxmemory, then trim the stream to less; NOREPLICAS: start its replicas; READONLY: point REDIS_URL at the master; MISCONF: make room on its disk"},
	protocol.NotAStream:         {LevelError, "ProcessorNothingArrives", "rename the key, or correct REDIS_TELEMETRY_STREAM or, if it is the one of dead letters, REDIS_DLQ_STREAM; other streams go on"},
	protocol.DeviceInTwoStreams: {LevelError, sectionTwoStreams, "have their publishers send each device to one stream; its crossings are derived again a minute after it settled"},
	protocol.DatabaseCopy:       {LevelError, sectionCopy, "stop the instances whose POSTGRES_URL leads to the copy: records are stored in both, each a part of them"},
	protocol.GroupCreated:       {LevelWarning, sectionGroupLost, "none: this is the first group of the stream"},
	protocol.GroupLost:          {LevelError, sectionGroupLost, "wait, the whole stream is redelivered"},
	protocol.RedisLost:          {LevelError, sectionRedisLost, "wait, what remains is redelivered; then check how much is lost"},
	protocol.RedisFailedOver:    {LevelError, sectionRedisLost, "entries cannot be restored here; the ledger shows which to send again"},
}

// incidentWords say what happened; %s is the subject.
var incidentWords = map[string]string{
	protocol.ForeignConsumer:    "a foreign program reads in our group: %s",
	protocol.SilentMember:       "instance %s fell silent",
	protocol.StalledMember:      "instance %s does not advance",
	protocol.StalledShard:       "shard %s does not advance while others do",
	protocol.DeadLettersAlike:   "several entries failed alike: %s",
	protocol.SinkRefuses:        "Postgres rejects rows that are not at fault: %s",
	protocol.QuarantinedShard:   "an entry of shard %s may crash processes",
	protocol.GeofenceQuery:      "the fences of the platform cannot be taken over: %s",
	protocol.TimingStream:       "crossings cannot be published to %s",
	protocol.UnreadableRecord:   "a record in Redis of losses, or of the group, cannot be read: %s",
	protocol.RecomputeRejected:  "a request to recompute is invalid: %s",
	protocol.NotAStream:         "a key that is to be a stream has another type: %s",
	protocol.DeviceInTwoStreams: "devices come from two streams at a time: %s",
	protocol.DatabaseCopy:       "instances work with copies of one database: %s",
	protocol.GroupCreated:       "the group was created for the first time",
	protocol.GroupLost:          "the group in Redis was gone; the whole stream is read again",
	protocol.RedisLost:          "what Redis knew was lost; what remains is read again",
	protocol.RedisRefuses:       "Redis refuses writes: %s",
	protocol.RedisFailedOver:    "Redis continues with an older state; entries after %s were lost",
}

// guideOf returns the guide of a kind, also of one that only another version knows.
func guideOf(kind string) guide {
	if g, ok := incidentGuides[kind]; ok {
		return g
	}
	return guide{LevelError, sectionStalled, "unknown to this version: run doctor of the version that the fleet runs"}
}
