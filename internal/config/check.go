package config

import (
	"crypto/rand"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
)

const (
	// ReleaseBudget is what remains after the drain to ack, release the shards
	// and leave the fleet.
	ReleaseBudget = 3 * time.Second
	// CloseBudget is what then remains to close connections and the endpoint.
	CloseBudget = 2 * time.Second

	// workerConns are the connections that a worker may hold at a time: it commits
	// one batch, and looks up the devices of the next.
	workerConns = 2
	// spareConns are connections besides those of the workers: one to listen, one
	// for coordination, one for queries. Without one for coordination, a lock for
	// which all workers wait would look like an unavailable Postgres.
	spareConns = 3

	maxInstanceID = 40
	maxName       = 200
)

// inFlightOfOne is how many records of a stream are in flight unless told otherwise: divided among
// many streams, fewer would make reads and batches small, and a record a quarter dearer with eight. Their bytes are
// bounded for all together.
const inFlightOfOne = 32768

// allWorkers returns the workers of all streams together: each has one at least.
func (c *Config) allWorkers() int {
	n := max(1, len(c.Redis.Streams()))
	return n * c.Pipeline.workersOf(n)
}

// complete replaces every default that is computed.
func (c *Config) complete(r *report) {
	if c.Instance.ID == "" {
		c.Instance.ID = defaultInstanceID()
	}
	c.Redis.complete(r)
	explicit := c.Postgres.MaxConns != 0
	if c.Pipeline.Workers == 0 {
		c.Pipeline.Workers = max(2, runtime.GOMAXPROCS(0))
		if explicit {
			c.Pipeline.Workers = max(1, min(c.Pipeline.Workers, (c.Postgres.MaxConns-spareConns)/workerConns))
		}
	}
	if c.Pipeline.MaxInFlightRecords == 0 {
		c.Pipeline.MaxInFlightRecords = inFlightOfOne * max(1, len(c.Redis.Streams()))
	}
	c.Postgres.complete(r, c.allWorkers())
	if c.Crash.Dir == "" {
		c.Crash.Dir = filepath.Join(os.TempDir(), "processor-dumps-"+strconv.Itoa(os.Getuid()))
	}
}

func (c *Redis) complete(r *report) {
	if c.URL != "" {
		joined, ok := joinRedis(string(c.URL))
		a, cut := splitURL(joined)
		if !ok || !cut || !strings.Contains(" redis rediss unix ", " "+a.scheme+" ") {
			r.add("REDIS_URL", c.URL.String(), "must be a URL such as redis://user:password@host:6379/0, rediss:// for TLS or unix:///path; "+
				"several addresses share scheme and credentials; percent-encode @ / ? # : in the password")
		} else {
			c.URL = RedisURL(joined)
		}
	}
	c.checkStreams(r)
	if several := len(c.Streams()) != 1; several || r.has("REDIS_TELEMETRY_STREAM") {
		c.checkNames(r)
		return
	}
	if c.DLQStream == "" {
		c.DLQStream = c.deadLettersOf(c.Stream)
	}
	c.checkNames(r)
	if c.DLQStream == c.Stream {
		r.add("REDIS_DLQ_STREAM", c.DLQStream, "must differ from REDIS_TELEMETRY_STREAM: dead letters would be read again")
	}
	if c.RecomputeStream == c.Stream || c.RecomputeStream == c.DLQStream {
		r.add("RECOMPUTE_STREAM", c.RecomputeStream, "must differ from REDIS_TELEMETRY_STREAM and REDIS_DLQ_STREAM")
	}
	if t := c.TimingStream; t != "" && (t == c.Stream || t == c.DLQStream || t == c.RecomputeStream) {
		r.add("TIMING_STREAM", t, "must differ from REDIS_TELEMETRY_STREAM, REDIS_DLQ_STREAM and RECOMPUTE_STREAM")
	}
}

// checkNames checks each name by itself. Of a list of streams each may be that long.
func (c *Redis) checkNames(r *report) {
	for _, name := range []struct{ variable, value string }{
		{"REDIS_TELEMETRY_STREAM", c.Stream},
		{"REDIS_CONSUMER_GROUP", c.Group},
		{"REDIS_DLQ_STREAM", c.DLQStream},
		{"RECOMPUTE_STREAM", c.RecomputeStream},
		{"TIMING_STREAM", c.TimingStream},
	} {
		longest := maxName
		if name.value == c.Stream && len(c.Streams()) > 1 {
			longest = maxStreams * (maxName + 1)
		}
		if len(name.value) > longest || strings.ContainsFunc(name.value, func(c rune) bool { return unicode.IsSpace(c) || unicode.IsControl(c) }) {
			r.add(name.variable, name.value, "must be at most %d bytes without spaces and control characters", maxName)
		}
	}
}

// deadLettersOf returns the default name of a stream's dead letters.
func (c *Redis) deadLettersOf(stream string) string {
	if c.URL.Cluster() && !strings.Contains(stream, "{") {
		return "{" + stream + "}:dlq"
	}
	return stream + ":dlq"
}

// Of returns the same server with the names of another stream and group.
func (c Redis) Of(stream, group string) Redis {
	if stream != c.Stream {
		c.Stream, c.DLQStream = stream, c.deadLettersOf(stream)
	}
	c.Group = group
	return c
}

// complete computes defaults that depend on the number of workers, 0 if there are none.
func (c *Postgres) complete(r *report, workers int) {
	if c.MigrateURL == "" {
		c.MigrateURL = c.URL
	}
	if c.MaxConns == 0 {
		c.MaxConns = max(10, workerConns*workers+spareConns)
	}
	const rule = "must be a URL such as postgres://user:password@host:5432/database, or keywords such as " +
		"host=db user=processor dbname=trm; percent-encode @ / ? # : in the password of a URL"
	if !c.URL.valid() {
		r.add("POSTGRES_URL", c.URL.String(), rule)
	}
	if c.MigrateURL != c.URL && !c.MigrateURL.valid() {
		r.add("POSTGRES_MIGRATE_URL", c.MigrateURL.String(), rule)
	}
	switch mode := c.URL.parameter("default_query_exec_mode"); mode {
	case "", "cache_statement", "cache_describe", "describe_exec":
	default:
		r.add("POSTGRES_URL", c.URL.String(), "default_query_exec_mode=%s cannot send JSON and arrays as they are needed: "+
			"want cache_statement (the default), cache_describe or describe_exec", mode)
	}
	for _, name := range []string{"statement_cache_capacity", "description_cache_capacity"} {
		if c.URL.parameter(name) == "0" {
			r.add("POSTGRES_URL", c.URL.String(), "%s=0 leaves the driver without what it needs: leave it out", name)
		}
	}
}

// parameter returns the value of a parameter, in either form; "" without one.
func (u PostgresURL) parameter(name string) string {
	if strings.Contains(string(u), "://") {
		a, _ := splitURL(string(u))
		return a.query.Get(name)
	}
	found := regexp.MustCompile(`(?:^|\s)` + name + `\s*=\s*'?([^'\s]*)`).FindStringSubmatch(string(u))
	if found == nil {
		return ""
	}
	return found[1]
}

// valid reports whether the value has one of the two forms. The driver checks
// the rest.
func (u PostgresURL) valid() bool {
	if u == "" {
		return true // another rule checks whether it must be set
	}
	if strings.Contains(string(u), "://") {
		a, ok := splitURL(string(u))
		return ok && (a.scheme == "postgres" || a.scheme == "postgresql")
	}
	return strings.Contains(string(u), "=")
}

// check applies the rules about more than one variable.
func (c *Config) check(r *report) {
	if !validInstanceID(c.Instance.ID) {
		r.add("INSTANCE_ID", c.Instance.ID, "must be 1 to %d letters, digits, dots, dashes or underscores", maxInstanceID)
	}
	if c.Instance.Deploy != "" && !validInstanceID(c.Instance.Deploy) {
		r.add("DEPLOY_ID", c.Instance.Deploy, "must be up to %d letters, digits, dots, dashes or underscores", maxInstanceID)
	}
	in, p, co := c.Instance, c.Pipeline, c.Coordination
	if !r.has("DRAIN_TIMEOUT", "SHUTDOWN_TIMEOUT") && in.DrainTimeout+ReleaseBudget+CloseBudget > in.ShutdownTimeout {
		r.add("DRAIN_TIMEOUT", in.DrainTimeout.String(), "must leave room in SHUTDOWN_TIMEOUT=%v: drain %v + release %v + close %v = %v",
			in.ShutdownTimeout, in.DrainTimeout, ReleaseBudget, CloseBudget, in.DrainTimeout+ReleaseBudget+CloseBudget)
	}
	c.Postgres.check(r)
	c.Console.check(r)
	if !selects(c.Geofences.Query) {
		r.add("GEOFENCE_QUERY", c.Geofences.Query, "must be one select statement; Postgres checks the rest when it runs")
	}

	durations := []struct {
		low  string
		a    time.Duration
		high string
		b    time.Duration
		why  string
	}{
		{"STATEMENT_TIMEOUT", c.Postgres.StatementTimeout, "CLAIM_THRESHOLD_MS", co.ClaimThreshold(), "a slow statement would count as no progress"},
		{"STATEMENT_TIMEOUT", c.Postgres.StatementTimeout, "STALL_TIMEOUT", in.StallTimeout, "a slow statement would count as a stall"},
		{"LEADER_TTL", co.LeaderTTL, "MEMBER_TTL", co.MemberTTL, "a new leader must exist when a member is found to be gone"},
		{"CLAIM_INTERVAL_MS", co.ClaimInterval(), "CLAIM_THRESHOLD_MS", co.ClaimThreshold(), "sweeps must be more frequent than the idle time they look for"},
		{"HANDOFF_BUDGET", co.HandoffBudget, "CLAIM_THRESHOLD_MS", co.ClaimThreshold(), "a hand-over would count as no progress"},
		{"BATCH_MAX_AGE", p.BatchMaxAge, "DRAIN_TIMEOUT", in.DrainTimeout, "the last batch must fit into the drain"},
	}
	for _, d := range durations {
		if !r.has(d.low, d.high) && d.a >= d.b {
			r.add(d.low, show(d.low, d.a), "must be below %s=%s: %s", d.high, show(d.high, d.b), d.why)
		}
	}
	if !r.has("DISPATCH_BLOCK", "DISPATCH_LEASE_TTL") && 2*co.DispatchBlock > co.DispatchLeaseTTL {
		r.add("DISPATCH_LEASE_TTL", co.DispatchLeaseTTL.String(), "must be at least twice DISPATCH_BLOCK=%v: the dispatch lease is renewed between two reads, 2 x %v = %v", co.DispatchBlock, co.DispatchBlock, 2*co.DispatchBlock)
	}

	if least := workerConns*c.allWorkers() + spareConns; !r.has("WORKERS", "POSTGRES_MAX_CONNS") && c.Postgres.MaxConns < least {
		r.add("POSTGRES_MAX_CONNS", strconv.Itoa(c.Postgres.MaxConns), "must be at least %d x WORKERS=%d + %d = %d", workerConns, c.allWorkers(), spareConns, least)
	}
	if n := len(c.Redis.Streams()); n > 0 {
		if !r.has("MAX_IN_FLIGHT_RECORDS") && p.MaxInFlightRecords/n < 64 {
			r.add("MAX_IN_FLIGHT_RECORDS", strconv.Itoa(p.MaxInFlightRecords), "must be at least 64 for each stream, %d of them", n)
		}
		if n > 1 && p.MaxInFlightBytes/int64(n) < int64(c.Telemetry.MaxPayloadBytes) {
			r.add("MAX_IN_FLIGHT_BYTES", strconv.FormatInt(p.MaxInFlightBytes, 10), "must be at least MAX_PAYLOAD_BYTES=%d for each of %d streams", c.Telemetry.MaxPayloadBytes, n)
		}
	}
	sizes := []struct {
		low  string
		a    int64
		high string
		b    int64
	}{
		{"BATCH_MAX_RECORDS", int64(p.BatchMaxRecords), "MAX_IN_FLIGHT_RECORDS", int64(p.MaxInFlightRecords)},
		{"READ_BATCH_RECORDS", int64(p.ReadBatchRecords), "MAX_IN_FLIGHT_RECORDS", int64(p.MaxInFlightRecords)},
		{"MAX_PAYLOAD_BYTES", int64(c.Telemetry.MaxPayloadBytes), "MAX_IN_FLIGHT_BYTES", p.MaxInFlightBytes},
	}
	for _, s := range sizes {
		if !r.has(s.low, s.high) && s.a > s.b {
			r.add(s.low, strconv.FormatInt(s.a, 10), "must be at most %s=%d", s.high, s.b)
		}
	}
}

// selects reports whether a query is empty or starts as one that only reads.
func selects(query string) bool {
	rest := strings.TrimSpace(query)
	for {
		var found bool
		switch {
		case rest == "":
			return strings.TrimSpace(query) == "" // only comments: no query
		case strings.HasPrefix(rest, "--"):
			_, rest, _ = strings.Cut(rest, "\n")
		case strings.HasPrefix(rest, "/*"):
			if _, rest, found = strings.Cut(rest, "*/"); !found {
				return false
			}
		case strings.HasPrefix(rest, "("):
			rest = rest[1:]
		default:
			word := strings.ToLower(rest[:len(rest)-len(strings.TrimLeftFunc(rest, unicode.IsLetter))])
			return slices.Contains([]string{"select", "with", "values", "table"}, word)
		}
		rest = strings.TrimSpace(rest)
	}
}

func (c *Postgres) check(r *report) {
	if !r.has("LOCK_TIMEOUT", "STATEMENT_TIMEOUT") && c.LockTimeout > c.StatementTimeout {
		r.add("LOCK_TIMEOUT", c.LockTimeout.String(), "must be at most STATEMENT_TIMEOUT=%v: it would never be reached", c.StatementTimeout)
	}
}

// show prints a duration in the notation of its variable.
func show(variable string, d time.Duration) string {
	if strings.HasSuffix(variable, "_MS") {
		return strconv.FormatInt(d.Milliseconds(), 10)
	}
	return d.String()
}

// validInstanceID keeps the name printable and short enough for Postgres'
// application_name, which carries it with the incarnation in 63 bytes.
func validInstanceID(s string) bool {
	if s == "" || len(s) > maxInstanceID {
		return false
	}
	return !strings.ContainsFunc(s, func(c rune) bool { return !idRune(c) })
}

func idRune(c rune) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '.' || c == '-' || c == '_'
}

// defaultInstanceID keeps the end of a long host name: that is where replicas
// of one deployment differ.
func defaultInstanceID() string {
	host, err := os.Hostname()
	if err != nil || host == "" {
		host = "processor"
	}
	host = strings.Map(func(c rune) rune {
		if idRune(c) {
			return c
		}
		return '-'
	}, host)
	suffix := "-" + strings.ToLower(rand.Text()[:6])
	if keep := maxInstanceID - len(suffix); len(host) > keep {
		host = host[len(host)-keep:]
	}
	return host + suffix
}
