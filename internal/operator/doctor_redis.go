package operator

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/trmtracking/processor/internal/cli"
	"github.com/trmtracking/processor/internal/config"
	"github.com/trmtracking/processor/internal/fault"
	storeadmin "github.com/trmtracking/processor/internal/store/admin"
	"github.com/trmtracking/processor/internal/stream"
	streamadmin "github.com/trmtracking/processor/internal/stream/admin"
)

// skewLimit is the difference between clocks above which it is reported.
const skewLimit = time.Second

// examineRedis checks Redis, the stream, the group, the clocks, and whether the
// fleet works with this database. It returns the members with a heartbeat, if they
// are known.
func (d *Diagnosis) examineRedis(ctx context.Context, f *Fleet, shards int, status *storeadmin.FleetStatus) (alive map[string]bool, known bool) {
	const about = "Redis"
	cfg := f.cfg
	group, err := stream.NewGroup(f.client, f.where(max(1, shards)))
	if err != nil {
		d.add(LevelError, about, err.Error(), "correct REDIS_TELEMETRY_STREAM, REDIS_CONSUMER_GROUP or SHARDS")
		return nil, false
	}
	e, err := streamadmin.New(f.client, group).Diagnose(ctx, otherStreamPrefix)
	if err = fault.RedisError(cfg.Redis, err); err != nil {
		d.unreachable(about, err, "start Redis or repair the network, or correct REDIS_URL; "+see(sectionRedis),
			"correct REDIS_URL, or compare the ACL of its user with deploy/security/redis.sh")
		return nil, false
	}
	members, err := f.heartbeats(ctx)
	if err != nil {
		d.add(LevelError, "members", "their heartbeats are unknown: "+err.Error(), see(sectionRedis))
	}
	alive = make(map[string]bool, len(members))
	for _, m := range members {
		alive[m.Name()] = true
	}
	locks := RowLocks(members)
	for _, shard := range slices.Sorted(maps.Keys(locks)) {
		l, query := locks[shard], ""
		if len(l.By) > 0 && l.By[0].Query != "" {
			query = ", its query: " + l.By[0].Query
		}
		d.add(LevelError, "shard", fmt.Sprintf("the row of shard %d is locked since %s: it %s%s", shard, l.Since.UTC().Format(time.RFC3339), l, query),
			l.Remedy+"; "+see(sectionShard))
	}
	d.redisServer(&e)
	if ours, err := group.FleetDatabase(ctx); err == nil && ours.ID != "" && status.Database != "" {
		d.check(ours.ID != status.Database, LevelError, "fleet", "Redis and Postgres belong together",
			fmt.Sprintf("the fleet on Redis at %s works with the database %s %s, and POSTGRES_URL names %s", cfg.Redis.URL.Addresses(), ours.ID, ours.Address, status.Database),
			"correct POSTGRES_URL or REDIS_URL; instances with these settings refuse to start; "+see(sectionDatabase))
	}
	for _, m := range members {
		d.check(status.Server != "" && m.Server != "" && m.Server != status.Server && m.Database == status.Database, LevelError, "fleet", "",
			fmt.Sprintf("%s works with this database on another server, at %s: one of the two is a copy", m.Name(), m.Postgres),
			"correct POSTGRES_URL or REDIS_URL of the instances that are not meant; "+see(sectionCopy))
	}
	d.stream(cfg.Redis, &e, len(alive) > 0 || status.Shards() == 0)
	d.trimPoint(ctx, group, &e)
	return alive, err == nil && heartbeatsRenew(e.Refuses)
}

// heartbeatsRenew reports whether members can renew their heartbeats at a server
// that refuses writes for a reason ("" for none): a full one still accepts PEXPIRE.
// Where they cannot, a heartbeat that is missing says nothing about its member.
func heartbeatsRenew(refuses string) bool { return refuses == "" || refuses == "OOM" }

func (d *Diagnosis) redisServer(e *streamadmin.ServerStatus) {
	const about = "Redis"
	d.check(e.TooOld(), LevelError, about, "version "+cmp.Or(e.Version, "unknown"),
		fmt.Sprintf("version %q is older than %d.0", e.Version, stream.OldestServer), fmt.Sprintf("upgrade Redis to %d.0 or newer", stream.OldestServer))
	d.check(e.Role == "slave", LevelError, about, "", "is a replica, which accepts no writes",
		"point REDIS_URL at the master, or name the Sentinels with ?master_name=")
	d.check(e.Eviction != "" && e.Eviction != "noeviction", LevelError, about, cmp.Or(e.Eviction, "does not tell its maxmemory-policy"),
		"maxmemory-policy is "+e.Eviction+": a full Redis evicts streams",
		"set maxmemory-policy noeviction")
	if e.TellsAppendOnly {
		d.check(!e.AppendOnly, LevelWarning, about, "append-only file is on",
			"append-only file is off: a restart loses what was added since the last snapshot", "set appendonly yes")
	} else {
		d.ok(about, "does not tell whether it keeps an append-only file")
	}
	d.check(e.WriteError != "", LevelError, about, "", e.WriteError+" says that the last write to disk failed",
		"make room on its disk, or fix the permissions of its folder")
	d.check(e.Scripts != nil, LevelError, about, "scripts run", fmt.Sprint(e.Scripts),
		"allow EVAL and EVALSHA to this user, see deploy/security/redis.sh")
	switch e.Refuses {
	case "", "READONLY": // of a replica, see above
	case "OOM":
		d.add(LevelError, about, "is full: it refuses new entries (OOM), and tcp-ingestion cannot add any",
			"raise maxmemory now; then trim the stream to less: dead letters give way by themselves while an instance leads; "+see(sectionFull)).weight = weightFull
	case "NOREPLICAS":
		d.add(LevelError, about, "refuses all writes (NOREPLICAS): fewer replicas are in step than its min-replicas-to-write demands",
			"start the replicas again, or lower min-replicas-to-write; "+see(sectionFull)).weight = weightFull
	default:
		d.add(LevelError, about, "refuses all writes ("+e.Refuses+")", see(sectionFull)).weight = weightFull
	}
	if e.Refuses != "OOM" && e.MemoryMax > 0 {
		used := 100 * e.MemoryUsed / e.MemoryMax
		d.check(used >= 80, LevelWarning, about, fmt.Sprintf("%d %% of maxmemory used", used),
			fmt.Sprintf("%d %% of maxmemory used; at 100 %% tcp-ingestion cannot add any more", used),
			"raise maxmemory, or trim the stream to less: dead letters give way by themselves; "+see(sectionFull))
	}
	d.clock(about, e.Clock, e.ClockUncertainty)
}

func (d *Diagnosis) clock(about string, ahead, doubt time.Duration) {
	d.check(ahead.Abs() > skewLimit+doubt, LevelWarning, about, "its clock agrees with this machine's",
		fmt.Sprintf("its clock and this machine's differ by %s", ahead.Abs()),
		"synchronise both (NTP): ages, and the check of device clocks, depend on them")
}

// ahead reports IDs that are ahead of the clock by so many seconds.
func (d *Diagnosis) ahead(about string, seconds float64) {
	d.check(seconds > 0, LevelWarning, about, "", AheadText(seconds)+": ages are unknown, and all is processed",
		"synchronise the clocks of Redis and of every client that gives IDs (NTP); IDs stay ahead until the clock has passed them")
}

// stream checks for a wrong name and for foreign consumers in our group.
func (d *Diagnosis) stream(cfg config.Redis, e *streamadmin.ServerStatus, inhabited bool) {
	about := "stream " + cfg.Stream
	empty := !e.Info.Exists || e.Info.Added == 0
	for _, s := range e.OtherStreams {
		if s.Name == cfg.DLQStream || strings.HasSuffix(s.Name, ":dlq") {
			continue
		}
		switch {
		case empty:
			d.add(LevelError, about, fmt.Sprintf("never had an entry, while %s has %s", s.Name, cli.Count(s.Length, "entry")),
				"set REDIS_TELEMETRY_STREAM to the stream that tcp-ingestion writes; "+see(sectionArrives))
		case s.Groups == 0:
			d.add(LevelWarning, about, fmt.Sprintf("nobody reads %s, which has %s", s.Name, cli.Count(s.Length, "entry")),
				"if it is telemetry, run a fleet for it, or have its writer use this stream")
		}
	}
	switch {
	case !e.Info.Exists:
		d.add(LevelWarning, about, "does not exist", "start tcp-ingestion, or correct REDIS_TELEMETRY_STREAM")
	case empty:
		d.add(LevelWarning, about, "never had an entry", "start tcp-ingestion, or correct REDIS_TELEMETRY_STREAM")
	default:
		age := "unknown"
		if !e.Info.Last.IsZero() {
			old, ahead := e.Info.Last.Age(time.Now())
			if d.ahead(about, ahead); ahead == 0 {
				age = old.Round(time.Second).String()
			}
		}
		d.ok(about, "%s, the last %s ago", cli.Count(e.Info.Length, "entry"), age)
	}
	about = "group " + cfg.Group
	d.check(e.Info.Exists && !e.Info.GroupExists, LevelWarning, about, "", "does not exist",
		"start an instance: it creates the group at the start of the stream")
	d.check(e.Info.GroupExists && !e.DispatcherPresent && inhabited, LevelWarning, about, "", "no dispatcher",
		"start an instance; if one runs, check its log")
	for _, c := range e.Former {
		d.check(c.Pending > 0, LevelWarning, about, "", fmt.Sprintf("%s, a queue from before a resize, holds %s", c.Name, cli.Count(c.Pending, "entry")),
			"none while an instance runs: the leader moves them to the queues of their shards")
	}
	for _, c := range e.Foreign {
		holds := "holds nothing"
		if c.Pending > 0 {
			holds = fmt.Sprintf("holds %s that it did not finish", cli.Count(c.Pending, "entry"))
		}
		silent := c.Idle.Round(time.Second)
		switch {
		case c.Idle < time.Minute && c.Pending > 0:
			d.add(LevelError, about, fmt.Sprintf("a foreign consumer %q reads in our group, and %s", c.Name, holds),
				"stop that program, its entries are then claimed automatically; "+see(sectionClaim))
		case c.Idle < time.Minute:
			d.add(LevelError, about, fmt.Sprintf("a foreign consumer %q reads in our group, and %s", c.Name, holds),
				"stop that program, otherwise it processes entries out of the order of their devices; "+see(sectionClaim))
		case c.Pending > 0:
			d.add(LevelWarning, about, fmt.Sprintf("a foreign consumer %q is silent for %s, and %s", c.Name, silent, holds),
				"none while an instance runs: the leader claims its entries; never XGROUP DELCONSUMER; "+see(sectionClaim))
		default:
			d.add(LevelWarning, about, fmt.Sprintf("a foreign consumer %q is silent for %s, and %s", c.Name, silent, holds),
				"none while an instance runs: the leader removes it")
		}
	}
	d.check(e.UnrecordedLosses > 0, LevelError, about, "", fmt.Sprintf("losses that are not in the ledger yet: %s", cli.Number(e.UnrecordedLosses)),
		"start an instance, whose leader records them; "+see(sectionTrimmed))
}

// trimPoint compares the age of the oldest retained entry with that of the oldest unfinished one.
func (d *Diagnosis) trimPoint(ctx context.Context, group *stream.Group, e *streamadmin.ServerStatus) {
	const about = "trim point"
	if !e.Info.Exists || e.Info.Length == 0 {
		return
	}
	backlog, err := group.Backlog(ctx)
	if err != nil || !backlog.OldestKnown {
		d.add(LevelWarning, about, "the oldest unfinished entry is unknown", "run processor lag, then this again")
		return
	}
	_, first := e.Info.First.Age(time.Now())
	_, oldest := backlog.Oldest.Age(time.Now())
	if max(first, oldest) > 0 {
		d.add(LevelWarning, about, "unknown: "+AheadText(max(first, oldest)), "see the stream")
		return
	}
	reach := time.Since(e.Info.First.Time()).Round(time.Second)
	if backlog.Oldest.IsZero() {
		d.ok(about, "the stream reaches back %s, the backlog is empty", reach)
		return
	}
	behind := time.Since(backlog.Oldest.Time()).Round(time.Second)
	trimmed := e.Info.Added > e.Info.Length
	d.check(trimmed && behind*2 > reach, LevelError, about,
		fmt.Sprintf("the stream reaches back %s, the oldest unfinished entry is %s old", reach, behind),
		fmt.Sprintf("the stream reaches back %s and the oldest unfinished entry is %s old: trimming will lose entries", reach, behind),
		"raise MAXLEN of tcp-ingestion now; "+see(sectionWillLose))
}
