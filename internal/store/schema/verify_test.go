package schema_test

import (
	"context"
	"os/exec"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/store/schema"
)

func TestVerifyNamesEveryDamage(t *testing.T) {
	url := unmigrated(t)
	migrate(t, url)
	conn := connect(t, url)
	execute(t, conn, `insert into positions values ('d', now(), now(), 1, 1, 1, 1, 1, 1, 1, '8', '{}')`)
	var heap string // one of those that positions has in this world
	require.NoError(t, conn.QueryRow(t.Context(), `select tableoid::regclass from positions`).Scan(&heap))
	execute(t, conn, `delete from positions`)
	tests := []struct {
		give string   // damage
		want []string // parts of the problem
	}{
		{`drop table public.positions`, []string{"table public.positions", "missing"}},
		{`drop table processor.requests`, []string{"table processor.requests", "missing"}},
		{`drop schema processor cascade`, []string{"table processor.shards", "missing"}},
		{`update pg_class set relpersistence = 'u' where oid = '` + heap + `'::regclass`, []string{"table public.positions", "unlogged"}},
		{`alter table public.positions drop column faulty`, []string{"column public.positions.faulty", "missing", "boolean not null default false"}},
		{`alter table public.positions alter altitude type double precision`, []string{"column public.positions.altitude", "double precision not null; needed: real not null"}},
		{`alter table public.positions alter satellites type integer`, []string{"column public.positions.satellites", "integer"}},
		{`alter table public.positions alter codec type varchar(4)`, []string{"column public.positions.codec", "character varying(4)"}},
		{`alter table public.positions alter attributes drop not null`, []string{"column public.positions.attributes", "jsonb null; needed: jsonb not null"}},
		{`alter table public.positions alter faulty drop default`, []string{"column public.positions.faulty", "boolean not null; needed"}},
		{`alter table public.positions alter faulty set default true`, []string{"column public.positions.faulty", "boolean not null default true; needed: boolean not null default false"}},
		{`alter table public.positions add column owner_id uuid not null`, []string{"column public.positions.owner_id", "uuid not null"}},
		{`alter table processor.shards alter owner set not null`, []string{"column processor.shards.owner", "text not null; needed: text null"}},
		{`alter table processor.audit alter id drop identity`, []string{"column processor.audit.id", "identity"}},
		{`drop index public.positions_device_ts`, []string{"index on public.positions", "unique btree (device_id, ts)"}},
		{`drop index public.positions_ts`, []string{"index on public.positions", "btree (ts desc)"}},
		{
			`drop index public.positions_device_ts;
			create index positions_device_ts on public.positions (device_id, ts)`,
			[]string{"index on public.positions", "unique btree (device_id, ts)"},
		},
		{
			`drop index public.positions_device_ts;
			alter table public.positions add unique (device_id, ts) deferrable`,
			[]string{"index on public.positions", "unique btree (device_id, ts)"},
		},
		{
			`update pg_index set indisvalid = false where indexrelid = 'public.positions_ts'::regclass`,
			[]string{"index on public.positions", "btree (ts desc)", "invalid"},
		},
		{`alter table processor.shards drop constraint shards_pkey`, []string{"index on processor.shards", "unique btree (stream, group_name, shard)"}},
		{`drop trigger geofences_changed on processor.geofences`, []string{"trigger on processor.geofences", "geofences_changed"}},
		{`alter table processor.geofences disable trigger geofences_changed`, []string{"trigger on processor.geofences", "geofences_changed"}},
		{`drop view processor.timing_feed`, []string{"view processor.timing_feed", "missing"}},
		{`drop function processor.fence`, []string{"function processor.fence(text, text, integer[], bigint[], text)", "missing"}},
		{
			`create or replace function processor.fence(stream text, group_name text, shards integer[], epochs bigint[], owner text)
			returns void language sql as ''`,
			[]string{"function processor.fence", "lets it pass"},
		},
		{
			`create or replace function processor.check_term(stream text, group_name text, term bigint, member text)
			returns void language plpgsql as 'begin perform nonsense(); end'`,
			[]string{"function processor.check_term", "nonsense"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.give, func(t *testing.T) {
			tx, err := conn.Begin(t.Context())
			require.NoError(t, err)
			defer tx.Rollback(t.Context())
			_, err = tx.Exec(t.Context(), tt.give)
			require.NoError(t, err)

			report, err := schema.Verify(t.Context(), tx)
			require.NoError(t, err)
			err = report.Err()
			require.ErrorIs(t, err, schema.ErrSchema)
			for _, part := range tt.want {
				require.ErrorContains(t, err, part)
			}
		})
	}
	report, err := schema.Verify(t.Context(), conn)
	require.NoError(t, err)
	require.NoError(t, report.Err(), "the damage was not rolled back")
	require.Empty(t, report.Notes)
}

func TestVerifyAcceptsANewerSchema(t *testing.T) {
	url := unmigrated(t)
	migrate(t, url)
	conn := connect(t, url)
	execute(t, conn, `
alter table public.positions add column hdop real;
alter table processor.shards add column weight integer not null default 1;
create table processor.splits (id bigint primary key);
create index positions_codec on public.positions (codec);
drop index public.positions_faulty_idx;
create function processor.later() returns void language sql as '';
drop function processor.expire(text, text, interval, text);
insert into processor.goose_db_version (version_id, is_applied) values (99, true)`)

	require.Empty(t, migrate(t, url), "a newer schema is left alone")
	report, err := schema.VerifyURL(t.Context(), url)
	require.NoError(t, err)
	require.NoError(t, report.Err())
	notes := make([]string, 0, len(report.Notes))
	for _, n := range report.Notes {
		notes = append(notes, n.String())
	}
	require.ElementsMatch(t, []string{
		"column processor.shards.weight: extra, integer not null with a default",
		"column public.positions.hdop: extra, real null",
		"index on public.positions: without btree (device_id, ts desc) where (faulty = false), which only other readers of the table use",
		"index on public.positions: extra, btree (codec)",
		"table processor.splits: extra",
		"function processor.expire(text, text, interval, text): missing, which only instances of earlier releases call",
		"function processor.later(): extra",
		"migration 99: applied by a newer binary",
	}, notes)
}

func TestVerifyNamesMissingPrivileges(t *testing.T) {
	url := unmigrated(t)
	migrate(t, url)
	conn := connect(t, url)
	tx, err := conn.Begin(t.Context())
	require.NoError(t, err)
	defer tx.Rollback(t.Context())
	_, err = tx.Exec(t.Context(), `
create role verify_writer;
grant usage on schema processor to verify_writer;
grant select, insert, update, delete on all tables in schema processor to verify_writer;
revoke update on processor.shards from verify_writer;
grant select on public.positions to verify_writer;
set local role verify_writer`)
	require.NoError(t, err)
	report, err := schema.Verify(t.Context(), tx)
	require.NoError(t, err)
	want := schema.Finding{
		Kind: "privilege", Name: "on public.positions", Want: "insert", Have: "not granted to this role",
	}
	require.Contains(t, report.Problems, want)
	want.Name, want.Want = "on processor.shards", "update"
	require.Contains(t, report.Problems, want)
}

// Whatever deploy/security/postgres.sql grants the service needs, or the release before it did.
func TestVerifyNamesEachGrantThatIsMissing(t *testing.T) {
	if _, err := exec.LookPath("psql"); err != nil {
		t.Skip("SKIPPED: psql is not installed, so deploy/security/postgres.sql was not tried")
	}
	url := unmigrated(t)
	migrate(t, url)
	conn := connect(t, url)
	execute(t, conn, `create role verify_least`)
	t.Cleanup(func() {
		out, err := exec.CommandContext(context.Background(), "psql", url, "-Xqc", "drop owned by verify_least; drop role verify_least").CombinedOutput()
		require.NoError(t, err, string(out))
	})
	out, err := exec.CommandContext(t.Context(), "psql", url, "-Xq", "-v", "role=verify_least", "-f", "../../../deploy/security/postgres.sql").CombinedOutput()
	require.NoError(t, err, string(out))
	without := func(revoke string) (schema.Report, error) {
		tx, err := conn.Begin(t.Context())
		require.NoError(t, err)
		defer tx.Rollback(t.Context())
		_, err = tx.Exec(t.Context(), revoke+"; set local role verify_least")
		require.NoError(t, err)
		return schema.Verify(t.Context(), tx)
	}
	report, err := without("")
	require.NoError(t, err)
	require.NoError(t, report.Err())
	require.Empty(t, report.Notes)

	rows, err := conn.Query(t.Context(), `
select format('%s.%s', c.relnamespace::regnamespace, c.relname), '', lower(a.privilege_type)
from pg_class c
cross join aclexplode(c.relacl) a
where a.grantee = 'verify_least'::regrole
  and c.relnamespace in ('processor'::regnamespace, 'public'::regnamespace)
union all
select format('%s.%s(%s)', p.pronamespace::regnamespace, p.proname, oidvectortypes(p.proargtypes)), 'function ', lower(a.privilege_type)
from pg_proc p
cross join aclexplode(p.proacl) a
where a.grantee = 'verify_least'::regrole`)
	require.NoError(t, err)
	type grant struct{ On, Kind, Privilege string }
	grants, err := pgx.CollectRows(rows, pgx.RowToStructByPos[grant])
	require.NoError(t, err)
	require.NotEmpty(t, grants)
	for _, g := range grants {
		report, err := without("revoke " + g.Privilege + " on " + g.Kind + g.On + " from verify_least")
		switch g {
		case grant{"processor.goose_db_version", "", "select"}:
			require.ErrorContains(t, err, "permission denied")
			continue
		case grant{"public.positions", "", "delete"}:
			require.NoError(t, err)
			require.Len(t, report.Notes, 1)
			require.NoError(t, report.Err())
			continue
		case grant{"processor.expire(text, text, interval, text)", "function ", "execute"},
			grant{"processor.expire_conflicts(text, text, interval)", "function ", "execute"},
			grant{"processor.expire_timing_changes(interval)", "function ", "execute"}:
			require.NoError(t, err)
			require.NoError(t, report.Err())
			continue
		}
		require.NoError(t, err)
		require.Contains(t, report.Problems, schema.Finding{Kind: "privilege", Name: "on " + g.On, Want: g.Privilege, Have: "not granted to this role"})
	}
}

func TestVerifyNamesPoliciesAndRules(t *testing.T) {
	url := unmigrated(t)
	migrate(t, url)
	conn := connect(t, url)
	const writer = `
create role verify_writer;
grant usage on schema processor to verify_writer;
grant all on all tables in schema processor to verify_writer;
grant execute on all functions in schema processor to verify_writer;
grant all on public.positions to verify_writer;`
	const become = `; set local role verify_writer`
	for damage, want := range map[string]string{
		`alter table public.positions enable row level security;
			create policy own_rows on public.positions using (device_id like 'a%')`: "row security on public.positions: policies apply to role verify_writer: own_rows",
		`alter table public.positions enable row level security`:                 "row security on public.positions: policies apply to role verify_writer: none, so no row is visible",
		`alter table processor.shards enable row level security`:                 "row security on processor.shards",
		`create rule quiet as on insert to public.positions do instead nothing`:  "rule on public.positions: quiet",
		`create rule mirror as on delete to processor.requests do also select 1`: "rule on processor.requests: mirror",
	} {
		tx, err := conn.Begin(t.Context())
		require.NoError(t, err)
		_, err = tx.Exec(t.Context(), writer+damage+become)
		if err != nil && strings.Contains(err.Error(), "do not support rules") { // a hypertable takes care of itself
			require.NoError(t, tx.Rollback(t.Context()))
			continue
		}
		require.NoError(t, err)
		report, err := schema.Verify(t.Context(), tx)
		require.NoError(t, err)
		require.ErrorContains(t, report.Err(), want)
		require.Len(t, report.Problems, 1)
		require.NoError(t, tx.Rollback(t.Context()))
	}
	// Nothing that does not concern the role.
	tx, err := conn.Begin(t.Context())
	require.NoError(t, err)
	defer tx.Rollback(t.Context())
	_, err = tx.Exec(t.Context(), writer+`alter role verify_writer bypassrls;
alter table public.positions enable row level security;
create rule quiet as on insert to processor.requests do instead nothing;
alter table processor.requests disable rule quiet`+become)
	require.NoError(t, err)
	report, err := schema.Verify(t.Context(), tx)
	require.NoError(t, err)
	require.NoError(t, report.Err())
}

func TestVerifyChangesNothing(t *testing.T) {
	url := emptyDatabase(t)
	report, err := schema.VerifyURL(t.Context(), url)
	require.NoError(t, err)
	require.False(t, report.OK())
	var made bool
	require.NoError(t, connect(t, url).QueryRow(t.Context(),
		`select to_regnamespace('processor') is not null or to_regclass('public.positions') is not null`).Scan(&made))
	require.False(t, made)
}
