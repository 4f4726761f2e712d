package protocol

// The kinds of incidents: what a person should know. Each has its section in
// docs/reference/incidents.md, which processor doctor names.
const (
	ForeignConsumer   = "foreign_consumer"   // another member reads in our group
	SilentMember      = "silent_member"      // it owned shards and is gone without a release; for an hour
	StalledMember     = "stalled_member"     // work that does not advance
	StalledShard      = "stalled_shard"      // the same, while other shards advance
	DeadLettersAlike  = "dead_letters"       // several that failed alike
	QuarantinedShard  = "quarantined_shard"  // an entry of a shard may kill processes
	GeofenceQuery     = "geofence_query"     // it fails, or yields rows that are invalid
	RecomputeRejected = "recompute_rejected" // a neighbour asked for one in a way nobody understands; over at once
	GroupCreated      = "group_created"      // there was none before; over at once
	GroupLost         = "group_lost"         // the stream is there, and is redelivered
	RedisLost         = "redis_lost"         // what Redis knew of the group is gone, too
	RedisFailedOver   = "redis_failover"     // it goes on with an older state of stream and group; over at once
)
