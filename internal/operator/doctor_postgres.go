package operator

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/trmtracking/processor/internal/cli"
	"github.com/trmtracking/processor/internal/config"
	"github.com/trmtracking/processor/internal/fault"
	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/store"
	storeadmin "github.com/trmtracking/processor/internal/store/admin"
	"github.com/trmtracking/processor/internal/store/schema"
)

// longTransaction is the age at which an open transaction delays vacuum enough to slow commits.
const longTransaction = 10 * time.Minute

// examinePostgres returns the status of the fleet, if it is known.
func (d *Diagnosis) examinePostgres(ctx context.Context, f *Fleet) (stand storeadmin.FleetStatus, known bool) {
	const about = "Postgres"
	if f.pool == nil {
		d.add(LevelError, about, "there is no usable POSTGRES_URL", "set POSTGRES_URL")
		return stand, false
	}
	if err := store.RefusePooler(ctx, f.cfg.Postgres.URL.Reveal(), f.cfg.Postgres.ConnectTimeout); errors.Is(err, store.ErrPooler) {
		d.add(LevelError, about, err.Error(), "correct POSTGRES_URL; the service refuses to start")
		return stand, false
	}
	e, err := storeadmin.Diagnose(ctx, f.pool)
	if err = fault.PostgresError("POSTGRES_URL", f.cfg.Postgres.URL, err); err != nil {
		const remedy = "start Postgres, or correct POSTGRES_URL; a standby does not suffice: name the primary; "
		d.unreachable(about, err, remedy+see(sectionPostgres), remedy+see(sectionPostgres))
		return stand, false
	}
	d.postgresServer(f.cfg, &e)
	if !d.schema(ctx, f.pool) {
		return stand, false
	}
	stand, err = storeadmin.ReadFleetStatus(ctx, f.pool, f.scope)
	if err != nil {
		d.add(LevelError, about, err.Error(), "see processor migrate verify")
		return stand, false
	}
	return stand, true
}

func (d *Diagnosis) postgresServer(cfg config.Config, e *storeadmin.ServerStatus) {
	const about = "Postgres"
	d.check(e.Number < 150000, LevelError, about, "version "+e.Version, "version "+e.Version+" is older than 15",
		"upgrade Postgres to 15 or newer")
	d.check(e.Standby || e.ReadOnly, LevelError, about, "accepts writes", "is read-only",
		"point POSTGRES_URL at the primary, or list all hosts in it")
	d.check(e.SynchronousCommit == "off", LevelError, about, "commits are durable",
		"synchronous_commit is off: a crash forgets records that were acknowledged; the service refuses to start",
		"set synchronous_commit = on for this database or role")
	d.check(!e.Fsync, LevelError, about, "", "fsync is off: a crash of its machine loses the database", "set fsync = on")
	d.check(!e.Autovacuum, LevelWarning, about, "", "autovacuum is off: commits become slower", "set autovacuum = on")
	if e.Pooler {
		d.ok(about, "the pooler in front is in session mode")
	} else {
		d.ok(about, "no pooler in front")
	}
	d.check(e.Longest > longTransaction, LevelWarning, about, "",
		fmt.Sprintf("a transaction has been open for %s, which blocks vacuum", e.Longest), "find it in pg_stat_activity and end it")
	if e.Hidden > 0 {
		d.ok(about, "transactions of other roles are open for an unknown time, which a role with pg_read_all_stats sees: %s", cli.Number(e.Hidden))
	}
	for _, b := range e.Blocked {
		d.add(LevelError, about, b.Waiting+" "+b.Lock.String(), b.Lock.Remedy()+"; "+see(sectionLag))
	}
	free := e.MaxConnections - e.Sessions
	d.check(free < cfg.Postgres.MaxConns, LevelWarning, about, fmt.Sprintf("%s of %s sessions in use", cli.Number(e.Sessions), cli.Number(e.MaxConnections)),
		fmt.Sprintf("%d of %d sessions in use, not enough left for another instance with %d", e.Sessions, e.MaxConnections, cfg.Postgres.MaxConns),
		"raise max_connections, or lower POSTGRES_MAX_CONNS")
	d.locks(e)
	d.ok(about, "the database holds %s", bytesText(e.Bytes))
	d.clock(about, e.Clock, e.ClockUncertainty)

	members := make(map[string]int)
	for m := range e.Members {
		if instance, err := storeadmin.InstanceOf(m); err == nil {
			members[instance]++
		}
	}
	for _, instance := range slices.Sorted(maps.Keys(members)) {
		d.check(members[instance] > 1, LevelError, "instance "+instance, "has sessions in Postgres",
			fmt.Sprintf("%d processes have this identity at once", members[instance]),
			"give each its own INSTANCE_ID; right after a restart: run this again; "+see(sectionTwins))
	}
}

// locks judges whether one statement can touch all of positions. Those of the service
// never do; dumps, retention and the platform's own queries may.
func (d *Diagnosis) locks(e *storeadmin.ServerStatus) {
	if e.Heaps == 0 {
		return
	}
	// The room is what all sessions share: half of it is for the others.
	perLock := max(1, e.MaxLocks/max(1, e.LocksPerSession))
	enough := (2*e.HeapLocks/perLock/64 + 1) * 64
	all := fmt.Sprintf("all %s chunks or partitions of positions take %s locks", cli.Number(e.Heaps), cli.Number(e.HeapLocks))
	room := fmt.Sprintf("the lock table holds %s", cli.Number(e.MaxLocks))
	d.check(2*e.HeapLocks > e.MaxLocks, LevelWarning, "Postgres", all+", "+room,
		all+" in one statement, such as a dump's; "+room+" for all sessions",
		fmt.Sprintf("set max_locks_per_transaction = %d and restart Postgres, or have fewer chunks: longer ones, or retention", enough))
}

// schema reports whether the tables can be queried.
func (d *Diagnosis) schema(ctx context.Context, pool *pgxpool.Pool) bool {
	report, err := schema.Verify(ctx, pool)
	if err != nil {
		d.add(LevelError, "schema", err.Error(), "see processor migrate verify")
		return false
	}
	for _, f := range report.Problems {
		d.add(LevelError, "schema", f.String(), "run processor migrate up; if none is pending, apply the output of processor migrate print; "+see(sectionMigration))
	}
	if report.OK() {
		d.ok("schema", "has everything this version needs")
	}
	return report.OK()
}

// fleet judges the work of the fleet. alive are the members with a heartbeat, if
// that is known: an owner without one owns in name only.
func (d *Diagnosis) fleet(cfg config.Config, s *storeadmin.FleetStatus, alive map[string]bool, known bool) {
	const about = "fleet"
	d.check(s.Foreign, LevelError, about, "", "in this database the stream is processed by group "+s.Group,
		"name a database of its own in POSTGRES_URL, or correct REDIS_CONSUMER_GROUP")
	if pinned, have := s.Shards(), cfg.Coordination.Shards; pinned > 0 {
		d.check(have > 0 && have != pinned, LevelError, about, fmt.Sprintf("SHARDS is %d", pinned),
			fmt.Sprintf("SHARDS is %d here and %d for the fleet", have, pinned), fmt.Sprintf("set SHARDS=%d", pinned))
	}
	shards, ownerless, gone := 0, 0, 0
	for owner, n := range s.Owners {
		shards += n
		switch {
		case owner == "":
			ownerless += n
		case known && !alive[owner]:
			gone += n
		}
	}
	const later = "while one starts or leaves: run this again"
	switch {
	case known && len(alive) == 0 && s.Shards() > 0:
		d.add(LevelError, about, "no instance is alive: nothing is processed",
			"start an instance, or find in its log why it ends; "+see(sectionStalled)).weight = weightNobody
	case ownerless > 0:
		d.add(LevelWarning, about, fmt.Sprintf("%d of %d shards have no owner", ownerless, shards), "start an instance; "+later)
	case gone > 0:
		d.add(LevelWarning, about, fmt.Sprintf("%d of %d shards are owned by members that are gone", gone, shards),
			"none: the leader reassigns them; if it stays so: "+see(sectionStalled))
	case shards > 0 && known:
		d.ok(about, "every shard has an owner, alive: %s", cli.Count(len(alive), "instance"))
	case shards > 0:
		d.ok(about, "every shard has an owner by the tables")
	}
	d.check(s.Term > 0 && s.Leader == "" && len(alive) > 0, LevelWarning, about, "", "no leader", "start an instance; "+later)
	d.check(s.Suspected > 0, LevelError, about, "",
		fmt.Sprintf("owners of %s crashed without progress: an entry may crash processes", cli.Count(s.Suspected, "shard")),
		"none: the entry is being isolated and becomes a dead letter of class crash; keep the panic dump; "+see(sectionDump))
	d.losses(s)
	d.check(s.Deferred > 0, LevelWarning, "deferred", "no entry waits for a retry",
		fmt.Sprintf("%s could not be decoded and will be retried", cli.Count(s.Deferred, "entry")), "none: an entry that keeps failing becomes a dead letter")
	d.check(s.Waiting > 0 && s.OldestWait > time.Minute, LevelWarning, "requests", "",
		fmt.Sprintf("waiting: %s, the oldest for %s", cli.Count(s.Waiting, "request"), s.OldestWait), "check whether their shards have owners")
	d.check(s.Failed > 0, LevelWarning, "requests", "",
		fmt.Sprintf("failed within the last day: %s", cli.Count(s.Failed, "request")), "processor requests says why; remove the cause and ask again; "+see(sectionRequests))
	for _, i := range s.Incidents {
		g := guideOf(i.Kind)
		which := i.Kind + " " + strings.Join(i.Subjects, ", ")
		if more := i.Count - len(i.Subjects); more > 0 {
			which += fmt.Sprintf(" and %d more", more)
		}
		d.add(g.level, "incident", fmt.Sprintf("%s since %s", which, i.Since.UTC().Format(time.RFC3339)),
			g.remedy+"; "+see(g.section)+"; it closes automatically when resolved").Count = i.Count
	}
}

// losses reports the ledger of losses. One in the last day is an error.
func (d *Diagnosis) losses(s *storeadmin.FleetStatus) {
	const about = "ledger"
	if s.LostSince == nil {
		d.ok(about, "nothing was lost")
		return
	}
	level := LevelWarning
	if time.Since(*s.LostSince) < 24*time.Hour {
		level = LevelError
	}
	lost := cli.CountWere(s.Lost, "entry") + " lost"
	switch {
	case s.LostSome && s.Lost == 0:
		lost = "entries lost, count unknown"
	case s.LostSome:
		lost = cli.Count(s.Lost, "entry") + " and more were lost"
	}
	remedy := "raise MAXLEN of tcp-ingestion; " + see(sectionTrimmed)
	switch {
	case slices.Contains(s.LostBy, protocol.LossFlush), slices.Contains(s.LostBy, protocol.LossFailover):
		remedy = "set appendonly yes; " + see(sectionRedisLost)
	case slices.Contains(s.LostBy, protocol.LossRestored):
		remedy = "fill the gap from what trackers still have; " + see(sectionRestored)
	}
	d.add(level, about, fmt.Sprintf("%s (%s), the last detected %s", lost, strings.Join(s.LostBy, ", "), s.LostSince.UTC().Format(time.RFC3339)), remedy)
}

func bytesText(n int64) string {
	units := []string{"bytes", "kB", "MB", "GB", "TB"}
	f, i := float64(n), 0
	for f >= 1000 && i < len(units)-1 {
		f, i = f/1000, i+1
	}
	if i == 0 {
		return fmt.Sprintf("%d %s", n, units[0])
	}
	return fmt.Sprintf("%.1f %s", f, units[i])
}
