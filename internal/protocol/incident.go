package protocol

// Kinds of incidents. Each has its section in docs/reference/incidents.md,
// which processor doctor names.
const (
	ForeignConsumer    = "foreign_consumer"      // a foreign consumer reads in our group
	SilentMember       = "silent_member"         // an owner disappeared without a release; open for an hour
	StalledMember      = "stalled_member"        // a member with entries in flight does not advance
	StalledShard       = "stalled_shard"         // a shard does not advance while other shards do
	DeadLettersAlike   = "dead_letters"          // several entries failed with the same fingerprint
	SinkRefuses        = "sink_refuses"          // Postgres rejects rows that are not at fault
	QuarantinedShard   = "quarantined_shard"     // an entry of the shard may crash processes
	GeofenceQuery      = "geofence_query"        // the query fails, yields invalid rows, or suddenly few
	TimingStream       = "timing_stream"         // TIMING_STREAM cannot be written to: no stream, another's, or not allowed
	UnreadableRecord   = "unreadable_record"     // of losses or of the group, in Redis; closed immediately
	RecomputeRejected  = "recompute_rejected"    // an invalid recompute request; closed immediately
	NotAStream         = "not_a_stream"          // the key of the stream has another type
	DeviceInTwoStreams = "device_in_two_streams" // devices come from two streams at a time
	DatabaseCopy       = "database_copy"         // live members work with copies of one database
	GroupCreated       = "group_created"         // the group was created for the first time; closed immediately
	GroupLost          = "group_lost"            // the stream exists and is redelivered
	RedisLost          = "redis_lost"            // what Redis knew of the group is lost, too
	RedisRefuses       = "redis_refuses"         // Redis refuses new entries, or all writes
	RedisFailedOver    = "redis_failover"        // Redis continues with an older state of stream and group; closed immediately
)
