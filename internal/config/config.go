package config

import (
	"log/slog"
	"time"

	"github.com/trmtracking/processor/internal/telemetry"
)

// Config is the configuration of one instance. Its fields are flat groups of
// variables, whose tags say:
//
//	env       name of the variable
//	default   value when it is unset or empty
//	auto      what an unset variable becomes, where that is computed
//	help      what it is for
//	min, max  bounds, in the notation of the value, or of each value of a list
//	oneof     the allowed words
//	required  must be set
//	secret    may also come from a file named by NAME_FILE; never printed
type Config struct {
	Instance     Instance
	Log          Log
	Console      Console
	Redis        Redis
	Postgres     Postgres
	Pipeline     Pipeline
	Telemetry    Telemetry
	Geofences    Geofences
	Coordination Coordination
	DeadLetters  DeadLetters
	Crash        Crash
}

// Instance is the identity of this process and the time it may take to start and stop.
type Instance struct {
	ID              string        `env:"INSTANCE_ID" auto:"host name and a random suffix" help:"name of this instance, unique in the fleet; up to 40 letters, digits, dots, dashes, underscores"`
	StartTimeout    time.Duration `env:"START_TIMEOUT" default:"5m" min:"1s" max:"1h" help:"how long to wait for Redis and Postgres at start, migrations not counted, then exit 4"`
	DrainTimeout    time.Duration `env:"DRAIN_TIMEOUT" default:"20s" min:"100ms" max:"10m" help:"how long work in flight may take to finish at shutdown, then exit 1"`
	Deploy          string        `env:"DEPLOY_ID" auto:"deploys are not told apart" help:"the same for all instances that one deploy starts, such as the pod template's hash: shards of instances that leave then go to those of the newest deploy"`
	ShutdownTimeout time.Duration `env:"SHUTDOWN_TIMEOUT" default:"30s" min:"1s" max:"15m" help:"how long the whole shutdown may take; keep the orchestrator's grace period above it"`
	StallTimeout    time.Duration `env:"STALL_TIMEOUT" default:"60s" min:"5s" max:"1h" help:"the process exits after this long with entries in flight, responding servers and no progress"`
}

// Log is the format of the log.
type Log struct {
	Level  slog.Level `env:"LOG_LEVEL" default:"info" oneof:"debug|info|warn|error" help:"minimum level that is logged"`
	Format string     `env:"LOG_FORMAT" default:"auto" oneof:"auto|json|text" help:"auto is text on a terminal and JSON otherwise"`
}

// Console configures the HTTP endpoint for health, readiness, metrics and the console.
type Console struct {
	Host  string `env:"METRICS_HOST" auto:"all interfaces" help:"address the HTTP endpoint listens on"`
	Port  int    `env:"METRICS_PORT" default:"9464" min:"0" max:"65535" help:"port of /metrics, /healthz, /readyz and /console/; 0 takes a free one"`
	Pprof bool   `env:"PPROF" default:"false" help:"serve /debug/pprof/ to every client"`

	Mode       string  `env:"CONSOLE" default:"read" oneof:"read|write|off" help:"the web console: look, act as well, or none; every client of the port may look"`
	Token      Secret  `env:"CONSOLE_TOKEN" secret:"true" help:"with it operators sign in to act; at least 16 characters"`
	UserHeader string  `env:"CONSOLE_USER_HEADER" help:"header in which a proxy names the operator"`
	Proxies    Proxies `env:"CONSOLE_TRUSTED_PROXIES" help:"addresses or networks of the proxies whose CONSOLE_USER_HEADER is believed, separated by commas"`
	Tiles      string  `env:"CONSOLE_TILES" auto:"no background map" help:"tile server for the map, such as https://tiles.example.com/{z}/{x}/{y}.png"`
}

// Redis is the server and the names of everything in it.
type Redis struct {
	URL             RedisURL `env:"REDIS_URL" required:"true" secret:"true" help:"redis://, rediss:// (TLS) or unix://; several addresses, separated by commas, are a Cluster, or Sentinels with ?master_name="`
	URLFile         Secret   // where URL came from, "" if not from a file; a URL given by mistake is one, too
	Stream          string   `env:"REDIS_TELEMETRY_STREAM" default:"telemetry:teltonika" help:"stream to read; or several, separated by commas, with telemetry:{0..7} for eight"`
	Group           string   `env:"REDIS_CONSUMER_GROUP" default:"processor" help:"consumer group of the fleet"`
	DLQStream       string   `env:"REDIS_DLQ_STREAM" auto:"<stream>:dlq; on a Cluster {<stream>}:dlq" help:"stream for dead letters; two fleets on one stream need one each"`
	RecomputeStream string   `env:"RECOMPUTE_STREAM" default:"recompute:requests" help:"stream on which other services request recomputes"`
	TimingStream    string   `env:"TIMING_STREAM" auto:"published nowhere" help:"stream on which the changes of crossings are published, for this alone; about 100,000 are kept"`
}

// Postgres is the database, its limits and its schema.
type Postgres struct {
	URL                PostgresURL   `env:"POSTGRES_URL" required:"true" secret:"true" help:"postgres://user:password@host:5432/database, or the keyword form; the server itself, or a pooler in session mode"`
	URLFile            Secret        // as for Redis
	MigrateURL         PostgresURL   `env:"POSTGRES_MIGRATE_URL" auto:"POSTGRES_URL" secret:"true" help:"connection for migrations, as the owner of the schema"`
	MaxConns           int           `env:"POSTGRES_MAX_CONNS" auto:"10, or 2 x WORKERS + 3 where that is more" min:"5" max:"2000" help:"maximum connections of one instance"`
	ConnectTimeout     time.Duration `env:"CONNECT_TIMEOUT" default:"5s" min:"100ms" max:"1m" help:"maximum wait for one connection"`
	StatementTimeout   time.Duration `env:"STATEMENT_TIMEOUT" default:"10s" min:"100ms" max:"5m" help:"maximum duration of one statement"`
	LockTimeout        time.Duration `env:"LOCK_TIMEOUT" default:"5s" min:"100ms" max:"5m" help:"maximum wait of one statement for a lock"`
	Migrate            string        `env:"MIGRATE" default:"auto" oneof:"auto|verify|off" help:"at start: apply migrations, only check the schema, or neither"`
	MigrateLockTimeout time.Duration `env:"MIGRATE_LOCK_TIMEOUT" default:"60s" min:"1s" max:"1h" help:"maximum wait for another instance's migration, and for a table that another session has locked"`
}

// Pipeline bounds the work inside one instance.
type Pipeline struct {
	Workers            int           `env:"WORKERS" auto:"1 per CPU, at least 2" min:"0" max:"512" help:"goroutines that process and commit, each with one commit in flight; 0 is the default"`
	MaxInFlightRecords int           `env:"MAX_IN_FLIGHT_RECORDS" auto:"32768 for each stream" min:"0" max:"10000000" help:"maximum records in flight, of all streams together; 0 is the default"`
	MaxInFlightBytes   int64         `env:"MAX_IN_FLIGHT_BYTES" default:"67108864" min:"1048576" max:"68719476736" help:"maximum bytes of entries in flight"`
	ReadBatchRecords   int           `env:"READ_BATCH_RECORDS" default:"4000" min:"1" max:"100000" help:"maximum entries of one read; large entries lower it. More than BATCH_MAX_RECORDS leaves small batches over"`
	BatchMaxRecords    int           `env:"BATCH_MAX_RECORDS" default:"4000" min:"1" max:"100000" help:"records after which a batch is committed, at most a quarter of a worker's share of MAX_IN_FLIGHT_RECORDS"`
	BatchMaxAge        time.Duration `env:"BATCH_MAX_AGE" default:"20ms" min:"1ms" max:"10s" help:"how long new entries gather before they are dispatched and committed together; in a backlog a batch gathers for up to an eighth of the age of its first entry, at most a second or this if it is longer"`
	StateMaxDevices    int           `env:"STATE_MAX_DEVICES" default:"200000" min:"1" max:"50000000" help:"devices whose state is kept in memory; others are reloaded when needed"`
}

// Telemetry says what a record may look like, and which take part in state.
type Telemetry struct {
	MaxPayloadBytes int           `env:"MAX_PAYLOAD_BYTES" default:"1048576" min:"1024" max:"67108864" help:"maximum payload size; a larger payload is dead-lettered as too_large"`
	MaxAttributes   int           `env:"MAX_ATTRIBUTES" default:"1024" min:"1" max:"1000000" help:"maximum attributes of a record, nested ones and elements of arrays included"`
	MaxDepth        int           `env:"MAX_DEPTH" default:"16" min:"1" max:"1000" help:"maximum nesting inside attributes"`
	MaxFutureSkew   time.Duration `env:"MAX_FUTURE_SKEW" default:"5m" min:"1s" max:"24h" help:"how far a device clock may be ahead before its record is excluded from state; pinned for the fleet"`
	MaxPast         time.Duration `env:"MAX_PAST" default:"0s" min:"0s" max:"87600h" help:"how far a device clock may be behind before its record is excluded from state, 2160h (90 days) is recommended; 0 excludes none; pinned for the fleet"`
	MinSatellites   int           `env:"MIN_SATELLITES" default:"1" min:"0" max:"32767" help:"satellites below which a record has no fix and is excluded from state; 0 excludes none; pinned for the fleet"`
	MaxSpeed        int           `env:"MAX_SPEED" default:"0" min:"0" max:"100000" help:"km/h above which a fix that is too far from both its neighbours makes no crossings, for example 300; 0 excludes none; pinned for the fleet"`
}

// Eligibility is which records take part in state.
func (t Telemetry) Eligibility() telemetry.Eligibility {
	return telemetry.Eligibility{MaxFutureSkew: t.MaxFutureSkew, MaxPast: t.MaxPast, MinSatellites: t.MinSatellites, MaxSpeed: t.MaxSpeed}
}

// Geofences says where fences come from and how crossings are derived.
type Geofences struct {
	Refresh        time.Duration `env:"GEOFENCE_REFRESH" default:"30s" min:"1s" max:"1h" help:"interval of polls for changed fences"`
	Query          string        `env:"GEOFENCE_QUERY" auto:"the table processor.geofences" help:"select statement that returns the fences, if another service owns them"`
	MaxCrossingGap time.Duration `env:"MAX_CROSSING_GAP" default:"10m" min:"1s" max:"24h" help:"gap between two fixes above which only the net change counts; pinned for the fleet"`

	TimingRetention time.Duration `env:"TIMING_RETENTION" default:"168h" min:"1h" max:"87600h" help:"age after which rows of processor.timing_changes are removed, counted from when the feed showed them; a reader that was away longer starts over"`
}

// Coordination is how the members of the fleet share the shards.
type Coordination struct {
	Shards           int           `env:"SHARDS" default:"64" min:"1" max:"4096" help:"slices of the device space; pinned for the fleet, changed by processor shards resize"`
	DispatchAhead    int           `env:"DISPATCH_AHEAD" default:"200000" min:"1000" max:"100000000" help:"maximum unfinished dispatched entries before dispatch pauses; those of stalled shards and foreign consumers are not counted"`
	DispatchBlock    time.Duration `env:"DISPATCH_BLOCK" default:"500ms" min:"10ms" max:"500ms" help:"maximum wait for new entries in one read"`
	DispatchLeaseTTL time.Duration `env:"DISPATCH_LEASE_TTL" default:"2s" min:"500ms" max:"1m" help:"lifetime of the dispatch lease"`
	QueueRescan      time.Duration `env:"QUEUE_RESCAN" default:"30s" min:"1s" max:"10m" help:"interval of re-reads of every queue from its start"`
	MemberTTL        time.Duration `env:"MEMBER_TTL" default:"5s" min:"1s" max:"5m" help:"silence after which a member counts as gone"`
	LeaderTTL        time.Duration `env:"LEADER_TTL" default:"4s" min:"1s" max:"5m" help:"lifetime of the leader's lock"`
	HandoffBudget    time.Duration `env:"HANDOFF_BUDGET" default:"5s" min:"100ms" max:"5m" help:"how long an owner may take to release a shard that was assigned away; six times as long while it commits"`
	ClaimIntervalMS  int           `env:"CLAIM_INTERVAL_MS" default:"2000" min:"100" max:"600000" help:"milliseconds between two claim sweeps"`
	ClaimThresholdMS int           `env:"CLAIM_THRESHOLD_MS" default:"30000" min:"1000" max:"3600000" help:"milliseconds without progress after which shards move, and idle time after which entries of foreign consumers are claimed"`
}

// ClaimInterval is CLAIM_INTERVAL_MS as a duration.
func (c Coordination) ClaimInterval() time.Duration {
	return time.Duration(c.ClaimIntervalMS) * time.Millisecond
}

// ClaimThreshold is CLAIM_THRESHOLD_MS as a duration.
func (c Coordination) ClaimThreshold() time.Duration {
	return time.Duration(c.ClaimThresholdMS) * time.Millisecond
}

// DeadLetters says when a record is dead-lettered, and how long dead letters are kept.
type DeadLetters struct {
	MaxAttempts int           `env:"DLQ_MAX_ATTEMPTS" default:"3" min:"1" max:"100" help:"maximum attempts to decode or store a record"`
	RetryDelays Delays        `env:"DLQ_RETRY_DELAYS" default:"30s,2m" min:"100ms" max:"24h" help:"waits before its second attempt, its third and so on; the last one repeats. The first covers a restart, the others a rolling deploy"`
	Retention   time.Duration `env:"DLQ_RETENTION" default:"720h" min:"1h" max:"87600h" help:"age after which dead letters are exported and removed"`

	MaxEntries int64 `env:"DLQ_MAX_ENTRIES" default:"100000" min:"100" max:"100000000" help:"maximum dead letters in Redis; the oldest beyond it are exported and removed"`
	MaxBytes   int64 `env:"DLQ_MAX_BYTES" default:"268435456" min:"1048576" max:"1099511627776" help:"maximum bytes of dead letters in Redis, about; as above. Whatever the limits, they give way when Redis is three quarters full"`

	AuditRetention time.Duration `env:"AUDIT_RETENTION" default:"17520h" min:"24h" max:"876000h" help:"age after which exported dead letters, the audit, losses, conflicts, finished requests and closed incidents are removed; counts stay"`
}

// Crash says where panic dumps go and what they contain.
type Crash struct {
	Dir       string `env:"PANIC_DUMP_DIR" auto:"processor-dumps-UID in the folder for temporary files" help:"folder for panic dumps, of this user alone (mode 0700); created if it is missing"`
	MaxBytes  int64  `env:"PANIC_DUMP_MAX_BYTES" default:"16777216" min:"65536" max:"1073741824" help:"maximum bytes of one dump"`
	Positions bool   `env:"PANIC_DUMP_POSITIONS" default:"false" help:"include coordinates in dumps; they are personal data"`
}
