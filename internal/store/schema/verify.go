package schema

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/store"
)

// Report is the result of Verify.
type Report struct {
	// Problems prevent this binary from running.
	Problems []Finding `json:"problems"`
	// Notes are tolerable differences.
	Notes []Finding `json:"notes"`
}

// OK reports whether the database has everything that is needed.
func (r Report) OK() bool { return len(r.Problems) == 0 }

// Err returns nil or a *Error with this report.
func (r Report) Err() error {
	if r.OK() {
		return nil
	}
	return &Error{Report: r}
}

// beginner is a connection or a pool.
type beginner interface {
	Begin(ctx context.Context) (pgx.Tx, error)
}

// VerifyURL is Verify on a private connection.
func VerifyURL(ctx context.Context, url string) (Report, error) {
	conn, err := connectPlain(ctx, url)
	if err != nil {
		return Report{}, err
	}
	defer conn.Close(context.WithoutCancel(ctx)) //nolint:errcheck // only read from
	return Verify(ctx, conn)
}

// Verify compares the database with what this binary needs: tables, views, columns,
// indexes by what they do, triggers, functions, the role's privileges, and policies
// and rules that must not be. It
// runs no DDL and leaves no trace. An error means that the comparison failed;
// its result is in the report. A newer schema passes if everything needed
// exists.
func Verify(ctx context.Context, db beginner) (Report, error) {
	needed, err := neededCatalog()
	if err != nil {
		return Report{}, err
	}
	tx, err := db.Begin(ctx)
	if err != nil {
		return Report{}, fmt.Errorf("verify the schema: %w", err)
	}
	defer tx.Rollback(context.WithoutCancel(ctx)) //nolint:errcheck // nothing to keep

	status, err := migrateStatus(ctx, tx)
	if err != nil {
		return Report{}, err
	}
	live, err := readCatalog(ctx, tx)
	if err != nil {
		return Report{}, err
	}
	r := compareCatalogs(needed, live)
	for _, m := range status {
		if m.Name == "" {
			r.note("migration", fmt.Sprint(m.Version), "", "applied by a newer binary")
		}
	}
	if err := r.checkPrivileges(ctx, tx, needed, live); err != nil {
		return Report{}, err
	}
	if err := r.checkInterference(ctx, tx, needed); err != nil {
		return Report{}, err
	}
	if err := r.checkReplicaIdentity(ctx, tx); err != nil {
		return Report{}, err
	}
	if err := r.checkTriggers(ctx, tx); err != nil {
		return Report{}, err
	}
	for _, p := range probes {
		if _, found := live.Functions[p.function]; !found {
			continue
		}
		if err := r.probe(ctx, tx, p); err != nil {
			return Report{}, err
		}
	}
	return r, nil
}

// privilegesSQL finds what the service's role lacks. deploy/security/postgres.sql
// grants the same, and erasing from positions, which a platform may keep to itself. A table
// that is not named has to be granted in full.
const privilegesSQL = `
select t.name, p.privilege
from unnest($1::text[]) as t (name)
cross join unnest(case
  when t.name in ('public.positions', 'processor.audit', 'processor.losses', 'processor.settings')
    then array['select', 'insert']
  when t.name in ('processor.assignments', 'processor.device_scans', 'processor.geofence_set', 'processor.geofences',
    'processor.incidents', 'processor.leader', 'processor.progress', 'processor.requests', 'processor.shards')
    then array['select', 'insert', 'update']
  when t.name = 'processor.timing_changes' then array['select', 'insert', 'delete']
  when t.name in ('processor.timing_feed', 'processor.timing_removed') then array['select']
  when t.name = 'processor.timing_shown' then '{}'
  else array['select', 'insert', 'update', 'delete']
end) as p (privilege)
where not has_schema_privilege(split_part(t.name, '.', 1), 'usage')
  or not has_table_privilege(to_regclass(t.name), p.privilege)
union all
select f.name, 'execute'
from (` + functionsSQL + `) as f (name, returns, body, oid)
where f.name = any ($2)
  and f.returns <> 'trigger'
  and not has_function_privilege(f.oid, 'execute')
order by 1, 2`

// checkPrivileges finds missing privileges before the first write fails.
func (r *Report) checkPrivileges(ctx context.Context, tx pgx.Tx, needed, live catalog) error {
	var tables []string
	for name := range live.Tables {
		if _, known := needed.Tables[name]; known {
			tables = append(tables, name)
		}
	}
	called := maps.Clone(needed.Functions)
	maps.DeleteFunc(called, func(name string, _ function) bool { return slices.Contains(superseded, name) })
	rows, err := tx.Query(ctx, privilegesSQL, tables, slices.Collect(maps.Keys(called)))
	if err != nil {
		return fmt.Errorf("read privileges: %w", err)
	}
	var table, privilege string
	_, err = pgx.ForEachRow(rows, []any{&table, &privilege}, func() error {
		r.problem("privilege", "on "+table, privilege, "not granted to this role")
		return nil
	})
	if err != nil {
		return fmt.Errorf("read privileges: %w", err)
	}
	var deletes bool
	err = tx.QueryRow(ctx, "select coalesce(has_table_privilege(to_regclass('public.positions'), 'delete'), true)").Scan(&deletes)
	if err != nil {
		return fmt.Errorf("read privileges: %w", err)
	}
	if !deletes {
		r.note("privilege", "on public.positions", "", "delete is not granted to this role: device erase is refused, and "+rowsStay)
	}
	return nil
}

// rowsStay is what follows where rows of positions cannot be deleted.
const rowsStay = "the first row of a device and time stays, also one that takes no part where a later record does"

// interferenceSQL finds what makes statements of this role do something else than
// they say: policies that hide or refuse rows, and rules that rewrite them.
const interferenceSQL = `
select t.name, 'row security', format('policies apply to role %s: %s', current_user,
  coalesce((select string_agg(p.polname, ', ' order by p.polname) from pg_policy p where p.polrelid = t.name::regclass), 'none, so no row is visible'))
from unnest($1::text[]) as t (name)
where to_regclass(t.name) is not null and row_security_active(t.name::regclass)
union all
select t.name, 'rule', r.rulename::text
from unnest($1::text[]) as t (name)
join pg_rewrite r on r.ev_class = to_regclass(t.name)
where r.ev_enabled <> 'D'
  and r.ev_type <> '1' -- for select: what a view is
order by 1, 2, 3`

// checkInterference finds policies and rules, under which nothing that the service
// reads or writes is certain.
func (r *Report) checkInterference(ctx context.Context, tx pgx.Tx, needed catalog) error {
	rows, err := tx.Query(ctx, interferenceSQL, slices.Sorted(maps.Keys(needed.Tables)))
	if err != nil {
		return fmt.Errorf("look for policies and rules: %w", err)
	}
	var table, kind, have string
	_, err = pgx.ForEachRow(rows, []any{&table, &kind, &have}, func() error {
		want := "none: drop the rule, or disable it"
		if kind == "row security" {
			want = "none: alter role … bypassrls, or alter table … disable row level security"
		}
		r.problem(kind, "on "+table, want, have)
		return nil
	})
	if err != nil {
		return fmt.Errorf("look for policies and rules: %w", err)
	}
	return nil
}

// replicaIdentitySQL finds publications that carry removals of positions where its
// heaps lack an identity: the server refuses every removal then.
const replicaIdentitySQL = `
with recursive heaps as (
  select to_regclass('public.positions')::oid as oid
  union all
  select i.inhrelid
  from heaps
  join pg_inherits i on i.inhparent = heaps.oid
)
select p.pubname, count(*), min(c.oid::regclass::text)
from pg_publication p
cross join heaps
join pg_class c on c.oid = heaps.oid and c.relkind = 'r'
where p.pubdelete
  and exists (
    select
    from pg_publication_tables t
    join heaps h on h.oid = to_regclass(format('%I.%I', t.schemaname, t.tablename))
    where t.pubname = p.pubname
  )
  and c.relreplident <> 'f'
  and not exists (
    select
    from pg_index i
    where i.indrelid = c.oid
      and (c.relreplident = 'd' and i.indisprimary or c.relreplident = 'i' and i.indisreplident)
  )
group by 1
order by 1`

// checkReplicaIdentity notes what would have an erasure refused.
func (r *Report) checkReplicaIdentity(ctx context.Context, tx pgx.Tx) error {
	rows, err := tx.Query(ctx, replicaIdentitySQL)
	if err != nil {
		return fmt.Errorf("read publications: %w", err)
	}
	var publication, example string
	var heaps int64
	_, err = pgx.ForEachRow(rows, []any{&publication, &heaps, &example}, func() error {
		have := fmt.Sprintf("none, and publication %s carries removals: device erase is refused, and %s; "+
			"alter table … replica identity using its unique index on (device_id, ts)", publication, rowsStay)
		if heaps > 1 {
			have = fmt.Sprintf("%s (and %d more)", have, heaps-1)
		}
		r.note("replica identity", "of "+example, "", have)
		return nil
	})
	if err != nil {
		return fmt.Errorf("read publications: %w", err)
	}
	return nil
}

// checkTriggers notes what can keep rows out of positions, or in them, wherever below it
// that is.
func (r *Report) checkTriggers(ctx context.Context, tx pgx.Tx) error {
	for _, c := range []struct {
		event int16
		runs  string
	}{
		{store.BeforeInsert, "runs before each insert: a row for which it returns null is not stored, and one that it changes is not what crossings are derived from"},
		{store.BeforeDelete, "runs before each delete: where it returns null or raises an error, device erase fails, and " + rowsStay},
	} {
		list, err := store.RowTriggers(ctx, tx, c.event)
		if err != nil {
			return fmt.Errorf("read triggers: %w", err)
		}
		for _, t := range list {
			have := c.runs
			if t.Table != "public.positions" && t.Tables > 1 {
				have = fmt.Sprintf("there and on %d more; %s", t.Tables-1, have)
			}
			r.note("trigger", t.Name+" on "+t.Table, "", have)
		}
	}
	return nil
}

// A probe calls a function that must reject the call. A body that accepts
// everything would let a stale owner commit.
type probe struct {
	function string
	sql      string
	code     string
}

var probes = []probe{
	{
		function: "processor.fence(text, text, integer[], bigint[], text)",
		sql:      `select processor.fence('', '', array[0], array[0::bigint], 'nobody')`,
		code:     store.CodeFenced,
	},
	{
		function: "processor.check_term(text, text, bigint, text)",
		sql:      `select processor.check_term('', '', 0::bigint, 'nobody')`,
		code:     store.CodeOldTerm,
	},
}

func (r *Report) probe(ctx context.Context, tx pgx.Tx, p probe) error {
	savepoint, err := tx.Begin(ctx)
	if err != nil {
		return fmt.Errorf("probe %s: %w", p.function, err)
	}
	_, err = savepoint.Exec(ctx, p.sql)
	if rollbackErr := savepoint.Rollback(ctx); rollbackErr != nil {
		return fmt.Errorf("probe %s: %w", p.function, errors.Join(err, rollbackErr))
	}
	var pg *pgconn.PgError
	switch {
	case err == nil:
		r.problem("function", p.function, "raises "+p.code+" for a shard or term that is not held", "lets it pass")
	case !errors.As(err, &pg):
		return fmt.Errorf("probe %s: %w", p.function, err)
	case pg.Code == p.code:
	case store.KindOf(pg) == protocol.Misconfigured:
		r.problem("function", p.function, "raises "+p.code+" for a shard or term that is not held", pg.Message)
	default:
		return fmt.Errorf("probe %s: %w", p.function, err)
	}
	return nil
}
